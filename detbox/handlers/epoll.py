"""epoll: the sets are the kernel's own; a wait goes to the kernel only when something is ready.

``poll`` on the set tells, without consuming anything (a wait would disarm EPOLLET and EPOLLONESHOT items).
The ready list is first in, first out (fs/eventpoll.c), so that its order is the order of the guest's actions.
"""

from __future__ import annotations

import os
import struct
from errno import EINTR, EINVAL
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision, Park, Wake
from detbox.handlers import ptys, signalfd, timerfd
from detbox.handlers.polling import read_timespec
from detbox.handlers.waiting import POLLIN, fd_of, ready, signed32
from detbox.machine.files import Kind
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_EPOLL_CTL_DEL = 2
_MAX_EVENTS = 0x7FFFFFFF // 12  # EP_MAX_EVENTS in fs/eventpoll.c
_EVENT = struct.Struct("<IQ")  # struct epoll_event, packed on x86


def epoll_create(m: Machine, t: Task, a: Args) -> Decision:
    """``epoll_create(size)``."""
    t.process.files.forget_all()
    return CONTINUE


epoll_create1 = epoll_create


def epoll_ctl(m: Machine, t: Task, a: Args) -> Decision:
    """``epoll_ctl(epfd, op, fd, event)``: only to know who watches stdin or signals."""
    kind = t.process.files.get(fd_of(a[2])).kind
    if kind is Kind.SIGNALFD or (kind is Kind.EPOLL and io_state(m).signal_watches):
        io_state(m).signal_watches += 1
    elif signed32(a[1]) == _EPOLL_CTL_DEL:
        return CONTINUE
    elif kind is Kind.STDIN:
        io_state(m).stdin_is_watched = True
    elif kind is Kind.TTY:
        own = t.process.files.borrow(t, fd_of(a[2]))
        ptys.note(m, t, fd_of(a[2]), own)
        os.close(own)
    return CONTINUE


def _signal_events(m: Machine, t: Task, members: list[tuple[int, int, int]], address: int) -> int:
    """Report the signal descriptors that have a signal; how many.

    The set's own poll would ask for the supervisor's signals, and forget the descriptor for having none.
    """
    found = [
        _EVENT.pack(POLLIN, data)
        for member, events, data in members
        if signalfd.member_ready(m, t, member, events)
    ]
    if found:
        t.write(address, b"".join(found))
    return len(found)


def epoll_wait(m: Machine, t: Task, a: Args) -> Decision:
    """``epoll_wait(epfd, events, maxevents, timeout_ms)``; -1 is no timeout."""
    timeout = signed32(a[3])
    return _wait(m, t, a, None if timeout < 0 else timeout * 1_000_000, None)


def epoll_pwait(m: Machine, t: Task, a: Args) -> Decision:
    """``epoll_pwait(epfd, events, maxevents, timeout_ms, sigmask, sigsetsize)``."""
    timeout = signed32(a[3])
    return _wait(m, t, a, None if timeout < 0 else timeout * 1_000_000, _sigmask(t, a))


def epoll_pwait2(m: Machine, t: Task, a: Args) -> Decision:
    """``epoll_pwait2(epfd, events, maxevents, timespec, sigmask, sigsetsize)``."""
    return _wait(m, t, a, read_timespec(t, a[3]), _sigmask(t, a))


def _sigmask(t: Task, a: Args) -> int | None:
    if not a[4]:
        return None
    if a[5] != 8:
        raise OSError(EINVAL, "bad size of a signal set")
    return struct.unpack("<Q", t.read(a[4], 8))[0]


def _wait(m: Machine, t: Task, a: Args, timeout: int | None, sigmask: int | None) -> Decision:
    fd = fd_of(a[0])
    f = t.process.files.get(fd)
    if f.kind is not Kind.EPOLL or not 0 < signed32(a[2]) <= _MAX_EVENTS or a[1] >> 47:
        return CONTINUE  # the kernel says EINVAL or EFAULT
    deadline = None if timeout is None else m.clock.now + timeout

    def step(wake: Wake | None) -> Decision:
        timerfd.expire_due(m)
        members = signalfd.members(m, t, fd, f)
        signals = _signal_events(m, t, members, a[1]) if members else 0
        if signals:
            return min(signals, signed32(a[2]))
        borrowed = t.process.files.borrow_idle(t, fd, POLLIN)
        if borrowed < 0:
            return CONTINUE
        if io_state(m).stdin_is_watched:
            m.console.fill_stdin()
            if ready(borrowed, POLLIN):
                os.close(borrowed)
                return CONTINUE
        if (timeout == 0 and sigmask is None) or (wake is not None and wake.kind == "deadline"):
            os.close(borrowed)
            return 0
        return Park(
            step, events=signalfd.events_of(t) if members else (), fds=((borrowed, POLLIN),),
            deadline=deadline, interrupted=EINTR, why=f"epoll_wait on descriptor {fd}",
            extra={} if sigmask is None else {"sigmask": sigmask},
        )  # fmt: skip

    return step(None)
