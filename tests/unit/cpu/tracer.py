"""A tracer of one single-threaded program: shows its first stack, and answers its trapped instructions."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable

from ptrace.binding import (
    ptrace_cont,
    ptrace_getregs,
    ptrace_setregs,
    ptrace_singlestep,
    ptrace_traceme,
)

from detbox.cpu import model
from detbox.cpu.emulate import decode, emulate

ARCH_SET_CPUID = 0x1012
SYS_ARCH_PRCTL = 158
SYS_PRCTL = 157
PR_SET_TSC, PR_TSC_SIGSEGV = 26, 2


class Values:
    """Answers from a CPU model, with a counting clock."""

    def __init__(self, name: str = model.DEFAULT_MODEL, cpus: int = 4) -> None:
        self.model = model.MODELS[name]
        self.cpus = cpus
        self.ticks = 1000

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        return model.cpuid(self.model, self.cpus, 0, leaf, subleaf)

    def xcr0(self) -> int:
        return self.model.xcr0

    def tsc(self) -> int:
        self.ticks += 1
        return self.ticks

    def random(self, size: int) -> bytes:
        return bytes(range(size))

    def cpu(self) -> int:
        return 3


class Traced:
    """A program stopped before its first instruction; its output goes to a pipe."""

    def __init__(self, argv: list[str], environ: dict[str, str]) -> None:
        self._out, write = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.dup2(write, 1)
                ptrace_traceme()
                os.execve(argv[0], argv, environ)
            finally:
                os._exit(99)
        os.close(write)
        _, status = os.waitpid(self.pid, 0)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP
        self._mem = os.open(f"/proc/{self.pid}/mem", os.O_RDWR)

    def read(self, address: int, size: int) -> bytes:
        return os.pread(self._mem, size, address)

    def write(self, address: int, data: bytes) -> None:
        assert os.pwrite(self._mem, data, address) == len(data)

    def stack(self) -> tuple[int, bytes]:
        """The stack pointer and the bytes from there to the end of the stack."""
        rsp = ptrace_getregs(self.pid).rsp
        with open(f"/proc/{self.pid}/maps") as maps:
            end = next(int(line.split()[0].split("-")[1], 16) for line in maps if line.endswith("[stack]\n"))
        return rsp, self.read(rsp, end - rsp)

    def set_rsp(self, rsp: int) -> None:
        regs = ptrace_getregs(self.pid)
        regs.rsp = rsp
        ptrace_setregs(self.pid, regs)

    def call(self, number: int, *args: int) -> int:
        """Have the program make a system call."""
        saved = ptrace_getregs(self.pid)
        regs = ptrace_getregs(self.pid)
        code = self.read(regs.rip, 2)
        self.write(regs.rip, b"\x0f\x05")
        regs.rax = number
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
            setattr(regs, name, value)
        ptrace_setregs(self.pid, regs)
        ptrace_singlestep(self.pid)
        os.waitpid(self.pid, 0)
        result = ptrace_getregs(self.pid).rax
        self.write(saved.rip, code)
        ptrace_setregs(self.pid, saved)
        return int(result - (1 << 64) if result >> 63 else result)

    def run(
        self, values: Values, original: Callable[[int], bytes | None] = lambda rip: None
    ) -> tuple[bytes, Counter[str]]:
        """Let it run to its end; its output, and how often which instruction was emulated.

        ``original``: the bytes that a patch at an address replaced.
        """
        counts: Counter[str] = Counter()
        signo = 0
        while True:
            ptrace_cont(self.pid, signo)
            _, status = os.waitpid(self.pid, 0)
            if not os.WIFSTOPPED(status):
                break
            signo = os.WSTOPSIG(status)
            if signo in (signal.SIGSEGV, signal.SIGILL):
                regs = ptrace_getregs(self.pid)
                code = original(regs.rip) or self.read(regs.rip, 15)
                instruction = decode(code)
                if emulate(code, regs, values) and instruction:
                    counts[instruction.kind] += 1
                    ptrace_setregs(self.pid, regs)
                    signo = 0
        os.close(self._mem)
        with open(self._out, "rb") as output:
            text = output.read()
        assert status == 0, (os.waitstatus_to_exitcode(status), text)
        return text, counts
