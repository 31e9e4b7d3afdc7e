"""``sendfile``, ``splice``, ``tee``, ``vmsplice`` and ``copy_file_range``: data moved between descriptors.

Between regular files the kernel does it.  As soon as a pipe, a socket or the run's output takes part, the
supervisor reads and writes instead, because the kernel's own call may sleep on either end, and how much it
moves at a time depends on pages rather than on what the guest asked for.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from errno import EAGAIN, EBADF, EINVAL, EISDIR, EPIPE, ESPIPE
from fcntl import F_GETFL, F_GETPIPE_SZ, fcntl
from socket import AF_UNIX, socket
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.handlers import ptys
from detbox.handlers.limits import room_in_file
from detbox.handlers.readwrite import fill_stdin, stream_of, unread, write_stream, writev
from detbox.handlers.waiting import CHUNK, POLLIN, POLLOUT, fd_of, iovec, nonblocking, ready, without_blocking
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_PLAIN = frozenset({Kind.REG, Kind.MEMFD, Kind.PROC})
_SIZED = frozenset({Kind.REG, Kind.MEMFD})
_PIPES = frozenset({Kind.PIPE, Kind.STDIN, Kind.STDOUT, Kind.STDERR})
#: What takes no data, and what gives none to a pipe.
_NO_TARGETS = frozenset({Kind.EPOLL, Kind.SIGNALFD, Kind.INOTIFY, Kind.TIMERFD, Kind.DIR})
_NO_SOURCES = _NO_TARGETS | {Kind.EVENTFD}
_SPLICE_F_NONBLOCK = 2
_SPLICE_FLAGS = 0xF
_SIGPIPE = 13
_PAGE = 4096
_TEE = NUMBERS["tee"]
_LARGEST_OFFSET = (1 << 63) - 1


class _Mover:
    """Moves up to ``count`` bytes from one of the guest's descriptors to another, parked when it must be.

    ``offsets``: addresses of the guest's 64-bit offsets (0: the description's own position).
    ``once``: return as soon as anything has been moved and the input is empty (splice), instead of going on
    to the end of the file (sendfile).
    """

    def __init__(
        self, m: Machine, t: Task, fds: tuple[int, int], offsets: tuple[int, int], count: int
    ) -> None:
        self.m, self.t = m, t
        self.source, self.target = fds
        self.offsets = offsets
        self.positions = [t.u64(address) if address else -1 for address in offsets]
        if any(position > _LARGEST_OFFSET for position in self.positions):
            raise OSError(EINVAL, "negative offset")
        self.count = min(count, 0x7FFFF000)
        self.done = 0
        self.once = False
        self.nonblocking = False
        self.held = b""  # read from the source, and not yet taken by the target
        self.pages = 0  # how many of the target, a pipe that was empty, are surely free

    def run(self, wake: Wake | None = None) -> Decision:
        """Move what can be moved now."""
        files = self.t.process.files
        own = files.borrow(self.t, self.source)
        try:
            out = files.borrow(self.t, self.target)
        except OSError:
            os.close(own)
            raise
        keep = -1
        try:
            while self.done < self.count:
                waits = self._step(own, out)
                if waits is None:
                    break
                if waits:
                    descriptor, mask = (own, POLLIN) if waits == POLLIN else (out, POLLOUT)
                    if self.done and not self.held and (self.once or waits == POLLIN):
                        break
                    at_once = nonblocking(descriptor) or self.nonblocking and self._heeds_flag(descriptor, waits)
                    if at_once and not self.held:  # what has left a pipe cannot be put back
                        return self._finish(self.done or -EAGAIN)
                    keep = descriptor
                    return Park(
                        self.run, fds=((descriptor, mask),),
                        interrupted=lambda: self._finish(self.done or -ERESTARTSYS),
                        why=f"move from descriptor {self.source} to {self.target}",
                    )  # fmt: skip
        except OSError as error:
            return self._failed(error)
        finally:
            for descriptor in {own, out} - {keep}:
                os.close(descriptor)
        return self._finish(self.done)

    def _heeds_flag(self, descriptor: int, waits: int) -> bool:
        """Whether SPLICE_F_NONBLOCK is for this end: a pipe, or a Unix socket that is read (net/unix/af_unix.c)."""
        kind = self.t.process.files.get(self.source if waits == POLLIN else self.target).kind
        if kind is Kind.SOCKET and waits == POLLIN:
            with socket(fileno=os.dup(descriptor)) as end:
                return end.family == AF_UNIX
        return kind in _PIPES

    def _step(self, own: int, out: int) -> int | None:
        """Move one piece.  0: moved; None: the end; POLLIN or POLLOUT: that has to come first."""
        source = self.t.process.files.get(self.source)
        target = self.t.process.files.get(self.target)
        if self.held:
            return self._put_held(out)
        if source.kind is Kind.STDIN:
            fill_stdin(self.m, self.t, self.source)
        if source.kind not in _PLAIN and not ready(own, POLLIN):
            return POLLIN
        if target.kind not in _PLAIN and stream_of(target) == 0 and not ready(out, POLLOUT):
            return POLLOUT
        left = self.count - self.done
        if target.kind in _SIZED:
            left = room_in_file(self.m, self.t, self._position(out), left)
        if source.kind in _PLAIN:
            return self._from_file(own, out, min(CHUNK, left))
        if source.kind is Kind.PIPE and target.kind is Kind.SOCKET and not fcntl(own, F_GETFL) & os.O_DIRECT:
            return self._to_socket(own, out, min(CHUNK, left))
        with without_blocking(own):
            self.held = os.read(own, min(left, self._room(out)))
        return self._put_held(out) if self.held else None

    def _position(self, out: int) -> int:
        """Where in the target the next byte comes."""
        return self.positions[1] if self.positions[1] >= 0 else os.lseek(out, 0, os.SEEK_CUR)

    def _to_socket(self, own: int, out: int, size: int) -> int | None:
        """Move a piece from a pipe to a socket: how much the socket takes is known afterwards only.

        A copy is written, and what was taken is then removed from the pipe.  (Of a packet, the rest would go too.)
        """
        end, begin = os.pipe2(os.O_CLOEXEC)
        try:
            copied = _native.raw_syscall(_TEE, own, begin, size, _SPLICE_F_NONBLOCK)
            data = os.read(end, copied) if copied > 0 else b""
        finally:
            os.close(end)
            os.close(begin)
        if not data:
            return None
        try:
            moved = self._write_some(out, data)
        except BlockingIOError:
            return POLLOUT
        self.done += len(os.read(own, moved))
        return 0

    def _put_held(self, out: int) -> int:
        """Write what has been read.  POLLOUT: the target had less room than it seemed (a terminal does that)."""
        while self.held:
            try:
                moved = self._write_some(out, self.held)
            except BlockingIOError:
                return POLLOUT
            self.held = self.held[moved:]
            self.done += moved
            self.pages -= -(-moved // _PAGE)
        return 0

    def _from_file(self, own: int, out: int, size: int) -> int | None:
        position = self.positions[0]
        data = os.pread(own, size, position if position >= 0 else os.lseek(own, 0, os.SEEK_CUR))
        if not data:
            return None
        try:
            moved = self._write_some(out, data)
        except BlockingIOError:
            return POLLOUT
        if position >= 0:
            self.positions[0] += moved
        else:
            os.lseek(own, moved, os.SEEK_CUR)
        self.done += moved
        return 0

    def _room(self, out: int) -> int:
        """How much the target surely takes: what has left a pipe cannot be put back."""
        kind = self.t.process.files.get(self.target).kind
        if kind in _PLAIN or kind is Kind.CHAR or stream_of(self.t.process.files.get(self.target)):
            return CHUNK
        if kind is Kind.PIPE and not unread(out):
            self.pages = fcntl(out, F_GETPIPE_SZ) // _PAGE
        return max(self.pages, 1) * _PAGE

    def _write_some(self, out: int, data: bytes) -> int:
        target = self.t.process.files.get(self.target)
        which = stream_of(target)
        if which:
            self.m.console.write(which, data)
            return len(data)
        if target.kind is Kind.REG:
            self.m.inodes.touch(target.vnode)
        if self.positions[1] >= 0:
            moved = os.pwrite(out, data, self.positions[1])
            self.positions[1] += moved
            return moved
        if target.kind is Kind.TTY:
            return ptys.put(self.m, out, data)
        with without_blocking(out):
            return os.write(out, data)

    def _finish(self, result: int) -> int:
        if result > 0:
            for address, position in zip(self.offsets, self.positions, strict=True):
                if address:
                    self.t.write(address, struct.pack("<q", position))
        return result

    def _failed(self, error: OSError) -> int:
        if error.errno == EPIPE:
            self.m.signal(self.t, _SIGPIPE, code=0)
        return self._finish(self.done or -(error.errno or EINVAL))


def sendfile(m: Machine, t: Task, a: Args) -> Decision:
    """``sendfile(out, in, offset, count)``."""
    files = t.process.files
    target, source = fd_of(a[0]), fd_of(a[1])
    if files.get(target).kind in _PLAIN and files.get(source).kind in _PLAIN:
        m.inodes.touch(files.get(target).vnode)
        return CONTINUE
    _check_modes(t, source, target)
    if files.get(source).kind not in _PLAIN and files.get(source).kind is not Kind.CHAR:
        return -EINVAL
    return _Mover(m, t, (source, target), (a[2], 0), a[3]).run()


def splice(m: Machine, t: Task, a: Args) -> Decision:
    """``splice(in, off_in, out, off_out, len, flags)``: one end at least is a pipe."""
    source, target = fd_of(a[0]), fd_of(a[2])
    kinds = [t.process.files.get(fd).kind for fd in (source, target)]
    if a[5] & 0xFFFFFFFF & ~_SPLICE_FLAGS or a[4] >> 63:
        return -EINVAL
    if not any(kind in _PIPES for kind in kinds):
        _check_modes(t, source, target)
        return -EINVAL
    if any(kind in _PIPES and address for kind, address in zip(kinds, (a[1], a[3]), strict=True)):
        return -ESPIPE
    _check_modes(t, source, target)
    mover = _Mover(m, t, (source, target), (a[1], a[3]), a[4])
    mover.once, mover.nonblocking = True, bool(a[5] & _SPLICE_F_NONBLOCK)
    return mover.run()


def _check_modes(t: Task, source: int, target: int) -> None:
    """OSError unless data can go from one to the other."""
    for fd, wrong in ((source, os.O_WRONLY), (target, os.O_RDONLY)):
        own = t.process.files.borrow(t, fd)
        try:
            flags = fcntl(own, F_GETFL)
            if flags & os.O_ACCMODE == wrong or flags & os.O_PATH:
                raise OSError(EBADF, "wrong direction")
            if fd == target and flags & os.O_APPEND and t.process.files.get(fd).kind is Kind.REG:
                raise OSError(EINVAL, "appending has no place to move to")
        finally:
            os.close(own)
    files = t.process.files
    if files.get(source).kind in _NO_SOURCES or files.get(target).kind in _NO_TARGETS:
        raise OSError(EINVAL, "neither file, pipe, socket nor device")


def tee(m: Machine, t: Task, a: Args) -> Decision:
    """``tee(in, out, len, flags)``: continued when the input has data and the output room.

    Pages are shared, not copied, so that one free buffer of the output is all the kernel needs.
    """
    at_once = bool(a[3] & _SPLICE_F_NONBLOCK)
    return _when_both(m, t, fd_of(a[0]), fd_of(a[1]), at_once, lambda wake: tee(m, t, a))


def _when_both(
    m: Machine, t: Task, source: int, target: int, at_once: bool, again: Callable[[Wake], Decision]
) -> Decision:
    files = t.process.files
    if files.get(source).kind is Kind.STDIN:
        fill_stdin(m, t, source)
    for fd, mask in ((source, POLLIN), (target, POLLOUT)):
        own = files.borrow(t, fd)
        if at_once or nonblocking(own) or ready(own, mask):
            os.close(own)
            continue
        return Park(again, fds=((own, mask),), why=f"tee from descriptor {source} to {target}")
    return CONTINUE


def vmsplice(m: Machine, t: Task, a: Args) -> Decision:
    """``vmsplice(fd, iov, count, flags)``: into a pipe it is a write, out of one a read."""
    fd = fd_of(a[0])
    own = t.process.files.borrow(t, fd)
    try:
        if t.process.files.get(fd).kind not in _PIPES:
            return -EBADF
        into = fcntl(own, F_GETFL) & os.O_ACCMODE != os.O_RDONLY
        if a[3] & _SPLICE_F_NONBLOCK and not ready(own, POLLOUT if into else POLLIN):
            return -EAGAIN
        if not into and unread(own) == 0 and not ready(own, POLLIN):
            kept = os.dup(own)
            return Park(lambda wake: vmsplice(m, t, a), fds=((kept, POLLIN),), why=f"vmsplice from {fd}")
    finally:
        os.close(own)
    if not into:
        return CONTINUE
    which = stream_of(t.process.files.get(fd))
    if which:
        return write_stream(m, t, which, iovec(t, a[1], a[2]))
    return writev(m, t, (a[0], a[1], a[2], 0, 0, 0)) if not a[3] & _SPLICE_F_NONBLOCK else CONTINUE


def copy_file_range(m: Machine, t: Task, a: Args) -> Decision:
    """``copy_file_range(in, off_in, out, off_out, len, flags)``: regular files only.

    The supervisor copies: the kernel refuses to do it between two file systems, and which of the guest's
    files share one is the host's affair.
    """
    files = t.process.files
    source, target = files.get(fd_of(a[0])), files.get(fd_of(a[2]))
    if a[5] & 0xFFFFFFFF or source.kind not in _PLAIN or target.kind not in _PLAIN:
        return -EISDIR if Kind.DIR in (source.kind, target.kind) else -EINVAL
    own = files.borrow(t, fd_of(a[0]))
    try:
        out = files.borrow(t, fd_of(a[2]))
        try:
            return _copy(_Mover(m, t, (fd_of(a[0]), fd_of(a[2])), (a[1], a[3]), a[4]), own, out)
        finally:
            os.close(out)
    finally:
        os.close(own)


def _copy(mover: _Mover, own: int, out: int) -> Decision:
    """The checks of generic_copy_file_checks (mm/filemap.c), then the copy."""
    flags = fcntl(out, F_GETFL)
    if fcntl(own, F_GETFL) & os.O_ACCMODE == os.O_WRONLY or flags & os.O_ACCMODE == os.O_RDONLY or flags & os.O_APPEND:
        return -EBADF
    begins = [
        position if position >= 0 else os.lseek(fd, 0, os.SEEK_CUR)
        for position, fd in zip(mover.positions, (own, out), strict=True)
    ]
    if os.path.sameopenfile(own, out) and abs(begins[0] - begins[1]) < mover.count:
        return -EINVAL
    if mover.t.process.files.get(mover.target).kind in _SIZED:
        mover.count = room_in_file(mover.m, mover.t, begins[1], mover.count)
    return mover.run()
