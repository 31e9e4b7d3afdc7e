"""``connect``: with a port from the run's counter, and never asleep in the kernel."""

from __future__ import annotations

import os
import socket as host
from errno import EFAULT, EINPROGRESS, EINTR
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision, Park, Wake
from detbox.handlers.socket_core import borrowed, decode_inet, python_socket, timeout_ns
from detbox.handlers.socket_names import before_use
from detbox.handlers.socket_sharing import left
from detbox.handlers.waiting import POLLOUT, fd_of, nonblocking, ready, signed32
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task


def connect(m: Machine, t: Task, a: Args) -> Decision:
    """``connect(fd, addr, addrlen)``: with a port from the run's counter, and never asleep in the kernel."""
    fd = fd_of(a[0])
    with borrowed(t, fd) as own:
        address = t.read(a[1], min(signed32(a[2]) & 0x7FFFFFFF, 128)) if signed32(a[2]) > 0 else b""
        before_use(m, t, own, address)
        if io_state(m).sharing:
            left(m, os.fstat(own).st_ino)  # a name that is not one address's alone changes
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
