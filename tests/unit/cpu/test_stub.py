"""Code for a stopped thread makes its calls in order and stops at its end."""

from __future__ import annotations

import os
import signal

import pytest
from ptrace.binding import ptrace_cont, ptrace_getregs, ptrace_setregs

from detbox.cpu import stub
from detbox.kernel.own import OWN_CALL

from .tracer import Traced

SYS_GETPID, SYS_MMAP, SYS_CLOSE, SYS_DUP, SYS_FCNTL = 39, 9, 3, 32, 72


def test_calls_and_results() -> None:
    program = Traced(["/bin/true"], {})
    code = stub.code(((SYS_GETPID,), (SYS_CLOSE, 99), (SYS_MMAP, 0x7FFF0000, 4096, 7, 0x100022, -1, 0)))
    regs = ptrace_getregs(program.pid)
    program.write(regs.rip, code)
    ptrace_setregs(program.pid, regs)
    ptrace_cont(program.pid)
    _, status = os.waitpid(program.pid, 0)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP
    after = ptrace_getregs(program.pid)
    assert after.rip == regs.rip + len(code)
    results = [getattr(after, name) for name in stub.RESULTS[:3]]
    assert after.r9 == 0  # the last call has six arguments, and needs no mark
    assert results == [program.pid, (1 << 64) - 9, 0x7FFF0000]
    os.kill(program.pid, signal.SIGKILL)
    os.waitpid(program.pid, 0)


def test_a_result_is_an_argument() -> None:
    program = Traced(["/bin/true"], {})
    fd = stub.Result(0, 1 << 62)
    code = stub.code(((SYS_DUP, 1), *[(SYS_GETPID,)] * 4, (SYS_FCNTL, fd, 1), (SYS_CLOSE, stub.Result(0))))
    regs = ptrace_getregs(program.pid)
    program.write(regs.rip, code)
    ptrace_setregs(program.pid, regs)
    ptrace_cont(program.pid)
    os.waitpid(program.pid, 0)
    after = ptrace_getregs(program.pid)
    assert after.rip == regs.rip + len(code)
    results = [getattr(after, name) for name in stub.RESULTS]
    assert after.r9 == OWN_CALL
    assert results == [results[0], *[program.pid] * 4, 0, 0] and 2 < results[0] < 1000
    os.kill(program.pid, signal.SIGKILL)
    os.waitpid(program.pid, 0)


def test_too_many_calls() -> None:
    with pytest.raises(ValueError, match="registers"):
        stub.code(((SYS_GETPID,),) * 8)


def test_code_is_put_together_once() -> None:
    def calls() -> tuple[stub.Call, ...]:
        return (SYS_DUP, 1), (SYS_CLOSE, stub.Result(0, 1 << 62))

    assert stub.code(calls()) is stub.code(calls())


def test_code_that_goes_on_elsewhere_and_to_the_program() -> None:
    program = Traced(["/bin/true"], {})
    regs = ptrace_getregs(program.pid)
    first = (SYS_MMAP, 0x7FFF0000, 4096, 7, 0x100022, -1, 0)
    entry = regs.rip + 3000  # where there is a breakpoint
    ending = stub.ending(((SYS_DUP, 1), (SYS_CLOSE, stub.Result(0))), entry)
    program.write(entry, b"\xcc")
    program.write(regs.rip, stub.leading_on((first,), ending, 0x7FFF0000))
    for name in ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "rbp"):
        setattr(regs, name, 0x1234_5678_9ABC)
    ptrace_setregs(program.pid, regs)
    ptrace_cont(program.pid)
    _, status = os.waitpid(program.pid, 0)
    assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == signal.SIGTRAP
    after = ptrace_getregs(program.pid)
    assert (after.rip, after.rsp) == (entry + 1, regs.rsp)
    general = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", *(f"r{n}" for n in range(8, 16)))
    assert not any(getattr(after, name) for name in general)
    assert after.eflags == 0x202  # only that interrupts are on, and a bit that always is
    os.kill(program.pid, signal.SIGKILL)
    os.waitpid(program.pid, 0)
