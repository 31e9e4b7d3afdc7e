"""Code that a stopped thread runs for the supervisor: a few system calls, then a breakpoint."""

from __future__ import annotations

import struct
from collections.abc import Sequence

#: Where each call's result is found at the breakpoint.  There can be no more calls.
RESULTS = ("rbx", "rbp", "r12", "r13")

# mov reg, imm64 for the number and the arguments of a call: rax, rdi, rsi, rdx, r10, r8, r9
_LOADS = (b"\x48\xb8", b"\x48\xbf", b"\x48\xbe", b"\x48\xba", b"\x49\xba", b"\x49\xb8", b"\x49\xb9")
_SYSCALL = b"\x0f\x05"
# mov rbx, rax; mov rbp, rax; mov r12, rax; mov r13, rax
_KEEPS = (b"\x48\x89\xc3", b"\x48\x89\xc5", b"\x49\x89\xc4", b"\x49\x89\xc5")
_BREAKPOINT = b"\xcc"


def code(calls: Sequence[Sequence[int]]) -> bytes:
    """Machine code that makes ``calls`` (number and arguments each), in order."""
    if len(calls) > len(RESULTS):
        raise ValueError(f"{len(calls)} calls, and registers for {len(RESULTS)} results")
    out = b""
    for call, keep in zip(calls, _KEEPS, strict=False):
        for load, value in zip(_LOADS, call, strict=False):
            out += load + struct.pack("<Q", value & 0xFFFFFFFFFFFFFFFF)
        out += _SYSCALL + keep
    return out + _BREAKPOINT
