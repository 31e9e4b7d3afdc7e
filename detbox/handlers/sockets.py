"""Sockets: loopback and Unix only, transfers that cannot block, and ports from a counter.

Creation and addresses are in ``socket_names``, ``connect`` in ``socket_connect``, options in
``socket_options``; all are reached from here, so that one module has a function for each call of the subject.
"""

from __future__ import annotations

import os
import socket as host
from collections.abc import Callable
from errno import EAGAIN, EBADF, EINTR, EPERM
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.handlers import networks, rtnetlink
from detbox.handlers.socket_batch import receive_many, send_here
from detbox.handlers.socket_connect import connect
from detbox.handlers.socket_control import MMSGHDR, look_at_control, note_sender, own_credentials, with_credentials
from detbox.handlers.socket_core import (
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    MSGHDR,
    borrowed,
    python_socket,
    timeout_ns,
    when_ready,
)
from detbox.handlers.socket_names import (
    before_use,
    bind,
    check_peer,
    full_peer,
    getpeername,
    getsockname,
    listen,
    socket,
    socketpair,
)
from detbox.handlers.socket_options import getsockopt, setsockopt
from detbox.handlers.socket_sharing import left, refresh
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
)
from detbox.machine.files import Kind
from detbox.machine.io import io_state
from detbox.machine.networks import NETWORK

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

__all__ = [
    "accept", "accept4", "bind", "connect", "getpeername", "getsockname", "getsockopt", "listen", "recvfrom",
    "recvmmsg", "recvmsg", "sendmmsg", "sendmsg", "sendto", "setsockopt", "shutdown", "socket", "socketpair",
]  # fmt: skip

_MSG_OOB, _MSG_WAITALL, _MSG_ERRQUEUE = 0x1, 0x100, 0x2000
_MSG_WAITFORONE = 0x10000


def accept(m: Machine, t: Task, a: Args) -> Decision:
    """``accept(fd, addr, addrlen)``: waits for a connection; the kernel takes it from the queue."""
    fd = fd_of(a[0])
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    decision = when_ready(
        m, t, fd, POLLIN, host.SO_RCVTIMEO, lambda wake: accept(m, t, a), "accept on", accepts=True
    )
    if decision is CONTINUE:
        t.process.files.forget_all()
    return decision


accept4 = accept


# ---------------------------------------------------------------- receiving


def read_plain(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """``read`` and ``readv`` of a socket."""
    if total(segments) == 0:
        return CONTINUE
    decision = when_ready(
        m, t, fd, POLLIN, host.SO_RCVTIMEO, lambda wake: read_plain(m, t, fd, segments), "read from"
    )
    return _told(m, t, fd, segments, decision)


def recvfrom(m: Machine, t: Task, a: Args) -> Decision:
    """``recvfrom(fd, buf, len, flags, addr, addrlen)``."""
    fd, segments = fd_of(a[0]), [(a[1], a[2])]
    decision = _receive(m, t, fd, a[3], segments, lambda wake: recvfrom(m, t, a))
    return _told(m, t, fd, segments, decision)


def recvmsg(m: Machine, t: Task, a: Args) -> Decision:
    """``recvmsg(fd, msghdr, flags)``: descriptors may arrive, whose numbers are not known here."""
    flags = a[2]
    if flags & (MSG_DONTWAIT | _MSG_WAITALL) == MSG_DONTWAIT:
        segments: Segments = []
        control = 1
    else:
        _, _, base, count, _, length, _ = MSGHDR.unpack(t.read(a[1], MSGHDR.size))
        segments = iovec(t, base, count)
        control = length
    fd = fd_of(a[0])
    decision = _receive(m, t, fd, flags, segments, lambda wake: recvmsg(m, t, a))
    if decision is CONTINUE and io_state(m).netlink:
        _, _, base, count, _, _, _ = MSGHDR.unpack(t.read(a[1], MSGHDR.size))
        decision = _told(m, t, fd, iovec(t, base, count), decision)
    if control and decision is CONTINUE:
        t.process.files.forget_all()
        return look_at_control(m, a[1], lambda result: 1)
    return decision


def _receive(
    m: Machine, t: Task, fd: int, flags: int, segments: Segments, again: Callable[[Wake], Decision] | None = None
) -> Decision:
    """``again``: goes on when there is something to receive; by default this function."""
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    if flags & (MSG_DONTWAIT | _MSG_ERRQUEUE | _MSG_OOB):
        return CONTINUE
    if flags & _MSG_WAITALL and _is_stream(t, fd) and total(segments):
        return _receive_all(m, t, fd, flags, segments)

    def same(wake: Wake) -> Decision:
        return _receive(m, t, fd, flags, segments)

    return when_ready(m, t, fd, POLLIN, host.SO_RCVTIMEO, again or same, "receive from")


def _is_netlink(own: int) -> bool:
    with python_socket(own) as sock:
        return sock.family == host.AF_NETLINK


def _is_stream(t: Task, fd: int) -> bool:
    with borrowed(t, fd) as own, python_socket(own) as sock:
        return sock.type == host.SOCK_STREAM


def _told(m: Machine, t: Task, fd: int, segments: Segments, decision: Decision) -> Decision:
    """What the kernel receives into the segments is looked at if the socket is one of AF_NETLINK."""
    return rtnetlink.received(segments) if decision is CONTINUE and _is_told(m, t, fd) else decision


def _is_told(m: Machine, t: Task, fd: int) -> bool:
    """Whether the descriptor is a socket of AF_NETLINK."""
    known = io_state(m).netlink
    if not known:
        return False
    f = t.process.files.get(fd)
    if f.kind is not Kind.SOCKET or f.ino not in known:
        return False
    with borrowed(t, fd) as own:
        if _is_netlink(own):
            return True
    known.discard(f.ino)  # the number has been another socket's since
    return False


def _receive_all(m: Machine, t: Task, fd: int, flags: int, segments: Segments) -> Decision:
    """MSG_WAITALL: collected piece by piece until the buffer is full or the other side has ended."""
    wanted = total(segments)
    kept = flags & ~_MSG_WAITALL & 0x7FFFFFFF | MSG_DONTWAIT
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
    at_once = bool(flags & MSG_DONTWAIT)
    if not at_once and a[2] & 0xFFFFFFFF > 1 and not flags & _MSG_WAITFORONE:
        with borrowed(t, fd) as own:
            at_once = nonblocking(own)
        if not at_once:
            return receive_many(m, t, fd, a)
    decision = CONTINUE if at_once else _receive(
        m, t, fd, flags & ~_MSG_WAITALL, [], lambda wake: recvmmsg(m, t, a)
    )  # fmt: skip
    if decision is not CONTINUE:
        return decision
    decision = look_at_control(m, a[1], lambda result: result)
    return rtnetlink.received_many(a[1], decision) if _is_told(m, t, fd) else decision


# ---------------------------------------------------------------- sending


def write_plain(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """``write`` and ``writev`` of a socket."""
    return _send(m, t, fd, 0, segments, b"", 0)


def sendto(m: Machine, t: Task, a: Args) -> Decision:
    """``sendto(fd, buf, len, flags, addr, addrlen)``."""
    address = t.read(a[4], min(signed32(a[5]) & 0x7FFFFFFF, 128)) if a[4] and signed32(a[5]) > 0 else b""
    return _send(m, t, fd_of(a[0]), a[3], [(a[1], a[2])], address, 0)


def sendmsg(m: Machine, t: Task, a: Args) -> Decision:
    """``sendmsg(fd, msghdr, flags)``."""
    name, room, base, count, _, length, _ = MSGHDR.unpack(t.read(a[1], MSGHDR.size))
    address = t.read(name, min(room, 128)) if name and room else b""
    header = a[1] if length else 0
    decision = _send(m, t, fd_of(a[0]), a[2], iovec(t, base, count), address, header)
    return with_credentials(m, t, range(header, header + 1), decision) if length else decision


def sendmmsg(m: Machine, t: Task, a: Args) -> Decision:
    """``sendmmsg(fd, mmsghdr, vlen, flags)``: the kernel may wait before each message, except for UDP."""
    count = min(a[2] & 0xFFFFFFFF, 1024)
    fd = fd_of(a[0])
    if not count or t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    headers = range(a[1], a[1] + count * MMSGHDR, MMSGHDR)
    name, room, _, _, _, _, _ = MSGHDR.unpack(t.read(a[1], MSGHDR.size))
    with borrowed(t, fd) as own, python_socket(own) as sock:
        if sock.family == host.AF_NETLINK and t.process.network is not NETWORK:
            return -EPERM
        if name and room:
            before_use(m, t, own, t.read(name, min(room, 128)))
        for header in headers[1:]:
            try:
                name, room, _, _, _, _, _ = MSGHDR.unpack(t.read(header, MSGHDR.size))
                peer = t.read(name, min(room, 128)) if name else b""
            except OSError:
                break  # those before it are sent
            if peer:
                check_peer(m, t, peer)
        limit = timeout_ns(own, host.SO_SNDTIMEO)
        never = bool(a[3] & MSG_DONTWAIT) or nonblocking(own)
        never = never or (sock.family != host.AF_UNIX and sock.type != host.SOCK_STREAM)
    note_sender(m, t)
    deadline = None if limit is None else m.clock.now + limit
    decision = CONTINUE if never else send_here(m, t, fd, headers, a[3], deadline, single=False)
    return with_credentials(m, t, headers, decision)


def _send(
    m: Machine, t: Task, fd: int, flags: int, segments: Segments, address: bytes, header: int
) -> Decision:
    """The kernel sends what is sure to fit; a stream's larger writes are moved piecewise.

    ``header``: of a message with ancillary data, or 0.
    """
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    note_sender(m, t)
    if io_state(m).sharing:
        refresh(m)
    by_name = False
    if address or t.process.network is not NETWORK:
        with borrowed(t, fd) as own:
            if t.process.network is not NETWORK and _is_netlink(own):
                return networks.send_request(m, t, own, segments) or CONTINUE
            if address:
                before_use(m, t, own, address)
                by_name = _waits_by_name(own)
    if flags & MSG_DONTWAIT:
        return CONTINUE
    at_once = t.process.files.takes_at_once(t, fd, total(segments))
    full = full_peer(m, t, address) if at_once and by_name else None
    if at_once and full is None:
        return CONTINUE
    with borrowed(t, fd) as own, python_socket(own) as sock:
        stream, events = sock.type == host.SOCK_STREAM, ready(own, POLLOUT)
        limit = timeout_ns(own, host.SO_SNDTIMEO)
    deadline = None if limit is None else m.clock.now + limit

    def again(wake: Wake) -> Decision:
        return -EAGAIN if wake.kind == "deadline" else _send(m, t, fd, flags, segments, address, header)

    if full is not None:
        return Park(
            again, fds=((full, POLLOUT),), deadline=deadline, why=f"send to a full socket, from socket {fd}",
            interrupted=ERESTARTSYS if deadline is None else EINTR,
        )  # fmt: skip
    if not stream or not events:
        return when_ready(m, t, fd, POLLOUT, host.SO_SNDTIMEO, again, "send to", deadline)
    if header:
        return send_here(m, t, fd, range(header, header + 1), flags, deadline, single=True)
    kept = flags & 0x7FFFFFFF | MSG_DONTWAIT | MSG_NOSIGNAL

    def put(own: int, data: bytes) -> int:
        with python_socket(own) as sock:
            return sock.sendmsg([data], own_credentials(m, t, sock), kept)

    # A socket whose other end is closed sends SIGPIPE only if nothing has been sent before.
    return send_piecewise(m, t, fd, segments, put, "send to socket", deadline=deadline, silent=True)


def _waits_by_name(own: int) -> bool:
    """Whether a message to a name may wait until that one has room, which POLLOUT of the sender's does not tell."""
    with python_socket(own) as sock:
        return (sock.family, sock.type) == (host.AF_UNIX, host.SOCK_DGRAM) and not nonblocking(own)


def shutdown(m: Machine, t: Task, a: Args) -> Decision:
    """``shutdown(fd, how)``: never waits.  Who listened does not any more."""
    fd = fd_of(a[0])
    if io_state(m).sharing and t.process.files.get(fd).kind is Kind.SOCKET:
        left(m, t.process.files.get(fd).ino)
    return CONTINUE

