"""Timer, signal and inotify descriptors."""

from __future__ import annotations

import ctypes
import os
import struct
from errno import EAGAIN, EINVAL
from pathlib import Path
from typing import Any

import pytest

from detbox.decision import ContinueThen, InstallFd, Park
from detbox.handlers import readwrite, timerfd
from tests.unit.handlers.io_fakes import BASE, Machine, Task, resume

SECOND = 10**9


@pytest.fixture
def world() -> tuple[Any, Any]:
    return Machine(), Task()


def args(*values: int) -> Any:
    return (*values, *[0] * (6 - len(values)))


def create(m: Any, t: Any, flags: int = 0) -> int:
    made = timerfd.timerfd_create(m, t, args(1, flags))
    assert isinstance(made, InstallFd)
    t.process.files.known[made.fd] = made.info
    return made.fd


def arm(m: Any, t: Any, fd: int, value: int, interval: int = 0) -> None:
    t.write(BASE + 500, struct.pack("<4q", *divmod(interval, SECOND), *divmod(value, SECOND)))
    assert timerfd.timerfd_settime(m, t, args(fd, 0, BASE + 500, 0)) == 0


def pass_time(m: Any, ns: int) -> None:
    m.clock.now += ns
    m.clock.expire()


def test_timer_expires_in_virtual_time(world: Any) -> None:
    m, t = world
    fd = create(m, t)
    arm(m, t, fd, 2 * SECOND, SECOND)
    parked = readwrite.read(m, t, args(fd, BASE, 8))
    assert isinstance(parked, Park)
    pass_time(m, 4 * SECOND + 1)
    assert m.woken == [parked.events[0]]
    assert resume(parked, "event") == 8
    assert t.u64(BASE) == 3
    assert isinstance(readwrite.read(m, t, args(fd, BASE, 8)), Park)
    timerfd.timerfd_gettime(m, t, args(fd, BASE))
    assert struct.unpack("<4q", t.read(BASE, 32)) == (1, 0, 0, SECOND - 1)
    assert readwrite.write(m, t, args(fd, BASE, 8)) == -EINVAL


def test_timer_is_recognised_after_dup_and_can_be_disarmed(world: Any) -> None:
    m, t = world
    fd = create(m, t, os.O_NONBLOCK)
    arm(m, t, fd, SECOND)
    copy = os.dup(fd)
    assert readwrite.read(m, t, args(copy, BASE, 8)) == -EAGAIN
    arm(m, t, copy, 0)
    pass_time(m, 5 * SECOND)
    assert readwrite.read(m, t, args(fd, BASE, 8)) == -EAGAIN


def record(
    *, signo: int, code: int, pid: int, uid: int, status: int = 0, integer: int = 0, pointer: int = 0,
    user: int = 0, system: int = 0,
) -> bytes:  # fmt: skip
    """struct signalfd_siginfo."""
    fields = (signo, 0, code, pid, uid, 0, 0, 0, 0, 0, status, integer, pointer, user, system)
    head = struct.pack("<IiiIIiIIIIiiQQQ", *fields)
    return head.ljust(128, b"\0")


def test_signal_descriptor_follows_the_guests_signals(world: Any) -> None:
    m, t = world
    mask = ctypes.c_uint64(1 << 9)
    fd = ctypes.CDLL(None).signalfd(-1, ctypes.byref(mask), 0)
    parked = readwrite.read(m, t, args(fd, BASE, 128))
    assert isinstance(parked, Park) and parked.events == (("pending signal", os.getpid()),)
    m.pending = 1 << 9
    step = resume(parked, "event")
    assert isinstance(step, ContinueThen)
    told = {"signo": 17, "code": 1, "pid": 5, "uid": 0, "status": 3, "user": 123, "system": 456}
    t.write(BASE, record(**told) + record(signo=17, code=-1, pid=6, uid=8, integer=-2, pointer=(1 << 64) - 2))
    step.look(t, 256)
    assert t.read(BASE, 128) == record(**told | {"uid": 7, "user": 0, "system": 0})
    assert t.read(BASE + 128, 128) == record(signo=17, code=-1, pid=6, uid=8, integer=-2, pointer=(1 << 64) - 2)


def test_rename_cookies_count_from_one(world: Any, tmp_path: Path) -> None:
    m, t = world
    libc = ctypes.CDLL(None)
    fd = libc.inotify_init1(0)
    assert isinstance(readwrite.read(m, t, args(fd, BASE, 4096)), Park)
    libc.inotify_add_watch(fd, os.fsencode(tmp_path), 0xC0)
    (tmp_path / "a").touch()
    (tmp_path / "a").rename(tmp_path / "b")
    (tmp_path / "b").rename(tmp_path / "c")
    count = readwrite.read(m, t, args(fd, BASE, 4096))
    assert isinstance(count, int)
    cookies, data = [], t.read(BASE, count)
    while data:
        _, _, cookie, length = struct.unpack_from("<iIII", data)
        cookies.append(cookie)
        data = data[16 + length :]
    assert cookies == [1, 1, 2, 2]
