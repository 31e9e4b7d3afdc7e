"""Threads that a process of the guest traces (:mod:`detbox.handlers.tracing`): their stops, and who waits for them."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from detbox.kernel import registers
from detbox.records import record

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

_STOPPED = 0x7F  # the low byte of a wait status (wait(2))

#: Key of Task.data: who traces it; of Process.data: the threads that it traces, by number.
TRACED, TRACEES = "traced", "tracees"
#: Key of Task.data: the flags of the clone(2) that it makes, without CLONE_UNTRACED.
FLAGS = "flags of a clone"


@record
class Traced:
    """A thread that the guest has attached to.  ``signo``: the signal that it is stopped by, 0 while it goes on."""

    tracer: Process
    signo: int = 0
    reported: bool = False


def stops(m: Machine, task: Task, signo: int) -> bool:
    """Whether a thread that is about to take a signal waits for its tracer instead."""
    traced = task.data.get(TRACED)
    if traced is None:
        return False
    traced.signo, traced.reported = signo, False
    m.wake(("child", traced.tracer.pid))
    return True


def traces(process: Process, pid: int | None) -> bool:
    """Whether a process has a thread to wait for that is not its child: ``pid``, or any."""
    tracees: dict[int, Task] = process.data.get(TRACEES, {})
    return bool(tracees) and (pid is None or pid in tracees)


def report(process: Process, pid: int | None) -> tuple[int, int] | None:
    """Number and wait status of the first thread (``pid``, or any) whose stop a process has not been told of."""
    for tid, task in process.data.get(TRACEES, {}).items():
        traced = task.data[TRACED]
        if traced.signo and not traced.reported and pid in (None, tid):
            traced.reported = True
            return tid, traced.signo << 8 | _STOPPED
    return None


def tracer(task: Task) -> int:
    """The number of the process that traces a thread, 0 if none does."""
    traced = task.data.get(TRACED)
    return traced.tracer.pid if traced is not None else 0


def release(task: Task) -> None:
    """A thread has no tracer any more."""
    traced = task.data.pop(TRACED)
    del traced.tracer.data[TRACEES][task.tid]


def after_death(m: Machine, task: Task) -> None:
    """A thread is gone: its tracer has nothing to wait for."""
    if TRACED in task.data:
        pid = tracer(task)
        release(task)
        m.wake(("child", pid))


def after_exit(m: Machine, process: Process) -> None:
    """A process is gone: those that it traced go on, with the signals that they were stopped by, but SIGSTOP."""
    for task in list(process.data.get(TRACEES, {}).values()):
        signo = task.data[TRACED].signo
        release(task)
        if signo:
            m.after_stop(task, 0 if signo == signal.SIGSTOP else signo)


def after_clone(parent: Task, child: Task) -> None:
    """A thread has made another, and both are stopped: they get the register back in which the flags were."""
    flags = parent.data.pop(FLAGS, None)
    if flags is not None:
        for task in (parent, child):
            regs = registers.get(task.tid)
            regs.rdi = flags
            registers.put(task.tid, regs)
