"""timerfd: an eventfd of the supervisor's in the guest's table, made readable by virtual time.

A real timerfd follows the host's clock.  An eventfd can be polled and put into epoll sets just as well, and
its identity (``eventfd-id`` in fdinfo) survives dup, fork and descriptor passing.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from errno import EAGAIN, EINVAL
from typing import TYPE_CHECKING, Any

from detbox.decision import Decision, InstallFd, Park, Wake
from detbox.handlers.waiting import (
    Segments,
    carries_descriptors,
    fd_of,
    nonblocking,
    own_fdinfo,
    proc_names,
    proc_text,
    scatter,
    signed32,
    total,
)
from detbox.machine.files import Kind, OpenFile
from detbox.machine.io import io_state
from detbox.records import record

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_CLOCK_REALTIME, _CLOCK_REALTIME_ALARM = 0, 8
#: Those, CLOCK_MONOTONIC, CLOCK_BOOTTIME and CLOCK_BOOTTIME_ALARM (fs/timerfd.c).
_CLOCKS = (0, 1, 7, 8, 9)
_TFD_TIMER_ABSTIME, _TFD_TIMER_CANCEL_ON_SET = 1, 2
_TFD_CLOEXEC, _TFD_NONBLOCK = os.O_CLOEXEC, os.O_NONBLOCK
_NS = 1_000_000_000
_ITIMERSPEC = struct.Struct("<4q")
#: So many timer descriptors are made before those that nobody has any more are looked for.
_COLLECT_EVERY = 256


@record
class TimerFd:
    """One timer: ``fd`` is the supervisor's own descriptor of the eventfd, times are virtual monotonic ns."""

    ident: int
    fd: int
    clock: int
    deadline: int | None = None
    interval: int = 0
    expirations: int = 0
    handle: Any = None


def timerfd_create(m: Machine, t: Task, a: Args) -> Decision:
    """``timerfd_create(clockid, flags)``."""
    clock, flags = signed32(a[0]), a[1] & 0xFFFFFFFF
    if clock not in _CLOCKS or flags & ~(_TFD_CLOEXEC | _TFD_NONBLOCK):
        return -EINVAL
    timers = io_state(m).timers
    if len(timers) % _COLLECT_EVERY == _COLLECT_EVERY - 1:
        _collect(m)
    fd = os.eventfd(0, os.EFD_CLOEXEC | (flags & _TFD_NONBLOCK))
    timer = TimerFd(_eventfd_id(own_fdinfo(m, fd)), os.dup(fd), clock)
    timers[timer.ident] = timer
    st = os.fstat(fd)
    info = OpenFile(Kind.TIMERFD, st, m.inodes.of(st))
    info.data = timer
    return InstallFd(fd, bool(flags & _TFD_CLOEXEC), info=info)


def timerfd_settime(m: Machine, t: Task, a: Args) -> Decision:
    """``timerfd_settime(fd, flags, new, old)``."""
    timer = _timer(m, t, fd_of(a[0]))
    flags = a[1] & 0xFFFFFFFF
    words = _ITIMERSPEC.unpack(t.read(a[2], _ITIMERSPEC.size))
    if flags & ~(_TFD_TIMER_ABSTIME | _TFD_TIMER_CANCEL_ON_SET) or any(
        seconds < 0 or not 0 <= nano < _NS for seconds, nano in (words[:2], words[2:])
    ):
        return -EINVAL
    if a[3]:
        t.write(a[3], _remaining(m, timer))
    interval, value = words[0] * _NS + words[1], words[2] * _NS + words[3]
    _disarm(m, timer)
    timer.interval = interval
    if value:
        timer.deadline = _monotonic(m, timer, value) if flags & _TFD_TIMER_ABSTIME else m.clock.now + value
        _arm(m, timer)
    return 0


def timerfd_gettime(m: Machine, t: Task, a: Args) -> Decision:
    """``timerfd_gettime(fd, current)``."""
    timer = _timer(m, t, fd_of(a[0]))
    t.write(a[1], _remaining(m, timer))
    return 0


def _timer(m: Machine, t: Task, fd: int) -> TimerFd:
    timer = timer_of(m, t, fd, t.process.files.get(fd))
    if timer is None:
        raise OSError(EINVAL, "no timer descriptor")
    return timer


def timer_of(m: Machine, t: Task, fd: int, f: OpenFile) -> TimerFd | None:
    """The timer behind the guest's descriptor, None if it is an ordinary eventfd."""
    if isinstance(f.data, TimerFd):
        return f.data
    timers = io_state(m).timers
    if not timers or f.kind is not Kind.EVENTFD:
        return None
    timer = timers.get(_eventfd_id(proc_text(m, f"{t.process.pid}/fdinfo/{fd}")))
    if timer is not None:
        f.kind, f.data = Kind.TIMERFD, timer
    return timer


def expire_due(m: Machine) -> None:
    """Let what is due by now expire: descriptors are about to be looked at without a choice of a thread."""
    if io_state(m).timers:
        m.timers.expire(m.clock.now)


def read_expirations(m: Machine, t: Task, fd: int, timer: TimerFd, segments: Segments) -> Decision:
    """The number of expirations since the last read, as eight bytes."""
    if total(segments) < 8:
        return -EINVAL
    expire_due(m)
    if timer.expirations:
        os.read(timer.fd, 8)
        count, timer.expirations = timer.expirations, 0
        scatter(t, segments, 0, struct.pack("<Q", count))
        return 8
    if nonblocking(timer.fd):
        return -EAGAIN

    def again(wake: Wake) -> Decision:
        return read_expirations(m, t, fd, timer, segments)

    return Park(again, events=(("timerfd", timer.ident),), why=f"read from timer descriptor {fd}")


def _arm(m: Machine, timer: TimerFd) -> None:
    assert timer.deadline is not None
    timer.handle = m.timers.add(timer.deadline, lambda: _expire(m, timer))


def _disarm(m: Machine, timer: TimerFd) -> None:
    if timer.handle is not None:
        m.timers.cancel(timer.handle)
    if timer.expirations:
        os.read(timer.fd, 8)
    timer.handle, timer.deadline, timer.expirations = None, None, 0


def _expire(m: Machine, timer: TimerFd) -> None:
    assert timer.deadline is not None
    timer.handle = None
    count = 1
    if timer.interval:
        count += max(0, m.clock.now - timer.deadline) // timer.interval
        timer.deadline += count * timer.interval
        _arm(m, timer)
    else:
        timer.deadline = None
    timer.expirations += count
    os.eventfd_write(timer.fd, count)
    m.wake(("timerfd", timer.ident))


def _monotonic(m: Machine, timer: TimerFd, value: int) -> int:
    if timer.clock in (_CLOCK_REALTIME, _CLOCK_REALTIME_ALARM):
        return value - (m.clock.realtime(m.clock.now) - m.clock.now)
    return value


def _remaining(m: Machine, timer: TimerFd) -> bytes:
    left = 0 if timer.deadline is None else max(1, timer.deadline - m.clock.now)
    return _ITIMERSPEC.pack(*divmod(timer.interval, _NS), *divmod(left, _NS))


def _eventfd_id(fdinfo: str) -> int:
    for line in fdinfo.splitlines():
        if line.startswith("eventfd-id:"):
            return int(line.split(":")[1])
    return -1


def _collect(m: Machine) -> None:
    """Drop the timers whose descriptor no process has any more."""
    timers = io_state(m).timers
    alive = set()
    for text in _all_fdinfo(m):
        if carries_descriptors(text):
            return  # of timers, maybe
        alive.add(_eventfd_id(text))
    for ident in [ident for ident in timers if ident not in alive]:
        timer = timers.pop(ident)
        _disarm(m, timer)
        os.close(timer.fd)


def _all_fdinfo(m: Machine) -> Iterator[str]:
    """What procfs tells of each descriptor: a thread may have its own, and may outlive the first one of its process."""
    for tid in m.tasks:
        for name in proc_names(m, f"{tid}/fd"):
            yield proc_text(m, f"{tid}/fdinfo/{name}")
