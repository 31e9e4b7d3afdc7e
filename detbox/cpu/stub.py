"""Code that a stopped thread runs for the supervisor: a few system calls, then a breakpoint."""

from __future__ import annotations

import struct
from functools import lru_cache
from typing import NamedTuple

#: Where each call's result is found at the breakpoint.  There can be no more calls.
RESULTS = ("rbx", "rbp", "r12", "r13", "r14", "r15", "rdx")

_NUMBERS = {"rax": 0, "rdx": 2, "rbx": 3, "rbp": 5, "rsi": 6, "rdi": 7, "r8": 8, "r9": 9, "r10": 10, "r12": 12,
            "r13": 13, "r14": 14, "r15": 15}  # fmt: skip
#: For the number and the arguments of a call.
_ARGUMENTS = ("rax", "rdi", "rsi", "rdx", "r10", "r8", "r9")
_SYSCALL = b"\x0f\x05"
_BREAKPOINT = b"\xcc"
_ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF
#: In the shape of code: a number that is no result, and the end of a call.
_PLAIN, _END = -1, -2


class Result(NamedTuple):
    """As an argument: the result of the call with the index ``of``, with these bits set as well.

    No record: two that are alike have to be equal, so that code is found again.
    """

    of: int
    bits: int = 0


Call = tuple[int | Result, ...]


@lru_cache(maxsize=64)
def code(calls: tuple[Call, ...]) -> bytes:
    """Machine code that makes ``calls`` (number and arguments each), in order: mostly the same for each program."""
    if len(calls) > len(RESULTS):
        raise ValueError(f"{len(calls)} calls, and registers for {len(RESULTS)} results")
    values, shape = [], []
    for call in calls:
        for value in call:
            if isinstance(value, Result):
                values.append(value.bits)
                shape.append(value.of)
            else:
                values.append(value & _ALL_ONES)
                shape.append(_PLAIN)
        shape.append(_END)
    template, pieces = _template(tuple(shape))
    return template.pack(*(part for pair in zip(pieces, values, strict=False) for part in pair), pieces[-1])


@lru_cache(maxsize=64)
def _template(shape: tuple[int, ...]) -> tuple[struct.Struct, tuple[bytes, ...]]:
    """How code of a shape is put together, and what lies before, between and behind its numbers.

    Each program has calls of the same shape made at its start, with addresses of its own.
    """
    pieces = [b""]
    left = iter(RESULTS)
    arguments = iter(_ARGUMENTS)
    for index in shape:
        if index == _END:
            pieces[-1] += _SYSCALL + _between(0x89, next(left), "rax")  # mov
            arguments = iter(_ARGUMENTS)
            continue
        register = next(arguments)
        pieces[-1] += _load(register)
        pieces.append(_between(0x09, register, RESULTS[index]) if index != _PLAIN else b"")  # or
    pieces[-1] += _BREAKPOINT
    return struct.Struct("<" + "Q".join(f"{len(piece)}s" for piece in pieces)), tuple(pieces)


def _load(register: str) -> bytes:
    """``mov register, imm64`` without its number."""
    number = _NUMBERS[register]
    return bytes((0x48 | number >> 3, 0xB8 | number & 7))


def _between(opcode: int, target: str, source: str) -> bytes:
    """An instruction with two 64-bit registers."""
    to, of = _NUMBERS[target], _NUMBERS[source]
    return bytes((0x48 | of >> 3 << 2 | to >> 3, opcode, 0xC0 | (of & 7) << 3 | to & 7))
