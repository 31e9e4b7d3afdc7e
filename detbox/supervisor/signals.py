"""Signals: when a parked thread is interrupted, and what a delivery stop does.

The kernel keeps the queues, masks and dispositions.  A signal for a held thread
stays pending (WAIT_KILLABLE_RECV) until the supervisor lets the thread return
from its call; so all that has to be decided here is whether a parked call is to
be interrupted, and by the same rule as the kernel's (kernel/signal.c,
complete_signal): the main thread if it does not block the signal, otherwise the
first thread that does not.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Wake
from detbox.handlers import cores, signal_room, timers
from detbox.kernel import _native, siginfo
from detbox.machine import tracees
from detbox.machine.tracees import is_traced
from detbox.records import NamedTuple
from detbox.spin.stepper import OFFSET, register
from detbox.supervisor.task import Process, State, Task

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine


def bit(signo: int) -> int:
    """The signal's bit in a kernel signal set."""
    return 1 << (signo - 1)


# Signals whose default action is to do nothing (signal(7)).
_IGNORED_BY_DEFAULT = bit(signal.SIGCHLD) | bit(signal.SIGCONT) | bit(signal.SIGURG) | bit(signal.SIGWINCH)
# The range of restart codes (include/linux/errno.h).
RESTART_FIRST, RESTART_LAST = 512, 516
PTRACE_INTERRUPT = 0x4207
#: Marks the expiration of an alarm or interval timer, which the kernel reports as SI_KERNEL.
#: The supervisor may not queue that code for another process, so it is put in at the delivery.
ITIMER = -0x7DB0
#: Likewise marks a signal that the kernel sends to the writer itself (SIGPIPE), or for a process, reported as SI_USER.
_OWN = 0x7DB05E1F
#: Marks, in the upper half of the value, the SIGCHLD that tells a tracer of the guest's of a thread.
_TRACEE = 0x7DB0C41D


class Pending(NamedTuple):
    """The signal sets of /proc/TID/status."""

    private: int
    shared: int
    blocked: int
    ignored: int
    caught: int

    def effective(self) -> int:
        """Signals that would do something if they were delivered."""
        return ~self.ignored & ~(_IGNORED_BY_DEFAULT & ~self.caught)


def effective(task: Task, sets: Pending) -> int:
    """Signals that would do something if they were delivered: all of them, to who is traced."""
    return ~0 if is_traced(task) else sets.effective()


def pending(m: Machine, task: Task) -> Pending:
    """Read a held thread's signal sets; OSError if it is gone."""
    fd = os.open(f"{task.tid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        text = os.read(fd, 8192)
    finally:
        os.close(fd)
    at = text.index(b"\nSigPnd:")
    fields = text[at + 1: at + 200].split(b"\n", 5)
    return Pending(*(int(line.split(b"\t", 1)[1], 16) for line in fields[:5]))


def killed(m: Machine, task: Task) -> bool:
    """Whether a thread has been sent SIGKILL or is gone already."""
    try:
        sets = pending(m, task)
    except (OSError, ValueError):
        return True
    return bool((sets.private | sets.shared) & bit(signal.SIGKILL)) or sets.blocked == 0 and is_zombie(m, task)


def is_zombie(m: Machine, task: Task) -> bool:
    """Whether a thread has ended, for the kernel.  Raises OSError if nothing is known of it any more."""
    fd = os.open(f"{task.tid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        return os.read(fd, 512).rpartition(b")")[2].split()[0] in (b"Z", b"X")
    finally:
        os.close(fd)


def notice(m: Machine, process: Process, *, again: bool = False) -> None:
    """Interrupt the parked threads of a process that have to take a signal now.

    ``again``: what is pending was pending before, of which readers of signal descriptors know.
    """
    shared_taken = 0
    for task in process.tasks.values():
        task.exposed = True
    if not any(task.park is not None for task in process.tasks.values()):
        if not again:
            m.wake(("pending signal", process.pid))  # readers of signal descriptors
        return
    for tid in sorted(process.tasks, key=lambda tid: (tid != process.pid, tid)):
        task = process.tasks[tid]
        if task.state is State.DEAD:
            continue
        try:
            sets = pending(m, task)
        except (OSError, ValueError):
            continue
        mask = task.park.extra.get("sigmask") if task.park is not None else None
        open_signals = effective(task, sets) & ~(sets.blocked if mask is None else mask)
        mine = sets.private & open_signals
        shared = sets.shared & open_signals & ~shared_taken
        shared_taken |= shared
        awaited = task.park.extra.get("sigwait", 0) if task.park is not None else 0
        if (mine or shared or awaited & (sets.private | sets.shared)) and task.state is State.PARKED:
            several = len(process.tasks) > 1
            if several:
                process.signalled.append(task)
            interrupt(m, task, can_wait=mine | shared == bit(signal.SIGCHLD) and not several)
    if not again:
        m.wake(("pending signal", process.pid))


def stands_aside(m: Machine, task: Task, then: Callable[[], None]) -> bool:
    """Whether a held thread lets others of its process go first, since a signal waits for them; ``then`` is queued.

    It would take the signal from the one that the kernel has chosen, if it were stopped before that one has gone on: a
    stop leads through get_signal() (kernel/signal.c), which takes whatever there is for the process.  If it was its
    turn, it is the next one behind them: when that came again there could be another signal, and so on for ever.
    """
    process = task.process
    if task in process.signalled:
        process.signalled.remove(task)
        return False
    process.signalled = [other for other in process.signalled if other.state is State.READY]
    if process.signalled:
        if task.state is State.READY:
            m.scheduler.stand_aside(task, process.signalled, then)
        else:
            m.scheduler.make_ready(task, then)
    return bool(process.signalled)


def interrupt(m: Machine, task: Task, *, can_wait: bool = False) -> None:
    """End a parked call because a signal is to be delivered to its thread.  ``can_wait``: others may go on first."""
    queue = m.scheduler.defer if can_wait else m.scheduler.make_ready
    if task.park is not None and "spin" in task.park.extra:
        m.let_spinner_go(task)
        return
    park = m.scheduler.withdraw(task)
    if park is None:
        return
    waits = "sigwait" in park.extra
    if waits or "sigmask" in park.extra:
        # The kernel swaps the mask (or takes the signal) itself: with a signal
        # pending its own call cannot sleep.
        queue(task, lambda: m.perform(task, park.resume(Wake("event")) if waits else CONTINUE))
        return
    code = park.interrupted
    queue(task, lambda: _end_wait(m, task, code() if callable(code) else -code))


def _end_wait(m: Machine, task: Task, result: int) -> None:
    """Answer an interrupted call, unless its signal has meanwhile gone to another thread of the process.

    A restart code is for the kernel's eyes only: without a signal to deliver, the guest would see it.
    """
    if -RESTART_LAST <= result <= -RESTART_FIRST:
        try:
            sets = pending(m, task)
        except (OSError, ValueError):
            sets = None
        traced = tracees.of(task)
        stopping = task.process.job_stop or (traced is not None and traced.asked)
        if sets is not None and not stopping and not (sets.private | sets.shared) & ~sets.blocked:
            m.redo(task)
            return
        if sets is not None and not sets.private & ~sets.blocked and len(task.process.tasks) > 1:
            # The kernel has told one thread to look for the process's signal, which may be another one (it passes
            # over threads that are stopped at that moment).  A stop makes this one look, too.
            task.look = _nothing
            _native.ptrace_request(PTRACE_INTERRUPT, task.tid, 0, 0)
    m.perform(task, result)


def _nothing(task: Task, result: int) -> None:
    """What is done at that stop."""


def restarts(task: Task) -> bool:
    """Whether a thread that is stopped at the end of a call is about to make the same call again.

    The kernel takes it back to the instruction only when the thread goes on: a step would be the call itself.
    One that has been killed at the stop cannot be asked, and can only go on.
    """
    try:
        regs = _native.get_regs(task.tid)
    except ProcessLookupError:
        return True
    result = register(regs, OFFSET["rax"]) - (1 << 64)
    return register(regs, OFFSET["orig_rax"]) >> 63 == 0 and -RESTART_LAST <= result <= -RESTART_FIRST


def send(
    m: Machine, target: Process | Task, signo: int, *, code: int, value: int, timerid: int, overrun: int,
    sender: Process | None = None,
) -> None:  # fmt: skip
    """Queue a signal of the kernel's own (a timer's, a broken pipe's), or one of another process's."""
    process, tid = (target.process, target.tid) if isinstance(target, Task) else (target, 0)
    if code == siginfo.SI_KERNEL:
        code, timerid = siginfo.SI_TIMER, ITIMER
    if code == siginfo.SI_USER:
        origin = sender or process
        user = process.creds.space.shown_user(origin.creds.ruid)
        info = siginfo.user(signo, siginfo.SI_QUEUE, origin.pid, user, _OWN)
    else:
        info = siginfo.timer(signo, code, timerid, overrun, value)
    try:
        _native.queue_signal(process.pid, tid, signo, info)
    except ProcessLookupError:
        return
    except BlockingIOError:  # a real-time signal, which kill(2) sends all the same, without what it tells
        signal_room.ran_out(m, next(iter(process.tasks.values())))
        os.kill(process.pid, signo)
    notice(m, process)


def tell_tracer(m: Machine, tracer: Process, task: Task, code: int, value: int) -> None:
    """Send SIGCHLD to the tracer of a thread that has stopped or ended, if that does anything."""
    chld = bit(signal.SIGCHLD)
    for thread in tracer.tasks.values():
        try:
            sets = pending(m, thread)
        except (OSError, ValueError):
            continue
        if (sets.caught | sets.blocked) & chld:
            break
    else:
        return
    what = _TRACEE << 32 | code << 16 | value
    info = siginfo.user(signal.SIGCHLD, siginfo.SI_QUEUE, task.tid, task.process.creds.ruid, what)
    with contextlib.suppress(ProcessLookupError):
        _native.queue_signal(tracer.pid, 0, signal.SIGCHLD, info)
        notice(m, tracer)


def repaired(m: Machine, task: Task, signo: int, info: bytes) -> bytes | None:
    """The siginfo of a signal that a thread takes, without what is host dependent, or None if nothing changes.

    A timer's signal tells of the expirations that came while it was pending.  To the kernel every process is root's.
    """
    code = siginfo.code_of(info)
    if signo == signal.SIGCHLD and code > 0:
        pid = siginfo.sender_of(info)[0]
        return siginfo.child(info, _user(m, task, pid), cores.code(m, pid, code))
    if code in (siginfo.SI_USER, siginfo.SI_TKILL):
        sender, uid = siginfo.sender_of(info)
        user = _user(m, task, sender)
        return None if user == uid else siginfo.user(signo, code, sender, user, siginfo.value_of(info))
    if code == siginfo.SI_TIMER:
        ident, _, value = siginfo.timer_of(info)
        if ident == ITIMER:
            return siginfo.timer(signo, siginfo.SI_KERNEL, 0, 0, 0)
        overrun = timers.delivered(task.process, ident)
        return None if overrun is None else siginfo.timer(signo, code, ident, overrun, value)
    if code == siginfo.SI_QUEUE and siginfo.value_of(info) >> 32 == _TRACEE:
        what = siginfo.value_of(info)
        return siginfo.of_child(what >> 16 & 0xFFFF, *siginfo.sender_of(info), what & 0xFFFF)
    if code == siginfo.SI_QUEUE and siginfo.value_of(info) == _OWN:
        return siginfo.user(signo, siginfo.SI_USER, *siginfo.sender_of(info), 0)
    return None


def _user(m: Machine, task: Task, pid: int) -> int:
    """What a thread calls the real user of a process that may have ended; root of one outside of the container."""
    process = m.processes.get(pid)
    uid = process.creds.ruid if process is not None else m.former_users.get(pid, 0)
    return task.process.creds.space.shown_user(uid)


def repair(m: Machine, task: Task, signo: int, info: bytes) -> None:
    """Do so in a delivery stop."""
    better = repaired(m, task, signo, info)
    if better is not None:
        _native.set_siginfo(task.tid, better)


def before_end(sup: Supervisor, task: Task, signo: int, *, surely: bool = False) -> None:
    """A thread is about to take a signal: if that ends its process with a core file, this is written.

    ``surely``: it does, whatever the process would do at the signal.
    """
    if signo not in cores.SIGNALS or not cores.limit(task.process) or cores.LEFT in task.process.data:
        return
    sets = pending(sup.m, task)
    if surely or not (sets.caught | sets.ignored) & bit(signo):
        # Imported when it is first needed: few runs leave core files.
        from detbox.supervisor import dumping

        dumping.dump(sup, task, signo)
