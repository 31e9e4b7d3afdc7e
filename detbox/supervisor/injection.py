"""Has a ptrace-stopped guest thread run code of the supervisor's: one system call, or a stub at exec."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from detbox.cpu import stub
from detbox.errors import InternalError
from detbox.kernel import _native, registers
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_CALL
from detbox.machine.tracees import CALL
from detbox.supervisor.memory import peek, poke

if TYPE_CHECKING:
    from detbox.supervisor.task import Task

_PTRACE_CONT, _PTRACE_SYSCALL = 7, 24
_EVENT_STOP = 128
_SYSCALL = b"\x0f\x05"
_EVERY_SIGNAL = 0xFFFFFFFFFFFFFFFF
_NO_CALL = 0xFFFFFFFFFFFFFFFF  # orig_rax: no call is to be restarted
_PAGE = 4096
_PATIENCE_MS = 20_000
_REGISTERS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


def call(task: Task, number: int, *args: int) -> int:
    """One call of a thread in a signal's delivery stop or in the stop after a call; its signed result.

    No signal reaches the thread meanwhile.  The stops before and after the call are no signals, so that no
    disposition changes.  Mappings are marked by who asks for them.
    """
    tid = task.tid
    regs, saved = registers.get(tid), registers.get(tid)
    mask = _native.get_sigmask(tid)
    code = peek(tid, regs.rip, len(_SYSCALL))
    poke(tid, regs.rip, _SYSCALL)
    regs.rax, regs.orig_rax = number, _NO_CALL
    regs.r9 = OWN_CALL
    for name, value in zip(_REGISTERS, args, strict=False):
        setattr(regs, name, value)
    registers.put(tid, regs)
    _native.set_sigmask(tid, _EVERY_SIGNAL)
    for _ in ("before", "after"):
        _resume(tid, _PTRACE_SYSCALL)
    result = registers.get(tid).rax
    poke(tid, saved.rip, code)
    registers.put(tid, saved)
    _native.set_sigmask(tid, mask)
    return _signed(result)


def at_exec(
    task: Task, calls: Sequence[stub.Call], listener: int, fd: int, code_at: int | None = None
) -> list[int]:
    """Calls of a thread that is in its PTRACE_EVENT_EXEC stop, all in one go; their signed results.

    The code lies for that time at ``code_at``, or at the start of the page of the program's first instruction.  A call
    that the filter traps is answered with a descriptor of what ``fd`` is open on.
    """
    tid = task.tid
    regs, saved = registers.get(tid), registers.get(tid)
    mask = _native.get_sigmask(tid)
    place = regs.rip - regs.rip % _PAGE if code_at is None else code_at
    code = stub.code(tuple(calls))
    old = peek(tid, place, len(code))
    poke(tid, place, code)
    regs.rip = place
    registers.put(tid, regs)
    # The breakpoint's own signal must be open, or the kernel would open it for good.
    _native.set_sigmask(tid, _EVERY_SIGNAL & ~(1 << (signal.SIGTRAP - 1)))
    _resume(tid, _PTRACE_CONT, lambda: _next(tid, listener, fd))
    after = registers.get(tid)
    if after.rip != place + len(code):
        raise InternalError(f"the code at exec stopped at {after.rip:#x}")
    poke(tid, place, old)
    saved.rax, saved.orig_rax = 0, _NO_CALL
    registers.put(tid, saved)
    _native.set_sigmask(tid, mask)
    return [_signed(getattr(after, name)) for name in stub.RESULTS[: len(calls)]]


def up_to_call(task: Task, code_at: int, rsp: int, listener: int) -> tuple[int, int, int, tuple[int, ...], int]:
    """Let a thread that is in its PTRACE_EVENT_EXEC stop execute code at an address, up to its first trapped call.

    No signal reaches it any more: its code has to open them again.  The call, as wait_event() has it.
    """
    tid = task.tid
    _native.divert(tid, code_at, rsp, _EVERY_SIGNAL)
    stopped = False
    while True:
        _native.ptrace_request(_PTRACE_CONT, tid, 0, 0)
        event = _native.await_call(listener, tid, _PATIENCE_MS)
        if isinstance(event, tuple):
            break
        # As _resume() has it.
        if event is None or not os.WIFSTOPPED(event):
            raise InternalError(f"thread {tid} is lost in the supervisor's code ({event})")
        if event >> 16 != _EVENT_STOP and os.WSTOPSIG(event) != signal.SIGSTOP:
            raise InternalError(f"thread {tid} got signal {os.WSTOPSIG(event)} in the supervisor's code")
        stopped = stopped or os.WSTOPSIG(event) == signal.SIGSTOP
    if event[1] != tid:
        raise InternalError(f"thread {event[1]} runs while {tid} executes a program")
    if stopped:
        _stop_later(tid)
    return event


def _next(tid: int, listener: int, fd: int) -> int:
    """The wait status of the thread's next stop; calls are answered meanwhile."""
    while True:
        event = _native.await_call(listener, tid, _PATIENCE_MS)
        if event is None:
            raise InternalError(f"thread {tid} is lost in the supervisor's code")
        if isinstance(event, int):
            return event
        if event[1] != tid:
            raise InternalError(f"thread {event[1]} runs while {tid} executes a program")
        number = _native.add_fd(listener, event[0], fd, -1, True, True)
        if number < 0:
            _native.reply(listener, event[0], 0, number, 0)


def _resume(tid: int, request: int, next_stop: Callable[[], int] | None = None) -> None:
    """Let the thread go on to its next stop, which has to be a trap.  A stop signal comes later.

    Who looked for a spin may have asked the thread to stop when it had just stopped by itself: the kernel then stops
    it once more (kernel/ptrace.c, PTRACE_INTERRUPT), before its first instruction.  Nobody waits for that.
    """
    stopped = False
    while True:
        _native.ptrace_request(request, tid, 0, 0)
        status = next_stop() if next_stop else _native.wait_tid(tid, 0)[1]
        if not os.WIFSTOPPED(status):
            raise InternalError(f"thread {tid} did not come back from the supervisor's code ({status:#x})")
        signo = os.WSTOPSIG(status)
        if signo in (signal.SIGTRAP, signal.SIGTRAP | CALL):
            if status >> 16 == _EVENT_STOP:
                continue
            break
        # The only signal that cannot be held back.
        if signo != signal.SIGSTOP:
            raise InternalError(f"thread {tid} got signal {signo} in the supervisor's code")
        stopped = True
    if stopped:
        _stop_later(tid)


def _stop_later(tid: int) -> None:
    # The very thread: it may be a tracer of the guest's that stops it alone.
    _native.raw_syscall(NUMBERS["tkill"], tid, signal.SIGSTOP)


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def to_call(task: Task, number: int) -> None:
    """Have a thread that is in the delivery stop of a call's SIGSYS make another call instead, without arguments."""
    regs = registers.get(task.tid)
    regs.rip -= len(_SYSCALL)
    regs.rax, regs.rdi, regs.r9, regs.orig_rax = number, 0, OWN_CALL, _NO_CALL
    registers.put(task.tid, regs)


def leave(task: Task, status: int) -> None:
    """Have a thread that is in its PTRACE_EVENT_EXEC stop end its process with the wait status, as its only act.

    A signal that ends it must be neither blocked nor ignored.
    """
    if os.WIFSIGNALED(status):
        os.kill(task.tid, os.WTERMSIG(status))
        return
    code = stub.code(((NUMBERS["exit_group"], os.WEXITSTATUS(status)),))
    poke(task.tid, registers.get(task.tid).rip, code)
