"""Finds the stored result of an execution inside of a run: its facts are compared with the guest's files."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from detbox.cache import facts, pipes
from detbox.cache.execution import Listed, numbers_of, seen_by_guest
from detbox.cache.summary import data_of, text

if TYPE_CHECKING:
    from detbox.cache.execution import Execution
    from detbox.cache.nested import Nested
    from detbox.machine.inodes import InodeTable, VInode
    from detbox.supervisor.task import Task

FORMAT = 4
#: Fields of a result that do not tell what it left.
CIRCUMSTANCES = ("facts", "format", "key", "pipes", "turns_taken", "jumps")
_KIND, _SIZE, _CONTENT, _LISTING, _XATTRS, _PYTIME, _IDENTITY, _TIMES, _NUMBERED = range(9)
_NAMES = ("kind", "size", "content", "list of entries", "attributes", "time of its compiled file", "inode or owner",
          "times", "inodes of its entries")  # fmt: skip


@dataclass
class Record:
    """The result of one execution.

    ``facts``: lines, see :func:`parsed`; results have most of them in common.  ``changes``: as in ``summary``,
    each with the guest's view of the inode.  ``marks``: aspects that it has changed, by path.
    ``numbered``: inode numbers that it has given to others' files, in order: ``[path or descriptor, number]``.
    ``positions``: of inherited files, by descriptor.  ``turns_taken``: of the scheduler; ``jumps``: whether nobody
    was ready meanwhile.  ``pipes``, ``moves``: see ``cache.pipes``; ``moved``: the blob of what was written.
    ``flags``: of the standard streams, as it has left them.
    The rest are the values that the run's counters have at its end.
    """

    key: str
    facts: list[str]
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
    turns_taken: int
    jumps: bool
    pipes: list[list[Any]]
    moves: list[tuple[int, int]]
    moved: str
    flags: list[tuple[int, int]]
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """For the store."""
        rest = {name: value for name, value in vars(self).items() if name != "facts"}
        return zlib.compress("\n".join((json.dumps(rest, separators=(",", ":")), *self.facts)).encode(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record | None:
        """The inverse; None if it is not one, or of another format."""
        try:
            head, *rows = zlib.decompress(data).decode().split("\n")
            raw = json.loads(head)
            return cls(**raw, facts=rows) if raw.get("format") == FORMAT else None
        except (ValueError, TypeError, AttributeError, zlib.error):
            return None

    def blobs(self) -> list[str]:
        """Every blob that the result needs."""
        return [digest for digest, _ in self.sized_blobs()]

    def changed_paths(self) -> list[str]:
        """Every path that it changes."""
        return [change[name] for change in self.changes for name in ("path", "to") if name in change]

    def sized_blobs(self) -> list[tuple[str, int]]:
        """Every blob that the result needs, with its size in bytes."""
        written = sum(count for _, count in self.moves if count > 0)
        found = [(self.output, sum(size for _, size in self.turns)), (self.moved, written)]
        found += [(change["blob"], change["size"]) for change in self.changes if change.get("blob")]
        return [(digest, size) for digest, size in found if digest]


class Recall:
    """Looks results up for one run."""

    def __init__(self, nested: Nested) -> None:
        self._nested = nested
        self._m = nested.m
        self._untouched: dict[bytes, _Seen] = {}
        self._held: dict[str, _Held] = {}
        self._nothing = nested.store.is_empty()  # what others enter meanwhile is left to the next run

    def find(self, t: Task, mine: Execution) -> Record | None:
        """The result of the execution, if one fits.  Otherwise says why not."""
        nested = self._nested
        for data in nested.store.candidates(mine.key) if not self._nothing else ():
            record = Record.from_bytes(data)
            if record is None:
                continue
            why = self._first_change(record) or self._disturbance(t, mine, record)
            if why is None:
                nested.used.append((mine.key, data))
                return record
            mine.why = mine.why or why
        mine.why = mine.why or "not run before with these arguments, this environment, and at this point of the run"
        return None

    def _disturbance(self, t: Task, mine: Execution, record: Record) -> str | None:
        """What others would have done meanwhile, or would do with its pipes."""
        if record.clock < self._m.clock.now or record.next_inode < self._m.inodes.next_number:
            return "the result is of another time"
        deadline = self._m.clock.next_deadline()
        if deadline is not None and deadline <= record.clock:
            return "a timer expires meanwhile"
        if not self._m.scheduler.undisturbed(t, record.turns_taken, record.jumps):
            return "others would run meanwhile"
        return pipes.first_change(t, mine, record.pipes, self._nested.reach.odd_pipes)

    def _first_change(self, record: Record) -> str | None:
        changed, table = self._nested.tracker.root.changed, self._m.inodes.table
        for line in record.facts:
            held = self._held.get(line)
            if held is None or held.path in changed or held.is_other(table):
                why = self._look(line)
                if why is not None:
                    return why
        return None

    def _look(self, line: str) -> str | None:
        """What is not as the fact has it; one that holds is remembered as long as nobody changes its path."""
        try:
            path, _, row = parsed(line)
        except (ValueError, TypeError):
            return "the result is damaged"
        changed = path in self._nested.tracker.root.changed
        seen = self._untouched.get(path)
        if seen is None or changed:
            seen = _Seen(self._nested, path)
            if not changed:
                self._untouched[path] = seen
        for aspect, expected in enumerate(row):
            if expected is not None and seen.aspect(aspect) != expected:
                has_content = len(row) > _CONTENT and row[_CONTENT] is not None
                return f"{text(path)}: {_NAMES[_CONTENT if aspect == _SIZE and has_content else aspect]}"
        if not changed and len(row) <= _NUMBERED:
            self._held[line] = seen.held(by_guest=len(row) > _IDENTITY)
        return None


@lru_cache(1 << 16)
def parsed(line: str) -> tuple[bytes, int, list[Any]]:
    """Canonical path, observed aspects, and row of a fact of a :class:`Record`.  Raises ValueError, TypeError."""
    path, aspects, row = json.loads(line)
    return data_of(path), aspects, row


@dataclass(slots=True)
class _Held:
    """What a fact that holds depends on: a path, and the inode and times that the guest sees there, if they count."""

    path: bytes
    place: tuple[int, int] | None
    entry: VInode | None
    times: bytes

    def is_other(self, table: dict[tuple[int, int], VInode]) -> bool:
        """Whether the guest sees something else by now."""
        if self.place is None:
            return False
        entry = table.get(self.place)
        return entry is not self.entry or (entry is not None and entry.times is not self.times)


@dataclass(slots=True)
class _Numbers:
    """The guest's inode numbers in a directory, until one of its entries gets another: directories can be large."""

    listed: Listed
    places: frozenset[tuple[int, int]]
    position: int  # in the log of new inodes
    digest: str

    @classmethod
    def of(cls, inodes: InodeTable, listed: Listed) -> _Numbers:
        places = frozenset(place for _, place, _ in listed.values())
        return cls(listed, places, len(inodes.log or ()), facts.numbered_listing(numbers_of(inodes, listed)))

    def hold(self, inodes: InodeTable, listed: Listed) -> bool:
        """Whether nothing has changed since."""
        if listed is not self.listed or inodes.log is None:
            return False
        start, self.position = self.position, len(inodes.log)
        return all(entry.key not in self.places for entry in inodes.log[start:])


class _Seen:
    """The present state of a path; what the host has made does not change during a run."""

    def __init__(self, nested: Nested, path: bytes) -> None:
        self.path = path
        self._inodes, self._ledger = nested.m.inodes, nested.tracker.ledger
        self._numbers: _Numbers | None = None
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

    def held(self, *, by_guest: bool) -> _Held:
        """To be asked later; ``by_guest``: whether inode and times count."""
        if self._st is None or not by_guest:
            return _Held(self.path, None, None, b"")
        place = (self._st.st_dev, self._st.st_ino)
        entry = self._inodes.table.get(place)
        return _Held(self.path, place, entry, entry.times if entry is not None else b"")

    def _by_guest(self, which: int) -> Any:
        if self._st is None:
            return None
        if which == _NUMBERED:
            try:
                listed = self._ledger.listed(self.path)
            except OSError:
                return None
            if self._numbers is None or not self._numbers.hold(self._inodes, listed):
                self._numbers = _Numbers.of(self._inodes, listed)
            return self._numbers.digest
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
    _PYTIME: facts.python_time,
}
