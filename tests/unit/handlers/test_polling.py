"""poll, select and epoll_wait: answers, timeouts in virtual time, what is written back."""

from __future__ import annotations

import os
import select as host
import struct
from errno import EBADF
from typing import Any

import pytest

from detbox.decision import CONTINUE, Park
from detbox.handlers import clocks, epoll, polling
from detbox.handlers.clocks import ERESTART_RESTARTBLOCK
from detbox.machine.files import Kind
from tests.unit.handlers.io_fakes import BASE, MAX64, Machine, Task, mark, resume


@pytest.fixture
def world() -> tuple[Any, Any]:
    return Machine(), Task()


def args(*values: int) -> Any:
    return (*values, *[0] * (6 - len(values)))


def put_pollfds(t: Any, *entries: tuple[int, int]) -> None:
    t.write(BASE, b"".join(struct.pack("<iHH", fd, mask, 0xFFFF) for fd, mask in entries))


def revents(t: Any, count: int) -> list[int]:
    return [int(entry[2]) for entry in struct.iter_unpack("<iHH", t.read(BASE, 8 * count))]


def test_poll_answers_at_once(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    put_pollfds(t, (read_end, host.POLLIN), (write_end, host.POLLOUT), (-1, 1), (999, 1))
    assert polling.poll(m, t, args(BASE, 4, MAX64)) == 2
    assert revents(t, 4) == [0, host.POLLOUT, 0, host.POLLNVAL]


def test_poll_waits_until_its_deadline(world: Any) -> None:
    m, t = world
    read_end, _ = os.pipe()
    put_pollfds(t, (read_end, host.POLLIN))
    parked = polling.poll(m, t, args(BASE, 1, 1500))
    assert isinstance(parked, Park) and parked.deadline == m.clock.now + 1_500_000_000
    m.clock.now += 1_000_000_000
    assert callable(parked.interrupted) and parked.interrupted() == -ERESTART_RESTARTBLOCK
    again = clocks.restart_syscall(m, t, args())
    assert isinstance(again, Park) and again.deadline == parked.deadline
    assert resume(again, "deadline") == 0
    assert revents(t, 1) == [0]


def test_poll_on_many_descriptors(world: Any) -> None:
    m, t = world
    pipes = [os.pipe() for _ in range(40)]
    put_pollfds(t, *[(pair[0], host.POLLIN) for pair in pipes])
    parked = polling.poll(m, t, args(BASE, 40, MAX64))
    assert isinstance(parked, Park) and len(parked.fds) == 1
    os.write(pipes[7][1], b"x")
    assert resume(parked) == 1
    assert revents(t, 40)[7] == host.POLLIN


def test_ppoll_writes_the_rest_back(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    put_pollfds(t, (read_end, host.POLLIN))
    t.write(BASE + 100, struct.pack("<qq", 2, 5))
    t.write(BASE + 200, struct.pack("<Q", 0x4000))
    parked = polling.ppoll(m, t, args(BASE, 1, BASE + 100, BASE + 200, 8))
    assert isinstance(parked, Park) and parked.extra == {"sigmask": 0x4000}
    m.clock.now += 1_000_000_000
    os.write(write_end, b"x")
    assert resume(parked) == 1
    assert struct.unpack("<qq", t.read(BASE + 100, 16)) == (1, 5)


def test_select(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    bits = (1 << read_end | 1 << write_end).to_bytes(128, "little")
    t.write(BASE, bits)
    t.write(BASE + 128, bits)
    t.write(BASE + 256, struct.pack("<qq", 3, 0))
    count = max(read_end, write_end) + 1
    assert polling.select(m, t, args(count, BASE, BASE + 128, 0, BASE + 256)) == 1
    size = (count + 63) // 64 * 8
    assert t.read(BASE, size) == bytes(size)
    assert int.from_bytes(t.read(BASE + 128, size), "little") == 1 << write_end
    t.write(BASE, bits)
    parked = polling.select(m, t, args(count, BASE, 0, 0, BASE + 256))
    assert isinstance(parked, Park)
    m.clock.now = parked.deadline or 0
    assert resume(parked, "deadline") == 0
    assert t.read(BASE, size) == bytes(size)
    assert struct.unpack("<qq", t.read(BASE + 256, 16)) == (0, 0)
    t.write(BASE, (1 << 1000).to_bytes(128, "little"))
    assert polling.select(m, t, args(1001, BASE, 0, 0, 0)) == -EBADF


def test_stdin_is_always_ready(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    m.fill = lambda: os.write(write_end, b"input")
    mark(t, read_end, Kind.STDIN)
    put_pollfds(t, (read_end, host.POLLIN))
    assert polling.poll(m, t, args(BASE, 1, MAX64)) == 1
    assert m.fills == 1


def test_epoll_wait(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    watcher = host.epoll()
    watcher.register(read_end, host.EPOLLIN | host.EPOLLET | host.EPOLLONESHOT)
    call = args(watcher.fileno(), BASE, 8, MAX64)
    parked = epoll.epoll_wait(m, t, call)
    assert isinstance(parked, Park)
    os.write(write_end, b"x")
    assert resume(parked) is CONTINUE
    assert watcher.poll(0) == [(read_end, host.EPOLLIN)], "looking has consumed nothing"
    parked = epoll.epoll_wait(m, t, args(watcher.fileno(), BASE, 8, 20))
    assert isinstance(parked, Park) and parked.deadline == m.clock.now + 20_000_000
    assert resume(parked, "deadline") == 0
    assert epoll.epoll_wait(m, t, args(watcher.fileno(), BASE, 8, 0)) == 0
