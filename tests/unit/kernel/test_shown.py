"""What C tells of a file is what handlers/stat.py tells, or it is left to that."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import detbox.supervisor.loop  # whose classes C is told
from detbox.handlers.stat import _pack
from detbox.kernel import _native
from detbox.machine.creds import CAP_FOWNER, Creds
from detbox.machine.files import FsContext
from detbox.machine.inodes import InodeTable, VInode
from detbox.machine.userspaces import TOP, UserSpace
from detbox.supervisor.task import Process, Task

EPOCH_NS = 1_577_836_800 * 10**9
AT_FDCWD = -100 & 0xFFFFFFFFFFFFFFFF
assert detbox.supervisor.loop


class Asking:
    """The test process is the guest: its memory, its descriptors."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.inodes = InodeTable(EPOCH_NS, lambda: EPOCH_NS + 5)
        pid = os.getpid()
        process = Process(pid, None, "1")
        machine: Any = SimpleNamespace(processes={}, proc_fd=os.open("/proc", os.O_PATH))
        process.fs = FsContext(machine, pid)
        process.creds = Creds.of(0, 0)
        self.task = Task(pid, process, "1")
        self.buffer = ctypes.create_string_buffer(144)
        self.page = mmap.mmap(-1, mmap.PAGESIZE)  # a path that reaches into the next page is left to others, too

    def told(self, name: str, *, follow: bool = True, dirfd: int = AT_FDCWD) -> bytes | int | None:
        return self._result(_native.tell_path(*self._known(), dirfd, self.path(name), self._at, 0 if follow else 0x100))

    def told_fd(self, fd: int) -> bytes | int | None:
        return self._result(_native.tell_fd(*self._known(), fd, self._at))

    def path(self, name: str | Path, before_end: int = mmap.PAGESIZE) -> int:
        """The address of a path that begins so many bytes before the end of its page."""
        text, at = os.fsencode(name) + b"\0", mmap.PAGESIZE - before_end
        self.page[at : at + len(text)] = text
        return ctypes.addressof(ctypes.c_char.from_buffer(self.page)) + at

    def _known(self) -> tuple[Any, ...]:
        return self.inodes.table, self.inodes.odd_devs, EPOCH_NS, self.task

    @property
    def _at(self) -> int:
        return ctypes.addressof(self.buffer)

    def _result(self, given: int | None) -> bytes | int | None:
        return self.buffer.raw if given == 0 else given

    def seen(self, name: str) -> VInode:
        return self.inodes.of(os.lstat(self.base / name))

    def packed(self, name: str) -> bytes:
        return _pack(os.lstat(self.base / name), self.seen(name), TOP)


@pytest.fixture
def asking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asking:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").write_bytes(bytes(70_000))
    (tmp_path / "empty").touch(0o751)
    (tmp_path / "dir").mkdir(0o2711)
    (tmp_path / "link").symlink_to("plain")
    (tmp_path / "code.py").touch()
    os.mkfifo(tmp_path / "fifo")
    os.link(tmp_path / "plain", tmp_path / "second")
    return Asking(tmp_path)


@pytest.mark.parametrize("name", ["plain", "empty", "dir", "second"])
def test_what_has_been_seen_is_told(asking: Asking, name: str) -> None:
    place = str(asking.base / name)
    assert asking.told(place) is None, "not seen yet"
    vnode = asking.seen(name)
    vnode.set_times(3 * 10**9 + 1, -(10**9) + 7, 5)
    vnode.uid, vnode.gid, vnode.links = 1000, 50, 3 if name == "dir" else 0
    assert asking.told(place) == asking.told(place, follow=False) == asking.packed(name)
    fd = os.open(place, os.O_RDONLY)
    assert asking.told_fd(fd) == asking.packed(name)
    os.close(fd)


def test_a_link_is_followed(asking: Asking) -> None:
    asking.seen("plain"), asking.seen("link")
    assert asking.told(str(asking.base / "link")) == asking.packed("plain")
    assert asking.told(str(asking.base / "link"), follow=False) is None


def test_relative_paths_are_of_the_working_directory(asking: Asking) -> None:
    asking.seen("plain")
    assert asking.told("plain") is None, "it has not been opened"
    asking.task.process.fs._cwd = os.open(asking.base, os.O_PATH)
    assert asking.told("plain") == asking.packed("plain")
    assert asking.told("plain", dirfd=0xFFFFFF9C) == asking.packed("plain"), "32 bits of it are looked at"
    assert asking.told("plain", dirfd=asking.task.process.fs._cwd) is None


def test_what_is_absent(asking: Asking) -> None:
    assert asking.told(str(asking.base / "none")) == -errno.ENOENT
    assert asking.told(str(asking.base / "plain/none")) is None, "another error"
    assert asking.told("") is None
    assert asking.told("/" + 300 * "x") is None
    assert asking.told_fd(1 << 20) is None and asking.told_fd(AT_FDCWD) is None


def test_what_is_special_is_left_to_others(asking: Asking) -> None:
    place, vnode = str(asking.base / "plain"), asking.seen("plain")
    changes = {"btime": EPOCH_NS + 1, "missing": 8, "node": (0o020000, 5), "mode": 0o100644, "fmt": 0}
    for name, value in changes.items():
        before = getattr(vnode, name)
        setattr(vnode, name, value)
        assert asking.told(place) is None, name
        setattr(vnode, name, before)
    assert asking.told(place) == asking.packed("plain")
    asking.task.process.fs.special = True
    assert asking.told(place) is None
    asking.task.process.fs.special = False
    asking.inodes.odd_devs = frozenset((os.stat(place).st_dev,))
    assert asking.told(place) is None
    asking.inodes.odd_devs = frozenset()
    for name in ("fifo", "code.py"):
        asking.seen(name)
        assert asking.told(str(asking.base / name)) is None, name
    asking.seen("code.py").source = True
    assert asking.told(str(asking.base / "code.py")) == asking.packed("code.py")
    with open(asking.base / "plain", "r+b") as large:
        large.truncate(1 << 30)
    assert asking.told(place) is None


def test_who_has_not_all_rights_is_left_to_others(asking: Asking) -> None:
    place, creds = str(asking.base / "plain"), asking.task.process.creds
    expected = asking.packed("plain")
    fd = os.open(place, os.O_RDONLY)
    assert asking.told(place) == asking.told_fd(fd) == expected
    creds.effective &= ~(1 << CAP_FOWNER)
    assert creds.checked and asking.told(place) is None and asking.told_fd(fd) is None
    asking.task.process.creds = Creds.of(0, 0)
    asking.task.process.creds.space = UserSpace(TOP, 0, 0)
    assert asking.task.process.creds.checked and asking.told(place) is None and asking.told_fd(fd) is None


def test_other_flags_are_left_to_others(asking: Asking) -> None:
    path = asking.path(asking.base / "plain")
    asking.seen("plain")
    for flags in (0x1000, 0x800, 1):
        assert _native.tell_path(*asking._known(), AT_FDCWD, path, asking._at, flags) is None
    # The kernel's int has 32 bits.
    assert _native.tell_path(*asking._known(), AT_FDCWD, path, asking._at, 7 << 32 | 0x100) == 0


def test_what_cannot_be_read_or_written(asking: Asking) -> None:
    asking.seen("plain")
    path = asking.path(asking.base / "plain")
    assert _native.tell_path(*asking._known(), AT_FDCWD, 16, asking._at, 0) is None
    assert _native.tell_path(*asking._known(), AT_FDCWD, path, 16, 0) is None
    asking.task.text_at = path
    assert _native.tell_path(*asking._known(), AT_FDCWD, path, asking._at, 0) is None


def test_a_path_may_end_with_its_page(asking: Asking) -> None:
    asking.seen("plain")
    place = asking.base / "plain"
    path = asking.path(place, len(os.fsencode(place)) + 1)
    assert _native.tell_path(*asking._known(), AT_FDCWD, path, asking._at, 0) == 0
