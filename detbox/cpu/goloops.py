"""The loops of a Go program in which a thread may wait for another one, and code that counts their turns.

Go's threads compute for long without a call, and the scheduler in the program expects that they are interrupted.  To
execute all of it as copies that count (:mod:`detbox.counted`) takes too long for programs like compilers.  So the
turns of some loops are counted where they are: one instruction in the way of every turn, or the target of one, is
overwritten so that it leads by way of a *stub*, which decrements a counter and stops at a breakpoint when that becomes
negative.

A loop is counted that calls functions, or has a branch that depends on memory at a place which stays the same, since
others may change that, or that has no end; and so is a function that calls itself.  Loops of Go's own runtime are not:
it makes calls where it waits.  Only whole instructions are overwritten, of five bytes at least or that jump anyway,
where the flags are not needed: nothing can come into the middle of one.  What cannot be counted so is left alone.

Functions are found by the table that the runtime itself uses.  The work is done in ``kernel/loops.c``.
"""

from __future__ import annotations

import mmap
import struct

from detbox.cpu.elf import Elf, NotElf
from detbox.kernel import _native
from detbox.records import NamedTuple

#: Where the counter and the stubs are in every process: below all programs.
COUNTER, STUBS, STUBS_END = 0xF_F000, 0x10_0000, 0x3F_0000
#: Size of a stub, and where its breakpoint is; as in loops.c.
STUB, BREAKPOINT = 32, 31
#: Where the instruction is in it that was overwritten.
BODY = 10
_PAGE = 4096
_ET_EXEC, _PT_INTERP = 2, 3
#: The first bytes of the runtime's table since Go 1.18: its version, two zeros, sizes of instructions and pointers.
_TABLES = (b"\xf0\xff\xff\xff\0\0\1\x08", b"\xf1\xff\xff\xff\0\0\1\x08")
_LOOP = struct.Struct("<QQB15s")


class Site(NamedTuple):
    """What a stub stands for: where the program goes on behind its breakpoint, and what was overwritten where."""

    target: int
    place: int
    old: bytes


class GoLoops(NamedTuple):
    """Whole pages of a program's code in which loops are counted, and the stubs for STUBS.

    ``address``, ``offset``: where the pages begin, and what of the file they are.
    """

    address: int
    offset: int
    text: bytes
    stubs: bytes
    packed: bytes

    @property
    def number(self) -> int:
        """How many stubs there are."""
        return len(self.stubs) // STUB

    def site(self, index: int) -> Site:
        """What a stub is for."""
        target, place, length, old = _LOOP.unpack_from(self.packed, _LOOP.size * index)
        return Site(target, place, old[:length])

    def sites(self) -> list[Site]:
        """All of them, in order of the stubs."""
        return [self.site(index) for index in range(self.number)]


def find(data: bytes | mmap.mmap) -> GoLoops | None:
    """The loops of a program's file; None if it is not one of Go's, or has none."""
    try:
        elf = Elf(data)
    except NotElf:
        return None
    text, table = elf.section(b".text"), elf.section(b".gopclntab")
    if elf.type != _ET_EXEC or elf.has_segment(_PT_INTERP) or text is None or table is None:
        return None
    raw = bytes(data[table.start : table.end])
    lowest = min((each.vaddr for each in elf.segments), default=0)
    if raw[:8] not in _TABLES or lowest < STUBS_END or len(raw) < 32:
        return None
    # Newer versions do not say where the code begins; these have nothing before it.
    if int.from_bytes(raw[24:32], "little") not in (0, text.vaddr):
        return None
    code = bytes(data[text.start : text.end])
    found = _native.count_loops(code, text.vaddr, raw, STUBS, COUNTER, (STUBS_END - STUBS) // STUB)
    if found is None or not found[1]:
        return None
    changed, stubs, packed = found
    places = [place for _, place, _, _ in _LOOP.iter_unpack(packed)]
    first = min(places) // _PAGE * _PAGE
    # What leads to a stub may be in what fills the space behind a function.
    last = min(max(places) + _PAGE, text.vaddr + len(code)) // _PAGE * _PAGE + _PAGE
    # Pages are mapped whole.
    shift = text.start - text.vaddr
    pages = bytearray(data[first + shift : last + shift].ljust(last - first, b"\0"))
    begin, end = max(text.vaddr, first), min(text.vaddr + len(code), last)
    pages[begin - first : end - first] = changed[begin - text.vaddr : end - text.vaddr]
    return GoLoops(first, first + shift, bytes(pages), stubs, packed)
