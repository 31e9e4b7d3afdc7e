"""Terminals: what was written has arrived, and reads take all there is."""

from __future__ import annotations

import os
import termios
import tty as host
from typing import Any

import pytest

from detbox.decision import CONTINUE, Park
from detbox.handlers import ptys, readwrite
from detbox.handlers.waiting import POLLIN, ready
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


def modes(slave: int, change: dict[int, int]) -> ptys._Modes:
    """The modes of a new terminal, with some of the words of its attributes replaced."""
    attributes = termios.tcgetattr(slave)
    for at, value in change.items():
        attributes[at] = value
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    return ptys._Modes.of(slave)


@pytest.mark.parametrize(
    ("data", "flags"),
    [
        (b"plain", {}),
        (b"line\n\n", {}),
        (b"return\r", {}),
        (b"\x02\x06", {}),
        (b"caf\xc3\xa9\n", {}),
        (b"line\n\x05", {1: termios.OPOST}),
        (b"line\n", {1: 0}),
        (b"\t", {}),
        (b"lost\x7f\x7f", {}),
        (b"silent\n", {3: termios.ICANON}),
    ],
)
def test_echo_is_foreseen(data: bytes, flags: dict[int, int]) -> None:
    master, slave = os.openpty()
    known = modes(slave, flags)
    os.write(master, data)
    ready(slave, POLLIN)
    ready(master, POLLIN)
    least, exact = known.echo(data)
    came = ptys.queued(master)
    assert least == came if exact else least <= came
    assert exact is not (b"\x7f" in data or not known.local & termios.ECHO)
    os.close(master)
    os.close(slave)


@pytest.mark.parametrize(
    ("data", "flags", "known"),
    [
        (b"a\nb\n", {}, True),
        (b"a\nb\n", {1: termios.OPOST}, True),
        (b"a\tb\n", {1: 0}, True),
        (b"a\tb", {1: termios.OPOST | termios.XTABS}, False),
    ],
)
def test_size_of_output_is_foreseen(data: bytes, flags: dict[int, int], known: bool) -> None:
    master, slave = os.openpty()
    size = modes(slave, flags).size(to_master=True)
    assert (size is not None) is known
    if size is not None:
        os.write(slave, data)
        ready(master, POLLIN)
        assert ptys.queued(master) == size(data)
    os.close(master)
    os.close(slave)
