"""Which pieces of code could be entered in their middle from elsewhere in their file.

Compilers put the unlikely parts of a function far away from it, and these jump back to any place in it; hand-written
code may do the same.  To disassemble a whole library takes seconds, so whatever looks like a branch to the place counts
as one: any bytes that would be one, wherever an instruction may begin, and the address itself, in a table.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TYPE_CHECKING

from detbox.kernel import _native
from detbox.records import NamedTuple

if TYPE_CHECKING:
    from detbox.cpu.elf import Elf

_PIECE = struct.Struct("<4q")


class Piece(NamedTuple):
    """The virtual addresses ``first`` up to ``last`` of a function from ``start`` to ``end``."""

    first: int
    last: int
    start: int
    end: int


def entered(elf: Elf, pieces: Sequence[Piece]) -> set[Piece]:
    """Those pieces that anything outside of their function, or a table, may lead to.

    What the function itself does is left to the caller.  The pieces do not overlap.
    """
    ordered = sorted(pieces)
    packed = b"".join(_PIECE.pack(*piece) for piece in ordered)
    places = [(area.start, area.end, area.vaddr, True) for area in elf.code_ranges()]
    places.append((0, len(elf.data), 0, False))
    found: set[Piece] = set()
    for start, end, vaddr, branches in places:
        flags = _native.reached(elf.data, start, end, vaddr, packed, branches)
        found.update(piece for piece, flag in zip(ordered, flags, strict=True) if flag)
    return found
