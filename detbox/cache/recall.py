"""Finds the stored result of an execution inside of a run: its facts are compared with the guest's files."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from detbox.cache import facts
from detbox.cache.execution import numbers_of, seen_by_guest
from detbox.cache.summary import data_of

if TYPE_CHECKING:
    from detbox.cache.execution import Execution
    from detbox.cache.nested import Nested
    from detbox.supervisor.task import Task

FORMAT = 1
_KIND, _SIZE, _CONTENT, _LISTING, _XATTRS, _PYTIME, _IDENTITY, _TIMES, _NUMBERED = range(9)
_NAMES = ("kind", "size", "content", "list of entries", "attributes", "time of its compiled file", "inode or owner",
          "times", "inodes of its entries")  # fmt: skip


@dataclass
class Record:
    """The result of one execution.

    ``facts``: by canonical path, the observed aspects and a row of :class:`~detbox.cache.facts.Fact`.  ``changes``:
    as in ``summary``, each with the guest's view of the inode.  ``marks``: aspects that it has changed, by path.
    ``numbered``: inode numbers that it has given to others' files, in order: ``[path or descriptor, number]``.
    ``positions``: of inherited files, by descriptor.  The rest are the values that the run's counters have at its end.
    """

    key: str
    facts: dict[str, tuple[int, list[Any]]]
    changes: list[dict[str, Any]]
    marks: dict[str, int]
    numbered: list[tuple[str | int, int]]
    output: str
    turns: list[list[int]]
    positions: list[tuple[int, int]]
    status: int
    clock: int
    next_inode: int
    last_process: int
    cpu_ns: int
    children_ns: int
    format: int = FORMAT
    facts_text: str = ""  # the facts of a new result, as JSON

    def to_bytes(self) -> bytes:
        """For the store."""
        rest = {name: value for name, value in vars(self).items() if name not in ("facts", "facts_text")}
        text = json.dumps(rest, separators=(",", ":"))
        return zlib.compress(f'{text[:-1]},"facts":{self.facts_text}}}'.encode(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record | None:
        """The inverse; None if it is not one, or of another format."""
        try:
            raw = json.loads(zlib.decompress(data))
            return cls(**raw) if raw.get("format") == FORMAT else None
        except (ValueError, TypeError, AttributeError, zlib.error):
            return None

    def blobs(self) -> list[str]:
        """Every blob that the result needs."""
        found = [self.output] if self.output else []
        return found + [change["blob"] for change in self.changes if change.get("blob")]


class Recall:
    """Looks results up for one run."""

    def __init__(self, nested: Nested) -> None:
        self._nested = nested
        self._m = nested.m
        self._untouched: dict[str, _Seen] = {}

    def find(self, t: Task, mine: Execution) -> Record | None:
        """The result of the execution, if one fits; it has then been put in place.  Otherwise says why not."""
        nested = self._nested
        for data in nested.store.candidates(mine.key):
            record = Record.from_bytes(data)
            if record is None:
                continue
            why = self._first_change(record)
            if why is None:
                deadline = self._m.clock.next_deadline()
                if deadline is not None and deadline <= record.clock:
                    why = "a timer expires meanwhile"
            if why is None and not nested.effects.apply(t, mine, record, nested.observed):
                why = "the result could not be put in place"
            if why is None:
                nested.files.move(t, record.positions)
                return record
            mine.why = mine.why or why
        mine.why = mine.why or "not run before with these arguments, this environment, and at this point of the run"
        return None

    def _first_change(self, record: Record) -> str | None:
        changed = self._nested.tracker.root.changed
        for path, (_, row) in record.facts.items():
            seen = self._untouched.get(path)
            if seen is None:
                place = data_of(path)
                seen = _Seen(self._nested, place)
                if place not in changed:
                    self._untouched[path] = seen
            elif seen.path in changed:
                del self._untouched[path]
                seen = _Seen(self._nested, seen.path)
            for aspect, expected in enumerate(row):
                if expected is not None and seen.aspect(aspect) != expected:
                    has_content = len(row) > _CONTENT and row[_CONTENT] is not None
                    return f"{path}: {_NAMES[_CONTENT if aspect == _SIZE and has_content else aspect]}"
        return None


class _Seen:
    """The present state of a path; what the host has made does not change during a run."""

    def __init__(self, nested: Nested, path: bytes) -> None:
        self.path = path
        self._inodes = nested.m.inodes
        kind, self._st = facts.kind_of(path)
        owner = nested.tracker.owner
        if owner is not None and self._st is not None:
            kind += owner(path, self._st)
        self._known: dict[int, Any] = {_KIND: kind}

    def aspect(self, which: int) -> Any:
        """The value of one aspect, as a fact's row has it."""
        if which >= _IDENTITY:
            return self._by_guest(which)
        if which not in self._known:
            self._known[which] = _LOOKS[which](self.path, self._st)
        return self._known[which]

    def _by_guest(self, which: int) -> Any:
        if self._st is None:
            return None
        if which == _NUMBERED:
            try:
                names = [name for name, _ in facts.entries_of(self.path)]
                return facts.numbered_listing(numbers_of(self._inodes, self.path, names))
            except OSError:
                return None
        return seen_by_guest(self._inodes, self._st)[which - _IDENTITY]


def _size(path: bytes, st: os.stat_result | None) -> int | None:
    return st.st_size if st is not None else None


def _listing(path: bytes, st: os.stat_result | None) -> str | None:
    try:
        return facts.listing_of(facts.entries_of(path))
    except OSError:
        return None


_LOOKS: dict[int, Callable[[bytes, os.stat_result | None], Any]] = {
    _SIZE: _size,
    _CONTENT: lambda path, st: facts.content_of(path),
    _LISTING: _listing,
    _XATTRS: lambda path, st: facts.xattrs_digest(path),
    _PYTIME: lambda path, st: facts.python_time(path, st.st_size if st is not None else 0),
}
