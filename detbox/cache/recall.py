"""Finds the stored result of an execution inside of a run: its facts are compared with the guest's files."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from detbox.cache import facts, pipes
from detbox.cache.common import Held, parsed
from detbox.cache.execution import Listed, numbers_of, seen_by_guest
from detbox.cache.nearest import UNKNOWN
from detbox.cache.record import Record, Stored
from detbox.cache.summary import text
from detbox.records import record

if TYPE_CHECKING:
    from detbox.cache.execution import Execution
    from detbox.cache.nested import Nested
    from detbox.machine.inodes import InodeTable
    from detbox.supervisor.task import Task

_KIND, _SIZE, _CONTENT, _LISTING, _XATTRS, _PYTIME, _IDENTITY, _TIMES, _NUMBERED = range(9)
_NAMES = ("kind", "size", "content", "list of entries", "attributes", "time of its compiled file", "inode or owner",
          "times", "inodes of its entries")  # fmt: skip


class Recall:
    """Looks results up for one run."""

    def __init__(self, nested: Nested) -> None:
        self._nested = nested
        self._m = nested.m
        self._untouched: dict[bytes, _Seen] = {}
        self._held: dict[str, Held] = {}
        self._wrong: dict[str, str] = {}  # lines that did not hold, and why: the results of other runs have them, too
        self._nothing = nested.store.is_empty()  # what others enter meanwhile is left to the next run

    def find(self, t: Task, mine: Execution) -> Record | None:
        """The result of the execution, if one fits.  Otherwise says why not."""
        nested = self._nested
        for data in nested.store.candidates(mine.key) if not self._nothing else ():
            stored = Stored.from_bytes(data)
            if stored is None:
                continue
            why = self._first_change(stored)
            record = stored.record() if why is None else None
            if record is not None:
                why = self._disturbance(t, mine, record)
                if why is None:
                    nested.used.append((mine.key, data))
                    return record
            mine.why = mine.why or why or "the result is damaged"
        mine.why = mine.why or UNKNOWN
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

    def _first_change(self, stored: Stored) -> str | None:
        for line in sorted(self._wrong.keys() & stored.facts):
            if self._look(line) is not None:
                return self._wrong[line]
        why = self._first_of(stored.facts)
        if why is not None or not stored.common[0]:
            return why
        block = self._nested.common.block(stored.common[0])
        if block is None:
            return "what the result depends on is lost"
        lines = block.to_look_at(self._nested.tracker.root.changed, self._m.inodes.table)
        why = self._first_of(lines)
        if why is None and lines is block.lines:
            block.hold(self._held)
        return why

    def _first_of(self, lines: Iterable[str]) -> str | None:
        changed, table = self._nested.tracker.root.changed, self._m.inodes.table
        for line in lines:
            held = self._held.get(line)
            if held is None or held.path in changed or held.is_other(table):
                why = self._look(line)
                if why is not None:
                    self._wrong[line] = why
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


@record
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
        self._contents = nested.contents
        self._numbers: _Numbers | None = None
        kind, self._st = self._ledger.status(path)
        self._known: dict[int, Any] = {_KIND: kind}

    def aspect(self, which: int) -> Any:
        """The value of one aspect, as a fact's row has it."""
        if which >= _IDENTITY:
            return self._by_guest(which)
        if which not in self._known:
            look = self._contents.of if which == _CONTENT else _LOOKS[which]
            self._known[which] = look(self.path, self._st)
        return self._known[which]

    def held(self, *, by_guest: bool) -> Held:
        """To be asked later; ``by_guest``: whether inode and times count."""
        if self._st is None or not by_guest:
            return Held(self.path, None, None, b"")
        place = (self._st.st_dev, self._st.st_ino)
        entry = self._inodes.table.get(place)
        return Held(self.path, place, entry, entry.times if entry is not None else b"")

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
        return seen_by_guest(self._inodes, self.path, self._st)[which - _IDENTITY]


def _size(path: bytes, st: os.stat_result | None) -> int | None:
    return st.st_size if st is not None else None


def _listing(path: bytes, st: os.stat_result | None) -> str | None:
    try:
        return facts.listing_of(facts.entries_of(path))
    except OSError:
        return None


_LOOKS: dict[int, Callable[[bytes, os.stat_result | None], Any]] = {
    _SIZE: _size,
    _LISTING: _listing,
    _XATTRS: lambda path, st: facts.xattrs_digest(path),
    _PYTIME: facts.python_time,
}
