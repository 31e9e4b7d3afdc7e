"""Threads that a process of the guest traces (:mod:`detbox.handlers.tracing`): their stops, and who waits for them.

The kernel knows one tracer only, and that is the supervisor.  A thread that is to stop for the guest's tracer is in a
ptrace stop of the supervisor's, of the same kind if there is one, and is not let go on until that tracer says so.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from enum import Enum
from typing import TYPE_CHECKING

from detbox.kernel import registers, siginfo
from detbox.records import record

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: Requests by which a thread goes on (include/uapi/linux/ptrace.h).
CONT, SINGLESTEP, SYSCALL, SYSEMU = 7, 9, 24, 31
#: Events, and the options of a tracer.  The option for an event is the bit of its number.
EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_VFORK_DONE, EVENT_EXIT, EVENT_STOP = 1, 2, 3, 4, 5, 6, 128
SYSGOOD, EXITKILL = 1, 1 << 20
#: What a stop at a call adds to SIGTRAP, if the tracer wants to tell it from others.
CALL = 0x80

#: Key of Task.data: how it is traced; of Process.data: those that it traces, by number, and those that have ended.
_TRACED, TRACEES, ENDED = "traced", "tracees", "ended tracees"
#: Key of Task.data: the flags of the clone(2) that it makes, without CLONE_UNTRACED.
FLAGS = "flags of a clone"
#: Number of a call that has begun, until the supervisor hears of it.
UNSEEN = -2
_LEADER = "traced leader"  # of Process.data: its first thread, which is gone


class Kind(Enum):
    """What a thread is stopped by."""

    SIGNAL = "a signal that it is about to take"
    ENTRY = "the beginning of a call"
    EXIT = "the end of a call"
    EVENT = "an event"
    GROUP = "a stop of its process"


@record
class Stop:
    """A stop that the tracer is told of.

    ``code``: the signal, with the event above it.  ``then`` lets the thread go on, with the signal that it is given.
    ``message``: what belongs to the event.  ``info``: the siginfo, None if there is none; a signal's is the kernel's.
    """

    kind: Kind
    code: int
    then: Callable[[int], None]
    message: int = 0
    info: bytes | None = None
    reported: bool = False


@record
class Traced:
    """A thread that a process of the guest traces.

    ``mode``: the request by which it goes on.  ``asked``: it was asked to stop, and has not yet.
    ``former``: the number of the thread that has executed the program.  ``exits``: the kernel tells of its end.
    ``begun``: the number of a call that it was kept from making.  ``repeats``: it is about to make the same one again.
    """

    tracer: Process
    task: Task
    seized: bool
    options: int = 0
    mode: int = CONT
    stop: Stop | None = None
    asked: bool = False
    former: int = 0
    exits: bool = False
    begun: int = UNSEEN
    repeats: bool = False

    def wants(self, event: int) -> bool:
        """Whether the tracer has asked for the event."""
        return bool(self.options & 1 << event)


@record
class Ended:
    """A traced thread that has ended and that nobody else could wait for.  ``status``: its wait status."""

    task: Task
    status: int


def is_traced(task: Task) -> bool:
    """Whether a process of the guest traces a thread."""
    return _TRACED in task.data


def of(task: Task) -> Traced | None:
    """How a thread is traced, if it is."""
    return task.data.get(_TRACED)


def known(task: Task) -> Traced:
    """How a thread is traced that is."""
    traced: Traced = task.data[_TRACED]
    return traced


def request(task: Task) -> int:
    """The request by which a thread goes on."""
    traced = of(task)
    if traced is None:
        return CONT
    return SYSCALL if traced.begun >= 0 else traced.mode


def tracer(task: Task) -> int:
    """The number of the process that traces a thread, 0 if none does."""
    traced = of(task)
    return traced.tracer.pid if traced is not None else 0


def traces(process: Process, task: Task | None) -> bool:
    """Whether a thread is traced by a process."""
    traced = of(task) if task is not None else None
    return traced is not None and traced.tracer is process


def begin(task: Task, tracer: Process, *, seized: bool, options: int = 0) -> Traced:
    """A process traces a thread from now on."""
    traced = task.data[_TRACED] = Traced(tracer, task, seized, options)
    tracer.data.setdefault(TRACEES, {})[task.tid] = traced
    return traced


def release(task: Task) -> None:
    """A thread has no tracer any more."""
    traced = task.data.pop(_TRACED)
    traced.tracer.data[TRACEES].pop(task.tid, None)


# -- stops ----------------------------------------------------------------------------


def event_info(task: Task, code: int) -> bytes:
    """The siginfo of a stop that is no signal's."""
    signo = code & 0x7F
    return siginfo.user(signo, code, task.tid, task.process.creds.ruid, 0)


def stopped(m: Machine, traced: Traced, stop: Stop) -> None:
    """A thread has stopped for its tracer, which is told."""
    traced.stop, traced.asked = stop, False
    why = siginfo.CLD_STOPPED if stop.kind is Kind.GROUP else siginfo.CLD_TRAPPED
    m.tell_tracer(traced.tracer, traced.task, why, stop.code & 0x7F)


# -- waiting --------------------------------------------------------------------------


def awaited(process: Process, chosen: Callable[[Task], bool]) -> bool:
    """Whether a process traces a thread that a wait would choose."""
    threads = [traced.task for traced in process.data.get(TRACEES, {}).values()]
    return any(chosen(task) for task in threads) or any(
        chosen(each.task) for each in process.data.get(ENDED, ())
    )


def report(process: Process, chosen: Callable[[Task], bool], *, ended: bool, keep: bool) -> tuple[Task, int] | None:
    """The first thread of those chosen whose stop or end a process has not been told of, and its wait status.

    The order is the kernel's: children before others, the oldest first; of others the last that was attached first.
    ``ended``: whether ends count.  ``keep``: it can be waited for again.
    """
    for task, status in _changes(process):
        if not chosen(task) or (status & 0xFF != 0x7F and not ended):
            continue
        if not keep:
            _told(process, task)
        return task, status
    return None


def _changes(process: Process) -> Iterator[tuple[Task, int]]:
    tracees: dict[int, Traced] = process.data.get(TRACEES, {})
    own = [tracees[child.pid] for child in process.children if child.pid in tracees]
    rest = [traced for traced in reversed(list(tracees.values())) if traced.task.process.parent is not process]
    threads = [traced for traced in reversed(list(tracees.values())) if traced not in own and traced not in rest]
    for traced in (*own, *rest, *threads):
        if traced.stop is not None and not traced.stop.reported:
            yield traced.task, traced.stop.code << 8 | 0x7F
    for each in process.data.get(ENDED, ()):
        yield each.task, each.status


def _told(process: Process, task: Task) -> None:
    traced = process.data.get(TRACEES, {}).get(task.tid)
    if traced is not None and traced.task is task and traced.stop is not None:
        traced.stop.reported = True
    else:
        process.data[ENDED] = [each for each in process.data[ENDED] if each.task is not task]


# -- the lives of threads ---------------------------------------------------------------


def after_death(m: Machine, task: Task, status: int | None = None) -> None:
    """A thread is gone, with a wait status if that is known: its tracer can wait for it.

    A process's first thread counts when the whole process is gone.
    """
    if not task.data or not is_traced(task):
        return
    if status is None or task.tid != task.process.pid:
        _end(m, task, status)
    else:
        known(task).stop = None
        task.process.data[_LEADER] = task


def after_exit(m: Machine, process: Process) -> None:
    """A process is gone: those that it traced go on, with the signals that they were stopped by, but SIGSTOP."""
    leader: Task | None = process.data.pop(_LEADER, None)
    if leader is not None and is_traced(leader):
        _end(m, leader, process.status)
    for traced in list(process.data.get(TRACEES, {}).values()):
        task, stop = traced.task, traced.stop
        if not task.process.tasks:
            continue
        if traced.options & EXITKILL:
            m.kill(task.process)
            continue
        release(task)
        if stop is not None:
            signo = stop.code if stop.kind is Kind.SIGNAL and stop.code != signal.SIGSTOP else 0
            m.go_on(task, stop, signo)


def _end(m: Machine, task: Task, status: int | None) -> None:
    process = known(task).tracer
    release(task)
    if status is not None and (task.tid != task.process.pid or task.process.parent is not process):
        process.data.setdefault(ENDED, []).append(Ended(task, status))
        code, value = siginfo.how_it_ended(status)
        m.tell_tracer(process, task, code, value)
    m.wake(("child", process.pid))


def renamed(task: Task, former: int) -> None:
    """A thread that has executed a program has another number now."""
    traced = of(task)
    if traced is not None:
        traced.former = former
        tracees: dict[int, Traced] = traced.tracer.data[TRACEES]
        traced.tracer.data[TRACEES] = {each.task.tid: each for each in tracees.values()}


def after_clone(parent: Task, child: Task) -> None:
    """A thread has made another, and both are stopped: they get the register back in which the flags were."""
    flags = parent.data.pop(FLAGS, None)
    if flags is not None:
        for task in (parent, child):
            regs = registers.get(task.tid)
            regs.rdi = flags
            registers.put(task.tid, regs)
