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
from detbox.handlers import signalfd
from detbox.handlers.polling import read_timespec
from detbox.handlers.waiting import POLLIN, fd_of, ready, signed32
from detbox.machine.files import Kind
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_EPOLL_CTL_DEL = 2


def epoll_create(m: Machine, t: Task, a: Args) -> Decision:
    """``epoll_create(size)``."""
    t.process.files.forget_all()
    return CONTINUE


epoll_create1 = epoll_create


def epoll_ctl(m: Machine, t: Task, a: Args) -> Decision:
    """``epoll_ctl(epfd, op, fd, event)``: only to know who watches stdin or signals."""
    if signed32(a[1]) != _EPOLL_CTL_DEL:
        kind = t.process.files.get(fd_of(a[2])).kind
        if kind is Kind.STDIN:
            io_state(m).stdin_is_watched = True
        elif kind is Kind.SIGNALFD:
            io_state(m).signalfd_is_watched = True
            m.doubt(t, "epoll on a signal descriptor: events may be lost")
    return CONTINUE


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
    if t.process.files.get(fd).kind is not Kind.EPOLL or signed32(a[2]) <= 0:
        return CONTINUE  # the kernel says EINVAL
    deadline = None if timeout is None else m.clock.now + timeout

    def step(wake: Wake | None) -> Decision:
        borrowed = t.process.files.borrow(t, fd)
        found = ready(borrowed, POLLIN)
        if not found and io_state(m).stdin_is_watched:
            m.console.fill_stdin()
            found = ready(borrowed, POLLIN)
        if found:
            os.close(borrowed)
            return CONTINUE
        if (timeout == 0 and sigmask is None) or (wake is not None and wake.kind == "deadline"):
            os.close(borrowed)
            return 0
        return Park(
            step, events=signalfd.events_of(t), fds=((borrowed, POLLIN),), deadline=deadline,
            interrupted=EINTR, why=f"epoll_wait on descriptor {fd}",
            extra={} if sigmask is None else {"sigmask": sigmask},
        )  # fmt: skip

    return step(None)
