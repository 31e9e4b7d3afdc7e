"""The copies of one address space's code: made when they are first needed, and led from one to the next.

See :mod:`detbox.counted.translate` for what a copy is.  All of them, and the slots and the table that they use, lie in
one piece of memory of the guest's that this module writes through a :class:`Memory`.
"""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import deque
from collections.abc import Callable
from typing import Protocol

from detbox.counted import slots
from detbox.counted.slots import COUNTER, LOOKUP, TABLE, TARGET
from detbox.counted.translate import AFTER_CALL, LONGEST, Copy, Exit, Mark, translate
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
    """``executable()``: the (start, end) of the mappings whose code cannot change.  ``program``: whose code it is.

    ``pages``: the pages of code that others have, by themselves; each is kept once.
    """

    def __init__(
        self,
        executable: Callable[[], list[tuple[int, int]]],
        program: bytes = b"",
        pages: dict[bytes, bytes] | None = None,
    ) -> None:
        self._executable = executable
        self.program = program
        self._kept = (pages if pages is not None else {}).setdefault
        self.made = 0
        #: Whether they were made by others than the process itself, or not at its own looks (see gauging.py).
        self.foreign = False
        #: Whether the code may be another one since it was copied (see :meth:`check`).
        self.suspect = False
        # All copies in the order of their places: where they begin, they themselves, and what is there in memory.
        self._places: list[int] = []
        self._made: list[Copy] = []
        self._pieces: list[bytes] = []
        self._next = PLACE + _CODE
        self._missed = 0
        self._begin()

    def _begin(self) -> None:
        self._copies: dict[int, Copy] = {}
        self._waiting: dict[int, tuple[tuple[int, bool], ...]] = {}  # jumps to what has no copy
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

    def taken_over(self, memory: Memory, executable: Callable[[], list[tuple[int, int]]]) -> Copies | None:
        """The same for another process that executes the same code, written to its memory; None if it does not."""
        other = self.inherited(executable)
        if not other._same(memory):
            return None
        other.made, other.foreign = 0, True
        other._prepare(memory)
        memory.write(PLACE + _CODE, b"".join(self._pieces))
        for index, address in self._table.items():
            memory.write(PLACE + _TABLE + 16 * index, _PAIR.pack(address, self._copies[address].at))
        return other

    def inherited(self, executable: Callable[[], list[tuple[int, int]]]) -> Copies:
        """The same for a child process that has a copy of the memory.

        What the tables hold does not change, so that only they themselves are copied: a few hundred KB.
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
        return self._next + (LONGEST << 4) > PLACE + SIZE

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

    def __len__(self) -> int:
        return len(self._copies)

    @staticmethod
    def inside(address: int) -> bool:
        """Whether an address lies in the copies' memory."""
        return PLACE <= address < PLACE + SIZE

    # -- where to go -------------------------------------------------------------------

    def entry(self, memory: Memory, address: int, *, counted: bool = True, ahead: int = 0) -> int | None:
        """The copy of the code at an address; None if its first instruction has to be executed where it is.

        If it is made, so are ``ahead`` others that most probably follow.
        """
        copy = self._copies.get(address)
        if copy is None:
            copy = self._make(memory, address)
            if copy is None:
                return None
            if ahead:
                self._make_ahead(memory, copy, ahead)
        return copy.at + (0 if counted else copy.plain)

    def exit(self, memory: Memory, address: int) -> Exit | None:
        """Why a copy's breakpoint has stopped the thread, by the address behind it; None: there is none."""
        if address == self._missed:
            target: int = _WORD.unpack(memory.read(PLACE + TARGET, 8))[0]
            return Exit("computed", target, counted=True)
        # The next copy may begin behind the last breakpoint of one.
        index = self._index(address - 1)
        return self._made[index].exits.get(address - self._places[index]) if index >= 0 else None

    def follow(self, memory: Memory, address: int, why: Exit, *, ahead: int = 0) -> int | None:
        """Where a thread goes on that stopped at an exit; the next one that comes there does not stop."""
        entry = self.entry(memory, why.target, counted=why.counted, ahead=ahead)
        if entry is None:
            return None
        if why.why == "computed":
            self._enter(memory, why.target, entry)
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
        copy = self._made[index]
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

    def _make(self, memory: Memory, address: int) -> Copy | None:
        if self.full:
            return None
        code = self._code(memory, address)
        if not self._prepared:
            self._prepare(memory)
        copy = translate(code, address, self._next, PLACE) if code else None
        if copy is None:
            return None
        # In case it leads to itself.
        self._copies[address] = copy
        piece = self._linked(copy) + bytes(-len(copy.code) % 16)
        # What is not needed any more is not kept.
        self._copies[address] = kept = copy._replace(code=b"", onward=0, back=0)
        memory.write(copy.at, piece)
        self._places.append(copy.at)
        self._made.append(kept)
        self._pieces.append(piece)
        for at, counted in self._waiting.pop(address, ()):
            self._lead(memory, at, copy.at + (0 if counted else copy.plain))
        self._next = copy.at + len(piece)
        self.made += 1
        return copy

    def _make_ahead(self, memory: Memory, copy: Copy, ahead: int) -> None:
        """Make copies of where a copy leads, and of where its call returns to, and of where these lead."""
        queue = deque((copy,))
        while queue and ahead > 0:
            last = queue.popleft()
            for address in (last.onward, last.back):
                if not address or address in self._copies:
                    continue
                made = self._make(memory, address)
                ahead -= 1
                if made is None:
                    continue
                queue.append(made)
                if address == last.back:
                    self._enter(memory, address, made.at)

    def _linked(self, copy: Copy) -> bytes:
        """A new copy's code, whose jumps lead to the copies that there are; the others wait for theirs."""
        code = bytearray(copy.code)
        for why in copy.exits.values():
            if why.why != "jump":
                continue
            at, target = copy.at + why.patch, self._copies.get(why.target)
            if target is None:
                self._waiting[why.target] = (*self._waiting.get(why.target, ()), (at, why.counted))
            else:
                entry = target.at + (0 if why.counted else target.plain)
                struct.pack_into("<i", code, why.patch, entry - (at + 4))
        return bytes(code)

    def _lead(self, memory: Memory, at: int, entry: int) -> None:
        """Have the jump whose distance is at an address lead to a copy."""
        distance = struct.pack("<i", entry - (at + 4))
        memory.write(at, distance)
        index = self._index(at)
        piece, at = self._pieces[index], at - self._places[index]
        self._pieces[index] = b"".join((piece[:at], distance, piece[at + 4 :]))

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

    def _enter(self, memory: Memory, address: int, entry: int) -> None:
        """Put a pair into the table of computed targets."""
        index = address & _PAIRS - 1
        while index in self._table and index < _PAIRS + _SPARE - 2:
            index += 1
        # The last pair but one is overwritten again and again; behind it there is always an empty one.
        self._table[index] = address
        memory.write(PLACE + _TABLE + 16 * index, _PAIR.pack(address, entry))
