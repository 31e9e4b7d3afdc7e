"""The file-system handlers against the real file system, without an engine."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from detbox.decision import CONTINUE, Park, Wake
from detbox.handlers import access, content, dirs, metadata, namespace_ops, opening, stat, statfs, xattr
from detbox.machine.creds import Creds
from tests.unit.handlers.fs_guest import AT_FDCWD, EPOCH_NS, Guest

O = os  # noqa: E741


@pytest.fixture
def guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    monkeypatch.chdir(tmp_path)
    umask = os.umask(0)
    yield Guest()
    os.umask(umask)


def opened(g: Guest, path: Any, flags: int, mode: int = 0o644) -> int:
    fd = g.call(opening.openat, AT_FDCWD, path, flags, mode)
    assert isinstance(fd, int) and fd >= 0, fd
    return fd


def test_input_file_has_epoch_times_and_new_file_has_the_time_of_its_making(
    guest: Guest, tmp_path: Path
) -> None:
    (tmp_path / "input").write_bytes(b"x" * 5000)
    st = guest.stat(stat.stat, "input")
    assert (st.size, st.blocks, st.nlink, st.uid) == (5000, 16, 1, 0)
    assert st.mtime_ns == st.ctime_ns == st.atime_ns == EPOCH_NS
    fd = opened(guest, tmp_path / "output", O.O_CREAT | O.O_WRONLY, 0o666)
    new = guest.stat(stat.fstat, fd)
    assert new.mtime_ns > EPOCH_NS and new.mode & 0o777 == 0o644
    directory = guest.stat(stat.stat, tmp_path)
    assert directory.mtime_ns == new.mtime_ns and (directory.size, directory.nlink) == (4096, 1)


def test_a_large_file_may_have_holes(guest: Guest, tmp_path: Path) -> None:
    # Who copies it looks for them only then, and would otherwise write all of its zeros.
    for size, missing in (((1 << 30) - 1, 0), (1 << 30, 8), (1 << 40, 8)):
        (tmp_path / "large").touch()
        os.truncate(tmp_path / "large", size)
        assert guest.stat(stat.stat, "large").blocks == -(-size // 4096) * 8 - missing


def test_inode_number_is_new_after_unlink_and_open_descriptor_keeps_the_old_one(guest: Guest) -> None:
    fd = opened(guest, "a", O.O_CREAT | O.O_RDWR)
    first = guest.stat(stat.fstat, fd).ino
    assert guest.call(namespace_ops.unlink, "a") == 0
    guest.process.files.forget_all()
    assert guest.stat(stat.fstat, fd).ino == first
    os.close(fd)
    seen = {first}
    for _ in range(5):
        fd = opened(guest, "a", O.O_CREAT | O.O_RDWR)
        ino = guest.stat(stat.stat, "a").ino
        assert ino not in seen
        seen.add(ino)
        os.close(fd)
        assert guest.call(namespace_ops.unlink, "a") == 0


def test_creation_flags(guest: Guest) -> None:
    os.symlink("target", "dangling")
    os.symlink("loop", "loop")
    assert guest.call(opening.openat, AT_FDCWD, "dangling", O.O_CREAT | O.O_EXCL, 0o600) == -errno.EEXIST
    os.close(opened(guest, "dangling", O.O_CREAT | O.O_WRONLY))
    assert os.path.exists("target")
    assert guest.call(opening.openat, AT_FDCWD, "dangling", O.O_NOFOLLOW, 0) == -errno.ELOOP
    assert guest.call(opening.openat, AT_FDCWD, "loop", O.O_RDONLY, 0) == -errno.ELOOP
    assert guest.call(opening.openat, AT_FDCWD, "new/", O.O_CREAT | O.O_WRONLY, 0) == -errno.EISDIR
    assert guest.call(opening.openat, AT_FDCWD, "target/", O.O_RDONLY, 0) == -errno.ENOTDIR
    assert guest.call(opening.openat, AT_FDCWD, ".", O.O_WRONLY, 0) == -errno.EISDIR
    assert guest.call(opening.openat, 999, "x", O.O_RDONLY, 0) == -errno.EBADF
    assert guest.call(opening.openat, AT_FDCWD, "", O.O_RDONLY, 0) == -errno.ENOENT
    fd = opened(guest, ".", O.O_TMPFILE | O.O_RDWR)
    assert guest.stat(stat.fstat, fd).nlink == 0
    assert guest.call(namespace_ops.linkat, fd, "", AT_FDCWD, "named", 0x1000) == 0
    assert guest.stat(stat.stat, "named").ino == guest.stat(stat.fstat, fd).ino


def test_truncating_open_moves_mtime_and_reading_does_not(guest: Guest) -> None:
    Path("f").write_bytes(b"abc")
    os.close(opened(guest, "f", O.O_RDONLY))
    assert guest.stat(stat.stat, "f").mtime_ns == EPOCH_NS
    os.close(opened(guest, "f", O.O_WRONLY | O.O_TRUNC))
    st = guest.stat(stat.stat, "f")
    assert st.mtime_ns > EPOCH_NS and st.size == 0


def test_dirfd_and_own_directories(guest: Guest) -> None:
    os.mkdir("d")
    Path("d/f").write_bytes(b"1")
    fd = opened(guest, "d", O.O_RDONLY | O.O_DIRECTORY)
    inner = guest.call(opening.openat, fd, "f", O.O_RDONLY, 0)
    assert os.read(inner, 9) == b"1"
    buf = guest.t.put(bytes(144))
    assert guest.call(stat.newfstatat, fd, "f", buf, 0) == 0
    assert guest.call(stat.newfstatat, fd, "", buf, 0x1000) == 0
    assert guest.call(stat.newfstatat, fd, "", buf, 0) == -errno.ENOENT
    assert guest.call(stat.newfstatat, 999, "f", buf, 0) == -errno.EBADF
    assert guest.call(stat.newfstatat, 999, "", buf, 0x1000) == -errno.EBADF


def test_proc_self_is_the_guest(guest: Guest) -> None:
    Path("f").write_bytes(b"hello")
    fd = opened(guest, "f", O.O_RDONLY)
    again = opened(guest, f"/proc/self/fd/{fd}", O.O_RDONLY)
    assert os.read(again, 9) == b"hello"
    buf = guest.t.put(bytes(4096))
    n = guest.call(access.readlink, "/proc/self", buf, 4096)
    assert guest.t.read(buf, n) == b"%d" % os.getpid()
    n = guest.call(access.readlink, "/proc/thread-self", buf, 4096)
    assert guest.t.read(buf, n) == b"%d/task/%d" % (os.getpid(), guest.t.tid)
    ends = os.pipe()
    n = guest.call(access.readlink, f"/proc/self/fd/{ends[0]}", buf, 4096)
    ino = guest.stat(stat.fstat, ends[0]).ino
    assert guest.t.read(buf, n) == b"pipe:[%d]" % ino
    n = guest.call(access.readlink, "/proc/self/ns/pid", buf, 4096)
    assert guest.t.read(buf, n) == b"pid:[4026531836]"


def entries(g: Guest, fd: int, size: int = 4096) -> list[tuple[bytes, int, int]]:
    buf = g.t.put(bytes(size))
    found = []
    while (n := g.call(dirs.getdents64, fd, buf, size)) > 0:
        data, at = g.t.read(buf, n), 0
        while at < n:
            ino, off, length, kind = struct.unpack_from("<QqHB", data, at)
            found.append((data[at + 19 : data.index(0, at + 19)], ino, kind))
            at += length
    assert n == 0, n
    return found


def test_directory_is_sorted_whole_and_agrees_with_stat(guest: Guest) -> None:
    os.mkdir("d")
    names = [b"%03d" % (i * 37 % 500) for i in range(500)] + [b"\xff\xfe", b"x" * 255]
    for name in names:
        Path(os.fsdecode(b"d/" + name)).touch()
    fd = opened(guest, "d", O.O_RDONLY | O.O_DIRECTORY)
    found = entries(guest, fd)
    assert [name for name, _, _ in found] == [b".", b"..", *sorted(names)]
    for name, ino, kind in found[2:10]:
        assert (guest.stat(stat.lstat, b"d/" + name).ino, 8) == (ino, kind)
    assert found[0][1] == guest.stat(stat.stat, "d").ino and found[1][1] == guest.stat(stat.stat, ".").ino
    os.lseek(fd, 5, os.SEEK_SET)
    assert entries(guest, fd) == found[5:]
    os.lseek(fd, 0, os.SEEK_SET)
    Path("d/0000").touch()
    assert len(entries(guest, fd)) == len(found) + 1
    assert guest.call(dirs.getdents64, opened(guest, "d/000", O.O_RDONLY), 0, 100) == -errno.ENOTDIR


def test_rename_link_remove(guest: Guest) -> None:
    a = guest.stat(stat.fstat, opened(guest, "a", O.O_CREAT | O.O_RDWR))
    b = guest.stat(stat.fstat, opened(guest, "b", O.O_CREAT | O.O_RDWR))
    assert guest.call(namespace_ops.link, "a", "a2") == 0
    assert guest.stat(stat.stat, "a2").nlink == 2
    assert guest.call(namespace_ops.rename, "b", "a") == 0
    assert guest.stat(stat.stat, "a").ino == b.ino and guest.stat(stat.stat, "a2").ino == a.ino
    assert guest.call(namespace_ops.renameat2, AT_FDCWD, "a", AT_FDCWD, "a2", 1) == -errno.EEXIST
    assert guest.call(namespace_ops.renameat2, AT_FDCWD, "a", AT_FDCWD, "a2", 2) == 0
    assert guest.stat(stat.stat, "a").ino == a.ino and guest.stat(stat.stat, "a2").ino == b.ino
    assert guest.call(namespace_ops.mkdir, "d/", 0o777) == 0
    assert guest.stat(stat.stat, "d").mode & 0o7777 == 0o755
    assert guest.call(namespace_ops.unlinkat, AT_FDCWD, "d", 0) == -errno.EISDIR
    assert guest.call(namespace_ops.unlinkat, AT_FDCWD, "d", 0x200) == 0
    assert guest.call(namespace_ops.mknod, "dev", 0o020666, 0x103) == 0 and os.path.isfile("dev")
    assert guest.stat(stat.stat, "dev").mode & 0o170000 == 0o020000
    assert guest.call(namespace_ops.unlink, "dev") == 0
    assert guest.call(namespace_ops.mknod, "pipe", 0o010666, 0) == 0
    assert guest.stat(stat.stat, "pipe").mode == 0o010644


def test_times_are_kept_and_written_back(guest: Guest, tmp_path: Path) -> None:
    opened(guest, "f", O.O_CREAT | O.O_WRONLY)
    os.symlink("f", "input-link")
    assert guest.call(namespace_ops.symlink, "f", "link") == 0
    times = guest.t.put(struct.pack("<4q", 1, 5, 2, 7))
    assert guest.call(metadata.utimensat, AT_FDCWD, "f", times, 0) == 0
    st = guest.stat(stat.stat, "f")
    assert (st.atime_ns, st.mtime_ns) == (1_000_000_005, 2_000_000_007) and st.ctime_ns > EPOCH_NS
    omit = guest.t.put(struct.pack("<4q", 0, 0x3FFFFFFE, 0, 0x3FFFFFFF))
    assert guest.call(metadata.utimensat, AT_FDCWD, "link", omit, 0x100) == 0
    before = os.lstat("input-link").st_mtime_ns
    guest.m.inodes.finish([os.fsencode(tmp_path)])
    assert os.stat("f").st_mtime_ns == 2_000_000_007
    assert os.lstat("link").st_mtime_ns == guest.stat(stat.lstat, "link").mtime_ns
    assert os.stat(".").st_mtime_ns == guest.stat(stat.stat, ".").mtime_ns > EPOCH_NS
    assert os.lstat("input-link").st_mtime_ns == before


def test_no_more_is_looked_through_than_needed(guest: Guest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked = []
    walk = os.fwalk

    def counted(top: bytes, **options: bool) -> Iterator[object]:
        for step in walk(top, **options):
            looked.append(step[0])
            yield step

    monkeypatch.setattr(os, "fwalk", counted)
    for name in ("a/b/c", "d/e/f"):
        os.makedirs(name)
    guest.stat(stat.stat, "a/b")
    guest.m.inodes.finish([os.fsencode(tmp_path)])
    assert not looked  # nothing has changed
    opened(guest, "f", O.O_CREAT | O.O_WRONLY)
    dev = os.stat("f").st_dev
    guest.m.inodes.finish([os.fsencode(tmp_path)], [dev])
    assert not looked
    os.utime("f", ns=(1, 1))
    os.utime(".", ns=(1, 1))
    guest.m.inodes.finish([os.fsencode(tmp_path)])
    assert os.stat("f").st_mtime_ns == guest.stat(stat.stat, "f").mtime_ns
    assert os.stat(".").st_mtime_ns == guest.stat(stat.stat, ".").mtime_ns


def test_owners_are_virtual_and_decide(guest: Guest) -> None:
    os.chmod(".", 0o755)
    opened(guest, "f", O.O_CREAT | O.O_WRONLY, 0o600)
    assert guest.call(metadata.chmod, "f", 0o4755) == 0
    assert guest.call(metadata.chown, "f", 1000, 1000) == 0
    st = guest.stat(stat.stat, "f")
    assert (st.uid, st.gid, st.mode & 0o7777) == (1000, 1000, 0o755)
    assert guest.call(metadata.chmod, "f", 0o600) == 0
    guest.process.creds = Creds.of(1001, 0)
    assert guest.call(opening.openat, AT_FDCWD, "f", O.O_RDONLY, 0) == -errno.EACCES
    assert guest.call(access.access, "f", 4) == -errno.EACCES
    assert guest.call(metadata.chmod, "f", 0o644) == -errno.EPERM
    guest.process.creds = Creds.of(1000, 0)
    os.close(opened(guest, "f", O.O_RDWR))
    assert guest.call(access.access, "f", 6) == 0
    assert guest.call(opening.openat, AT_FDCWD, "g", O.O_CREAT | O.O_WRONLY, 0o644) == -errno.EACCES
    os.chmod(".", 0o1777)
    opened(guest, "g", O.O_CREAT | O.O_WRONLY)
    assert guest.stat(stat.stat, "g").uid == 1000
    guest.process.creds = Creds.of(1001, 0)
    assert guest.call(namespace_ops.unlink, "g") == -errno.EPERM


def test_fifo_rendezvous(guest: Guest) -> None:
    os.mkfifo("p")
    assert guest.call(opening.openat, AT_FDCWD, "p", O.O_WRONLY | O.O_NONBLOCK, 0) == -errno.ENXIO
    reader = guest.call(opening.openat, AT_FDCWD, "p", O.O_RDONLY, 0)
    assert isinstance(reader, Park)
    writer = opened(guest, "p", O.O_WRONLY)
    assert guest.woken == [reader.events[0]]
    end = guest.settle(reader.resume(Wake("event")))
    os.write(writer, b"hi")
    assert os.read(end, 9) == b"hi"
    assert os.get_blocking(end) and os.get_blocking(writer)
    os.close(end)
    os.close(writer)
    waiting = guest.call(opening.openat, AT_FDCWD, "p", O.O_WRONLY, 0)
    assert isinstance(waiting, Park)
    end = opened(guest, "p", O.O_RDONLY)
    with pytest.raises(BlockingIOError):  # the writer counts from the moment of the rendezvous
        os.set_blocking(end, False)
        os.read(end, 1)
    writer = guest.settle(waiting.resume(Wake("event")))
    os.write(writer, b"ho")
    assert os.read(end, 9) == b"ho"


def test_interrupted_fifo_open_leaves_no_reader(guest: Guest) -> None:
    os.mkfifo("p")
    parked = guest.call(opening.openat, AT_FDCWD, "p", O.O_RDONLY, 0)
    assert parked.interrupted() == -512
    assert guest.call(opening.openat, AT_FDCWD, "p", O.O_WRONLY | O.O_NONBLOCK, 0) == -errno.ENXIO


@pytest.mark.parametrize("theirs, mine", [(os.O_RDWR, os.O_RDONLY), (os.O_RDWR, os.O_WRONLY)])
def test_fifo_that_others_have_open(guest: Guest, theirs: int, mine: int) -> None:
    os.mkfifo("p")
    os.mkfifo("q")
    outside = os.open("p", theirs)
    for name, doubts in (("p", 1), ("q", 1), ("p", 1)):
        guest.call(opening.openat, AT_FDCWD, name, mine | O.O_NONBLOCK, 0)
        assert len(guest.doubts) == doubts
    os.close(outside)


def test_holes_are_pages_of_zeros(guest: Guest) -> None:
    with open("f", "wb") as file:
        file.write(b"a" * 4096 + bytes(8192) + b"b" + bytes(4095))
        file.truncate(1 << 20)
    fd = opened(guest, "f", O.O_RDONLY)
    ask = lambda offset, whence: guest.call(content.lseek, fd, offset, whence)
    assert [ask(0, 3), ask(0, 4), ask(4096, 3), ask(5000, 4), ask(12288, 4)] == [0, 4096, 12288, 5000, 16384]
    assert ask(16384, 3) == -errno.ENXIO and ask(1 << 20, 4) == -errno.ENXIO and ask(16385, 4) == 16385
    Path("dense").write_bytes(b"x" * 5000)
    fd = opened(guest, "dense", O.O_RDONLY)
    assert [ask(0, 4), ask(10, 3)] == [5000, 10]


def test_size_calls(guest: Guest) -> None:
    fd = opened(guest, "f", O.O_CREAT | O.O_RDWR)
    assert guest.call(content.fallocate, fd, 0, 0, 10000) == 0
    assert guest.stat(stat.fstat, fd).size == 10000
    assert guest.call(content.fallocate, fd, 1, 0, 20000) == 0
    os.pwrite(fd, b"x" * 9000, 0)
    assert guest.call(content.fallocate, fd, 3, 1, 4096) == 0
    assert os.pread(fd, 4099, 0) == b"x" + bytes(4096) + b"xx"
    assert guest.call(content.fallocate, fd, 0, 0, 1 << 40) == -errno.ENOSPC
    assert guest.call(content.truncate, "f", 3) == 0 and os.stat("f").st_size == 3
    assert guest.call(content.truncate, ".", 3) == -errno.EISDIR
    assert guest.call(content.ftruncate, fd, 3) == "continue"


def test_attributes(guest: Guest) -> None:
    Path("f").touch()
    value = guest.t.put(b"v")
    assert guest.call(xattr.setxattr, "f", "user.b", value, 1, 0) == 0
    assert guest.call(xattr.setxattr, "f", "user.a", value, 1, 0) == 0
    buf = guest.t.put(bytes(64))
    n = guest.call(xattr.listxattr, "f", buf, 64)
    assert guest.t.read(buf, n) == b"user.a\0user.b\0"
    assert guest.call(xattr.getxattr, "f", "user.a", buf, 0) == 1
    assert guest.call(xattr.getxattr, "f", "security.selinux", buf, 64) == -errno.ENODATA
    assert guest.call(xattr.setxattr, "f", "user.overlay.opaque", value, 1, 0) == -errno.EPERM
    assert guest.call(xattr.removexattr, "f", "user.a") == 0
    assert guest.call(xattr.fgetxattr, opened(guest, "f", O.O_RDONLY), "user.a", buf, 64) == -errno.ENODATA


def test_statfs_is_fixed(guest: Guest) -> None:
    buf = guest.t.put(bytes(120))
    assert guest.call(statfs.statfs, "/", buf) == 0
    assert struct.unpack_from("<7q", guest.t.read(buf, 120)) == (
        0xEF53, 4096, 16777216, 12582912, 12582912, 4194304, 3145728,
    )  # fmt: skip
    assert guest.call(statfs.statfs, "/proc/self/stat", buf) == 0
    assert struct.unpack_from("<q", guest.t.read(buf, 120))[0] == 0x9FA0


def test_special_root_is_walked(guest: Guest) -> None:
    Path("f").write_bytes(b"1")
    os.mkdir("d")
    os.symlink("/../.." + os.getcwd() + "/f", "d/link")
    guest.process.fs.special = True
    st = guest.stat(stat.stat, "d/../d/link")
    assert st.size == 1
    fd = opened(guest, "d/new", O.O_CREAT | O.O_RDWR)
    assert guest.stat(stat.fstat, fd).ino == guest.stat(stat.stat, "d/new").ino
    assert guest.call(opening.openat, AT_FDCWD, "missing/new", O.O_CREAT, 0) == -errno.ENOENT


def test_big_directory_is_read_whole(guest: Guest) -> None:
    os.mkdir("d")
    for i in range(20000):
        os.mknod(f"d/{i}")
    fd = opened(guest, "d", O.O_RDONLY | O.O_DIRECTORY)
    assert len(entries(guest, fd, 32768)) == 20002


def test_continue_is_for_whole_calls_only() -> None:
    g = Guest()
    assert dirs.umask(g.m, g.t, (0o77, 0, 0, 0, 0, 0)) is CONTINUE and g.process.fs.umask == 0o77
