"""Copies of input directories: everything but owner and times is the source's."""

from __future__ import annotations

import os
import shutil
import socket
import stat
from pathlib import Path

import pytest

from detbox.errors import UserError
from detbox.report.copies import Copies, copy_file
from detbox.report.tree import snapshot

ME = (os.geteuid(), os.getegid())


def fill(source: Path) -> None:
    (source / "d" / "empty").mkdir(parents=True)
    (source / "d" / "f").write_bytes(b"content")
    (source / "d" / "f").chmod(0o4750)
    os.link(source / "d" / "f", source / "second name")
    os.symlink("nowhere", source / "dangling")
    os.symlink("d", source / "link to d")
    os.mkfifo(source / "fifo")
    (source / "d").chmod(0o2755)
    os.utime(source / "d" / "f", ns=(5, 7))


def copied(source: Path, target: Path, later_ns: int = 0) -> None:
    target.mkdir()
    copies = Copies(source, target)
    for name in reversed(copies.others):
        copies.make(name)
    copies.settle(ME, later_ns)


def test_everything_is_copied(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    fill(source)
    copied(source, tmp_path / "target")
    assert snapshot(tmp_path / "target", ME) == snapshot(source, ME)
    assert stat.S_IMODE((tmp_path / "target" / "d" / "f").stat().st_mode) == 0o4750


def test_times_can_be_moved(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    fill(source)
    copied(source, tmp_path / "target", later_ns=100)
    assert (tmp_path / "target" / "d" / "f").stat().st_mtime_ns == 107


def test_no_source_is_an_empty_copy(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    copies = Copies(None, tmp_path / "target")
    copies.settle(ME, 0)
    assert copies.others == [] and not list((tmp_path / "target").iterdir())


def test_what_cannot_be_read_is_the_users_to_mend(tmp_path: Path) -> None:
    (tmp_path / "target").mkdir()
    with pytest.raises(UserError):
        Copies(tmp_path / "missing", tmp_path / "target")


def test_sockets_and_fifos_are_copied(tmp_path: Path) -> None:
    """A server that is killed leaves its socket in the work directory."""
    tree = tmp_path / "tree"
    tree.mkdir()
    os.mkfifo(tree / "fifo", 0o640)
    (tree / "file").write_text("content")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tree / "socket"))
    shutil.copytree(tree, tmp_path / "copy", copy_function=copy_file)
    for name in ("fifo", "socket", "file"):
        ours, theirs = (os.lstat(top / name) for top in (tmp_path / "copy", tree))
        assert (ours.st_mode, ours.st_mtime_ns) == (theirs.st_mode, theirs.st_mtime_ns)
    assert (tmp_path / "copy" / "file").read_text() == "content"
