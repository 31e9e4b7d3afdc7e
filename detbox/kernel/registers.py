"""The registers of a stopped thread."""

from __future__ import annotations

import struct

from detbox.kernel import _native

#: The words of struct user_regs_struct (sys/user.h), eight bytes each, in this order.
NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip
_WORD = struct.Struct("=Q")


class _Word:
    """The attribute for the word at an offset."""

    __slots__ = ("_offset",)

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __get__(self, registers: Registers, owner: type) -> int:
        value: int = _WORD.unpack_from(registers.words, self._offset)[0]
        return value

    def __set__(self, registers: Registers, value: int) -> None:
        _WORD.pack_into(registers.words, self._offset, value & 0xFFFF_FFFF_FFFF_FFFF)


class Registers:
    """One attribute for each name; a value that is too large or negative is cut to 64 bits."""

    __slots__ = ("words",)

    def __init__(self, words: bytes) -> None:
        self.words = bytearray(words)

    (r15, r14, r13, r12, rbp, rbx, r11, r10, r9, r8, rax, rcx, rdx, rsi, rdi, orig_rax, rip, cs, eflags, rsp, ss,
     fs_base, gs_base, ds, es, fs, gs) = (_Word(_WORD.size * n) for n in range(len(NAMES)))  # fmt: skip


def get(tid: int) -> Registers:
    """Of a thread in a ptrace stop; OSError(ESRCH)."""
    return Registers(_native.get_regs(tid))


def put(tid: int, registers: Registers) -> None:
    """Set all of them; OSError(ESRCH)."""
    _native.set_regs(tid, bytes(registers.words))
