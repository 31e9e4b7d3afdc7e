"""What the socket handlers share: borrowed sockets, the wait for one, and addresses."""

from __future__ import annotations

import os
import socket as host
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EAGAIN, EINTR, ENOTSOCK
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

MSG_DONTWAIT, MSG_NOSIGNAL = 0x40, 0x4000
#: struct msghdr: name, its length, iovec, its length, control, its length, flags.
MSGHDR = struct.Struct("<QI4xQQQQi4x")


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


def when_ready(
    m: Machine, t: Task, fd: int, mask: int, option: int, again: Callable[[Wake], Decision], why: str,
    deadline: int | None = None, *, accepts: bool = False,
) -> Decision:  # fmt: skip
    """CONTINUE if the socket does not block or has an event of ``mask``; otherwise park.

    ``option``: SO_RCVTIMEO or SO_SNDTIMEO, which count in virtual time.  ``accepts``: a connection is waited for; all
    else fails at once on a socket that listens.
    """
    own = t.process.files.borrow_blocking(t, fd, mask)
    if own < 0:
        return CONTINUE
    if not accepts and _listens(own):
        os.close(own)
        return CONTINUE
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


def _listens(fd: int) -> bool:
    with python_socket(fd) as sock:
        return bool(sock.getsockopt(host.SOL_SOCKET, host.SO_ACCEPTCONN))


def timeout_ns(fd: int, option: int) -> int | None:
    """SO_RCVTIMEO or SO_SNDTIMEO of the supervisor's socket ``fd`` in nanoseconds, None for no limit."""
    sock = host.socket(fileno=fd)
    try:
        seconds, micro = struct.unpack("<qq", sock.getsockopt(host.SOL_SOCKET, option, 16))
    finally:
        sock.detach()
    return None if seconds == 0 and micro == 0 else int(seconds * 1_000_000_000 + micro * 1000)


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


def encode_address(family: int, address: object) -> bytes:
    """The kernel's form of Python's address; empty for other families, and for a Unix socket without a name."""
    if family == host.AF_UNIX and isinstance(address, (str, bytes)) and address:
        name = address if isinstance(address, bytes) else os.fsencode(address) + b"\0"
        return struct.pack("<H", family) + name
    if not isinstance(address, tuple):
        return b""
    if family == host.AF_NETLINK:
        return struct.pack("<H2xII", family, *address)
    if family not in (host.AF_INET, host.AF_INET6):
        return b""
    if family == host.AF_INET:
        head = struct.pack("<H", family) + struct.pack(">H", address[1])
        return head + host.inet_aton(address[0]) + bytes(8)
    packed = host.inet_pton(host.AF_INET6, address[0].partition("%")[0])
    head = struct.pack("<H", family) + struct.pack(">HI", address[1], address[2])
    return head + packed + struct.pack("<I", address[3])
