"""What native status functions tell is what os tells, and an error is a number."""

from __future__ import annotations

import errno
import os
from fcntl import F_GETFL, fcntl
from pathlib import Path
from stat import S_ISDIR

from detbox.kernel import _native

FIELDS = (
    "st_dev", "st_ino", "st_nlink", "st_mode", "st_uid", "st_gid", "st_rdev", "st_size", "st_blksize", "st_blocks",
    "st_mtime_ns", "st_ctime_ns",
)  # fmt: skip


def test_like_os(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some text")
    (tmp_path / "link").symlink_to("file")
    here = os.open(tmp_path, os.O_PATH)
    for place, name in (here, b"link"), (here, b"."), (None, b"/dev/null"), (None, os.fsencode(tmp_path / "link")):
        for follow in True, False:
            found, expected = _native.stat_at(place, name, follow), os.stat(name, dir_fd=place, follow_symlinks=follow)
            assert [getattr(found, field) for field in FIELDS] == [getattr(expected, field) for field in FIELDS]
    assert _native.link_text(here, b"link") == b"file"
    for ours, kept in (0, 0), (os.O_NONBLOCK, 0), (os.O_NONBLOCK, os.O_NONBLOCK), (os.O_NONBLOCK, os.O_APPEND):
        opened = _native.open_file(here, b"link", os.O_RDONLY | os.O_CLOEXEC | ours, kept)
        assert not isinstance(opened, int)
        fd, found = opened
        assert os.read(fd, 99) == b"some text" and found.st_ino == os.stat(tmp_path / "file").st_ino
        assert fcntl(fd, F_GETFL) & (os.O_NONBLOCK | os.O_APPEND) == kept
        os.close(fd)
    opened = _native.open_file(None, os.fsencode(tmp_path), os.O_RDONLY | os.O_NONBLOCK, 0)
    assert not isinstance(opened, int)
    fd, found = opened
    assert fcntl(fd, F_GETFL) & os.O_NONBLOCK and S_ISDIR(found.st_mode)
    os.close(fd)
    os.close(here)


def test_errors_are_numbers(tmp_path: Path) -> None:
    file, absent = os.fsencode(tmp_path / "file"), os.fsencode(tmp_path / "absent")
    (tmp_path / "file").touch()
    assert _native.stat_at(None, absent, True) == -errno.ENOENT
    assert _native.stat_at(None, file + b"/x", True) == -errno.ENOTDIR
    assert _native.open_file(None, absent, os.O_RDONLY, 0) == -errno.ENOENT
    assert _native.open_file(None, file, os.O_RDONLY | os.O_DIRECTORY, 0) == -errno.ENOTDIR
    assert _native.link_text(None, file) == -errno.EINVAL
    closed = os.dup(0)
    os.close(closed)
    assert _native.link_text(closed, b"file") == -errno.EBADF


def test_a_process_s_descriptor(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some text")
    for flags in os.O_RDONLY, os.O_WRONLY, os.O_PATH:
        fd = os.open(tmp_path / "file", flags)
        found, expected = _native.stat_fd(os.getpid(), fd), os.fstat(fd)
        assert [getattr(found, field) for field in FIELDS] == [getattr(expected, field) for field in FIELDS]
        os.close(fd)
        assert _native.stat_fd(os.getpid(), fd) == -errno.EBADF
    assert _native.stat_fd(0x3FFFFFFF, 0) in (-errno.ESRCH, -errno.EINVAL)
