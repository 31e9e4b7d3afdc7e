"""The copies of one address space's code: made when they are first needed, and led from one to the next.

See :mod:`detbox.counted.translate` for what a copy is.  All of them, and the slots and the table that they use, lie in
one piece of memory of the guest's that this module writes through a :class:`Memory`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Callable
from typing import Protocol

from detbox.counted import translate
from detbox.counted.translate import COUNTER, LONGEST, LOOKUP, TABLE, TARGET, Copy, Exit, Mark
from detbox.machine.constants import COPIES

#: Where the memory is in every process, and its size.
PLACE, SIZE = COPIES[0], COPIES[1] - COPIES[0]
_TABLE, _PAIRS, _SPARE = 0x10000, 1 << 16, 1 << 12
_CODE = 0x200000
_PAGE = 4096
_WORD, _PAIR, _COUNT = struct.Struct("<Q"), struct.Struct("<QQ"), struct.Struct("<q")


class Memory(Protocol):
    """A stopped thread's memory."""

    def read(self, address: int, length: int) -> bytes:
        """OSError(EFAULT)."""

    def write(self, address: int, data: bytes) -> None:
        """OSError(EFAULT)."""


class Copies:
    """``executable(address)``: the (start, end) of the mapping around an address whose code cannot change, or None."""

    def __init__(self, executable: Callable[[int], tuple[int, int] | None]) -> None:
        self._executable = executable
        self.made = 0
        self._empty()

    def _empty(self) -> None:
        self._copies: dict[int, Copy] = {}
        self._places: list[int] = []  # where copies begin, ascending
        self._at: dict[int, Copy] = {}
        self._exits: dict[int, tuple[Copy, Exit]] = {}
        self._pages: dict[int, bytes] = {}
        self._ranges: list[tuple[int, int]] = []
        self._table: dict[int, int] = {}
        self._next = PLACE + _CODE
        self._missed = 0
        self._prepared = False

    def forget(self) -> None:
        """The program's code may have changed."""
        if self._prepared:
            self._empty()

    @staticmethod
    def inside(address: int) -> bool:
        """Whether an address lies in the copies' memory."""
        return PLACE <= address < PLACE + SIZE

    # -- where to go -------------------------------------------------------------------

    def entry(self, memory: Memory, address: int, *, counted: bool = True) -> int | None:
        """The copy of the code at an address; None if its first instruction has to be executed where it is."""
        copy = self._copies.get(address)
        if copy is None:
            copy = self._make(memory, address)
            if copy is None:
                return None
        return copy.at + (0 if counted else copy.plain)

    def exit(self, memory: Memory, address: int) -> Exit | None:
        """Why a copy's breakpoint has stopped the thread, by the address behind it; None: there is none."""
        if address == self._missed:
            target: int = _WORD.unpack(memory.read(PLACE + TARGET, 8))[0]
            return Exit("computed", target, counted=True)
        found = self._exits.get(address)
        return found[1] if found is not None else None

    def follow(self, memory: Memory, address: int, why: Exit) -> int | None:
        """Where a thread goes on that stopped at an exit; the next one that comes there does not stop."""
        emptied = self._next
        entry = self.entry(memory, why.target, counted=why.counted)
        if entry is None or self._next < emptied:
            return entry
        if why.why == "computed":
            self._enter(memory, why.target, entry)
        else:
            at = self._exits[address][0].at + why.patch
            memory.write(at, struct.pack("<i", entry - (at + 4)))
        return entry

    def original(self, address: int) -> Mark | None:
        """What the program is about to execute at an address in a copy, if it is between two instructions there."""
        index = bisect_right(self._places, address) - 1
        if index < 0:
            return None
        copy = self._at[self._places[index]]
        offset = address - copy.at
        if not offset:
            return Mark(0, copy.address)
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
    def slot(memory: Memory, slot: int) -> int:
        """What a register holds that is put aside."""
        value: int = _WORD.unpack(memory.read(PLACE + slot, 8))[0]
        return value

    # -- making -------------------------------------------------------------------------

    def _prepare(self, memory: Memory) -> None:
        code, missed = translate.lookup(PLACE + LOOKUP, PLACE)
        memory.write(PLACE + LOOKUP, code)
        memory.write(PLACE + TABLE, _WORD.pack(PLACE + _TABLE))
        memory.write(PLACE + _TABLE, bytes(16 * (_PAIRS + _SPARE)))
        self._missed = PLACE + LOOKUP + missed
        self._prepared = True

    def _make(self, memory: Memory, address: int) -> Copy | None:
        code = self._code(memory, address)
        if self._next + (LONGEST << 4) > PLACE + SIZE:
            self._empty()
        if not self._prepared:
            self._prepare(memory)
        copy = translate.translate(code, address, self._next, PLACE) if code else None
        if copy is None:
            return None
        self._copies[address] = self._at[copy.at] = copy
        self._link(copy)
        memory.write(copy.at, bytes(copy.code))
        self._places.append(copy.at)
        self._exits.update((copy.at + offset, (copy, why)) for offset, why in copy.exits.items())
        self._next = copy.at + len(copy.code) + -len(copy.code) % 16
        self.made += 1
        return copy

    def _link(self, copy: Copy) -> None:
        """Lead a new copy's jumps to the copies that there are."""
        for why in copy.exits.values():
            target = self._copies.get(why.target) if why.why == "jump" else None
            if target is not None:
                entry = target.at + (0 if why.counted else target.plain)
                struct.pack_into("<i", copy.code, why.patch, entry - (copy.at + why.patch + 4))

    def _code(self, memory: Memory, address: int) -> bytes:
        """Up to LONGEST bytes from an address on, as far as they cannot change."""
        around = next((each for each in self._ranges if each[0] <= address < each[1]), None)
        if around is None:
            around = self._executable(address)
            if around is None:
                return b""
            self._ranges.append(around)
        first, last = address - address % _PAGE, min(address + LONGEST, around[1])
        pages = []
        for page in range(first, last, _PAGE):
            if page not in self._pages:
                self._pages[page] = memory.read(page, _PAGE)
            pages.append(self._pages[page])
        return b"".join(pages)[address - first : last - first]

    def _enter(self, memory: Memory, address: int, entry: int) -> None:
        """Put a pair into the table of computed targets."""
        index = address & _PAIRS - 1
        while index in self._table and index < _PAIRS + _SPARE - 2:
            index += 1
        # The last pair but one is overwritten again and again; behind it there is always an empty one.
        self._table[index] = address
        memory.write(PLACE + _TABLE + 16 * index, _PAIR.pack(address, entry))
