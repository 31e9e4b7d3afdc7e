"""Code that a stopped thread runs for the supervisor: a few system calls, then a breakpoint."""

from __future__ import annotations

import struct
from functools import lru_cache

from detbox.records import record

#: Where each call's result is found at the breakpoint.  There can be no more calls.
RESULTS = ("rbx", "rbp", "r12", "r13", "r14", "r15", "rdx")

_NUMBERS = {"rax": 0, "rdx": 2, "rbx": 3, "rbp": 5, "rsi": 6, "rdi": 7, "r8": 8, "r9": 9, "r10": 10, "r12": 12,
            "r13": 13, "r14": 14, "r15": 15}  # fmt: skip
#: For the number and the arguments of a call.
_ARGUMENTS = ("rax", "rdi", "rsi", "rdx", "r10", "r8", "r9")
_SYSCALL = b"\x0f\x05"
_BREAKPOINT = b"\xcc"


@record(frozen=True)
class Result:
    """As an argument: the result of the call with this index, with these bits set as well."""

    index: int
    bits: int = 0


Call = tuple[int | Result, ...]


@lru_cache(maxsize=64)
def code(calls: tuple[Call, ...]) -> bytes:
    """Machine code that makes ``calls`` (number and arguments each), in order."""
    if len(calls) > len(RESULTS):
        raise ValueError(f"{len(calls)} calls, and registers for {len(RESULTS)} results")
    out = b""
    for call, keep in zip(calls, RESULTS, strict=False):
        for register, value in zip(_ARGUMENTS, call, strict=False):
            out += _load(register, value.bits if isinstance(value, Result) else value)
            if isinstance(value, Result):
                out += _between(0x09, register, RESULTS[value.index])  # or
        out += _SYSCALL + _between(0x89, keep, "rax")  # mov
    return out + _BREAKPOINT


def _load(register: str, value: int) -> bytes:
    """``mov register, imm64``"""
    number = _NUMBERS[register]
    return bytes((0x48 | number >> 3, 0xB8 | number & 7)) + struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)


def _between(opcode: int, target: str, source: str) -> bytes:
    """An instruction with two 64-bit registers."""
    to, of = _NUMBERS[target], _NUMBERS[source]
    return bytes((0x48 | of >> 3 << 2 | to >> 3, opcode, 0xC0 | (of & 7) << 3 | to & 7))
