"""``read``, ``write`` and their relatives: files at once, everything else when it cannot block."""

from __future__ import annotations

import array
import os
from errno import EINVAL, EOPNOTSUPP
from fcntl import ioctl
from termios import FIONREAD
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision
from detbox.handlers.random import fill
from detbox.handlers.waiting import (
    POLLIN,
    POLLOUT,
    Segments,
    continue_when,
    fd_of,
    gather,
    iovec,
    put_nonblocking,
    ready,
    send_piecewise,
    total,
)  # fmt: skip
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from detbox.machine.files import OpenFile
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

#: Bound here because looking a member up in its enumeration costs more than the rest of a short handler.
_REG, _PIPE, _PROC = Kind.REG, Kind.PIPE, Kind.PROC
#: Reads of these return at once, whatever they return.
_AT_ONCE = frozenset({Kind.REG, Kind.DIR, Kind.MEMFD, Kind.PROC, Kind.EPOLL})
_STREAMS = {Kind.STDOUT: 1, Kind.STDERR: 2}
#: Larger writes to a pipe may be split by the kernel (include/uapi/linux/limits.h).
PIPE_BUF = 4096
_RWF_NOWAIT = 0x8
#: With RWF_ATOMIC and RWF_DONTCACHE: whether a file system can do it, and a cache has the data, is the host's.
_RWF_OF_HOSTS = _RWF_NOWAIT | 0x40 | 0x80
_ALL_ONES = (1 << 64) - 1


# ---------------------------------------------------------------- reading


def read(m: Machine, t: Task, a: Args) -> Decision:
    """``read(fd, buf, count)``."""
    f = t.process.files.get(a[0])
    kind = f.kind
    if kind is _REG or (kind is not _PIPE and kind in _AT_ONCE):
        return _read_proc(m, t, fd_of(a[0]), f) if kind is _PROC else CONTINUE
    return _read(m, t, fd_of(a[0]), f, [(a[1], a[2])])


def readv(m: Machine, t: Task, a: Args) -> Decision:
    """``readv(fd, iov, iovcnt)``."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind in _AT_ONCE:
        return _read_proc(m, t, fd_of(a[0]), f) if f.kind is _PROC else CONTINUE
    return _read(m, t, fd_of(a[0]), f, iovec(t, a[1], a[2]))


def pread64(m: Machine, t: Task, a: Args) -> Decision:
    """``pread64(fd, buf, count, offset)``: what can block has no offset, but /dev/urandom has one."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind is Kind.RANDOM:
        return _read(m, t, fd_of(a[0]), f, [(a[1], a[2])])
    return _read_proc(m, t, fd_of(a[0]), f, a[3]) if f.kind is _PROC else CONTINUE


def preadv(m: Machine, t: Task, a: Args) -> Decision:
    """``preadv(fd, iov, iovcnt, offset)``."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind is Kind.RANDOM:
        return _read(m, t, fd_of(a[0]), f, iovec(t, a[1], a[2]))
    return _read_proc(m, t, fd_of(a[0]), f, a[3]) if f.kind is _PROC else CONTINUE


def preadv2(m: Machine, t: Task, a: Args) -> Decision:
    """``preadv2(fd, iov, iovcnt, offset, _, flags)``: with offset -1 it is ``readv``."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind is Kind.REG and a[5] & _RWF_OF_HOSTS:
        return -EOPNOTSUPP
    if f.kind in _AT_ONCE or (f.kind is not Kind.RANDOM and (a[3] != _ALL_ONES or a[5] & _RWF_NOWAIT)):
        return CONTINUE
    return _read(m, t, fd_of(a[0]), f, iovec(t, a[1], a[2]))


# The modules of sockets and so on are loaded when a program has such a descriptor: every program reads and writes.


def _read(m: Machine, t: Task, fd: int, f: OpenFile, segments: Segments) -> Decision:
    kind = f.kind
    if kind is _PIPE:
        if total(segments) == 0:
            return CONTINUE
        return continue_when(m, t, fd, POLLIN, lambda wake: _read(m, t, fd, f, segments), "read from")
    if kind is Kind.RANDOM:
        return fill(t, segments)
    if kind is Kind.STDIN:
        fill_stdin(m, t, fd)
        return CONTINUE
    if kind is Kind.SOCKET:
        import detbox.handlers.sockets as sockets

        return sockets.read_plain(m, t, fd, segments)
    if kind is Kind.TTY:
        import detbox.handlers.tty as tty

        return tty.read_terminal(m, t, fd, segments)
    if kind is Kind.INOTIFY:
        import detbox.handlers.inotify as inotify

        return inotify.read_events(m, t, fd, segments)
    if kind is Kind.SIGNALFD:
        import detbox.handlers.signalfd as signalfd

        return signalfd.read_signals(m, t, fd, segments)
    if kind in (Kind.TIMERFD, Kind.EVENTFD):
        import detbox.handlers.timerfd as timerfd

        timer = timerfd.timer_of(m, t, fd, f)
        if timer is not None:
            return timerfd.read_expirations(m, t, fd, timer, segments)
    return continue_when(m, t, fd, POLLIN, lambda wake: _read(m, t, fd, f, segments), "read from")


def _read_proc(m: Machine, t: Task, fd: int, f: OpenFile, position: int | None = None) -> Decision:
    import detbox.handlers.procfs as procfs

    return procfs.read(m, t, fd, f, position) or CONTINUE


def fill_stdin(m: Machine, t: Task, fd: int) -> None:
    """Have the next piece of input, or its end, in the guest's empty stdin: input is always there."""
    borrowed = t.process.files.borrow(t, fd)
    try:
        if not ready(borrowed, POLLIN):
            m.console.fill_stdin()
    finally:
        os.close(borrowed)


# ---------------------------------------------------------------- writing


def write(m: Machine, t: Task, a: Args) -> Decision:
    """``write(fd, buf, count)``."""
    f = t.process.files.get(a[0])
    if f.kind is _REG:
        if a[2]:
            m.inodes.touch(f.vnode)
        return CONTINUE
    return _write(m, t, fd_of(a[0]), f, [(a[1], a[2])])


def writev(m: Machine, t: Task, a: Args) -> Decision:
    """``writev(fd, iov, iovcnt)``."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind is Kind.REG:
        m.inodes.touch(f.vnode)
        return CONTINUE
    return _write(m, t, fd_of(a[0]), f, iovec(t, a[1], a[2]))


def pwrite64(m: Machine, t: Task, a: Args) -> Decision:
    """``pwrite64(fd, buf, count, offset)``: what can block has no offset (ESPIPE)."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind is Kind.REG and a[2]:
        m.inodes.touch(f.vnode)
    if f.kind is Kind.PROC:
        return _write_proc(m, t, fd_of(a[0]), f, [(a[1], a[2])], placed=True)
    return CONTINUE


def pwritev(m: Machine, t: Task, a: Args) -> Decision:
    """``pwritev(fd, iov, iovcnt, offset)``."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind is Kind.PROC:
        return _write_proc(m, t, fd_of(a[0]), f, iovec(t, a[1], a[2]), placed=True)
    return pwrite64(m, t, a)


def pwritev2(m: Machine, t: Task, a: Args) -> Decision:
    """``pwritev2(fd, iov, iovcnt, offset, _, flags)``: with offset -1 it is ``writev``."""
    f = t.process.files.get(fd_of(a[0]))
    if f.kind is Kind.REG:
        return -EOPNOTSUPP if a[5] & _RWF_OF_HOSTS else pwritev(m, t, a)
    if a[3] != _ALL_ONES or a[5] & _RWF_NOWAIT:
        return CONTINUE
    return _write(m, t, fd_of(a[0]), f, iovec(t, a[1], a[2]))


def _write(m: Machine, t: Task, fd: int, f: OpenFile, segments: Segments) -> Decision:
    kind = f.kind
    if kind is _PIPE:
        return _write_pipe(m, t, fd, f, segments)
    if which := stream_of(f):
        return write_stream(m, t, which, segments)
    if kind is Kind.SOCKET:
        import detbox.handlers.sockets as sockets

        return sockets.write_plain(m, t, fd, segments)
    if kind is Kind.TTY:
        import detbox.handlers.tty as tty

        return tty.write_terminal(m, t, fd, segments)
    if kind is Kind.RANDOM:
        return total(segments)  # what the guest mixes into the host's pool has no effect on its own streams
    if kind in (Kind.TIMERFD, Kind.EVENTFD):
        import detbox.handlers.timerfd as timerfd

        if timerfd.timer_of(m, t, fd, f) is not None:
            return -EINVAL
    if kind is Kind.EVENTFD:
        return continue_when(m, t, fd, POLLOUT, lambda wake: _write(m, t, fd, f, segments), "write to")
    if kind is Kind.PROC:
        return _write_proc(m, t, fd, f, segments)
    return CONTINUE


def _write_proc(
    m: Machine, t: Task, fd: int, f: OpenFile, segments: Segments, *, placed: bool = False
) -> Decision:
    import detbox.handlers.idmaps as idmaps

    written = idmaps.write(m, t, fd, f, segments, placed=placed)
    return CONTINUE if written is None else written


def stream_of(f: OpenFile) -> int:
    """1 or 2 if the description is the run's output or error output, otherwise 0."""
    return _STREAMS.get(f.kind, 0)


def write_stream(m: Machine, t: Task, which: int, segments: Segments) -> int:
    """Hand the guest's output over: never blocks, and the order of both streams is kept."""
    wanted = total(segments)
    done = 0
    while done < wanted:
        data = gather(t, segments, done, min(1 << 20, wanted - done))
        m.console.write(which, data)
        done += len(data)
    return done


def _write_pipe(m: Machine, t: Task, fd: int, f: OpenFile, segments: Segments) -> Decision:
    wanted = total(segments)
    if not wanted or t.process.files.takes_at_once(t, fd, wanted):
        return CONTINUE
    return send_piecewise(m, t, fd, segments, put_nonblocking, "write to pipe")


def unread(fd: int) -> int:
    """Bytes waiting in the pipe, socket or terminal behind the supervisor's ``fd``."""
    count = array.array("i", [0])
    ioctl(fd, FIONREAD, count)
    return count[0]
