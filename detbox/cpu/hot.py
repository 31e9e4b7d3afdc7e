"""The code that an often executed ``rdtsc`` or ``rdtscp`` is overwritten with a jump to.

It calls what stands for the instruction (``guest/clock.c``) from below the red zone, executes the instructions that
had to make room for the jump, and goes back.  Its place is the rest of the last page of the file's code: near,
executable, mapped already, and copied with the code at fork.
"""

from __future__ import annotations

import struct

from detbox.cpu.trampoline import BACK_FROM_RED_ZONE, SKIP_RED_ZONE, Displacement, relative
from detbox.records import NamedTuple

_WORD = 8
_PAGE = 4096
_ALIGNMENT = 16
_CALL = b"\xff\x15"  # call [rip + distance]
_FIRST_PROCESSOR = b"\xb9\0\0\0\0"  # mov ecx, 0


class Detour(NamedTuple):
    """``code`` for the place that it was made for, ``jump`` for the instruction's own, and where a thread goes on that
    has executed the instruction."""

    code: bytes
    jump: bytes
    resume: int


def room(page: bytes, first: int, size: int) -> int | None:
    """An offset from ``first`` on, behind all that is in use, for ``size`` bytes of a page's zeros."""
    used = max(first, len(page.rstrip(b"\0")))
    at = used + -used % _ALIGNMENT
    return at if at + size <= len(page) else None


def size(moved: Displacement) -> int:
    """An upper bound of the code's size."""
    return len(_pieces(moved, 0)[0]) + len(moved.after) + _WORD


def detour(moved: Displacement, start: int, at: int, routine: int) -> Detour:
    """The code at ``at`` for an instruction at ``start``, which has to be lower (the last byte is then not zero).

    Raises ValueError if they are too far from each other.
    """
    code, resume = _pieces(moved, routine)
    # What was at the first byte of the instruction would be here.
    shift = at + len(code) - (moved.length - len(moved.after))
    after = bytearray(moved.after)
    for place, end, target in moved.fixups:
        # A jump's distance counts from its end, too.
        distance = relative(0xE9, shift + end - 5, start - moved.vaddr + target)[1:]
        first = place - (moved.length - len(moved.after))
        after[first : first + len(distance)] = distance
    code += after
    code += relative(0xE9, at + len(code), start + moved.length)
    return Detour(code, relative(0xE9, start, at + _WORD).ljust(moved.length, b"\x90"), at + resume)


def _pieces(moved: Displacement, routine: int) -> tuple[bytes, int]:
    code = struct.pack("<Q", routine) + SKIP_RED_ZONE
    code += _CALL + struct.pack("<i", -(len(code) + len(_CALL) + 4)) + BACK_FROM_RED_ZONE
    if moved.kind == "rdtscp":
        code += _FIRST_PROCESSOR
    return code, len(code)
