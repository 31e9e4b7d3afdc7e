"""The copies of one address space's code: made when they are first needed, and led from one to the next.

See :mod:`detbox.counted.translate` for what a copy is.  All of them, and the slots and the table that they use, lie in
one piece of memory of the guest's that this module writes through a :class:`Memory`.

Processes that were forked from one another, or execute the same file, have the same code at the same addresses, so they
have a :class:`Library` in common: what one of them has made the others are given when they next come to what they do
not have.  Where they have loaded different libraries at one address, the copies of all other code are still in common.
"""

from __future__ import annotations

import struct
from array import array
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from functools import cache, partial
from itertools import islice
from typing import Protocol

from detbox.counted import slots
from detbox.counted.slots import INDEX_BITS, LOOKUP, TABLE, TARGET
from detbox.counted.translate import AFTER_CALL, CALL_WEIGHT, LONGEST, Copy, Exit, Mark
from detbox.kernel import _native
from detbox.machine.constants import COPIES

#: Where the memory is in every process, and its size.
PLACE, SIZE = COPIES[0], COPIES[1] - COPIES[0]
#: Of it, what copies write to; the rest is the supervisor's.
SLOTS_SIZE = 0x10000
_TABLE, _PAIRS, _SPARE = SLOTS_SIZE, 1 << INDEX_BITS, 1 << 12
_CODE = 0x500000
_MOST_PAIRS = _PAIRS // 4 * 3  # the way to an empty place grows without bound in a table that is nearly full
_BATCH = 1 << 20  # more than the copies take that are made at once
_PAGE = 4096
_IN_PAGE = -_PAGE  # leaves of an address where its page begins
#: So many libraries are kept that have parted with one.
_MOST_PARTED = 16
_WORD, _PAIR = struct.Struct("<Q"), struct.Struct("<QQ")


class Memory(Protocol):
    """A stopped thread's memory."""

    def read(self, address: int, length: int) -> bytes:
        """OSError(EFAULT)."""

    def write(self, address: int, data: bytes) -> None:
        """OSError(EFAULT)."""

    def write_all(self, pieces: list[tuple[int, bytes]]) -> None:
        """Write the second of each pair to the first: OSError(EFAULT)."""

    def occupied(self) -> int:
        """The highest address of a copy that a thread may be in."""


@cache
def _lookup() -> tuple[bytes, int]:
    """The code that looks computed targets up, and the address behind its breakpoint."""
    code, missed = slots.lookup(PLACE + LOOKUP, PLACE)
    return code, PLACE + LOOKUP + missed


class Library:
    """All copies that a family of address spaces has made, each in its place, which is the same in all of them.

    ``kept``: the pages of code that others have, by themselves; each is kept once.
    """

    def __init__(self, kept: dict[bytes, bytes] | None = None) -> None:
        self._kept = kept if kept is not None else {}
        # In the order of their places: where they begin, and what is known of them (see Copy).
        self.places: list[int] = []
        self.made: list[tuple[int, int, bytes, bytes]] = []
        self.text = bytearray()  # of all copies, as the jumps in it lead now
        self.plain = 0  # how far the plain entry of each copy is behind the counted one
        self.copies: dict[int, int] = {}  # where the copy of an address is
        # Jumps to what has no copy: twice the place of the distance, and 1 if they go to the counted entry.
        self.waiting: dict[int, tuple[int, ...]] = {}
        self.pages: dict[int, bytes] = {}  # of code, in the order in which they were first copied from
        self.table: dict[int, int] = {}  # what the pairs in the table are for, by their places in it
        self.writes = array("Q")  # where something was changed in the text and in the table
        self._lost: set[int] = set()  # addresses in the table that have no copy any more
        #: Those that have parted with it, and the end of what they have in common.
        self._parted: list[tuple[int, Library]] = []

    @property
    def end(self) -> int:
        """Where the next copy comes."""
        return PLACE + _CODE + len(self.text)

    @property
    def worn(self) -> bool:
        """Whether a quarter of the room is taken: a process that is new had better begin with another one."""
        return len(self.text) > SIZE // 4

    def part(self, pages: set[int]) -> tuple[Library, list[tuple[int, bytes]]]:
        """One to go on with where the code in some pages is another: nothing leads to the copies of what was there,
        in which threads may be.  And what is to be written where there was this one."""
        new = Library(self._kept)
        new.places, new.made, new.text, new.plain = self.places[:], self.made[:], self.text[:], self.plain
        gone = {each for each in self.copies if each & _IN_PAGE in pages or each + LONGEST - 1 & _IN_PAGE in pages}
        new.copies = {address: at for address, at in self.copies.items() if address not in gone}
        new.pages = {page: held for page, held in self.pages.items() if page not in pages}
        new.waiting, new.table = dict(self.waiting), dict(self.table)
        changed = []
        for at, stop, target, counted in _native.jumps_to(gone, self.made):
            changed.append((at, struct.pack("<i", stop - (at + 4))))
            new.lead(*changed[-1])
            new.waiting[target] = (*new.waiting.get(target, ()), at << 1 | counted)
        changed += [new.pair(address) for address in gone.intersection(self.table.values())]
        new.writes = array("Q")  # who takes it takes all of it
        self._parted.append((self.end, new))
        del self._parted[:-_MOST_PARTED]
        return new, changed

    def parted(self, occupied: int) -> Iterator[Library]:
        """Those that have parted with it, or with one of these, and have what is at a place in common with it."""
        for common, library in self._parted:
            if common > occupied:
                yield library
                yield from library.parted(occupied)

    def index(self, address: int) -> int:
        """Of the copy that an address lies in; -1: it lies before all of them."""
        return bisect_right(self.places, address) - 1

    def add_page(self, page: int, held: bytes) -> bytes:
        """A page of code that is copied from."""
        self.pages[page] = held = self._kept.setdefault(held, held)
        return held

    def add(self, text: bytes, made: list[tuple[int, int, bytes, bytes]]) -> None:
        """New copies."""
        self.text += text
        self.places += [copy[1] for copy in made]
        self.made += made

    def lead(self, at: int, distance: bytes) -> None:
        """A jump in a copy that there has been leads somewhere else from now on."""
        offset = at - PLACE - _CODE
        if self.text[offset : offset + len(distance)] != distance:
            self.text[offset : offset + len(distance)] = distance
            self.writes.append(at)

    def pair(self, address: int) -> tuple[int, bytes]:
        """Where the pair of an address and its copy has its place in the table of computed targets, and the pair.

        Where there is no copy any more the pair leads to the breakpoint that says so: others may lie behind it.
        """
        index, last = address & _PAIRS - 1, _PAIRS + _SPARE - 2
        while index < last and self.table.get(index, address) != address:
            index += 1
        place = PLACE + _TABLE + 16 * index
        # The last pair but one is overwritten again and again; behind it there is always an empty one.
        copy = self.copies.get(address)
        if index < last and (index not in self.table or (address in self._lost and copy is not None)):
            self.writes.append(place)
            self._lost.discard(address)
        self.table[index] = address
        if copy is None:
            self._lost.add(address)
        return place, _PAIR.pack(address, copy or _lookup()[1] - 1)

    def table_for(self, elsewhere: set[int]) -> dict[int, bytes]:
        """All pairs, by their places; not for code in ``elsewhere``."""
        first, copy, missed, pack = PLACE + _TABLE, self.copies.get, _lookup()[1] - 1, _PAIR.pack
        return {
            first + 16 * index: pack(address, copy(address) or missed)
            for index, address in self.table.items()
            if address & _IN_PAGE not in elsewhere
        }

    def pairs(self, pages: set[int], end: int) -> list[tuple[int, bytes]]:
        """The pairs for code in some pages, for whom has the copies before ``end``."""
        wanted = [address for address in self.table.values() if address & _IN_PAGE in pages]
        return [self.pair(address) for address in wanted if self.copies.get(address, end) < end]

    def since(self, first: int, end: int, elsewhere: set[int]) -> Iterator[tuple[int, bytes]]:
        """The writes from the ``first`` on, for whom has the copies before ``end``; not for code in ``elsewhere``."""
        for place in islice(self.writes, first, None):
            offset = place - PLACE - _CODE
            if offset < 0:
                address = self.table[(place - PLACE - _TABLE) // 16]
                if address - address % _PAGE not in elsewhere:
                    yield self.pair(address)
            elif place < end:
                yield place, bytes(self.text[offset : offset + 4])


class Copies:
    """``executable()``: the (start, end) of the mappings whose code cannot change.

    ``library``: what there is of its family.
    """

    def __init__(self, executable: Callable[[], list[tuple[int, int]]], library: Library | None = None) -> None:
        self._executable = executable
        self._library = library if library is not None else Library()
        self.made = 0
        #: Whether the code may be another one since it was copied (see :meth:`check`).
        self.suspect = False
        # How much of the library is in this memory: the copies before this place, so many writes, of so many pages.
        self._end, self._writes, self._pages = PLACE + _CODE, 0, 0
        self._missed = 0
        self._ranges: list[tuple[int, int]] = []
        # Pages that are in none of them: others may have something there.
        self._elsewhere: set[int] = set()

    def inherited(self, executable: Callable[[], list[tuple[int, int]]]) -> Copies:
        """The same for a child process that has a copy of the memory."""
        child = Copies(executable)
        for name, value in vars(self).items():
            if name != "_executable":
                setattr(child, name, value.copy() if isinstance(value, (list, set)) else value)
        return child

    @property
    def full(self) -> bool:
        """Whether there is no room for more copies."""
        return self._library.end + _BATCH > PLACE + SIZE or len(self._library.table) > _MOST_PAIRS

    def check(self, memory: Memory) -> bool:
        """Whether the code is what it was when it was copied; otherwise the copies of what is not are forgotten."""
        self.suspect = False
        self._ranges = self._executable()
        elsewhere = self._outside(islice(self._library.pages, self._pages))
        gone, come, self._elsewhere = elsewhere - self._elsewhere, self._elsewhere - elsewhere, elsewhere
        if gone or not self._same(memory, 0, self._pages):
            self._part(memory, {page: self._library.pages[page] for page in gone})
            return False
        if come and (pairs := self._library.pairs(come, self._end)):
            memory.write_all(pairs)
        return True

    def _same(self, memory: Memory, first: int, last: int) -> bool:
        """Whether some of the library's pages are the same here."""
        pages = dict(islice(self._library.pages.items(), first, last))
        try:
            return all(
                memory.read(run[0], _PAGE * len(run)) == b"".join(map(pages.__getitem__, run))
                for run in self._runs(pages)
            )
        except OSError:
            return False

    def _runs(self, pages: Iterable[int]) -> list[list[int]]:
        """Those of some pages that are of unchanging code, as pieces without a gap: each is read in one go."""
        runs: list[list[int]] = []
        behind = -1
        for page in sorted(pages):
            if page in self._elsewhere:
                continue
            if page == behind:
                runs[-1].append(page)
            else:
                runs.append([page])
            behind = page + _PAGE
        return runs

    def _catch_up(self, memory: Memory) -> None:
        """Put what others have made into this memory, too, if it is of the same code; otherwise go on without them."""
        if not self._missed:
            self._prepare(memory)
        library = self._library
        pages, writes = len(library.pages), len(library.writes)
        if self._pages < pages:
            self._look_around(islice(library.pages, self._pages, pages))
            if not self._same(memory, self._pages, pages):
                self._part(memory)
                return
        text = bytes(memoryview(library.text)[self._end - PLACE - _CODE :])
        changed = list(library.since(self._writes, self._end, self._elsewhere))
        memory.write_all([(self._end, text), *changed] if text else changed)
        self._end, self._writes, self._pages = library.end, writes, pages

    def _part(self, memory: Memory, gone: dict[int, bytes] | None = None) -> None:
        """Some code is another than what the library has copies of: go on with one that has none of that.

        ``gone``: pages that are not mapped any more, and what they held.
        """
        read: dict[int, bytes | None] = {}
        parted = self._library.parted(memory.occupied())
        library = next((each for each in parted if not self._others(memory, each, read, gone or {})), None)
        changed = None
        if library is None:
            own = self._library
            library, changed = own.part(self._others(memory, own, read, gone or {}))
            if (self._end, self._writes, self._pages) != (own.end, len(own.writes), len(own.pages)):
                changed = None
        if changed is None:
            empty = {PLACE + _TABLE + 16 * index: bytes(16) for index in self._library.table}
            table = empty | library.table_for(self._elsewhere)
            changed = [(PLACE + _CODE, bytes(library.text)), *table.items()]
        memory.write_all(changed)
        self._library = library
        self._end, self._writes, self._pages = library.end, len(library.writes), len(library.pages)

    def _others(
        self, memory: Memory, library: Library, read: dict[int, bytes | None], gone: dict[int, bytes]
    ) -> set[int]:
        """The pages of a library that are others here, or ``gone``; ``read``: what has been read of the memory."""
        self._look_around(page for page in library.pages if page not in self._elsewhere)
        for run in self._runs(library.pages.keys() - read.keys()):
            try:
                held = memory.read(run[0], _PAGE * len(run))
            except OSError:
                read.update(dict.fromkeys(run))
            else:
                read.update((page, held[page - run[0] : page - run[0] + _PAGE]) for page in run)
        return {
            page
            for page, held in library.pages.items()
            if (page in read and read[page] != held) or gone.get(page) == held
        }

    def _look_around(self, pages: Iterable[int]) -> None:
        """See which of some pages are of unchanging code."""
        unknown = self._outside(pages)
        if unknown:
            self._ranges = self._executable()
            self._elsewhere |= self._outside(unknown)

    def _outside(self, pages: Iterable[int]) -> set[int]:
        """Those of some pages that are not of unchanging code."""
        bounds = [0, *(bound for each in self._ranges for bound in each)]
        return {page for page in pages if bisect_right(bounds, page) & 1}

    @staticmethod
    def inside(address: int) -> bool:
        """Whether an address lies in the copies' memory."""
        return PLACE <= address < PLACE + SIZE

    # -- where to go -------------------------------------------------------------------

    def entry(self, memory: Memory, address: int, *, counted: bool = True, ahead: int = 0) -> int | None:
        """The copy of the code at an address; None if its first instruction has to be executed where it is.

        If it is made, so are up to ``ahead`` others that may follow.
        """
        library = self._library
        if self._end != library.end or self._writes != len(library.writes):
            self._catch_up(memory)
        if address - address % _PAGE in self._elsewhere:
            return None
        at = self._library.copies.get(address)
        if at is None:
            at = self._make(memory, address, ahead)
            if at is None:
                return None
        return at + (0 if counted else self._library.plain)

    def exit(self, memory: Memory, address: int) -> Exit | None:
        """Why a copy's breakpoint has stopped the thread, by the address behind it; None: there is none."""
        if address == self._missed:
            target: int = _WORD.unpack(memory.read(PLACE + TARGET, 8))[0]
            return Exit("computed", target, counted=True)
        # The next copy may begin behind the last breakpoint of one.
        library = self._library
        index = library.index(address - 1)
        return Copy(*library.made[index]).exits.get(address - library.places[index]) if index >= 0 else None

    def follow(self, memory: Memory, address: int, why: Exit, *, ahead: int = 0) -> int | None:
        """Where a thread goes on that stopped at an exit; the next one that comes there does not stop."""
        entry = self.entry(memory, why.target, counted=why.counted, ahead=ahead)
        if entry is None:
            return None
        library = self._library
        if why.why == "computed":
            memory.write(*library.pair(why.target))
        else:
            at = library.places[library.index(address - 1)] + why.patch
            distance = struct.pack("<i", entry - (at + 4))
            library.lead(at, distance)
            memory.write(at, distance)
        self._writes = len(library.writes)
        return entry

    def original(self, address: int) -> Mark | None:
        """What the program is about to execute at an address in a copy, if it is between two instructions there."""
        index = self._library.index(address)
        if index < 0:
            return None
        copy = Copy(*self._library.made[index])
        offset = address - copy.at
        if not offset:
            return Mark(0, copy.address, None, 0)
        return next((mark for mark in copy.marks if mark.offset == offset), None)

    @staticmethod
    def put_aside(memory: Memory, mark: Mark) -> int:
        """What the program has in the register that is put aside at a mark."""
        if mark.slot == AFTER_CALL:
            return mark.address
        value: int = _WORD.unpack(memory.read(PLACE + mark.slot, 8))[0]
        return value

    # -- making -------------------------------------------------------------------------

    def _prepare(self, memory: Memory) -> None:
        code, self._missed = _lookup()
        memory.write(PLACE + LOOKUP, code)
        memory.write(PLACE + TABLE, _WORD.pack(PLACE + _TABLE))

    def _make(self, memory: Memory, address: int, ahead: int) -> int | None:
        """Make the copy of an address, and up to ``ahead`` others of where it may lead; where it is."""
        if self.full:
            return None
        if not self._missed:
            self._prepare(memory)
        library = self._library
        text, made, leads, backs, library.plain = _native.make_copies(
            partial(self._code, memory), library.pages, library.copies, library.waiting,
            address, self._end, PLACE, CALL_WEIGHT, ahead,
        )  # fmt: skip
        self._pages = len(library.pages)
        if not made:
            return None
        pairs = [library.pair(address) for address, _ in backs]
        memory.write_all([(self._end, text), *leads, *pairs])
        library.add(text, made)
        for lead in leads:
            library.lead(*lead)
        self._end, self._writes = library.end, len(library.writes)
        self.made += len(made)
        return library.copies.get(address)

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
        held = [
            self._library.pages.get(page) or self._library.add_page(page, memory.read(page, _PAGE))
            for page in range(first, last, _PAGE)
        ]
        return b"".join(held)[address - first : last - first]

    def _around(self, address: int) -> tuple[int, int] | None:
        index = bisect_right(self._ranges, (address + 1,)) - 1
        return self._ranges[index] if index >= 0 and address < self._ranges[index][1] else None
