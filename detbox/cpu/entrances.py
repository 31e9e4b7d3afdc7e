"""Whether code could be entered in its middle from elsewhere in its file.

Compilers put the unlikely parts of a function far away from it, and these jump back to any place in it; hand-written
code may do the same.  To disassemble a whole library takes seconds, so whatever looks like a branch to the place counts
as one: any bytes that would be one, wherever an instruction may begin, and the address itself, in a table.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.kernel import _native

if TYPE_CHECKING:
    from detbox.cpu.elf import Elf

# The distances of short branches: jcc, jmp, loop and its kind.
_REACH = range(-128, 128)
_SHORT = frozenset([*range(0x70, 0x80), 0xEB, 0xE0, 0xE1, 0xE2, 0xE3])


def entered(elf: Elf, function: tuple[int, int], first: int, end: int) -> bool:
    """Whether anything outside of a function (start and end), or a table, may lead to ``first`` up to ``end``.

    All are virtual addresses.  What the function itself does is left to the caller.
    """
    for area in elf.code_ranges():
        code = memoryview(elf.data)[area.start : area.end]
        before = code[: max(0, min(len(code), function[0] - area.vaddr))]
        behind = code[max(0, min(len(code), function[1] - area.vaddr)) :]
        at = area.vaddr + len(code) - len(behind)
        for part, vaddr in ((before, area.vaddr), (behind, at)):
            if _native.branches_into(part, first - vaddr, end - 1 - vaddr):
                return True
            if _short_branch(part, first - vaddr, end - 1 - vaddr):
                return True
    return any(elf.data.find(place.to_bytes(8, "little")) >= 0 for place in range(first, end))


def _short_branch(code: memoryview, first: int, last: int) -> bool:
    for at in range(max(0, first - _REACH.stop - 1), min(len(code) - 1, last - _REACH.start)):
        if code[at] in _SHORT:
            distance = code[at + 1] - (code[at + 1] >> 7 << 8)
            if first <= at + 2 + distance <= last:
                return True
    return False
