"""Sending and awaiting signals.

The kernel sends; afterwards the supervisor interrupts parked threads that have
to take the signal.  A signal to the sender itself is delivered when its call
returns, without further ado.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTNOHAND, ContinueThen, Decision, Park, Wake
from detbox.handlers import signal_room
from detbox.handlers.futex_core import Args, read_timespec, signed
from detbox.handlers.processes import pidfd_target
from detbox.kernel.siginfo import SI_USER
from detbox.machine.creds import CAP_KILL, Creds
from detbox.machine.userspaces import TOP

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

SIGKILL, SIGCONT = 9, 18
INIT = 1
_INIT = Creds.of(0, 0)
ALL_BLOCKABLE = 0xFFFFFFFFFFFFFFFF & ~(1 << (SIGKILL - 1)) & ~(1 << (19 - 1))


def kill(m: Machine, t: Task, a: Args) -> Decision:
    """Signal a process, a group, or every process."""
    pid, signo = signed(a[0], 32), signed(a[1], 32)
    if pid == INIT:
        if not 0 <= signo <= 64:
            return -errno.EINVAL
        return 0 if _rights(t, _INIT) else -errno.EPERM  # init ignores what it has no handler for
    if pid == t.process.pid and len(t.process.tasks) == 1:
        return CONTINUE
    return _send(m, t, signo, lambda: _targets(m, t, pid), queued=False, all_of_them=pid == -1)


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
    signo = signed(a[1], 32)
    if _limited(t) or a[2] and signo >= signal_room.REALTIME:
        target = m.processes.get(pidfd_target(m, t, a[0]))
        return _send(m, t, signo, lambda: [target] if target is not None else [], queued=bool(a[2]))
    return _send(m, t, signo, lambda: list(m.processes.values()), queued=False)


def _to_thread(m: Machine, t: Task, tid: int, signo: int) -> Decision:
    if tid == INIT:
        return -errno.EPERM
    if tid == t.tid:
        return CONTINUE if signo < signal_room.REALTIME or signal_room.room(m, t.process) else -errno.EAGAIN
    target = m.tasks.get(tid)
    return _send(m, t, signo, lambda: [target.process] if target is not None else [])


def _targets(m: Machine, t: Task, pid: int) -> list[Process]:
    if pid > 0:
        found = m.process_of(pid)
        return [found] if found is not None else []
    if pid == -1:
        return [process for process in _everybody(m, t) if process is not t.process]
    group = -pid if pid else os.getpgid(t.tid)
    return [process for process in m.processes.values() if _group(process) == group]


def _everybody(m: Machine, t: Task) -> list[Process]:
    """The processes of a thread's PID namespace but its first one."""
    processes = list(m.processes.values())
    if t.process.namespaces:
        space = m.nested.space(t.tid)
        called = {process: m.nested.numbers(process.pid, space) for process in processes if space.depth}
        processes = [process for process in processes if (called.get(process, (2,)) or (0,))[0] > 1]
    return processes


def _group(process: Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return -1


def _send(
    m: Machine, t: Task, signo: int, targets: Callable[[], list[Process]], *, queued: bool = True,
    all_of_them: bool = False,
) -> Decision:  # fmt: skip
    """``queued``: a real-time signal fails if there is no room for what it tells; one of kill(2) goes without that."""
    limited = _limited(t)
    if signo == 0 and not limited:
        return CONTINUE
    processes = targets()
    if limited and 0 <= signo <= 64:
        # For the kernel all of the guest's processes are one user's; it says which of them are gone.
        processes = [process for process in processes if _group(process) >= 0]
        allowed = [process for process in processes if _may(t, process, signo)]
        if len(allowed) < len(processes):
            return _send_to_some(m, t, signo, allowed, all_of_them=all_of_them)
    if queued and signo >= signal_room.REALTIME and processes and not signal_room.room(m, processes[0]):
        return -errno.EAGAIN

    def look(task: Task, result: int) -> None:
        if result == 0:
            m.after_signal(task, signo, processes)
        elif result == -errno.EAGAIN:
            signal_room.ran_out(m, task)

    return ContinueThen(look)


def _send_to_some(m: Machine, t: Task, signo: int, allowed: list[Process], *, all_of_them: bool) -> Decision:
    """Not all of a group may be sent a signal: it is enough that one may, and for kill(-1) that there are others."""
    if not allowed:
        return 0 if all_of_them else -errno.EPERM
    if signo:
        for process in allowed:
            m.signal(process, signo, code=SI_USER, sender=t.process)
        m.after_signal(t, signo, allowed)
    return 0


def _may(t: Task, target: Process, signo: int) -> bool:
    """check_kill_permission() in kernel/signal.c."""
    if target is t.process or _rights(t, target.creds):
        return True
    return signo == SIGCONT and os.getsid(target.pid) == os.getsid(t.process.pid)


def _limited(t: Task) -> bool:
    """Whether there may be processes that it may not signal."""
    return not t.process.creds.capable(CAP_KILL, TOP)


def _rights(t: Task, target: Creds) -> bool:
    mine = t.process.creds
    return mine.capable(CAP_KILL, target.space) or bool({mine.euid, mine.ruid} & {target.suid, target.ruid})


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
