"""Alarms, interval timers and POSIX timers: all expire in virtual time, none exists in the kernel."""

from __future__ import annotations

import os
import signal
import struct
from collections.abc import Callable
from errno import EAGAIN, EINVAL, EOPNOTSUPP
from typing import TYPE_CHECKING

from detbox.decision import Decision
from detbox.handlers import clocks, limits, signal_room
from detbox.kernel.timespec import (
    ITIMERSPEC_SIZE,
    ITIMERVAL_SIZE,
    NS,
    pack_itimerspec,
    pack_itimerval,
    unpack_itimerspec,
    unpack_itimerval,
)
from detbox.machine.clock import Timers
from detbox.machine.intervals import IntervalTimer
from detbox.records import field, record

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

ITIMER_REAL, ITIMER_VIRTUAL, ITIMER_PROF = 0, 1, 2
_ITIMER_SIGNALS = {
    ITIMER_REAL: signal.SIGALRM, ITIMER_VIRTUAL: signal.SIGVTALRM, ITIMER_PROF: signal.SIGPROF,
}  # fmt: skip
SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID = 0, 1, 2, 4
_SIGEVENT = struct.Struct("<Qiii")  # value, signal, how to notify, thread
SI_KERNEL, SI_TIMER = 0x80, -2
_DELAYTIMER_MAX = 0x7FFFFFFF
_TIMER_CLOCKS = clocks.SLEEP_CLOCKS


@record
class PosixTimer:
    """A timer of timer_create(2).

    ``overrun``: expirations since the signal that was sent last, as long as that is pending (``sent``); ``last``: those
    before the last signal that has been taken.  ``measured``: the process by whose CPU time it goes, if it is another
    one than that which has the timer.
    """

    ident: int
    clock: int
    notify: int
    signo: int
    value: int
    target: Task | Process
    timer: IntervalTimer
    divisor: int = 1
    overrun: int = 0
    last: int = 0
    sent: bool = False
    measured: Process | None = None


@record
class ProcessTimers:
    """The timers of one process; ``others``: those of other processes that go by its CPU time."""

    intervals: dict[int, IntervalTimer] = field(default_factory=dict)
    posix: dict[int, PosixTimer] = field(default_factory=dict)
    others: list[PosixTimer] = field(default_factory=list)
    created: int = 0


def _state(process: Process) -> ProcessTimers:
    state: ProcessTimers | None = process.data.get(signal_room.TIMERS)
    if state is None:
        state = process.data[signal_room.TIMERS] = ProcessTimers()
    return state


def after_exec(m: Machine, t: Task) -> None:
    """POSIX timers do not survive an exec; alarms and interval timers do."""
    state: ProcessTimers | None = t.process.data.get(signal_room.TIMERS)
    if state is not None:
        for posix in state.posix.values():
            posix.timer.disarm()
        state.posix.clear()


def after_exit(m: Machine, process: Process) -> None:
    """Nothing expires for a process that is gone."""
    state = process.data.pop(signal_room.TIMERS, None)
    if state is not None:
        for timer in (*state.intervals.values(), *(posix.timer for posix in state.posix.values())):
            timer.disarm()


def next_signal(process: Process) -> tuple[int, int, Task | Process] | None:
    """(ns left by its clock, signal, receiver) of the timer that sends one first; None without one."""
    first: tuple[int, int, Task | Process] | None = limits.next_signal(process)
    state: ProcessTimers | None = process.data.get(signal_room.TIMERS)
    if state is None:
        return first
    for which, timer in state.intervals.items():
        left = timer.remaining()
        if left and (first is None or left < first[0]):
            first = left, int(_ITIMER_SIGNALS[which]), process
    for posix in (*(posix for posix in state.posix.values() if posix.measured is None), *state.others):
        left = posix.timer.remaining()
        if left and posix.notify != SIGEV_NONE and (first is None or left < first[0]):
            first = left, posix.signo, posix.target
    return first


def measured(process: Process) -> list[Process]:
    """The other processes by whose CPU time a process has timers that are still to expire."""
    state: ProcessTimers | None = process.data.get(signal_room.TIMERS)
    if state is None:
        return []
    return [posix.measured for posix in state.posix.values() if posix.measured and posix.timer.remaining()]


# ------------------------------------------------------------------------------ alarm and setitimer

def _interval_timer(m: Machine, process: Process, which: int) -> IntervalTimer:
    state = _state(process)
    timer = state.intervals.get(which)
    if timer is None:
        signo = _ITIMER_SIGNALS.get(which)
        if signo is None:
            raise OSError(EINVAL, "no such interval timer")
        queue, now = m.clock.timers, _monotonic(m)
        if which != ITIMER_REAL:
            cpu = process.cpu
            queue, now = cpu.timer_queue(), lambda: cpu.ns
        timer = IntervalTimer(queue, now, lambda missed: m.signal(process, signo, code=SI_KERNEL))
        state.intervals[which] = timer
    return timer


def _monotonic(m: Machine) -> Callable[[], int]:
    return lambda: m.clock.now


def _divisor(which: int) -> int:
    """User time is half of the CPU time (see ``user_and_system``)."""
    return 2 if which == ITIMER_VIRTUAL else 1


def _current(timer: IntervalTimer, divisor: int) -> tuple[int, int]:
    """(interval, time left) in ns of the timer's clock."""
    return timer.interval // divisor, -(-timer.remaining() // divisor)


def _set(m: Machine, t: Task, timer: IntervalTimer, which: int, interval: int, value: int) -> None:
    divisor = _divisor(which)
    if not value:
        # By CPU time the interval is kept (set_cpu_itimer() in kernel/time/itimer.c).
        timer.interval = 0 if which == ITIMER_REAL else interval * divisor
        timer.disarm()
        return
    now = m.clock.look(t.cpu) if which == ITIMER_REAL else t.process.cpu.ns
    timer.arm(now + value * divisor, interval * divisor)


def alarm(m: Machine, t: Task, a: Args) -> Decision:
    """``alarm(seconds)``: the seconds that were left, rounded as the kernel does."""
    timer = _interval_timer(m, t.process, ITIMER_REAL)
    seconds, rest = divmod(timer.remaining(), NS)
    _set(m, t, timer, ITIMER_REAL, 0, (a[0] & 0xFFFFFFFF) * NS)
    return seconds + 1 if rest >= NS // 2 or (rest and not seconds) else seconds


def getitimer(m: Machine, t: Task, a: Args) -> Decision:
    """``getitimer(which, value)``."""
    m.clock.look(t.cpu)
    which = a[0] & 0xFFFFFFFF
    timer = _interval_timer(m, t.process, which)
    t.write(a[1], _pack_itimerval(*_current(timer, _divisor(which))))
    return 0


def setitimer(m: Machine, t: Task, a: Args) -> Decision:
    """``setitimer(which, new, old)``."""
    which = a[0] & 0xFFFFFFFF
    # A missing new value has always meant "stop" (kernel/time/itimer.c).
    interval, value = unpack_itimerval(t.read(a[1], ITIMERVAL_SIZE)) if a[1] else (0, 0)
    timer = _interval_timer(m, t.process, which)
    former = _current(timer, _divisor(which))
    _set(m, t, timer, which, interval, value)
    if a[2]:
        t.write(a[2], _pack_itimerval(*former))
    return 0


def _pack_itimerval(interval: int, value: int) -> bytes:
    """A timer that is still to expire never shows zero."""
    return pack_itimerval(interval, max(value, 1000) if value else 0)


# --------------------------------------------------------------------------------------- timer_create

def timer_create(m: Machine, t: Task, a: Args) -> Decision:
    """``timer_create(clockid, sigevent, timer_t *)``."""
    clock = a[0] & 0xFFFFFFFF
    clock -= (clock >> 31) << 32
    queue, now, divisor = _clock_queue(m, t, clock)
    state = _state(t.process)
    ident = state.created
    value, signo, notify, tid = ident, int(signal.SIGALRM), SIGEV_SIGNAL, 0
    if a[1]:
        value, signo, notify, tid = _SIGEVENT.unpack(t.read(a[1], _SIGEVENT.size))
    target: Task | Process = t.process
    if notify not in (SIGEV_SIGNAL, SIGEV_NONE, SIGEV_THREAD, SIGEV_THREAD_ID):
        return -EINVAL
    if notify != SIGEV_NONE and not 1 <= signo <= signal_room.NSIG:
        return -EINVAL
    if notify == SIGEV_THREAD_ID:
        thread = t.process.tasks.get(tid)
        if thread is None:
            return -EINVAL
        target = thread
    if not signal_room.room(m, t.process):
        return -EAGAIN
    timer = IntervalTimer(queue, now, lambda missed: _expired(m, posix, missed))
    posix = PosixTimer(ident, clock, notify, signo, value, target, timer, divisor)
    t.write(a[2], struct.pack("<i", ident))
    state.posix[ident] = posix
    if clock not in _TIMER_CLOCKS and (found := clocks.cpu_clock(m, t, clock)) is not None:
        others = (each for each in m.processes.values() if each is not t.process)
        posix.measured = next((each for each in others if each.cpu is found[0]), None)
    state.created += 1
    return 0


def _clock_queue(m: Machine, t: Task, clock: int) -> tuple[Timers, Callable[[], int], int]:
    if clock in _TIMER_CLOCKS:
        return m.clock.timers, _monotonic(m), 1
    found = clocks.cpu_clock(m, t, clock)
    if found is None:
        raise OSError(EOPNOTSUPP if clock in clocks.WALL_CLOCKS + clocks.BOOT_CLOCKS else EINVAL, "no timers")
    cpu, divisor = found
    return cpu.timer_queue(), lambda: cpu.ns, divisor


def _expired(m: Machine, posix: PosixTimer, missed: int) -> None:
    """Send the signal; while the last one is still pending, expirations are only counted (POSIX)."""
    if posix.notify == SIGEV_NONE:
        return
    # Another one's real-time signal of the same number may wait as well.
    if _is_pending(m, posix) and (posix.sent or posix.signo < signal_room.REALTIME):
        posix.overrun = min(posix.overrun + 1 + missed, _DELAYTIMER_MAX)
        return
    _taken(m, posix)
    posix.overrun, posix.sent = missed, True
    m.signal(posix.target, posix.signo, code=SI_TIMER, timerid=posix.ident, overrun=missed, value=posix.value)


def _is_pending(m: Machine, posix: PosixTimer) -> bool:
    """Whether the timer's signal waits for its receiver, by the kernel's own queues."""
    number = getattr(posix.target, "tid", None) or posix.target.pid  # type: ignore[union-attr]
    wanted = b"SigPnd:" if hasattr(posix.target, "tid") else b"ShdPnd:"
    try:
        fd = os.open(f"{number}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    except OSError:
        return False
    try:
        lines = os.read(fd, 8192).split(b"\n")
    except OSError:  # ESRCH: the thread has gone meanwhile
        return False
    finally:
        os.close(fd)
    return any(line.startswith(wanted) and int(line.split()[1], 16) >> posix.signo - 1 & 1 for line in lines)


def _taken(m: Machine, posix: PosixTimer) -> None:
    """Once the signal has been taken, its overruns are the timer's."""
    if posix.sent and not _is_pending(m, posix):
        posix.last, posix.overrun, posix.sent = posix.overrun, 0, False


def delivered(process: Process, ident: int) -> int | None:
    """The overruns that a timer's signal tells of when it is delivered; None if there is no such timer."""
    posix = _state(process).posix.get(ident)
    if posix is None:
        return None
    if posix.sent:
        posix.last, posix.overrun, posix.sent = posix.overrun, 0, False
    return posix.last


def _posix(t: Task, register: int) -> PosixTimer:
    posix = _state(t.process).posix.get(register & 0xFFFFFFFF)
    if posix is None:
        raise OSError(EINVAL, "no such timer")
    return posix


def timer_settime(m: Machine, t: Task, a: Args) -> Decision:
    """``timer_settime(timerid, flags, new, old)``."""
    if not a[2]:
        return -EINVAL
    interval, value = unpack_itimerspec(t.read(a[2], ITIMERSPEC_SIZE))
    posix = _posix(t, a[0])
    timer, divisor = posix.timer, posix.divisor
    now = m.clock.look(t.cpu)
    former = _current(timer, divisor)
    timer.disarm()
    timer.interval = interval * divisor
    posix.overrun = posix.last = 0
    if value:
        timer.arm(_deadline(m, t, posix, value, now, bool(a[1] & clocks.TIMER_ABSTIME)), interval * divisor)
        if posix.measured is not None:
            others = _state(posix.measured).others
            others[:] = [*(each for each in others if each is not posix and each.timer.remaining()), posix]
    if a[3]:
        t.write(a[3], pack_itimerspec(*former))
    return 0


def _deadline(m: Machine, t: Task, posix: PosixTimer, value: int, now: int, absolute: bool) -> int:
    """The expiration by the queue's time."""
    if posix.clock in clocks.WALL_CLOCKS:
        return m.clock.monotonic(value) if absolute else now + value
    if posix.clock in clocks.BOOT_CLOCKS:
        return value if absolute else now + value
    found = clocks.cpu_clock(m, t, posix.clock)
    start = 0 if absolute or found is None else found[0].ns
    return start + value * posix.divisor


def timer_gettime(m: Machine, t: Task, a: Args) -> Decision:
    """``timer_gettime(timerid, value)``."""
    m.clock.look(t.cpu)
    posix = _posix(t, a[0])
    t.write(a[1], pack_itimerspec(*_current(posix.timer, posix.divisor)))
    return 0


def timer_getoverrun(m: Machine, t: Task, a: Args) -> Decision:
    """``timer_getoverrun(timerid)``: expirations without a signal of their own before the last one was taken."""
    posix = _posix(t, a[0])
    _taken(m, posix)
    return posix.last


def timer_delete(m: Machine, t: Task, a: Args) -> Decision:
    """``timer_delete(timerid)``."""
    posix = _posix(t, a[0])
    posix.timer.disarm()
    del _state(t.process).posix[posix.ident]
    return 0
