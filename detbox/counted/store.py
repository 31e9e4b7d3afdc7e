"""The copies of one address space's code: made when they are first needed, and led from one to the next.

See :mod:`detbox.counted.translate` for what a copy is.  All of them, and the slots and the table that they use, lie in
one piece of memory of the guest's that this module writes through a :class:`Memory`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from functools import partial
from typing import Protocol

from detbox.counted import slots
from detbox.counted.slots import COUNTER, LOOKUP, TABLE, TARGET
from detbox.counted.translate import AFTER_CALL, CALL_WEIGHT, LONGEST, Copy, Exit, Mark
from detbox.kernel import _native
from detbox.machine.constants import COPIES

#: Where the memory is in every process, and its size.
PLACE, SIZE = COPIES[0], COPIES[1] - COPIES[0]
_TABLE, _PAIRS, _SPARE = 0x10000, 1 << 16, 1 << 12
_CODE = 0x200000
_BATCH = 1 << 20  # more than the copies take that are made at once
_PAGE = 4096
_WORD, _PAIR, _COUNT = struct.Struct("<Q"), struct.Struct("<QQ"), struct.Struct("<q")


class Memory(Protocol):
    """A stopped thread's memory."""

    def read(self, address: int, length: int) -> bytes:
        """OSError(EFAULT)."""

    def write(self, address: int, data: bytes) -> None:
        """OSError(EFAULT)."""

    def write_all(self, pieces: list[tuple[int, bytes]]) -> None:
        """Write the second of each pair to the first: OSError(EFAULT)."""


class Copies:
    """``executable()``: the (start, end) of the mappings whose code cannot change.

    ``pages``: the pages of code that others have, by themselves; each is kept once.
    """

    def __init__(
        self,
        executable: Callable[[], list[tuple[int, int]]],
        pages: dict[bytes, bytes] | None = None,
    ) -> None:
        self._executable = executable
        self._kept = (pages if pages is not None else {}).setdefault
        self.made = 0
        #: Whether the code may be another one since it was copied (see :meth:`check`).
        self.suspect = False
        # All copies in the order of their places: where they begin, and what is known of them (see Copy).
        self._places: list[int] = []
        self._made: list[tuple[int, int, bytes, bytes]] = []
        self._next = PLACE + _CODE
        self._plain = 0  # how far the plain entry of each copy is behind the counted one
        self._missed = 0
        self._begin()

    def _begin(self) -> None:
        self._copies: dict[int, int] = {}  # where the copy of an address is
        # Jumps to what has no copy: twice the place of the distance, and 1 if they go to the counted entry.
        self._waiting: dict[int, tuple[int, ...]] = {}
        self._pages: dict[int, bytes] = {}
        self._ranges: list[tuple[int, int]] = []
        self._elsewhere: set[int] = set()  # pages that are in none of them
        self._table: dict[int, int] = {}
        self._prepared = False

    def forget(self, memory: Memory) -> None:
        """Make all copies anew.  What has been made stays, since threads may be in it, but leads nowhere."""
        for index in self._table:
            memory.write(PLACE + _TABLE + 16 * index, bytes(16))
        self._begin()
        self._prepared = self._missed > 0

    def inherited(self, executable: Callable[[], list[tuple[int, int]]]) -> Copies:
        """The same for a child process that has a copy of the memory.

        What the tables hold does not change, so that only they themselves are copied: 2 MB for a large program.
        """
        child = Copies(executable)
        for name, value in vars(self).items():
            if isinstance(value, (dict, list, set)):
                setattr(child, name, value.copy())
            elif name != "_executable":
                setattr(child, name, value)
        return child

    @property
    def full(self) -> bool:
        """Whether there is no room for more copies."""
        return self._next + _BATCH > PLACE + SIZE

    def check(self, memory: Memory) -> bool:
        """Whether the code is what it was when it was copied; otherwise the copies are forgotten."""
        self.suspect = False
        self._elsewhere.clear()
        same = self._same(memory)
        if not same:
            self.forget(memory)
        return same

    def _same(self, memory: Memory) -> bool:
        now = self._executable()
        if not all(any(first <= start and end <= last for first, last in now) for start, end in self._ranges):
            return False
        try:
            return all(memory.read(page, _PAGE) == held for page, held in self._pages.items())
        except OSError:
            return False

    @staticmethod
    def inside(address: int) -> bool:
        """Whether an address lies in the copies' memory."""
        return PLACE <= address < PLACE + SIZE

    # -- where to go -------------------------------------------------------------------

    def entry(self, memory: Memory, address: int, *, counted: bool = True, ahead: int = 0) -> int | None:
        """The copy of the code at an address; None if its first instruction has to be executed where it is.

        If it is made, so are up to ``ahead`` others that may follow.
        """
        at = self._copies.get(address)
        if at is None:
            at = self._make(memory, address, ahead)
            if at is None:
                return None
        return at + (0 if counted else self._plain)

    def exit(self, memory: Memory, address: int) -> Exit | None:
        """Why a copy's breakpoint has stopped the thread, by the address behind it; None: there is none."""
        if address == self._missed:
            target: int = _WORD.unpack(memory.read(PLACE + TARGET, 8))[0]
            return Exit("computed", target, counted=True)
        # The next copy may begin behind the last breakpoint of one.
        index = self._index(address - 1)
        return Copy(*self._made[index]).exits.get(address - self._places[index]) if index >= 0 else None

    def follow(self, memory: Memory, address: int, why: Exit, *, ahead: int = 0) -> int | None:
        """Where a thread goes on that stopped at an exit; the next one that comes there does not stop."""
        entry = self.entry(memory, why.target, counted=why.counted, ahead=ahead)
        if entry is None:
            return None
        if why.why == "computed":
            memory.write(*self._pair(why.target, entry))
        else:
            self._lead(memory, self._places[self._index(address - 1)] + why.patch, entry)
        return entry

    def _index(self, address: int) -> int:
        """Of the copy that an address lies in; -1: it lies before all of them."""
        return bisect_right(self._places, address) - 1

    def original(self, address: int) -> Mark | None:
        """What the program is about to execute at an address in a copy, if it is between two instructions there."""
        index = self._index(address)
        if index < 0:
            return None
        copy = Copy(*self._made[index])
        offset = address - copy.at
        if not offset:
            return Mark(0, copy.address, None, 0)
        return next((mark for mark in copy.marks if mark.offset == offset), None)

    # -- the counter -------------------------------------------------------------------

    @staticmethod
    def left(memory: Memory) -> int:
        """How many instructions may still be counted."""
        left: int = _COUNT.unpack(memory.read(PLACE + COUNTER, 8))[0]
        return left

    @staticmethod
    def set_left(memory: Memory, left: int) -> None:
        """Set it."""
        memory.write(PLACE + COUNTER, _COUNT.pack(left))

    @staticmethod
    def put_aside(memory: Memory, mark: Mark) -> int:
        """What the program has in the register that is put aside at a mark."""
        if mark.slot == AFTER_CALL:
            return mark.address
        value: int = _WORD.unpack(memory.read(PLACE + mark.slot, 8))[0]
        return value

    # -- making -------------------------------------------------------------------------

    def _prepare(self, memory: Memory) -> None:
        code, missed = slots.lookup(PLACE + LOOKUP, PLACE)
        memory.write(PLACE + LOOKUP, code)
        memory.write(PLACE + TABLE, _WORD.pack(PLACE + _TABLE))
        self._missed = PLACE + LOOKUP + missed
        self._prepared = True

    def _make(self, memory: Memory, address: int, ahead: int) -> int | None:
        """Make the copy of an address, and up to ``ahead`` others of where it may lead; where it is."""
        if self.full:
            return None
        if not self._prepared:
            self._prepare(memory)
        text, made, leads, backs, plain = _native.make_copies(
            partial(self._code, memory), self._pages, self._copies, self._waiting,
            address, self._next, PLACE, CALL_WEIGHT, ahead,
        )  # fmt: skip
        if not made:
            return None
        self._plain = plain
        memory.write_all([(self._next, text), *leads, *(self._pair(*back) for back in backs)])
        self._places += [copy[1] for copy in made]
        self._made += made
        self._next += len(text)
        self.made += len(made)
        return self._copies.get(address)

    @staticmethod
    def _lead(memory: Memory, at: int, entry: int) -> None:
        """Have the jump whose distance is at an address lead to a copy."""
        memory.write(at, struct.pack("<i", entry - (at + 4)))

    def _code(self, memory: Memory, address: int) -> bytes:
        """Up to LONGEST bytes from an address on, as far as they cannot change."""
        first = address - address % _PAGE
        if first in self._elsewhere:
            return b""
        around = self._around(address)
        if around is None:
            self._ranges = self._executable()
            around = self._around(address)
            if around is None:
                self._elsewhere.add(first)
                return b""
        last = min(address + LONGEST, around[1])
        pages = []
        for page in range(first, last, _PAGE):
            if page not in self._pages:
                held = memory.read(page, _PAGE)
                self._pages[page] = self._kept(held, held)
            pages.append(self._pages[page])
        return b"".join(pages)[address - first : last - first]

    def _around(self, address: int) -> tuple[int, int] | None:
        return next((each for each in self._ranges if each[0] <= address < each[1]), None)

    def _pair(self, address: int, entry: int) -> tuple[int, bytes]:
        """Where a pair has its place in the table of computed targets, and the pair."""
        index = address & _PAIRS - 1
        while index in self._table and index < _PAIRS + _SPARE - 2:
            index += 1
        # The last pair but one is overwritten again and again; behind it there is always an empty one.
        self._table[index] = address
        return PLACE + _TABLE + 16 * index, _PAIR.pack(address, entry)
