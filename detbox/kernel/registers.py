"""The registers of a stopped thread."""

from __future__ import annotations

import ctypes

from detbox.kernel import _native

#: The words of struct user_regs_struct (sys/user.h), eight bytes each, in this order.
NAMES = (
    "r15", "r14", "r13", "r12", "rbp", "rbx", "r11", "r10", "r9", "r8", "rax", "rcx", "rdx", "rsi", "rdi",
    "orig_rax", "rip", "cs", "eflags", "rsp", "ss", "fs_base", "gs_base", "ds", "es", "fs", "gs",
)  # fmt: skip


class Registers(ctypes.Structure):
    """One attribute for each name; a value that is too large or negative is cut to 64 bits."""

    _fields_ = tuple((name, ctypes.c_ulong) for name in NAMES)


def get(tid: int) -> Registers:
    """Of a thread in a ptrace stop; OSError(ESRCH)."""
    return Registers.from_buffer_copy(_native.get_regs(tid))


def put(tid: int, registers: Registers) -> None:
    """Set all of them; OSError(ESRCH)."""
    _native.set_regs(tid, bytes(registers))
