"""Code that a stopped thread runs for the supervisor: a few system calls, then a breakpoint or the program."""

from __future__ import annotations

import struct
from functools import lru_cache

from detbox.kernel.own import OWN_CALL
from detbox.records import NamedTuple

#: Where each call's result is found at the breakpoint.  There can be no more calls.
RESULTS = ("rbx", "rbp", "r12", "r13", "r14", "r15", "rdx")

_NUMBERS = {"rax": 0, "rcx": 1, "rdx": 2, "rbx": 3, "rbp": 5, "rsi": 6, "rdi": 7, "r8": 8, "r9": 9, "r10": 10,
            "r11": 11, "r12": 12, "r13": 13, "r14": 14, "r15": 15}  # fmt: skip
#: For the number and the arguments of a call.
_ARGUMENTS = ("rax", "rdi", "rsi", "rdx", "r10", "r8", "r9")
_SYSCALL = b"\x0f\x05"
_BREAKPOINT = b"\xcc"
_WORD = struct.Struct("<Q")
_MOV_SIZE = 10  # of an instruction that loads a register with a number
_ALL_ONES = 0xFFFF_FFFF_FFFF_FFFF
#: In the shape of code: a number that is no result, the end of a call, and the mark of a call in the last register.
_PLAIN, _END, _MARK = -1, -2, -3


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
    return _calls(calls) + _BREAKPOINT


@lru_cache(maxsize=64)
def leading_on(calls: tuple[Call, ...], following: bytes, at: int) -> bytes:
    """The same, but then the machine code ``following`` is copied to the address ``at`` and executed there."""
    count = b"\xb9" + len(following).to_bytes(4, "little")  # mov ecx
    go_on = count + b"\xf3\xa4" + _load("rcx") + _WORD.pack(at) + b"\xff\xe1"  # rep movsb; mov; jmp rcx
    source = b"\x48\x8d\x35" + (_MOV_SIZE + len(go_on)).to_bytes(4, "little")  # lea rsi
    return _calls(calls) + source + _load("rdi") + _WORD.pack(at) + go_on + following


@lru_cache(maxsize=64)
def ending(calls: tuple[Call, ...], entry: int) -> bytes:
    """Machine code that makes ``calls`` and goes to a program's entry.

    All registers but the stack pointer are zero then, and the flags as they are at the start of every program.
    """
    zero = b"".join(_between(0x31, name, name) for name in _NUMBERS)  # xor
    flags = b"\xb0\x01" b"\x84\xc0" b"\xb8\0\0\0\0"  # mov al, 1; test al, al; mov eax, 0
    return _calls(calls) + zero + flags + b"\xff\x25\0\0\0\0" + _WORD.pack(entry)  # jmp, to the word behind it


def _calls(calls: tuple[Call, ...]) -> bytes:
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
        if len(call) < len(_ARGUMENTS):
            values.append(OWN_CALL)
            shape.append(_MARK)
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
        register = next(arguments) if index != _MARK else _ARGUMENTS[-1]
        pieces[-1] += _load(register)
        pieces.append(_between(0x09, register, RESULTS[index]) if index >= 0 else b"")  # or
    return struct.Struct("<" + "Q".join(f"{len(piece)}s" for piece in pieces)), tuple(pieces)


def _load(register: str) -> bytes:
    """``mov register, imm64`` without its number."""
    number = _NUMBERS[register]
    return bytes((0x48 | number >> 3, 0xB8 | number & 7))


def _between(opcode: int, target: str, source: str) -> bytes:
    """An instruction with two 64-bit registers."""
    to, of = _NUMBERS[target], _NUMBERS[source]
    return bytes((0x48 | of >> 3 << 2 | to >> 3, opcode, 0xC0 | (of & 7) << 3 | to & 7))
