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
from detbox.handlers.stat import _pack, _pack_statx
from detbox.kernel import _native
from detbox.machine.creds import CAP_FOWNER, Creds
from detbox.machine.files import FsContext
from detbox.machine.inodes import InodeTable, VInode
from detbox.machine.userspaces import TOP, UserSpace
from detbox.supervisor.task import Process, Task

EPOCH_NS = 1_577_836_800 * 10**9
AT_FDCWD = -100 & 0xFFFFFFFFFFFFFFFF
NOFOLLOW, EMPTY_PATH = 0x100, 0x1000
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
        self.buffer = ctypes.create_string_buffer(256)
        self.page = mmap.mmap(-1, mmap.PAGESIZE)  # a path that reaches into the next page is left to others, too

    def told(self, name: str, *, follow: bool = True, dirfd: int = AT_FDCWD, wide: bool = False) -> bytes | int | None:
        return self._result(self.tell(dirfd, self.path(name), 0 if follow else NOFOLLOW, wide), wide)

    def told_fd(self, fd: int, *, wide: bool = False) -> bytes | int | None:
        return self._result(self.tell(fd, 0, EMPTY_PATH, wide), wide)

    def tell(self, dirfd: int, path: int, flags: int = 0, wide: bool = False, buf: int | None = 0) -> int | None:
        """`path` and `buf` are addresses; 0: the buffer's."""
        to = ctypes.addressof(self.buffer) if buf == 0 else buf
        return _native.tell(self.inodes.seen, self.task, dirfd, path, to, flags, wide)

    def path(self, name: str | Path, before_end: int = mmap.PAGESIZE) -> int:
        """The address of a path that begins so many bytes before the end of its page."""
        text, at = os.fsencode(name) + b"\0", mmap.PAGESIZE - before_end
        self.page[at : at + len(text)] = text
        return ctypes.addressof(ctypes.c_char.from_buffer(self.page)) + at

    def _result(self, given: int | None, wide: bool) -> bytes | int | None:
        return self.buffer.raw[: 256 if wide else 144] if given == 0 else given

    def seen(self, name: str) -> VInode:
        return self.inodes.of(os.lstat(self.base / name))

    def packed(self, name: str, *, wide: bool = False) -> bytes:
        return (_pack_statx if wide else _pack)(os.lstat(self.base / name), self.seen(name), TOP)


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


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", ["plain", "empty", "dir", "second", "fifo", "link"])
def test_what_is_told_is_what_python_tells(asking: Asking, name: str, wide: bool) -> None:
    place, number = str(asking.base / name), asking.inodes.next_number
    first = asking.told(place, follow=False, wide=wide)
    vnode = asking.seen(name)
    assert first == asking.packed(name, wide=wide) and vnode.ino == number, "it has been seen now"
    vnode.set_times(3 * 10**9 + 1, -(10**9) + 7, 5)
    vnode.uid, vnode.gid, vnode.links = 1000, 50, 3 if name == "dir" else 0
    expected = asking.packed(name, wide=wide)
    assert asking.told(place, follow=False, wide=wide) == expected
    if name != "link":
        assert asking.told(place, wide=wide) == expected
    fd = os.open(place, os.O_PATH | os.O_NOFOLLOW)
    assert asking.told_fd(fd, wide=wide) == expected
    os.close(fd)


@pytest.mark.parametrize("wide", [False, True])
def test_what_has_no_name_is_told(asking: Asking, wide: bool) -> None:
    reading, writing = os.pipe()
    removed = os.open(asking.base / "plain", os.O_RDONLY)
    for name in ("plain", "second"):
        os.unlink(asking.base / name)
    fds = (reading, os.eventfd(0), os.open("/dev/null", os.O_RDWR), removed)
    for fd in fds:
        asking.told_fd(fd, wide=wide)
        number = asking.inodes.next_number
        vnode = asking.inodes.of(os.fstat(fd))
        assert asking.inodes.next_number == number, "it has been seen"
        if fd == removed:
            asking.inodes.unlinked(vnode)
        assert asking.told_fd(fd, wide=wide) == (_pack_statx if wide else _pack)(os.fstat(fd), vnode, TOP)
    for fd in (*fds, writing):
        os.close(fd)


def test_a_file_that_the_run_has_made_is_told_when_its_holes_are_known(asking: Asking) -> None:
    place, vnode = asking.base / "plain", asking.seen("plain")
    os.truncate(place, 100_001)
    vnode.btime = EPOCH_NS - 5 * 10**9 - 3
    assert asking.told("plain") is None
    asking.inodes.find_holes(vnode, os.stat(place), os.fsencode(place), None)
    assert vnode.missing
    for wide in (False, True):
        assert asking.told(str(place), wide=wide) == asking.packed("plain", wide=wide)
    os.truncate(place, 3 * 4096)
    assert asking.told(str(place)) is None, "another size"
    asking.inodes.find_holes(vnode, os.stat(place), os.fsencode(place), None)
    assert asking.told(str(place)) == asking.packed("plain")
    vnode.set_times(1, 2, 3)
    assert asking.told(str(place)) is None, "it may have been written to"
    vnode.reserved = True
    assert asking.told(str(place)) == asking.packed("plain")


def test_a_link_is_followed(asking: Asking) -> None:
    asking.seen("plain"), asking.seen("link")
    assert asking.told(str(asking.base / "link")) == asking.packed("plain")
    assert asking.told(str(asking.base / "link"), follow=False) == asking.packed("link")


def test_relative_paths_are_of_the_working_directory(asking: Asking) -> None:
    asking.seen("plain")
    assert asking.told("plain") is None, "it has not been opened"
    asking.task.process.fs._cwd = os.open(asking.base, os.O_PATH)
    assert asking.told("plain") == asking.packed("plain")
    assert asking.told("plain", dirfd=0xFFFFFF9C) == asking.packed("plain"), "32 bits of it are looked at"


def test_relative_paths_are_of_a_directory(asking: Asking) -> None:
    asking.seen("plain")
    fd = os.open(asking.base, os.O_PATH)
    for name in ("plain", f"../{asking.base.name}/plain"):
        assert asking.told(name, dirfd=fd) == asking.packed("plain")
    assert asking.told("none", dirfd=fd) == -errno.ENOENT
    asking.task.tid += 1
    assert asking.told("plain", dirfd=fd) is None, "a thread but the first may have descriptors of its own"
    asking.task.tid -= 1
    os.close(fd)
    assert asking.told("plain", dirfd=fd) is None, "another error"


def test_what_is_absent(asking: Asking) -> None:
    assert asking.told(str(asking.base / "none")) == -errno.ENOENT
    assert asking.told(str(asking.base / "plain/none")) is None, "another error"
    assert asking.told("") is None
    assert asking.told("/" + 300 * "x") is None
    assert asking.told_fd(1 << 20) is None and asking.told_fd(AT_FDCWD) is None


def test_what_is_special_is_left_to_others(asking: Asking) -> None:
    place, vnode = str(asking.base / "plain"), asking.seen("plain")
    changes = {"btime": EPOCH_NS + 1, "node": (0o020000, 5), "mode": 0o100644}
    for name, value in changes.items():
        before = getattr(vnode, name)
        setattr(vnode, name, value)
        assert asking.told(place) is None, name
        setattr(vnode, name, before)
    assert asking.told(place) == asking.packed("plain")
    asking.task.process.fs.special = True
    assert asking.told(place) is None
    asking.task.process.fs.special = False
    asking.inodes.odd_devs.add(os.stat(place).st_dev)
    assert asking.told(place) is None
    asking.inodes.odd_devs.clear()
    asking.seen("code.py")
    assert asking.told(str(asking.base / "code.py")) is None
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
    assert creds.checked and asking.told(place) is None and asking.told_fd(fd) == expected
    asking.task.process.creds = Creds.of(0, 0)
    asking.task.process.creds.space = UserSpace(TOP, 0, 0)
    assert asking.task.process.creds.checked and asking.told(place) is None and asking.told_fd(fd) is None


def test_flags(asking: Asking) -> None:
    path, empty = asking.path(asking.base / "plain"), ctypes.create_string_buffer(b"")
    expected = asking.packed("plain")
    for flags in (0, EMPTY_PATH, 0x800, 7 << 32 | NOFOLLOW):  # the kernel's int has 32 bits
        assert asking.tell(AT_FDCWD, path, flags) == 0 and asking.buffer.raw[:144] == expected
    fd = os.open(asking.base / "plain", os.O_RDONLY)
    for place in (0, ctypes.addressof(empty)):
        assert asking.tell(fd, place) is None
        assert asking.tell(fd, place, EMPTY_PATH) == 0 and asking.buffer.raw[:144] == expected
        assert asking.tell(AT_FDCWD, place, EMPTY_PATH) is None
    os.close(fd)


def test_what_cannot_be_read_or_written(asking: Asking) -> None:
    asking.seen("plain")
    path = asking.path(asking.base / "plain")
    assert asking.tell(AT_FDCWD, 16) is None
    assert asking.tell(AT_FDCWD, path, buf=16) is None
    assert asking.tell(AT_FDCWD, path, buf=None) == 0, "nobody is told"
    asking.task.text_at = path
    assert asking.tell(AT_FDCWD, path) is None


def test_a_path_may_end_with_its_page(asking: Asking) -> None:
    asking.seen("plain")
    place = asking.base / "plain"
    path = asking.path(place, len(os.fsencode(place)) + 1)
    assert asking.tell(AT_FDCWD, path) == 0
