"""Network namespaces of the guest's own: each has its ports, names of Unix sockets and loopback device, which is down.

They are the kernel's.  Sockets of theirs are made there by the supervisor, and they are set up as the container's is
(:mod:`detbox.kernel.loopback`): settings before the first socket, routes when the guest has brought ``lo`` up.
There is no other device: what goes through one comes by the host's clock.
"""

from __future__ import annotations

import os
import socket as host
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ENOPKG, EPERM
from typing import TYPE_CHECKING

from detbox.handlers.waiting import Segments, gather, total
from detbox.kernel import _native, loopback
from detbox.kernel.numbers import NUMBERS
from detbox.machine.creds import CAP_NET_ADMIN
from detbox.machine.networks import NETWORK

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

_CLONE_NEWNET = 0x40000000
#: struct nlmsghdr: length, type, flags, sequence number, port; struct ifinfomsg: family, type, index, flags, change.
MESSAGE, _LINK = struct.Struct("<IHHII"), struct.Struct("<BxHiII")
_RTM_NEWLINK, _RTM_SETLINK, _RTM_NEWQDISC, _RTM_NEWPREFIX = 16, 19, 36, 52
_GET = 2  # of each four types the third one
_IFLA_IFNAME, _IFLA_LINKINFO, _IFLA_INFO_KIND = 3, 18, 1
#: SIOCBRADDBR and SIOCBRDELBR, and the requests that are a device's own (SIOCADDTUNNEL …).
_DEVICES = (range(0x89A0, 0x89A4), range(0x89F0, 0x8A00))
#: SIOCSIFFLAGS and others that change something.
_CHANGES = frozenset((0x890B, 0x890C, 0x8914, 0x8916, 0x8918, 0x891A, 0x891C, 0x891E, 0x8922, 0x8923, 0x8924))


@contextmanager
def inside(m: Machine, t: Task) -> Iterator[None]:
    """The supervisor is in the thread's network namespace for a moment."""
    if t.process.network is NETWORK:
        yield
        return
    places = [os.open(f"{name}/ns/net", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd) for name in ("self", t.tid)]
    try:
        _enter(places[1])
        try:
            yield
        finally:
            _enter(places[0])
    finally:
        for fd in places:
            os.close(fd)


def _enter(fd: int) -> None:
    error = _native.raw_syscall(NUMBERS["setns"], fd, _CLONE_NEWNET)
    if error < 0:
        raise OSError(-error, "setns")


def settle(m: Machine, t: Task) -> None:
    """The thread is about to make a socket."""
    network = t.process.network
    if not network.settings and network is not NETWORK:
        network.settings = True
        with inside(m, t):
            failed = loopback.change_settings(m.proc_fd)
        _tell(m, t, failed)


def is_up(m: Machine, process: Process) -> bool | None:
    """Whether the loopback device of a process is up; None in the container's network."""
    if process.network is NETWORK or not process.tasks:
        return None
    with inside(m, next(iter(process.tasks.values()))):
        return loopback.is_up()


def before_connection(m: Machine, t: Task) -> None:
    """The thread is about to send, or to wait for connections."""
    network = t.process.network
    if network.routes or network is NETWORK:
        return
    with inside(m, t):
        network.routes = loopback.is_up()
        failed = loopback.replace_routes() if network.routes else []
    _tell(m, t, failed)


def _tell(m: Machine, t: Task, failed: list[str]) -> None:
    for setting in failed:
        m.doubt(t, f"the host refuses a setting of the loopback device ({setting}): timing may show")


def refused_request(t: Task, request: int) -> int:
    """-errno for an ioctl of a socket that would make a device, or that its user may not make, else 0."""
    network = t.process.network
    if any(request in some for some in _DEVICES):
        return -ENOPKG
    if request in _CHANGES:
        if not t.process.creds.capable(CAP_NET_ADMIN, network.owner):
            return -EPERM
        network.routes = False
    return 0


# -- requests of NETLINK_ROUTE ---------------------------------------------------------


def send_request(m: Machine, t: Task, own: int, segments: Segments) -> Decision | None:
    """What the thread asks the kernel by the supervisor's ``own`` descriptor of a socket of AF_NETLINK.

    None if it can be left as it is; otherwise what it must not ask for has been replaced by a request that fails.
    """
    data = gather(t, segments, 0, total(segments))
    changed, allowed = False, t.process.creds.capable(CAP_NET_ADMIN, t.process.network.owner)
    parts, at = [], 0
    while at + MESSAGE.size <= len(data):
        length, kind, flags, number, port = MESSAGE.unpack_from(data, at)
        if not MESSAGE.size <= length <= len(data) - at:
            break
        part = data[at : at + length]
        if kind >= _RTM_NEWLINK and kind & 3 != _GET:
            if not allowed:
                return -EPERM
            t.process.network.routes = False
            if _makes_device(kind, part):
                part, changed = _impossible(flags, number, port), True
        parts.append(part + bytes(-len(part) % 4))
        at += length + -length % 4
    if not changed:
        return None
    with host.socket(fileno=os.dup(own)) as sock:
        sock.send(b"".join(parts))
    return len(data)


def _makes_device(kind: int, message: bytes) -> bool:
    if _RTM_NEWQDISC <= kind < _RTM_NEWPREFIX:
        return True  # they hold packets back until a time has come
    if kind not in (_RTM_NEWLINK, _RTM_SETLINK) or len(message) < MESSAGE.size + _LINK.size:
        return False
    index = _LINK.unpack_from(message, MESSAGE.size)[2]
    found = dict(loopback.attributes(message[MESSAGE.size + _LINK.size :]))
    return _IFLA_LINKINFO in found or not index and found.get(_IFLA_IFNAME, b"").rstrip(b"\0") != b"lo"


def _impossible(flags: int, number: int, port: int) -> bytes:
    """A request for a device of a kind that there is not: the kernel answers as where the module is missing."""
    kind = struct.pack("<HH8s", 12, _IFLA_INFO_KIND, b"detbox")
    body = _LINK.pack(0, 0, 0, 0, 0) + struct.pack("<HH", 4 + len(kind), _IFLA_LINKINFO) + kind
    return MESSAGE.pack(MESSAGE.size + len(body), _RTM_NEWLINK, flags, number, port) + body
