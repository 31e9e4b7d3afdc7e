"""Sockets: families, ports from a counter, waits in virtual time, options that would show the host."""

from __future__ import annotations

import os
import socket as host
import struct
from errno import EAFNOSUPPORT, EAGAIN, ECONNREFUSED, EINVAL, ENOPROTOOPT, EPERM, EPROTONOSUPPORT
from typing import Any

import pytest

from detbox.decision import CONTINUE, ContinueThen, InstallFd, Park
from detbox.handlers import sockets
from detbox.machine.io import io_state
from tests.unit.handlers.io_fakes import BASE, Machine, Task, resume


@pytest.fixture
def world() -> tuple[Any, Any]:
    return Machine(), Task()


def args(*values: int) -> Any:
    return (*values, *[0] * (6 - len(values)))


def put_address(t: Any, port: int) -> tuple[int, int]:
    t.write(BASE, struct.pack("<H", host.AF_INET) + port.to_bytes(2, "big") + b"\x7f\0\0\1" + bytes(8))
    return BASE, 16


@pytest.mark.parametrize(
    ("family", "kind", "protocol", "error"),
    [
        (host.AF_INET, host.SOCK_RAW, 1, EPERM),
        (host.AF_PACKET, host.SOCK_DGRAM, 0, EPERM),
        (host.AF_INET, host.SOCK_STREAM, 132, EPROTONOSUPPORT),
        (host.AF_NETLINK, host.SOCK_RAW, 9, EPROTONOSUPPORT),
        (40, host.SOCK_STREAM, 0, EAFNOSUPPORT),
    ],
)
def test_refused_families(world: Any, family: int, kind: int, protocol: int, error: int) -> None:
    m, t = world
    assert sockets.socket(m, t, args(family, kind, protocol)) == -error


def test_internet_sockets_are_made_here_without_nagle(world: Any) -> None:
    m, t = world
    made = sockets.socket(m, t, args(host.AF_INET, host.SOCK_STREAM | host.SOCK_NONBLOCK, 0))
    assert isinstance(made, InstallFd) and not made.cloexec and not os.get_blocking(made.fd)
    with host.socket(fileno=made.fd) as sock:
        assert sock.getsockopt(host.IPPROTO_TCP, host.TCP_NODELAY) == 1
    assert sockets.socket(m, t, args(host.AF_UNIX, host.SOCK_STREAM, 0)) is CONTINUE


def test_automatic_ports_count_up(world: Any) -> None:
    m, t = world
    first, second = host.socket(), host.socket(host.AF_INET, host.SOCK_DGRAM)
    assert sockets.bind(m, t, args(first.fileno(), *put_address(t, 0))) == 0
    assert first.getsockname()[0] == "127.0.0.1"
    port = first.getsockname()[1]
    sockets.connect(m, t, args(second.fileno(), *put_address(t, 9)))
    assert second.getsockname()[1] > port >= 32768
    assert sockets.bind(m, t, args(first.fileno(), *put_address(t, 4000))) is CONTINUE


def test_connection_is_made_without_sleeping(world: Any) -> None:
    m, t = world
    listener, client = host.create_server(("127.0.0.1", 0)), host.socket()
    where = put_address(t, listener.getsockname()[1])
    parked = sockets.accept(m, t, args(listener.fileno()))
    assert isinstance(parked, Park)
    assert sockets.connect(m, t, args(client.fileno(), *where)) == 0
    assert client.gettimeout() is None and os.get_blocking(client.fileno())
    with pytest.raises(OSError, match="already connected"):
        client.connect(listener.getsockname())
    assert resume(parked) is CONTINUE
    assert t.process.files.forgotten == ["all"]
    listener.close()
    assert sockets.connect(m, t, args(host.socket().fileno(), *where)) in (-ECONNREFUSED, -9)


def test_receive_timeout_is_virtual(world: Any) -> None:
    m, t = world
    one, other = host.socketpair()
    one.setsockopt(host.SOL_SOCKET, host.SO_RCVTIMEO, struct.pack("<qq", 3600, 0))
    parked = sockets.recvfrom(m, t, args(one.fileno(), BASE, 10))
    assert isinstance(parked, Park) and parked.deadline == m.clock.now + 3600 * 10**9
    assert resume(parked, "deadline") == -EAGAIN
    parked = sockets.recvfrom(m, t, args(one.fileno(), BASE, 10))
    other.send(b"x")
    assert resume(parked) is CONTINUE


def test_waitall_collects(world: Any) -> None:
    m, t = world
    one, other = host.socketpair()
    other.send(b"abc")
    parked = sockets.recvfrom(m, t, args(one.fileno(), BASE, 6, host.MSG_WAITALL))
    assert isinstance(parked, Park) and callable(parked.interrupted) and parked.interrupted() == 3
    other.send(b"def")
    assert resume(parked) == 6
    assert t.read(BASE, 6) == b"abcdef"


def test_large_send_is_moved_in_pieces(world: Any) -> None:
    m, t = world
    one, other = host.socketpair()
    assert sockets.sendto(m, t, args(one.fileno(), BASE, 100)) is CONTINUE
    t.write(BASE, b"z" * 900_000)
    step = sockets.sendto(m, t, args(one.fileno(), BASE, 900_000, host.MSG_NOSIGNAL))
    got = 0
    while isinstance(step, Park):
        got += len(other.recv(1 << 20))
        step = resume(step)
    assert step == 900_000
    other.setblocking(False)
    while got < 900_000:
        got += len(other.recv(1 << 20))


def test_recvmmsg_waits_for_all(world: Any) -> None:
    m, t = world
    receiver = host.socket(host.AF_INET, host.SOCK_DGRAM)
    receiver.bind(("127.0.0.1", 0))
    sender = host.socket(host.AF_INET, host.SOCK_DGRAM)
    for index in range(2):
        t.write(BASE + 1000 + 16 * index, struct.pack("<QQ", BASE + 2000 + 100 * index, 100))
        header = struct.pack("<QI4xQQQQi4xI4x", BASE + 3000, 16, BASE + 1000 + 16 * index, 1, 0, 0, 0, 0)
        t.write(BASE + 64 * index, header)
    sender.sendto(b"one", receiver.getsockname())
    parked = sockets.recvmmsg(m, t, args(receiver.fileno(), BASE, 2))
    sender.sendto(b"three", receiver.getsockname())
    assert resume(parked) == 2
    assert (t.u32(BASE + 56), t.u32(BASE + 64 + 56)) == (3, 5)
    assert t.read(BASE + 2100, 5) == b"three"
    assert t.read(BASE + 3004, 4) == b"\x7f\0\0\1"


def test_options(world: Any) -> None:
    m, t = world
    sock = host.create_server(("127.0.0.1", 0))
    fd = sock.fileno()

    def get(level: int, name: int) -> int:
        t.write(BASE, struct.pack("<i", 4))
        assert sockets.getsockopt(m, t, args(fd, level, name, BASE + 8, BASE)) == 0
        return int(t.u32(BASE + 8))

    t.write(BASE + 100, struct.pack("<i", 5))
    assert get(host.IPPROTO_TCP, host.TCP_NODELAY) == 0
    assert sockets.setsockopt(m, t, args(fd, host.IPPROTO_TCP, host.TCP_NODELAY, BASE + 100, 4)) == 0
    assert get(host.IPPROTO_TCP, host.TCP_NODELAY) == 1
    assert get(host.IPPROTO_TCP, 11) == 10, "a listening socket, and nothing else is told"
    assert get(host.SOL_SOCKET, 57) == 1
    assert sockets.setsockopt(m, t, args(fd, host.SOL_SOCKET, 61, BASE + 100, 4)) == -ENOPROTOOPT
    t.write(BASE + 100, struct.pack("<i", 1 << 12))
    assert sockets.setsockopt(m, t, args(fd, host.SOL_SOCKET, 37, BASE + 100, 4)) == -EINVAL
    t.write(BASE + 100, struct.pack("<i", 1 << 30))
    assert sockets.setsockopt(m, t, args(fd, host.SOL_SOCKET, host.SO_RCVBUF, BASE + 100, 4)) == 0
    assert sock.getsockopt(host.SOL_SOCKET, host.SO_RCVBUF) <= 2 * 212992


def test_unix_names_and_peers(world: Any) -> None:
    m, t = world
    t.write(BASE, struct.pack("<H", host.AF_UNIX))
    server, client = host.socket(host.AF_UNIX), host.socket(host.AF_UNIX)
    assert sockets.bind(m, t, args(server.fileno(), BASE, 2)) == 0
    name = server.getsockname()
    assert len(name) == 6 and name[:1] == b"\0"
    m.processes[os.getpid()] = t.process
    assert sockets.listen(m, t, args(server.fileno(), 1)) == 0
    client.connect(name)
    t.write(BASE, struct.pack("<i", 12))
    assert sockets.getsockopt(m, t, args(client.fileno(), 1, host.SO_PEERCRED, BASE + 8, BASE)) == 0
    assert struct.unpack("<iII", t.read(BASE + 8, 12)) == (os.getpid(), 1000, 1001)


def test_unusual_default_buffers_are_mended(world: Any) -> None:
    m, t = world
    io_state(m).usual_buffers = False
    step = sockets.socketpair(m, t, args(host.AF_UNIX, host.SOCK_STREAM, 0, BASE))
    assert isinstance(step, ContinueThen)
    one, other = host.socketpair()
    one.setsockopt(host.SOL_SOCKET, host.SO_SNDBUF, 4096)
    t.write(BASE, struct.pack("<2i", one.fileno(), other.fileno()))
    step.look(t, 0)
    assert one.getsockopt(host.SOL_SOCKET, host.SO_SNDBUF) == 212992
