"""Clocks and sleeps: everything that shows or waits for virtual time."""

from __future__ import annotations

import struct
from errno import EINTR, EINVAL, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTNOHAND, Decision, Park, Wake
from detbox.kernel.timespec import (
    NS,
    NS_PER_TICK,
    TIMESPEC_SIZE,
    pack_timespec,
    pack_timeval,
    unpack_timespec,
)
from detbox.machine.clock import CpuTime, user_and_system
from detbox.machine.usage import rusage

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

REALTIME, MONOTONIC, PROCESS_CPUTIME, THREAD_CPUTIME, MONOTONIC_RAW = 0, 1, 2, 3, 4
REALTIME_COARSE, MONOTONIC_COARSE, BOOTTIME, REALTIME_ALARM, BOOTTIME_ALARM = 5, 6, 7, 8, 9
TAI = 11
#: Clocks that show the time of day; the others count from boot.  Without an NTP daemon the kernel's
#: TAI offset is zero, so that TAI equals the time of day.
WALL_CLOCKS = (REALTIME, REALTIME_COARSE, REALTIME_ALARM, TAI)
BOOT_CLOCKS = (MONOTONIC, MONOTONIC_RAW, MONOTONIC_COARSE, BOOTTIME, BOOTTIME_ALARM)
#: Clocks that one can sleep on (the others have no nsleep operation, kernel/time/posix-timers.c).
SLEEP_CLOCKS = (REALTIME, MONOTONIC, BOOTTIME, REALTIME_ALARM, BOOTTIME_ALARM, TAI)

TIMER_ABSTIME = 1
#: Go's runtime has a thread that looks after the others; in between it sleeps for so many ns at most, by nanosleep.
NAP = 10_000_000
#: Kernel-internal: goes on through restart_syscall(2) unless a handler ran (include/linux/errno.h).
ERESTART_RESTARTBLOCK = 516

# CPU clocks of other processes and threads (include/linux/posix-timers.h).
_CLOCK_KIND, _CLOCK_FD, _CLOCK_VIRT, _CLOCK_PER_THREAD = 3, 3, 1, 4

RUSAGE_SELF, RUSAGE_CHILDREN, RUSAGE_THREAD = 0, -1, 1
_ADJ_OFFSET_SS_READ = 0xA001
_STA_UNSYNC, _TIME_ERROR = 0x40, 5
_TIMEX = struct.Struct("<I4xqqqqi4xqqqqqqqqi4xqqqqqi44x")


def _signed(register: int) -> int:
    """The C ``int`` in a register."""
    value = register & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def cpu_clock(m: Machine, t: Task, clock: int) -> tuple[CpuTime, int] | None:
    """(CPU time, divisor) of a CPU clock; None for other clocks.

    The divisor is 2 for the clock that counts user time only.  OSError(EINVAL) if its owner is gone or,
    for a thread's clock, is no thread of the caller's process.
    """
    if clock == PROCESS_CPUTIME:
        return t.process.cpu, 1
    if clock == THREAD_CPUTIME:
        return t.cpu, 1
    if clock >= 0 or clock & _CLOCK_KIND == _CLOCK_FD:
        return None
    number = ~(clock >> 3)
    divisor = 2 if clock & _CLOCK_KIND == _CLOCK_VIRT else 1
    if clock & _CLOCK_PER_THREAD:
        task = t.process.tasks.get(number or t.tid)
        if task is None:
            raise OSError(EINVAL, "no such thread")
        return task.cpu, divisor
    m.forget_reaped(t.process)
    process = m.processes.get(number or t.process.pid)
    if process is None:
        raise OSError(EINVAL, "no such process")
    return process.cpu, divisor


def read_clock(m: Machine, t: Task, clock: int) -> int:
    """A look at a clock: its time in ns; OSError(EINVAL)."""
    if clock in WALL_CLOCKS:
        return m.clock.realtime(m.clock.look(t.cpu))
    if clock in BOOT_CLOCKS:
        return m.clock.look(t.cpu)
    found = cpu_clock(m, t, clock)
    if found is None:
        raise OSError(EINVAL, f"no clock {clock}")
    m.clock.look_at_work(t.cpu)
    return found[0].ns // found[1]


def clock_gettime(m: Machine, t: Task, a: Args) -> Decision:
    """``clock_gettime(clockid, timespec)``."""
    t.write(a[1], pack_timespec(read_clock(m, t, _signed(a[0]))))
    return 0


def gettimeofday(m: Machine, t: Task, a: Args) -> Decision:
    """``gettimeofday(timeval, timezone)``; the kernel's own time zone is always UTC."""
    now = read_clock(m, t, REALTIME)
    if a[0]:
        t.write(a[0], pack_timeval(now))
    if a[1]:
        t.write(a[1], bytes(8))
    return 0


def time(m: Machine, t: Task, a: Args) -> Decision:
    """``time(time_t *)``."""
    now = read_clock(m, t, REALTIME) // NS
    if a[0]:
        t.write(a[0], struct.pack("<q", now))
    return now


def clock_getres(m: Machine, t: Task, a: Args) -> Decision:
    """``clock_getres(clockid, timespec)``."""
    clock = _signed(a[0])
    if clock not in WALL_CLOCKS and clock not in BOOT_CLOCKS and cpu_clock(m, t, clock) is None:
        return -EINVAL
    if a[1]:
        t.write(a[1], pack_timespec(1))
    return 0


def times(m: Machine, t: Task, a: Args) -> Decision:
    """``times(struct tms *)``: ticks since boot."""
    now = m.clock.look_at_work(t.cpu)
    if a[0]:
        m.forget_reaped(t.process)
        cpu = t.process.cpu
        own, children = user_and_system(cpu.ns), user_and_system(cpu.children_ns)
        t.write(a[0], struct.pack("<4q", *(ns // NS_PER_TICK for ns in (*own, *children))))
    return now // NS_PER_TICK


def getrusage(m: Machine, t: Task, a: Args) -> Decision:
    """``getrusage(who, struct rusage *)``."""
    # Work is measured by one's own time.  That of children is asked for along with it (by R, when it collects garbage);
    # a thread's by others than a clock, again and again, by runtimes (HotSpot, to see how long it has marked garbage).
    who = _signed(a[0])
    if who == RUSAGE_THREAD:
        m.clock.look(t.cpu)
    elif who != RUSAGE_CHILDREN:
        m.clock.look_at_work(t.cpu)
    m.forget_reaped(t.process)
    used = {
        RUSAGE_SELF: t.process.cpu.ns,
        RUSAGE_CHILDREN: t.process.cpu.children_ns,
        RUSAGE_THREAD: t.cpu.ns,
    }.get(who)
    if used is None:
        return -EINVAL
    t.write(a[1], rusage(used))
    return 0


# ------------------------------------------------------------------------------------------- sleeping

def nanosleep(m: Machine, t: Task, a: Args) -> Decision:
    """``nanosleep(request, remaining)``."""
    duration = unpack_timespec(t.read(a[0], TIMESPEC_SIZE))
    return _sleep(m, t, m.clock.look(t.cpu) + duration, a[1], nap=duration <= NAP)


def clock_nanosleep(m: Machine, t: Task, a: Args) -> Decision:
    """``clock_nanosleep(clockid, flags, request, remaining)``."""
    clock = _signed(a[0])
    if clock not in SLEEP_CLOCKS:
        return _sleep_by_cpu(m, t, clock, a)
    request = unpack_timespec(t.read(a[2], TIMESPEC_SIZE))
    now = m.clock.look(t.cpu)
    # Also what has come already parks: a short sleep's time may be over by the time that the call is made, and who
    # sleeps like that again and again lets the others run.
    if not a[1] & TIMER_ABSTIME:
        return _sleep(m, t, now + request, a[3])
    deadline = m.clock.monotonic(request) if clock in WALL_CLOCKS else request
    return Park(_awake, deadline=deadline, interrupted=ERESTARTNOHAND, why="sleep")


def _awake(wake: Wake) -> Decision:
    return 0


def _sleep(m: Machine, t: Task, deadline: int, remaining: int, *, nap: bool = False) -> Decision:
    """Park until ``deadline``; if a signal comes first, write what remains.

    Even a sleep of no time parks: it lets other threads run, as it does on a real machine.  ``nap``: no thread has to
    give way when it is over.
    """

    def interrupted() -> int:
        if remaining:
            try:
                t.write(remaining, pack_timespec(max(deadline - m.clock.now, 0)))
            except OSError as error:
                return -(error.errno or EINTR)
        t.restart = lambda: _sleep(m, t, deadline, remaining, nap=nap)
        return -ERESTART_RESTARTBLOCK

    extra = {"nap": True} if nap else {}
    return Park(_awake, deadline=deadline, interrupted=interrupted, why="sleep", extra=extra)


def restart_syscall(m: Machine, t: Task, a: Args) -> Decision:
    """The kernel goes on with an interrupted wait (a sleep, a poll) after a signal that ran no handler."""
    again, t.restart = t.restart, None
    return -EINTR if again is None else again()


def _sleep_by_cpu(m: Machine, t: Task, clock: int, a: Args) -> Decision:
    """A sleep until another thread of the process (or another process) has used so much CPU time."""
    if clock == THREAD_CPUTIME:
        return -EOPNOTSUPP  # glibc's function says EINVAL without a call
    found = cpu_clock(m, t, clock)
    if found is None:
        return -EOPNOTSUPP if clock in BOOT_CLOCKS or clock in WALL_CLOCKS else -EINVAL
    cpu, divisor = found
    if cpu is t.cpu:
        return -EINVAL
    deadline = unpack_timespec(t.read(a[2], TIMESPEC_SIZE)) * divisor
    if not a[1] & TIMER_ABSTIME:
        deadline += cpu.ns
    if deadline <= cpu.ns:
        return 0
    key = ("cpu time", t.tid)
    timer = cpu.timer_queue().add(deadline, lambda: _wake(m, key))

    def interrupted() -> int:
        cpu.timer_queue().cancel(timer)
        return -EINTR

    return Park(_awake, events=(key,), interrupted=interrupted, why="sleep on a CPU clock")


def _wake(m: Machine, key: tuple[str, int]) -> None:
    m.wake(key)


# ---------------------------------------------------------------------------------- setting the clock

def adjtimex(m: Machine, t: Task, a: Args) -> Decision:
    """``adjtimex(struct timex *)``: the state of a clock that nobody disciplines."""
    modes = t.u32(a[0])
    if modes not in (0, _ADJ_OFFSET_SS_READ):
        return -EPERM
    seconds, rest = divmod(read_clock(m, t, REALTIME), NS)
    # The values of a kernel that has booted and never heard from an NTP daemon (kernel/time/ntp.c).
    t.write(a[0], _TIMEX.pack(
        modes, 0, 0, 16_000_000, 16_000_000, _STA_UNSYNC, 2, 1, 32_768_000, seconds, rest // 1000, 10_000,
        0, 0, 0, 0, 0, 0, 0, 0, 0))
    return _TIME_ERROR


def clock_adjtime(m: Machine, t: Task, a: Args) -> Decision:
    """``clock_adjtime(clockid, struct timex *)``."""
    clock = _signed(a[0])
    if clock == REALTIME:
        return adjtimex(m, t, a[1:] + (0,))
    return -EOPNOTSUPP if clock in WALL_CLOCKS or clock in BOOT_CLOCKS else -EINVAL


def clock_settime(m: Machine, t: Task, a: Args) -> Decision:
    """``clock_settime(clockid, timespec)``: not permitted, where there is something to set."""
    clock = _signed(a[0])
    return -EPERM if clock == REALTIME or cpu_clock(m, t, clock) is not None else -EINVAL
