"""File locks, duplicated descriptors, and data moved between descriptors."""

from __future__ import annotations

import fcntl
import os
import random
import socket
import struct
import subprocess
import sys
from errno import EAGAIN, EDEADLK, EINVAL, EPERM, ESPIPE
from pathlib import Path
from typing import Any

import pytest

from detbox.decision import CONTINUE, Park
from detbox.handlers import descriptors, ioctls, locks, splice
from detbox.machine.files import Kind
from detbox.machine.io import io_state
from tests.unit.handlers.io_fakes import BASE, Machine, Task, mark, resume

F_SETLKW, F_OFD_SETLKW = 7, 38


@pytest.fixture
def world() -> tuple[Any, Any]:
    return Machine(), Task()


def args(*values: int) -> Any:
    return (*values, *[0] * (6 - len(values)))


def test_flock(world: Any, tmp_path: Path) -> None:
    m, t = world
    one = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    two = os.open(tmp_path / "lock", os.O_RDWR)
    assert locks.flock(m, t, args(one, fcntl.LOCK_EX)) == 0
    assert locks.flock(m, t, args(two, fcntl.LOCK_EX | fcntl.LOCK_NB)) == -EAGAIN
    parked = locks.flock(m, t, args(two, fcntl.LOCK_EX))
    assert isinstance(parked, Park) and parked.events == (locks.RECHECK,)
    assert isinstance(resume(parked, "event"), Park)
    assert locks.flock(m, t, args(one, fcntl.LOCK_UN)) == 0
    assert resume(parked, "event") == 0
    assert locks.flock(m, t, args(two, 77)) == -EINVAL


def test_locks_of_descriptions(world: Any, tmp_path: Path) -> None:
    m, t = world
    one = os.open(tmp_path / "lock", os.O_CREAT | os.O_RDWR)
    two = os.open(tmp_path / "lock", os.O_RDWR)
    t.write(BASE, struct.pack("<hh4xqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0))
    assert descriptors.fcntl(m, t, args(one, F_OFD_SETLKW, BASE)) == 0
    parked = descriptors.fcntl(m, t, args(two, F_OFD_SETLKW, BASE))
    assert isinstance(parked, Park)
    os.close(one)
    assert resume(parked, "event") == 0


def test_record_locks_and_a_deadlock(world: Any, tmp_path: Path) -> None:
    m, t = world
    path = tmp_path / "lock"
    fd = os.open(path, os.O_CREAT | os.O_RDWR)
    t.write(BASE, struct.pack("<hh4xqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0))
    assert descriptors.fcntl(m, t, args(fd, F_SETLKW, BASE)) is CONTINUE
    code = "import fcntl,sys; f=open(sys.argv[1],'r+'); fcntl.lockf(f,2,5); print('held',flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdin is not None
        child.stdout.readline()
        parked = descriptors.fcntl(m, t, args(fd, F_SETLKW, BASE))
        assert isinstance(parked, Park)
        io_state(m).lock_waits[child.pid] = frozenset({os.getpid()})
        assert resume(parked, "event") == -EDEADLK
        t.write(BASE, struct.pack("<hh4xqqi4x", fcntl.F_WRLCK, 0, 7, 10, 0))
        assert descriptors.fcntl(m, t, args(fd, F_SETLKW, BASE)) is CONTINUE
        child.stdin.close()


def test_descriptors_are_forgotten(world: Any) -> None:
    m, t = world
    assert descriptors.dup(m, t, args(0)) is CONTINUE
    assert descriptors.dup2(m, t, args(0, 9)) is CONTINUE
    assert t.process.files.forgotten == ["all", 9]
    read_end, _ = os.pipe()
    assert descriptors.fcntl(m, t, args(read_end, 1031, 8192)) == 8192
    assert descriptors.fcntl(m, t, args(read_end, 1031, 1 << 24)) == -EPERM


def test_splice_and_sendfile(world: Any, tmp_path: Path) -> None:
    m, t = world
    read_end, write_end = os.pipe()
    fd = os.open(tmp_path / "file", os.O_CREAT | os.O_RDWR)
    parked = splice.splice(m, t, args(read_end, 0, fd, 0, 100))
    assert isinstance(parked, Park)
    os.write(write_end, b"content")
    assert resume(parked) == 7
    assert os.pread(fd, 100, 0) == b"content" and len(m.touched) == 1
    t.write(BASE, struct.pack("<q", 2))
    mark(t, write_end, Kind.STDOUT)
    assert splice.sendfile(m, t, args(write_end, fd, BASE, 3)) == 3
    assert m.output == [(1, b"nte")] and t.u64(BASE) == 5
    assert splice.splice(m, t, args(read_end, BASE, fd, 0, 5)) == -ESPIPE
    assert splice.copy_file_range(m, t, args(fd, 0, fd, 0, 5)) == -EINVAL  # they overlap
    copy = os.open(tmp_path / "copy", os.O_CREAT | os.O_RDWR)
    t.write(BASE, struct.pack("<q", 3))
    assert splice.copy_file_range(m, t, args(fd, BASE, copy, 0, 100)) == 4
    assert os.pread(copy, 100, 0) == b"tent" and t.u64(BASE) == 7


def test_sendfile_to_a_full_pipe(world: Any, tmp_path: Path) -> None:
    m, t = world
    (tmp_path / "file").write_bytes(b"0123456789" * 20_000)
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    read_end, write_end = os.pipe()
    step, got = splice.sendfile(m, t, args(write_end, fd, 0, 1 << 20)), b""
    while isinstance(step, Park):
        got += os.read(read_end, 1 << 20)
        step = resume(step)
    assert step == 200_000
    os.close(write_end)
    mark(t, read_end, Kind.PIPE)
    while data := os.read(read_end, 1 << 20):
        got += data
    assert got == b"0123456789" * 20_000


def test_splice_between_sockets_and_a_large_pipe(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a socket does not take stays in the pipe, in its order; large pieces are moved in one go."""
    m, t = world
    content = random.Random(0).randbytes(200_000)
    near, far = socket.socketpair()
    near.setblocking(False)
    read_end, write_end = os.pipe()
    size = fcntl.fcntl(write_end, fcntl.F_SETPIPE_SZ, 1 << 20)
    for fd, kind in ((near.fileno(), Kind.SOCKET), (read_end, Kind.PIPE), (write_end, Kind.PIPE)):
        mark(t, fd, kind)
    steps = []
    real = os.read
    monkeypatch.setattr(os, "read", lambda fd, count: steps.append(count) or real(fd, count))
    assert os.write(write_end, content * 4) == 4 * len(content) < size
    got = b""
    while (moved := splice.splice(m, t, args(read_end, 0, near.fileno(), 0, 1 << 20))) != -EAGAIN:
        assert 0 < moved < 4 * len(content)  # the socket has less room
        assert splice.splice(m, t, args(read_end, 0, near.fileno(), 0, 1 << 20)) == -EAGAIN
        got += far.recv(moved)
        if len(got) > 3 * len(content):
            break
    assert got == (content * 4)[: len(got)]
    assert len(steps) < len(got) // 16384
    assert real(read_end, size) == (content * 4)[len(got) :]

    far.send(content[:150_000])
    steps.clear()
    assert splice.splice(m, t, args(near.fileno(), 0, write_end, 0, 1 << 20)) == 150_000
    assert len(steps) < 10 and real(read_end, size) == content[:150_000]
    far.close()
    os.close(write_end)
    assert splice.splice(m, t, args(read_end, 0, near.fileno(), 0, 1 << 20)) == 0


def test_ioctls(world: Any, tmp_path: Path) -> None:
    m, t = world
    fd = os.open(tmp_path, os.O_RDONLY)
    assert ioctls.ioctl(m, t, args(fd, 0x5401, BASE)) is CONTINUE
    assert ioctls.ioctl(m, t, args(fd, 0x80086601, BASE)) == -25
    assert m.doubts == []
    assert ioctls.ioctl(m, t, args(fd, 0x12349978, BASE)) == -25
    assert len(m.doubts) == 1
    read_end, write_end = os.pipe()
    m.fill = lambda: os.write(write_end, b"xy")
    mark(t, read_end, Kind.STDIN)
    assert ioctls.ioctl(m, t, args(read_end, 0x541B, BASE)) is CONTINUE
    assert m.fills == 1
