"""A stopped thread that can be walked one instruction at a time."""

from __future__ import annotations

import contextlib
import os
import struct
from array import array
from collections.abc import Iterable, Iterator
from typing import Protocol

from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.registers import NAMES

OFFSET = {name: 8 * index for index, name in enumerate(NAMES)}
RIP = OFFSET["rip"]
_EFLAGS = OFFSET["eflags"]
# Trap flag (we set it) and resume flag (the processor sets it while it reports a trap).
_DEBUG_FLAGS = 1 << 8 | 1 << 16

_WORD = struct.Struct("<Q")
_PTRACE_POKETEXT = 4
_PTRACE_GETREGSET = 0x4204
_NT_X86_XSTATE = 0x202
# How a survey ended.
_STEPPED_ALL, _OTHER_STOP = 0, 2

#: None: nothing; the registers behind the loop; or those at its head, a turn's path and the memory that it depends on.
Taken = tuple[bytes] | tuple[bytes, bytes, tuple[tuple[int, bytes], ...]] | None


def register(registers: bytes, offset: int) -> int:
    """One word of a register block."""
    value: int = _WORD.unpack_from(registers, offset)[0]
    return value


@contextlib.contextmanager
def one_processor(tid: int) -> Iterator[None]:
    """A thread is stepped from its own processor: to wake one on another costs 15 us a step more."""
    here = bytearray(4)
    _native.raw_syscall(NUMBERS["getcpu"], here, 0, 0)
    cpu = {int.from_bytes(here, "little")}
    places = {}
    with contextlib.suppress(OSError):
        for each in (0, tid):
            places[each] = os.sched_getaffinity(each)
            os.sched_setaffinity(each, cpu)
    try:
        yield
    finally:
        for each, place in places.items():
            with contextlib.suppress(OSError):
                os.sched_setaffinity(each, place)


class Stepper(Protocol):
    """What the prover needs of a thread that is in a ptrace stop."""

    def registers(self) -> bytes:
        """``user_regs_struct`` without the debugger's own flags."""

    def step(self) -> bool:
        """Execute one instruction; False if anything but its end stopped the thread."""

    def read(self, address: int, length: int) -> bytes:
        """Guest memory; OSError(EFAULT)."""

    def take_turns(self, instructions: bytes, start: int, code: bytes, *, commit: bool) -> Taken:
        """What :mod:`detbox.spin.turns` makes of it."""

    def vectors(self) -> bytes:
        """The x87, SSE and AVX state."""

    def blocked(self) -> int:
        """The signals that the thread blocks, as a mask."""

    def assign(self, values: Iterable[tuple[int, int]]) -> None:
        """Set registers: (offset in the block, value)."""

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory; OSError(EFAULT)."""

    def patch(self, address: int, byte: int) -> None:
        """Overwrite one byte of code, whatever its page's protection; OSError."""

    def own(self, address: int) -> bool:
        """Whether the memory there is the process's own: what is shared, others execute as well."""


class PtraceStepper:
    """The real thing; the calling thread is the tracer.

    ``stepped``: whether the last stop was the end of a step, and nothing is left to be handled.  Otherwise
    ``status`` is its wait status: it may be a SIGTRAP, too, the program's own.
    """

    def __init__(self, tid: int) -> None:
        self.tid = tid
        self.status = 0
        self.stepped = True
        self._registers: bytes | None = None

    def registers(self) -> bytes:
        """``user_regs_struct`` without the debugger's own flags."""
        if self._registers is None:
            self._registers = _without_debug_flags(_native.get_regs(self.tid))
        return self._registers

    def step(self) -> bool:
        """Execute one instruction; False if anything but its end stopped the thread."""
        self.status, self.stepped, registers = _native.single_step(self.tid)
        self._registers = _without_debug_flags(registers) if registers else None
        return self.stepped

    def survey(self, count: int) -> bool:
        """Execute up to ``count`` instructions, or those before a system call.

        Whether the registers at the same place changed by the same amounts from turn to turn: the thread
        may be waiting then, and otherwise it very likely computes.
        """
        _, self.status, why, regular = _native.survey(self.tid, count)
        self._registers = None
        self.stepped = why != _OTHER_STOP
        return regular and why == _STEPPED_ALL

    def read(self, address: int, length: int) -> bytes:
        """Guest memory; OSError(EFAULT)."""
        return _native.read_mem(self.tid, address, length)

    def take_turns(self, instructions: bytes, start: int, code: bytes, *, commit: bool) -> Taken:
        """Have a loop's instructions executed without a step (kernel/turns.c), if its code is that."""
        taken = _native.take_turns(self.tid, instructions, start, code, self.registers(), commit)
        if commit and taken is not None:
            self._registers = taken[0]
        return taken

    def vectors(self) -> bytes:
        """The x87, SSE and AVX state, as the XSAVE area."""
        area = array("B", bytes(16384))
        vector = array("Q", area.buffer_info())  # struct iovec
        _check(_native.ptrace_request(_PTRACE_GETREGSET, self.tid, _NT_X86_XSTATE, vector.buffer_info()[0]))
        return area[: vector[1]].tobytes()

    def blocked(self) -> int:
        """The signals that the thread blocks, as a mask."""
        return _native.get_sigmask(self.tid)

    def assign(self, values: Iterable[tuple[int, int]]) -> None:
        """Set registers: (offset in the block, value)."""
        registers = bytearray(_native.get_regs(self.tid))
        for offset, value in values:
            _WORD.pack_into(registers, offset, value)
        _native.set_regs(self.tid, registers)
        self._registers = None

    def write(self, address: int, data: bytes) -> None:
        """Write guest memory; OSError(EFAULT)."""
        _native.write_mem(self.tid, address, data)

    def patch(self, address: int, byte: int) -> None:
        """Overwrite one byte of code; the kernel breaks the sharing of its page."""
        # A word that ends with the byte's page may be all that is mapped.
        start = min(address, (address | 0xFFF) - 7)
        word = bytearray(self.read(start, 8))
        word[address - start] = byte
        _check(
            _native.ptrace_request(_PTRACE_POKETEXT, self.tid, start, _WORD.unpack(word)[0])
        )

    def own(self, address: int) -> bool:
        """Whether the memory there is private to the process."""
        with open(f"/proc/{self.tid}/maps", "rb") as maps:
            for line in maps:
                bounds, protection, _ = line.split(None, 2)
                start, end = bounds.split(b"-")
                if int(start, 16) <= address < int(end, 16):
                    return protection.endswith(b"p")
        return False


def _without_debug_flags(registers: bytes) -> bytes:
    flags = register(registers, _EFLAGS)
    if not flags & _DEBUG_FLAGS:
        return registers
    return registers[:_EFLAGS] + _WORD.pack(flags & ~_DEBUG_FLAGS) + registers[_EFLAGS + 8 :]


def _check(result: int) -> None:
    if result < 0:
        raise OSError(-result, "ptrace")
