"""Sockets: loopback and Unix only, transfers that cannot block, and ports from a counter.

Creation and addresses are in ``socket_names``, options in ``socket_options``; both are reached from here, so
that one module has a function for each call of the subject.
"""

from __future__ import annotations

import os
import socket as host
import struct
from collections.abc import Callable
from contextlib import contextmanager
from errno import EAGAIN, EBADF, EFAULT, EINPROGRESS, EINTR, ENOTSOCK
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.handlers.socket_names import (
    bind,
    getpeername,
    getsockname,
    listen,
    name_before_use,
    socket,
    socketpair,
)  # fmt: skip
from detbox.handlers.socket_options import getsockopt, setsockopt, timeout_ns
from detbox.handlers.waiting import (
    POLLIN,
    POLLOUT,
    Segments,
    fd_of,
    iovec,
    nonblocking,
    ready,
    scatter,
    send_piecewise,
    signed32,
    total,
)  # fmt: skip
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from collections.abc import Iterator

    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

__all__ = [
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
    "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket", "socketpair",
]  # fmt: skip

_MSG_OOB, _MSG_DONTWAIT, _MSG_WAITALL, _MSG_ERRQUEUE, _MSG_NOSIGNAL = 0x1, 0x40, 0x100, 0x2000, 0x4000
_MSG_WAITFORONE = 0x10000
_MSGHDR = struct.Struct("<QI4xQQQQi4x")
_MMSGHDR = _MSGHDR.size + 8
#: A stream takes so much without waiting whenever it is writable at all: a third of the smallest send buffer.
_SMALL = 1024
#: A Unix stream that is writable takes any message of less than half its send buffer as one piece, and a TCP
#: one has a third of it free (net/core/stream.c, sk_stream_is_writeable()).
_PART_FREE = 4


@contextmanager
def borrowed(t: Task, fd: int) -> Iterator[int]:
    """The supervisor's descriptor of the guest's socket for a moment; OSError(EBADF, ENOTSOCK)."""
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        raise OSError(ENOTSOCK, os.strerror(ENOTSOCK))
    own = t.process.files.borrow(t, fd)
    try:
        yield own
    finally:
        os.close(own)


@contextmanager
def python_socket(fd: int) -> Iterator[host.socket]:
    """A socket object for ``fd``, which stays open."""
    sock = host.socket(fileno=fd)
    try:
        yield sock
    finally:
        sock.detach()


# ---------------------------------------------------------------- waiting


def _when(
    m: Machine, t: Task, fd: int, mask: int, option: int, again: Callable[[Wake], Decision], why: str,
    deadline: int | None = None, then: Decision = CONTINUE,
) -> Decision:  # fmt: skip
    """``then`` if the socket does not block or has an event of ``mask``; otherwise park.

    ``option``: SO_RCVTIMEO or SO_SNDTIMEO, which count in virtual time.
    """
    own = t.process.files.borrow(t, fd)
    if nonblocking(own) or ready(own, mask):
        os.close(own)
        return then
    if deadline is None:
        limit = timeout_ns(own, option)
        deadline = None if limit is None else m.clock.now + limit

    def resume(wake: Wake) -> Decision:
        if wake.kind == "deadline":
            return -EAGAIN
        return again(wake)

    return Park(
        resume, fds=((own, mask),), deadline=deadline, why=f"{why} socket {fd}",
        interrupted=ERESTARTSYS if deadline is None else EINTR,
    )  # fmt: skip


def accept(m: Machine, t: Task, a: Args) -> Decision:
    """``accept(fd, addr, addrlen)``: waits for a connection; the kernel takes it from the queue."""
    fd = fd_of(a[0])
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    decision = _when(m, t, fd, POLLIN, host.SO_RCVTIMEO, lambda wake: accept(m, t, a), "accept on")
    if decision is CONTINUE:
        t.process.files.forget_all()
    return decision


accept4 = accept


def connect(m: Machine, t: Task, a: Args) -> Decision:
    """``connect(fd, addr, addrlen)``: with a port from the run's counter, and never asleep in the kernel."""
    fd = fd_of(a[0])
    with borrowed(t, fd) as own:
        address = t.read(a[1], min(signed32(a[2]) & 0x7FFFFFFF, 128)) if signed32(a[2]) > 0 else b""
        name_before_use(m, own, address)
        if nonblocking(own):
            return CONTINUE
        with python_socket(own) as sock:
            family, kind = sock.family, sock.type
            if kind != host.SOCK_STREAM and kind != host.SOCK_SEQPACKET:
                return CONTINUE
            if family not in (host.AF_INET, host.AF_INET6):
                return CONTINUE
            return _connect_inet(m, t, a, sock, address)


def _connect_inet(m: Machine, t: Task, a: Args, sock: host.socket, address: bytes) -> Decision:
    """On loopback the handshake is over when the call returns, unless the listener's queue is full."""
    if len(address) < 2 or address[:2] == b"\0\0":
        return CONTINUE
    sock.setblocking(False)
    try:
        code = _raw_connect(sock, address)
        if code == EINPROGRESS:
            if not ready(sock.fileno(), POLLOUT):
                return _connecting(m, t, a)
            code = sock.getsockopt(host.SOL_SOCKET, host.SO_ERROR)
            if code == 0:
                _raw_connect(sock, address)  # the second call moves the socket from "connecting" on
    finally:
        sock.setblocking(True)
    return -code


def _raw_connect(sock: host.socket, address: bytes) -> int:
    try:
        sock.connect(decode_inet(address))
    except OSError as error:
        return error.errno or EFAULT
    return 0


def decode_inet(address: bytes) -> tuple[str, int] | tuple[str, int, int, int]:
    """Python's form of a ``struct sockaddr_in`` or ``sockaddr_in6``; OSError(EINVAL) if it is too short."""
    family = int.from_bytes(address[:2], "little")
    if family == host.AF_INET and len(address) >= 8:
        return host.inet_ntop(host.AF_INET, address[4:8]), int.from_bytes(address[2:4], "big")
    if family == host.AF_INET6 and len(address) >= 24:
        flow = int.from_bytes(address[4:8], "big")
        scope = int.from_bytes(address[24:28], "little")
        return host.inet_ntop(host.AF_INET6, address[8:24]), int.from_bytes(address[2:4], "big"), flow, scope
    raise OSError(22 if family in (host.AF_INET, host.AF_INET6) else 97, "bad address")


def _connecting(m: Machine, t: Task, a: Args) -> Decision:
    """The listener's queue is full: the kernel tries again in a second of the host's time."""
    fd = fd_of(a[0])
    m.doubt(t, "connection to a full listen queue: retried by the host's clock")

    def resume(wake: Wake) -> Decision:
        if wake.kind == "deadline":
            return -EINPROGRESS
        with borrowed(t, fd) as own, python_socket(own) as sock:
            code = sock.getsockopt(host.SOL_SOCKET, host.SO_ERROR)
            if code == 0:
                sock.setblocking(False)
                _raw_connect(sock, t.read(a[1], signed32(a[2])))
                sock.setblocking(True)
            return -code

    own = t.process.files.borrow(t, fd)
    limit = timeout_ns(own, host.SO_SNDTIMEO)
    deadline = None if limit is None else m.clock.now + limit
    return Park(
        resume, fds=((own, POLLOUT),), deadline=deadline, interrupted=EINTR, why=f"connect of socket {fd}"
    )


# ---------------------------------------------------------------- receiving


def read_plain(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """``read`` and ``readv`` of a socket."""
    if total(segments) == 0:
        return CONTINUE
    return _when(
        m, t, fd, POLLIN, host.SO_RCVTIMEO, lambda wake: read_plain(m, t, fd, segments), "read from"
    )


def recvfrom(m: Machine, t: Task, a: Args) -> Decision:
    """``recvfrom(fd, buf, len, flags, addr, addrlen)``."""
    return _receive(m, t, fd_of(a[0]), a[3], [(a[1], a[2])])


def recvmsg(m: Machine, t: Task, a: Args) -> Decision:
    """``recvmsg(fd, msghdr, flags)``: descriptors may arrive, whose numbers are not known here."""
    flags = a[2]
    if flags & (_MSG_DONTWAIT | _MSG_WAITALL) == _MSG_DONTWAIT:
        segments: Segments = []
        control = 1
    else:
        _, _, base, count, _, length, _ = _MSGHDR.unpack(t.read(a[1], _MSGHDR.size))
        segments = iovec(t, base, count)
        control = length
    decision = _receive(m, t, fd_of(a[0]), flags, segments)
    if control and decision is CONTINUE:
        t.process.files.forget_all()
    return decision


def _receive(m: Machine, t: Task, fd: int, flags: int, segments: Segments) -> Decision:
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    if flags & (_MSG_DONTWAIT | _MSG_ERRQUEUE | _MSG_OOB):
        return CONTINUE
    if flags & _MSG_WAITALL and _is_stream(t, fd) and total(segments):
        return _receive_all(m, t, fd, flags, segments)
    return _when(
        m, t, fd, POLLIN, host.SO_RCVTIMEO, lambda wake: _receive(m, t, fd, flags, segments), "receive from"
    )


def _is_stream(t: Task, fd: int) -> bool:
    with borrowed(t, fd) as own, python_socket(own) as sock:
        return sock.type == host.SOCK_STREAM


def _receive_all(m: Machine, t: Task, fd: int, flags: int, segments: Segments) -> Decision:
    """MSG_WAITALL: collected piece by piece until the buffer is full or the other side has ended."""
    wanted = total(segments)
    kept = flags & ~_MSG_WAITALL & 0x7FFFFFFF | _MSG_DONTWAIT
    done = 0

    def step(wake: Wake | None) -> Decision:
        nonlocal done
        if wake is not None and wake.kind == "deadline":
            return done or -EAGAIN
        own = t.process.files.borrow(t, fd)
        if nonblocking(own):
            os.close(own)
            return CONTINUE
        try:
            with python_socket(own) as sock:
                while done < wanted:
                    data = sock.recv(min(wanted - done, 1 << 20), kept)
                    if not data:
                        break
                    scatter(t, segments, done, data)
                    done += len(data)
                    if flags & host.MSG_PEEK:
                        break
        except BlockingIOError:
            limit = timeout_ns(own, host.SO_RCVTIMEO)
            return Park(
                step, fds=((own, POLLIN),), deadline=None if limit is None else m.clock.now + limit,
                interrupted=lambda: done or -ERESTARTSYS, why=f"receive all from socket {fd}",
            )  # fmt: skip
        except OSError as error:
            os.close(own)
            return done or -(error.errno or EBADF)
        os.close(own)
        return done

    return step(None)


def recvmmsg(m: Machine, t: Task, a: Args) -> Decision:
    """``recvmmsg(fd, mmsghdr, vlen, flags, timeout)``.

    Without MSG_WAITFORONE the kernel waits for each message.  It returns early only when its timeout is over
    after a message has come, so that a wait for the first one is all that can be decided here.
    """
    t.process.files.forget_all()
    fd, flags = fd_of(a[0]), a[3]
    if (flags & 0xFFFFFFFF) & _MSG_DONTWAIT:
        return CONTINUE
    if a[2] & 0xFFFFFFFF <= 1 or flags & _MSG_WAITFORONE:
        return _receive(m, t, fd, flags & ~_MSG_WAITALL, [])
    with borrowed(t, fd) as own:
        if nonblocking(own):
            return CONTINUE
    return _receive_many(m, t, fd, a)


def _receive_many(m: Machine, t: Task, fd: int, a: Args) -> Decision:
    """All the messages of a blocking ``recvmmsg``, without ancillary data."""
    count = min(a[2] & 0xFFFFFFFF, 1024)
    deadline = None
    if a[4]:
        seconds, nano = struct.unpack("<qq", t.read(a[4], 16))
        deadline = m.clock.now + seconds * 1_000_000_000 + nano
    done = 0

    def step(wake: Wake | None) -> Decision:
        nonlocal done
        own = t.process.files.borrow(t, fd)
        try:
            with python_socket(own) as sock:
                while done < count and not (done and deadline is not None and m.clock.now >= deadline):
                    _receive_one(t, sock, a[1] + done * _MMSGHDR, a[3])
                    done += 1
        except BlockingIOError:
            return Park(
                step, fds=((own, POLLIN),), why=f"receive messages from socket {fd}",
                interrupted=lambda: done or -ERESTARTSYS,
            )  # fmt: skip
        except OSError as error:
            os.close(own)
            return done or -(error.errno or EBADF)
        os.close(own)
        return done

    return step(None)


def _receive_one(t: Task, sock: host.socket, header: int, flags: int) -> None:
    name, room, base, count, _, _, _ = _MSGHDR.unpack(t.read(header, _MSGHDR.size))
    segments = iovec(t, base, count)
    data, _, seen, address = sock.recvmsg(total(segments), 0, flags & 0x3FFFFFFF | _MSG_DONTWAIT)
    scatter(t, segments, 0, data)
    encoded = encode_inet(sock.family, address)
    if name:
        t.write(name, encoded[:room])
    t.write(header + 8, struct.pack("<I", len(encoded) if name else 0))
    t.write(header + 40, struct.pack("<Qi4xI", 0, seen, len(data)))


def encode_inet(family: int, address: object) -> bytes:
    """The kernel's form of Python's address; empty for other families."""
    if not isinstance(address, tuple):
        return b""
    if family == host.AF_INET:
        head = struct.pack("<H", family) + struct.pack(">H", address[1])
        return head + host.inet_aton(address[0]) + bytes(8)
    packed = host.inet_pton(host.AF_INET6, address[0].partition("%")[0])
    head = struct.pack("<H", family) + struct.pack(">HI", address[1], address[2])
    return head + packed + struct.pack("<I", address[3])


# ---------------------------------------------------------------- sending


def write_plain(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """``write`` and ``writev`` of a socket."""
    return _send(m, t, fd, 0, segments, b"", control=False)


def sendto(m: Machine, t: Task, a: Args) -> Decision:
    """``sendto(fd, buf, len, flags, addr, addrlen)``."""
    address = t.read(a[4], min(signed32(a[5]) & 0x7FFFFFFF, 128)) if a[4] and signed32(a[5]) > 0 else b""
    return _send(m, t, fd_of(a[0]), a[3], [(a[1], a[2])], address, control=False)


def sendmsg(m: Machine, t: Task, a: Args) -> Decision:
    """``sendmsg(fd, msghdr, flags)``."""
    name, room, base, count, _, length, _ = _MSGHDR.unpack(t.read(a[1], _MSGHDR.size))
    address = t.read(name, min(room, 128)) if name and room else b""
    return _send(m, t, fd_of(a[0]), a[2], iovec(t, base, count), address, control=bool(length))


def sendmmsg(m: Machine, t: Task, a: Args) -> Decision:
    """``sendmmsg(fd, mmsghdr, vlen, flags)``: as many as fit are sent; the first one is waited for."""
    count = min(a[2] & 0xFFFFFFFF, 1024)
    if not count:
        return CONTINUE
    name, room, _, _, _, _, _ = _MSGHDR.unpack(t.read(a[1], _MSGHDR.size))
    address = t.read(name, min(room, 128)) if name and room else b""
    return _send(m, t, fd_of(a[0]), a[3], [], address, control=True)


def _send(
    m: Machine, t: Task, fd: int, flags: int, segments: Segments, address: bytes, control: bool
) -> Decision:
    """The kernel sends what is sure to fit; a stream's larger writes are moved piecewise."""
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    own = t.process.files.borrow(t, fd)
    try:
        if address:
            name_before_use(m, own, address)
        if flags & _MSG_DONTWAIT or nonblocking(own):
            return CONTINUE
        wanted = total(segments)
        with python_socket(own) as sock:
            kind, room = sock.type, sock.getsockopt(host.SOL_SOCKET, host.SO_SNDBUF)
        events = ready(own, POLLOUT)
        stream = kind == host.SOCK_STREAM
        if events & ~POLLOUT or (events and (not stream or wanted <= max(_SMALL, room // _PART_FREE))):
            return CONTINUE
        limit = timeout_ns(own, host.SO_SNDTIMEO)
    finally:
        os.close(own)
    deadline = None if limit is None else m.clock.now + limit
    if not stream or control or not events:

        def again(wake: Wake) -> Decision:
            return _send(m, t, fd, flags, segments, address, control)

        return _when(m, t, fd, POLLOUT, host.SO_SNDTIMEO, again, "send to", deadline)
    kept = flags & 0x7FFFFFFF | _MSG_DONTWAIT | _MSG_NOSIGNAL

    def put(own: int, data: bytes) -> int:
        with python_socket(own) as sock:
            return sock.send(data, kept)

    return send_piecewise(
        m, t, fd, segments, put, "send to socket", deadline=deadline, silent=bool(flags & _MSG_NOSIGNAL)
    )


def shutdown(m: Machine, t: Task, a: Args) -> Decision:
    """``shutdown(fd, how)``: never waits."""
    return CONTINUE

