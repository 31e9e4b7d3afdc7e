"""Terminals: what was written has arrived, and reads take all there is."""

from __future__ import annotations

import os
import termios
import tty as host
from typing import Any

import pytest

from detbox.decision import CONTINUE, Park
from detbox.handlers import readwrite
from tests.unit.handlers.io_fakes import BASE, Machine, Task, resume


@pytest.fixture
def world() -> tuple[Any, Any]:
    return Machine(), Task()


def args(*values: int) -> Any:
    return (*values, *[0] * (6 - len(values)))


def put(m: Any, t: Any, fd: int, data: bytes) -> None:
    t.write(BASE, data)
    assert readwrite.write(m, t, args(fd, BASE, len(data))) == len(data)


def get(m: Any, t: Any, fd: int, size: int) -> bytes:
    count = readwrite.read(m, t, args(fd, BASE, size))
    assert isinstance(count, int)
    return bytes(t.read(BASE, count))


def test_echo_is_there_at_once(world: Any) -> None:
    m, t = world
    master, slave = os.openpty()
    for index in range(20):
        line = b"line %d" % index
        put(m, t, master, line + b"\n")
        assert get(m, t, master, 100) == line + b"\r\n"
        assert readwrite.read(m, t, args(slave, BASE, 100)) is CONTINUE
        assert os.read(slave, 100) == line + b"\n"


def test_a_read_takes_everything(world: Any) -> None:
    m, t = world
    master, slave = os.openpty()
    host.setraw(slave)
    for _ in range(30):
        put(m, t, slave, b"x" * 100)
    assert get(m, t, master, 10_000) == b"x" * 3000
    parked = readwrite.read(m, t, args(master, BASE, 100))
    assert isinstance(parked, Park)
    put(m, t, slave, b"y")
    assert resume(parked) == 1


def test_time_and_minimum(world: Any) -> None:
    m, t = world
    master, slave = os.openpty()
    host.setraw(slave)
    attributes = termios.tcgetattr(slave)
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 0, 5
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    parked = readwrite.read(m, t, args(slave, BASE, 10))
    assert isinstance(parked, Park) and parked.deadline == m.clock.now + 500_000_000
    assert resume(parked, "deadline") == 0
    attributes[6][termios.VMIN], attributes[6][termios.VTIME] = 3, 0
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    parked = readwrite.read(m, t, args(slave, BASE, 10))
    put(m, t, master, b"ab")
    parked = resume(parked, "event")
    assert isinstance(parked, Park), "two are not enough"
    put(m, t, master, b"c")
    assert resume(parked) == 3
    put(m, t, master, b"defg")
    assert get(m, t, slave, 2) == b"de"
