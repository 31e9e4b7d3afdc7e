"""Stops of threads that a process of the guest traces: where the supervisor plays the kernel's part.

The supervisor is every thread's tracer.  While a thread is traced by the guest, the supervisor lets it go on by the
request that the guest's tracer has made (PTRACE_SYSCALL, PTRACE_SINGLESTEP ...), so that the kernel itself makes the
stops, at calls that the filter allows, too: a stop at the beginning of a call comes before the filter, and the one at
its end after the answer.  What the tracer reads and changes there are the thread's own registers.  Such a thread is
neither counted nor probed for loops, which would change where it stops.

Stops that the kernel cannot make are only told of: those behind an exec, which the supervisor has used for itself, and
the first one of a new thread.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTNOINTR, ERESTARTSYS
from detbox.kernel import _native, registers, siginfo
from detbox.machine import tracees
from detbox.machine.tracees import (
    CALL,
    CONT,
    EVENT_EXEC,
    EVENT_EXIT,
    EVENT_STOP,
    EVENT_VFORK_DONE,
    EXITKILL,
    SINGLESTEP,
    SYSCALL,
    SYSEMU,
    SYSGOOD,
    UNSEEN,
    Kind,
    Stop,
    Traced,
    event_info,
)
from detbox.supervisor import lifecycle, signals
from detbox.supervisor.task import Process, State, Task

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor

_INTERRUPT, _SETOPTIONS = 0x4207, 0x4200
#: What the supervisor asks of the kernel for each thread (TRACE_OPTIONS of the loop).
_OWN_OPTIONS = 0x3F | EXITKILL
_ENTRY, _EXIT = 1, 2  # what PTRACE_GETEVENTMSG tells of a stop at a call
_EXECVE = 59
#: In a process's data: threads that wait at their ends for the one that takes them with it; whether that has gone on.
_LEAVING, _ENDS = "leaving threads", "ends"
_NO_CALL = 0xFFFF_FFFF_FFFF_FFFF
_TRAP_BRKPT, _TRAP_TRACE = 1, 2
_SYSCALL = b"\x0f\x05"


def _stop(
    sup: Supervisor, traced: Traced, kind: Kind, code: int, then: Callable[[int], None],
    message: int = 0, info: bytes | None = None,
) -> None:  # fmt: skip
    """Hold a thread that is in a ptrace stop until its tracer lets it go on."""
    task = traced.task
    sup.counting.traced(task)
    heed_exit(traced)
    task.state = State.TRACED
    tracees.stopped(sup.m, traced, Stop(kind, code, then, message, info))


def _event(sup: Supervisor, traced: Traced, event: int, then: Callable[[int], None], message: int) -> None:
    code = signal.SIGTRAP | event << 8
    _stop(sup, traced, Kind.EVENT, code, then, message, event_info(traced.task, code))


# -- signals ------------------------------------------------------------------------------


def takes_signal(sup: Supervisor, task: Task, signo: int) -> None:
    """A thread is about to take a signal."""
    traced = tracees.known(task)
    if signo == signal.SIGTRAP and traced.mode == SINGLESTEP:
        _mend_reason(task)

    def then(given: int) -> None:
        if given == 0:
            sup.proceed(task)
            return
        if given != siginfo.signo_of(_native.get_siginfo(task.tid)):
            # As the kernel does it, whose tracer another one is.
            sender = traced.tracer
            _native.set_siginfo(task.tid, siginfo.user(given, siginfo.SI_USER, sender.pid, sender.creds.ruid, 0))
        sup.deliver(task, given)

    _stop(sup, traced, Kind.SIGNAL, signo, then)


def _mend_reason(task: Task) -> None:
    """The end of a step has TRAP_TRACE behind what is no call; nested virtual machines lose that now and then."""
    info = _native.get_siginfo(task.tid)
    if siginfo.code_of(info) != _TRAP_BRKPT:
        return
    rip = registers.get(task.tid).rip
    try:
        before = task.read(rip - 2, 2)
    except OSError:
        return
    if before != _SYSCALL and not before.endswith(b"\xf1"):
        _native.set_siginfo(task.tid, info[:8] + _TRAP_TRACE.to_bytes(4, "little") + info[12:])


def stepped(sup: Supervisor, task: Task) -> bool:
    """A trapped instruction has been emulated; True if it was a step, and the tracer is told."""
    traced = tracees.of(task)
    if traced is None or traced.mode != SINGLESTEP:
        return False
    info = siginfo.fault(signal.SIGTRAP, _TRAP_TRACE, registers.get(task.tid).rip)
    _stop(sup, traced, Kind.SIGNAL, signal.SIGTRAP, lambda given: sup.cont(task, given), info=info)
    return True


# -- calls --------------------------------------------------------------------------------


def at_call(sup: Supervisor, task: Task) -> None:
    """A thread has stopped at the beginning or the end of a call."""
    entry = _native.event_message(task.tid) == _ENTRY
    look = task.look
    if not entry and look is not None:
        # The interrupt that came with it has ended with this stop (kernel/signal.c, ptrace_stop()).
        task.look = None
        sup.look(task, look)
    traced = tracees.of(task)
    if traced is not None and (_repeated(sup, traced) if entry else _begun_anew(sup, traced)):
        return
    if traced is None or traced.mode not in (SYSCALL, SYSEMU):
        sup.cont(task, 0)
    elif entry:
        _at_call(sup, traced, True, lambda given: _begin(sup, task, given))
    else:
        _at_call(sup, traced, False, lambda given: sup.cont(task, given) if given else sup.proceed(task))


def _begin(sup: Supervisor, task: Task, given: int) -> None:
    """Let a thread begin its call, unless a signal waits for it: then it is made again behind that.

    Up to the moment at which the supervisor has received the notification, a signal would end the call with a restart
    code (kernel/seccomp.c, seccomp_do_user_notification()); which of them comes first depends on the host.
    """
    traced, regs = tracees.of(task), registers.get(task.tid)
    if traced is not None and regs.orig_rax >> 63 == 0:
        traced.begun = UNSEEN
        task.nr = UNSEEN
        if traced.asked or task.process.job_stop or _signal_waits(sup, task):
            traced.begun = regs.orig_rax
            regs.orig_rax = _NO_CALL
            registers.put(task.tid, regs)
    sup.cont(task, given)


def _signal_waits(sup: Supervisor, task: Task) -> bool:
    """Whether a thread in a ptrace stop is to take a signal; its sets, at 12 µs, are read only if one is queued."""
    if not _native.signals_queued(task.tid):
        return False
    sets = signals.pending(sup.m, task)
    return bool((sets.private | sets.shared) & ~sets.blocked)


def _repeated(sup: Supervisor, traced: Traced) -> bool:
    """Whether a call begins that its tracer has been told of."""
    if not traced.repeats:
        return False
    traced.repeats = False
    _begin(sup, traced.task, 0)
    return True


def _begun_anew(sup: Supervisor, traced: Traced) -> bool:
    """What has ended may be a call that was not made; True if the tracer is not to be told of that.

    A tick's interrupt may have come before the supervisor has heard of the call, which is made again at once.
    """
    task, begun, regs = traced.task, traced.begun, registers.get(traced.task.tid)
    traced.begun = UNSEEN
    if begun != UNSEEN:
        regs.rax, regs.orig_rax = -ERESTARTNOINTR, begun
        registers.put(task.tid, regs)
    elif task.nr == UNSEEN and regs.rax == -ERESTARTSYS & _NO_CALL:
        traced.repeats = traced.mode in (SYSCALL, SYSEMU)
        regs.rax, regs.orig_rax, regs.rip = regs.orig_rax, _NO_CALL, regs.rip - len(_SYSCALL)
        registers.put(task.tid, regs)
        sup.cont(task, 0)
        return True
    return False


def _at_call(sup: Supervisor, traced: Traced, entry: bool, then: Callable[[int], None]) -> None:
    code = signal.SIGTRAP | (CALL if traced.options & SYSGOOD else 0)
    kind, message = (Kind.ENTRY, _ENTRY) if entry else (Kind.EXIT, _EXIT)
    _stop(sup, traced, kind, code, then, message, event_info(traced.task, code))


# -- births, programs and ends ---------------------------------------------------------------


def cloned(sup: Supervisor, parent: Task, child: Task, event: int) -> bool:
    """A thread has made another; True if its tracer is told, which traces that one, too."""
    traced = tracees.of(parent)
    if traced is None or not traced.wants(event):
        return False
    tracees.begin(child, traced.tracer, seized=traced.seized, options=traced.options)
    _event(sup, traced, event, lambda given: lifecycle.after_clone(sup, parent, child), child.tid)
    return True


def born(sup: Supervisor, task: Task) -> None:
    """A thread that is traced from its first instruction on has its turn."""
    traced = tracees.known(task)
    if traced.seized:
        code = signal.SIGTRAP | EVENT_STOP << 8
        _stop(sup, traced, Kind.EVENT, code, lambda given: sup.cont(task, 0), info=event_info(task, code))
        return
    info = siginfo.user(signal.SIGSTOP, siginfo.SI_USER, 0, 0, 0)
    _stop(sup, traced, Kind.SIGNAL, signal.SIGSTOP, lambda given: _given(sup, task, given), info=info)


def _given(sup: Supervisor, task: Task, signo: int) -> None:
    """Go on from a stop at which the kernel knows of no signal: one that is given is sent."""
    if signo:
        sup.m.signal(task, signo, code=siginfo.SI_USER, sender=task.process)
    sup.cont(task, 0)


def executed(sup: Supervisor, task: Task) -> None:
    """A program is ready to begin: what the kernel's stops would be, one after the other."""
    traced = tracees.known(task)
    regs = registers.get(task.tid)
    regs.rax, regs.orig_rax = 0, _EXECVE
    registers.put(task.tid, regs)

    def after_event(given: int) -> None:
        if tracees.of(task) is traced and traced.mode == SYSCALL:
            _at_call(sup, traced, False, after_call)
        else:
            after_call(given)

    def after_call(given: int) -> None:
        if tracees.of(task) is traced and not traced.seized and not traced.wants(EVENT_EXEC):
            info = siginfo.user(signal.SIGTRAP, siginfo.SI_USER, task.process.pid, task.process.creds.ruid, 0)
            _stop(sup, traced, Kind.SIGNAL, signal.SIGTRAP, lambda given: _given(sup, task, given), info=info)
        elif tracees.of(task) is traced and traced.mode == SINGLESTEP:
            info = siginfo.fault(signal.SIGTRAP, _TRAP_BRKPT, registers.get(task.tid).rip)
            _stop(sup, traced, Kind.SIGNAL, signal.SIGTRAP, lambda given: _given(sup, task, given), info=info)
        else:
            _given(sup, task, given)

    if traced.wants(EVENT_EXEC):
        _event(sup, traced, EVENT_EXEC, after_event, traced.former)
    else:
        after_event(0)


def vfork_done(sup: Supervisor, task: Task, child: int) -> bool:
    """The parent of a vfork child is about to return from its call; True if its tracer is told."""
    traced = tracees.of(task)
    if traced is None or not traced.wants(EVENT_VFORK_DONE):
        return False
    _event(sup, traced, EVENT_VFORK_DONE, lambda given: sup.cont(task, 0), child)
    return True


def leaves(sup: Supervisor, task: Task) -> None:
    """A thread is about to end (it or one before it has been traced by who wanted to know that).

    Those that another one takes with it stop, too, earlier or later: they go on when that one does, or is awaited.
    """
    process, traced = task.process, tracees.of(task)
    if task.state is not State.HELD:
        if process.data.get(_ENDS):
            _native.ptrace_request(CONT, task.tid, 0, 0)
        else:
            process.data.setdefault(_LEAVING, []).append(task.tid)
            sup.m.scheduler.remove(task)  # it has no turn any more
        return
    message = _native.event_message(task.tid)
    whole = process.exiting or bool(message & 0x7F)
    for other in process.tasks.values() if whole else ():
        if other is not task:
            sup.m.scheduler.remove(other)

    def then(given: int) -> None:
        process.data[_ENDS] = whole
        for tid in process.data.pop(_LEAVING, ()):
            _native.ptrace_request(CONT, tid, 0, 0)
        sup.cont(task, 0)

    if traced is not None and traced.wants(EVENT_EXIT):
        _event(sup, traced, EVENT_EXIT, then, message)
    else:
        then(0)


def lingers(process: Process) -> bool:
    """Whether a thread of a process is stopped at its end, for its tracer to look."""
    found = [tracees.of(task) for task in process.tasks.values()]
    return any(
        traced.stop is not None and traced.stop.code >> 8 == EVENT_EXIT for traced in found if traced is not None
    )


def heed_exit(traced: Traced) -> None:
    """Have the kernel stop a thread at its end, if its tracer wants that: it is in a stop."""
    if traced.wants(EVENT_EXIT) and not traced.exits:
        traced.exits = True
        _native.ptrace_request(_SETOPTIONS, traced.task.tid, 0, _OWN_OPTIONS | 1 << EVENT_EXIT)


def pass_exit(task: Task) -> None:
    """A process's first thread, whose end is not to be told of, may have stopped on its way."""
    stopped, _ = _native.wait_tid(task.tid, os.WNOHANG)
    if stopped:
        _native.ptrace_request(CONT, task.tid, 0, 0)


# -- stops that are asked for, and those of a process ------------------------------------------


def interrupt(sup: Supervisor, task: Task) -> None:
    """PTRACE_INTERRUPT, or the attachment to a process that is stopped."""
    traced = tracees.known(task)
    traced.asked = True
    _native.ptrace_request(_INTERRUPT, task.tid, 0, 0)
    if task.state is State.PARKED:
        signals.interrupt(sup.m, task)
    elif task.state is State.STOPPED:
        # It stops once more, so that it can be asked for what it holds.
        status = sup.await_stop(task.tid)
        if status is not None:
            sup.on_stop(task.tid, status)


def asked(sup: Supervisor, task: Task) -> bool:
    """A thread has stopped that may have been asked to, or that SIGCONT has reached; True if its tracer is told."""
    traced = tracees.known(task)
    if not traced.asked or not traced.seized:
        return False
    code = signal.SIGTRAP | EVENT_STOP << 8
    _stop(sup, traced, Kind.EVENT, code, lambda given: sup.proceed(task), info=event_info(task, code))
    return True


def group_stop(sup: Supervisor, task: Task, signo: int) -> None:
    """A thread takes part in a stop of its process."""
    traced, process = tracees.known(task), task.process
    if not process.job_stop:
        process.job_stop = signo
        for other in list(process.tasks.values()):
            if other.state is State.PARKED:
                signals.interrupt(sup.m, other)
    code = signo | (EVENT_STOP << 8 if traced.seized else 0)

    def then(given: int) -> None:
        if all(other.state is not State.STOPPED for other in process.tasks.values()):
            process.job_stop = 0
            process.data.pop("stopped", None)
            sup.jobs.stopped.pop(process, None)
        sup.cont(task, 0)

    _stop(sup, traced, Kind.GROUP, code, then, info=event_info(task, code) if traced.seized else None)


def continued(process: Process) -> None:
    """SIGCONT has been sent to a process: the kernel has those stop that were seized."""
    for task in process.tasks.values():
        traced = tracees.of(task)
        if traced is not None and traced.seized:
            traced.asked = True
