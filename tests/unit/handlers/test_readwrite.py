"""Reads and writes: what is continued, what is parked, what the supervisor moves itself."""

from __future__ import annotations

import os
import struct
from errno import EAGAIN
from pathlib import Path
from typing import Any

import pytest

from detbox.decision import CONTINUE, ERESTARTSYS, Park
from detbox.handlers import readwrite
from detbox.machine.files import Kind
from tests.unit.handlers.io_fakes import BASE, Machine, Task, mark, resume


@pytest.fixture
def world() -> tuple[Any, Any]:
    return Machine(), Task()


def args(*values: int) -> Any:
    return (*values, *[0] * (6 - len(values)))


def test_regular_files_go_to_the_kernel_and_are_stamped(world: Any, tmp_path: Path) -> None:
    m, t = world
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    assert readwrite.read(m, t, args(fd, BASE, 10)) is CONTINUE
    assert m.touched == []
    assert readwrite.write(m, t, args(fd, BASE, 10)) is CONTINUE
    assert readwrite.pwrite64(m, t, args(fd, BASE, 10, 5)) is CONTINUE
    assert readwrite.write(m, t, args(fd, BASE, 0)) is CONTINUE
    assert len(m.touched) == 2
    os.close(fd)


def test_empty_pipe_parks_until_there_is_data_or_an_end(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    parked = readwrite.read(m, t, args(read_end, BASE, 10))
    assert isinstance(parked, Park) and parked.interrupted == ERESTARTSYS
    os.write(write_end, b"x")
    assert resume(parked) is CONTINUE
    os.read(read_end, 1)
    parked = readwrite.read(m, t, args(read_end, BASE, 10))
    os.close(write_end)
    assert resume(parked) is CONTINUE
    os.close(read_end)


def test_resumed_reader_parks_again_if_another_took_the_data(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    parked = readwrite.read(m, t, args(read_end, BASE, 10))
    assert isinstance(resume(parked, "event"), Park)


def test_nonblocking_pipe_is_continued(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe2(os.O_NONBLOCK)
    assert readwrite.read(m, t, args(read_end, BASE, 10)) is CONTINUE
    assert readwrite.write(m, t, args(write_end, BASE, 1 << 20)) is CONTINUE


def test_writes_that_fit_are_continued(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    assert readwrite.write(m, t, args(write_end, BASE, 4096)) is CONTINUE
    assert readwrite.write(m, t, args(write_end, BASE, 65536)) is CONTINUE
    os.write(write_end, b"x")
    assert readwrite.write(m, t, args(write_end, BASE, 4096)) is CONTINUE


def test_large_write_is_moved_in_pieces(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    data = bytes(range(256)) * 800
    t.write(BASE, data)
    step = readwrite.write(m, t, args(write_end, BASE, len(data)))
    got = b""
    while isinstance(step, Park):
        assert callable(step.interrupted) and step.interrupted() > 0
        got += os.read(read_end, 50000)
        step = resume(step)
    assert step == len(data)
    while len(got) < len(data):
        got += os.read(read_end, 1 << 20)
    assert got == data


def test_atomic_write_to_a_full_pipe_waits_and_is_whole(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    os.write(write_end, bytes(65536))
    t.write(BASE, b"y" * 3000)
    parked = readwrite.write(m, t, args(write_end, BASE, 3000))
    assert isinstance(parked, Park) and callable(parked.interrupted)
    assert parked.interrupted() == -ERESTARTSYS
    os.read(read_end, 65536)
    assert resume(parked) == 3000
    assert os.read(read_end, 4000) == b"y" * 3000


def test_broken_pipe_is_the_kernels_to_report_unless_a_part_was_written(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    os.write(write_end, bytes(65536 - 4096))
    parked = readwrite.write(m, t, args(write_end, BASE, 10000))
    assert isinstance(parked, Park)
    os.close(read_end)
    assert resume(parked) == 4096
    assert m.signals == [13]
    assert readwrite.write(m, t, args(write_end, BASE, 10000)) is CONTINUE


def test_standard_streams(world: Any) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    mark(t, write_end, Kind.STDOUT)
    t.write(BASE, struct.pack("<4Q", BASE + 100, 3, BASE + 200, 2))
    t.write(BASE + 100, b"abc")
    t.write(BASE + 200, b"de")
    assert readwrite.writev(m, t, args(write_end, BASE, 2)) == 5
    assert m.output == [(1, b"abcde")]
    mark(t, read_end, Kind.STDIN)
    assert readwrite.read(m, t, args(read_end, BASE, 5)) is CONTINUE
    assert m.fills == 1
    os.write(write_end, b"there")
    assert readwrite.read(m, t, args(read_end, BASE, 5)) is CONTINUE
    assert m.fills == 1


def test_random_device(world: Any) -> None:
    m, t = world
    fd = os.open("/dev/urandom", os.O_RDONLY)
    assert readwrite.read(m, t, args(fd, BASE, 4)) == 4
    assert t.read(BASE, 5) == b"RRRR\0"


def test_eventfd(world: Any) -> None:
    m, t = world
    fd = os.eventfd(0)
    parked = readwrite.read(m, t, args(fd, BASE, 8))
    assert readwrite.write(m, t, args(fd, BASE, 8)) is CONTINUE
    os.eventfd_write(fd, 1)
    assert resume(parked) is CONTINUE


def test_errors(world: Any) -> None:
    m, t = world
    with pytest.raises(OSError):
        readwrite.readv(m, t, args(os.pipe()[0], BASE, 1025))
    assert EAGAIN == 11
