"""Creating sockets and naming them: which families there are, ports and names without chance.

The kernel draws automatic ports and abstract names from random numbers.  Here a counter of the run gives
them: the supervisor binds the guest's socket (through its borrowed descriptor) just before the kernel would.
"""

from __future__ import annotations

import os
import socket as host
from collections.abc import Callable
from errno import EADDRINUSE, EAFNOSUPPORT, ECONNREFUSED, EINVAL, EPERM, EPROTONOSUPPORT, ESOCKTNOSUPPORT
from stat import S_ISSOCK
from typing import TYPE_CHECKING, Any, TypeVar

from detbox.decision import CONTINUE, ContinueThen, Decision, InstallFd
from detbox.handlers import networks, paths, rtnetlink, socket_sharing
from detbox.handlers.namespace_ops import note_created
from detbox.handlers.opening import check_create
from detbox.handlers.socket_core import decode_inet
from detbox.handlers.waiting import POLLOUT, fd_of, ready, signed32
from detbox.machine.creds import CAP_NET_BIND_SERVICE
from detbox.machine.files import Kind
from detbox.machine.io import FIRST_PORT, LAST_PORT, io_state

if TYPE_CHECKING:
    from detbox.machine.networks import Network
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

T = TypeVar("T")
_TYPE_BITS = 0xF
_FLAG_BITS = host.SOCK_CLOEXEC | host.SOCK_NONBLOCK
_NETLINK = {0, 15}  # NETLINK_ROUTE, NETLINK_KOBJECT_UEVENT
_INET = (host.AF_INET, host.AF_INET6)
#: Every listen queue is so long (net.core.somaxconn's default): no connection waits for the host's clock to
#: be tried again, and no thread sleeps in the kernel because of a full queue.
BACKLOG = 4096
#: What net.core.wmem_default and rmem_default allow in an unconfigured kernel; the kernel doubles it.
_BUFFER = 106496
_UNPRIVILEGED = 1024  # net.ipv4.ip_unprivileged_port_start


def socket(m: Machine, t: Task, a: Args) -> Decision:
    """``socket(family, type, protocol)``."""
    family, kind, protocol = signed32(a[0]), signed32(a[1]), signed32(a[2])
    error = _refusal(family, kind & _TYPE_BITS, protocol)
    if error:
        return -error
    if kind & ~(_TYPE_BITS | _FLAG_BITS):
        return -EINVAL
    networks.settle(m, t)
    if family not in _INET:
        if family == host.AF_NETLINK:
            m.need_loopback(t)
        t.process.files.forget_all()
        made = _made_by_guest(m, 1)
        return rtnetlink.noted(m, made) if family == host.AF_NETLINK else made
    m.need_loopback(t)
    with networks.inside(m, t):
        sock = host.socket(family, kind & ~host.SOCK_CLOEXEC, protocol)
    if kind & _TYPE_BITS == host.SOCK_STREAM:
        # Nagle's algorithm holds data back until a timer or the peer's acknowledgement comes.
        sock.setsockopt(host.IPPROTO_TCP, host.TCP_NODELAY, 1)
    else:
        _set_buffers(sock)
    return InstallFd(sock.detach(), bool(kind & host.SOCK_CLOEXEC))


def _refusal(family: int, kind: int, protocol: int) -> int:
    """The errno for what is not offered, 0 for what is."""
    if family == host.AF_UNIX:
        return 0
    if family == host.AF_NETLINK:
        return 0 if protocol in _NETLINK else EPROTONOSUPPORT
    if family == host.AF_PACKET:
        return EPERM
    if family not in _INET:
        return EAFNOSUPPORT
    if kind == host.SOCK_RAW:
        return EPERM
    if kind == host.SOCK_STREAM:
        return 0 if protocol in (0, host.IPPROTO_TCP) else EPROTONOSUPPORT
    if kind == host.SOCK_DGRAM:
        return 0 if protocol in (0, host.IPPROTO_UDP) else EPROTONOSUPPORT
    return ESOCKTNOSUPPORT


def socketpair(m: Machine, t: Task, a: Args) -> Decision:
    """``socketpair(family, type, protocol, fds)``: the guest makes it, because its credentials are kept."""
    networks.settle(m, t)
    t.process.files.forget_all()
    return _made_by_guest(m, 2, a[3])


def _made_by_guest(m: Machine, count: int, address: int = 0) -> Decision:
    """Let the kernel make one socket, or two whose numbers it writes to ``address``.

    How much they hold follows from the host's net.core settings; only if those are unusual the buffers have
    to be set afterwards, because that costs a stop.
    """
    state = io_state(m)
    if state.usual_buffers is None:
        with host.socket(host.AF_UNIX) as sample:
            state.usual_buffers = sample.getsockopt(host.SOL_SOCKET, host.SO_SNDBUF) == 2 * _BUFFER
    if state.usual_buffers:
        return CONTINUE

    def look(task: Task, result: int) -> None:
        if result < 0:
            return
        for index in range(count):
            number = result if count == 1 else task.u32(address + 4 * index)
            with host.socket(fileno=task.process.files.borrow(task, number)) as sock:
                _set_buffers(sock)

    return ContinueThen(look)


def _set_buffers(sock: host.socket) -> None:
    for option in (host.SO_SNDBUF, host.SO_RCVBUF):
        sock.setsockopt(host.SOL_SOCKET, option, _BUFFER)


def bind(m: Machine, t: Task, a: Args) -> Decision:
    """``bind(fd, addr, addrlen)``: port 0 and the empty Unix name are filled in here."""
    length = signed32(a[2])
    if t.process.files.get(fd_of(a[0])).kind is not Kind.SOCKET or not 2 <= length <= 128:
        return CONTINUE
    address = t.read(a[1], length)
    family = int.from_bytes(address[:2], "little")
    own = t.process.files.borrow(t, fd_of(a[0]))
    sock = host.socket(fileno=own)
    try:
        if sock.family != family:
            return CONTINUE
        if family == host.AF_UNIX:
            if length > 2:
                return _bind_path(m, t, address[2:])
            _bind_unix(m, sock)
            return 0
        if family not in _INET or length < (16 if family == host.AF_INET else 24):
            return CONTINUE
        port = int.from_bytes(address[2:4], "big")
        if not port:
            if sock.getsockname()[1]:
                return -EINVAL  # it has a name already
            _bind_port(m, sock, address)
        elif (
            port < _UNPRIVILEGED and t.process.creds.capable(CAP_NET_BIND_SERVICE, t.process.network.owner)
        ) or _shares_messages(sock):
            # The kernel asks for rights in the container's network, which the guest's root has not.
            sock.bind(_python_address(address, port))
        else:
            return CONTINUE
        if sock.type == host.SOCK_DGRAM:
            socket_sharing.joined(m, t, fd_of(a[0]), sock)
        return 0
    finally:
        sock.close()


def _shares_messages(sock: host.socket) -> bool:
    return sock.type == host.SOCK_DGRAM and bool(sock.getsockopt(host.SOL_SOCKET, host.SO_REUSEPORT))


def _bind_path(m: Machine, t: Task, path: bytes) -> Decision:
    """A name in the file system appears: it belongs to its creator, and its directory has changed now."""
    name = path.split(b"\0", 1)[0]
    if not name:
        return CONTINUE
    if t.process.creds.checked:
        paths.resolve(
            m, t, paths.AT_FDCWD, name, lambda at, name: check_create(m, t, at, name), follow=False
        )

    def look(task: Task, result: int) -> None:
        if result == 0:
            io_state(m).bound.add(note_created(m, task, name))

    return ContinueThen(look)


def _bind_unix(m: Machine, sock: host.socket) -> None:
    for _ in range(1 << 20):
        try:
            sock.bind(io_state(m).unix_name())
            return
        except OSError as error:
            if error.errno != EADDRINUSE:
                raise
    raise OSError(EADDRINUSE, "no automatic name is left")


def _bind_port(m: Machine, sock: host.socket, address: bytes) -> None:
    """Bind to the next free port of the run; ``address`` gives the rest of the name."""
    for _ in range(FIRST_PORT, LAST_PORT + 1):
        port = io_state(m).port()
        try:
            sock.bind(_python_address(address, port))
            return
        except OSError as error:
            if error.errno != EADDRINUSE:
                raise
    raise OSError(EADDRINUSE, "no port is left")


def _python_address(address: bytes, port: int) -> tuple[Any, ...]:
    if int.from_bytes(address[:2], "little") == host.AF_INET:
        return host.inet_ntop(host.AF_INET, address[4:8]), port
    flow = int.from_bytes(address[4:8], "big")
    scope = int.from_bytes(address[24:28].ljust(4, b"\0"), "little")
    return host.inet_ntop(host.AF_INET6, address[8:24]), port, flow, scope


def before_use(m: Machine, t: Task, own: int, address: bytes) -> None:
    """Give the socket the port that ``connect``, ``listen`` or ``sendto`` would draw, if it has none.

    ``address``: where it is going to send, see :func:`check_peer`.  AF_UNSPEC dissolves a connection and needs no name.
    """
    family = int.from_bytes(address[:2], "little") if address else -1
    if family == host.AF_UNSPEC:
        return
    check_peer(m, t, address)
    networks.before_connection(m, t)
    if io_state(m).sharing:
        socket_sharing.refresh(m)
    sock = host.socket(fileno=own)
    try:
        if sock.family not in _INET or sock.type not in (host.SOCK_STREAM, host.SOCK_DGRAM):
            return
        if sock.getsockname()[1]:
            return
        _bind_port(m, sock, sock.family.to_bytes(2, "little") + bytes(26))
    finally:
        sock.detach()


def check_peer(m: Machine, t: Task, address: bytes) -> None:
    """OSError if that is a name in the file system to which the virtual user may not send, or not one of this run.

    A kept directory may hold a socket that somebody on the host listens on (git's file system monitor, a gpg-agent).
    """
    if int.from_bytes(address[:2], "little") != host.AF_UNIX or address[2:3] in (b"", b"\0"):
        return
    name = address[2:].split(b"\0", 1)[0]
    paths.demand(m, t, paths.AT_FDCWD, name, paths.WRITE)
    try:
        st = paths.resolve(m, t, paths.AT_FDCWD, name, lambda at, name: os.stat(name, dir_fd=at), follow=True)
    except OSError:
        return  # the kernel tells the guest
    if S_ISSOCK(st.st_mode) and m.inodes.of(st).ino not in io_state(m).bound:
        raise OSError(ECONNREFUSED, "nobody of this run listens there")


def listen(m: Machine, t: Task, a: Args) -> Decision:
    """``listen(fd, backlog)``: the queue is always long; who listens is remembered for SO_PEERCRED."""
    fd = fd_of(a[0])
    if t.process.files.get(fd).kind is not Kind.SOCKET:
        return CONTINUE
    own = t.process.files.borrow(t, fd)
    before_use(m, t, own, b"")
    sock = host.socket(fileno=own)
    try:
        if sock.family not in (*_INET, host.AF_UNIX):
            return CONTINUE
        sock.listen(BACKLOG)
        if sock.family == host.AF_UNIX:
            io_state(m).listeners[_called(t, sock.getsockname())] = t.process.pid
        socket_sharing.joined(m, t, fd, sock)
    finally:
        sock.close()
    return 0


def listener_of(m: Machine, t: Task, sock: host.socket) -> int:
    """PID of the process that listened on the name to which the thread's Unix socket is connected, or 0."""
    try:
        return io_state(m).listeners.get(_called(t, sock.getpeername()), 0)
    except OSError:
        return 0


def _called(t: Task, address: str | bytes) -> tuple[bytes, Network | None]:
    """The name of a Unix socket: abstract ones belong to a network namespace."""
    name = os.fsencode(address)
    return name, t.process.network if name[:1] == b"\0" else None


def at_address(m: Machine, t: Task, address: bytes, use: Callable[[Any], T]) -> T:
    """``use(address)`` with Python's form of what the guest means by a ``struct sockaddr``; OSError."""
    if int.from_bytes(address[:2], "little") != host.AF_UNIX:
        return use(decode_inet(address))
    name = address[2:]
    if not name or name[:1] == b"\0":
        return use(name)

    def on(at: int | None, path: bytes) -> T:
        if at is not None:
            os.fchdir(at)  # a socket's address has no form with a directory's descriptor
        try:
            return use(path)
        finally:
            os.chdir("/")

    return paths.resolve(m, t, paths.AT_FDCWD, name.split(b"\0", 1)[0], on, follow=True)


def full_peer(m: Machine, t: Task, address: bytes) -> int | None:
    """A new descriptor that has POLLOUT when the datagram socket at ``address`` takes a message; None if it does now.

    A socket that is not connected is always writable for poll(2), and sleeps in the call.
    """
    with networks.inside(m, t):
        probe = host.socket(host.AF_UNIX, host.SOCK_DGRAM)
    try:
        at_address(m, t, address, probe.connect)
        if not ready(probe.fileno(), POLLOUT):
            return probe.detach()
    except OSError:
        return None  # the kernel tells the guest
    finally:
        probe.close()
    return None


def getsockname(m: Machine, t: Task, a: Args) -> Decision:
    """``getsockname(fd, addr, addrlen)``: the kernel's answer holds nothing of the host's."""
    return CONTINUE


getpeername = getsockname
