"""Sending and awaiting signals.

The kernel sends; afterwards the supervisor interrupts parked threads that have
to take the signal.  A signal to the sender itself is delivered when its call
returns, without further ado.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTNOHAND, ContinueThen, Decision, Park, Wake
from detbox.handlers.futex_core import Args, read_timespec, signed

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

SIGKILL, SIGCONT = 9, 18
INIT = 1
ALL_BLOCKABLE = 0xFFFFFFFFFFFFFFFF & ~(1 << (SIGKILL - 1)) & ~(1 << (19 - 1))


def kill(m: Machine, t: Task, a: Args) -> Decision:
    """Signal a process, a group, or every process."""
    pid, signo = signed(a[0], 32), signed(a[1], 32)
    if pid == INIT:
        return 0 if 0 <= signo <= 64 else -errno.EINVAL  # init ignores what it has no handler for
    if pid == t.process.pid and len(t.process.tasks) == 1:
        return CONTINUE
    return _send(m, t, signo, lambda: _targets(m, t, pid))


def tkill(m: Machine, t: Task, a: Args) -> Decision:
    """Signal a thread."""
    return _to_thread(m, t, signed(a[0], 32), signed(a[1], 32))


def tgkill(m: Machine, t: Task, a: Args) -> Decision:
    """Signal a thread of a given process."""
    return _to_thread(m, t, signed(a[1], 32), signed(a[2], 32))


def rt_sigqueueinfo(m: Machine, t: Task, a: Args) -> Decision:
    """Signal a process, with a value."""
    pid = signed(a[0], 32)
    if pid == INIT:
        return -errno.EPERM
    return _send(m, t, signed(a[1], 32), lambda: _targets(m, t, pid))


def rt_tgsigqueueinfo(m: Machine, t: Task, a: Args) -> Decision:
    """Signal a thread, with a value."""
    return _to_thread(m, t, signed(a[1], 32), signed(a[2], 32))


def pidfd_send_signal(m: Machine, t: Task, a: Args) -> Decision:
    """Signal the process behind a descriptor."""
    return _send(m, t, signed(a[1], 32), lambda: list(m.processes.values()))


def _to_thread(m: Machine, t: Task, tid: int, signo: int) -> Decision:
    if tid == INIT:
        return -errno.EPERM
    if tid == t.tid:
        return CONTINUE
    target = m.tasks.get(tid)
    return _send(m, t, signo, lambda: [target.process] if target is not None else [])


def _targets(m: Machine, t: Task, pid: int) -> list[Process]:
    if pid > 0:
        found = m.processes.get(pid)
        return [found] if found is not None else []
    if pid == -1:
        return list(m.processes.values())
    group = -pid if pid else os.getpgid(t.tid)
    return [process for process in m.processes.values() if _group(process) == group]


def _group(process: Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return -1


def _send(m: Machine, t: Task, signo: int, targets) -> Decision:  # type: ignore[no-untyped-def]
    if signo == 0:
        return CONTINUE
    processes = targets()

    def look(task: Task, result: int) -> None:
        if result == 0:
            m.after_signal(task, signo, processes)

    return ContinueThen(look)


def rt_sigpending(m: Machine, t: Task, a: Args) -> Decision:
    """What is blocked and pending: the kernel holds the queues."""
    return CONTINUE


# -- waiting for signals ----------------------------------------------------------


def pause(m: Machine, t: Task, a: Args) -> Decision:
    """Wait for any signal."""
    return Park(_never, interrupted=ERESTARTNOHAND, why="waits for a signal")


def rt_sigsuspend(m: Machine, t: Task, a: Args) -> Decision:
    """Wait for a signal under another mask, which the kernel swaps when the call is let through."""
    if a[1] != 8:
        return -errno.EINVAL
    mask = t.u64(a[0]) & ALL_BLOCKABLE
    return Park(_never, extra={"sigmask": mask}, why="waits for a signal (sigsuspend)")


def rt_sigtimedwait(m: Machine, t: Task, a: Args) -> Decision:
    """Take a pending signal of a set; the kernel takes it once it is there."""
    if a[3] != 8:
        return -errno.EINVAL
    awaited = t.u64(a[0]) & ALL_BLOCKABLE
    deadline = None
    if a[2]:
        timeout = read_timespec(t, a[2])
        if m.pending_signals(t) & awaited or timeout == 0:
            return _take(m, t, a)
        deadline = m.clock.now + timeout
    elif m.pending_signals(t) & awaited:
        return _take(m, t, a)

    def resume(wake: Wake) -> Decision:
        return -errno.EAGAIN if wake.kind == "deadline" else _take(m, t, a)

    return Park(resume, deadline=deadline, extra={"sigwait": awaited}, why="waits for a signal (sigwait)")


def _take(m: Machine, t: Task, a: Args) -> Decision:
    def look(task: Task, result: int) -> None:
        if result > 0 and a[1]:
            task.write(a[1], m.repaired_siginfo(task, result, task.read(a[1], 128)))

    return ContinueThen(look)


def _never(wake: Wake) -> Decision:
    raise AssertionError("nothing but a signal ends this wait")
