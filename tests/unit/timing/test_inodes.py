"""Virtual inodes without a name: forgotten when nobody can see them any more, and not before."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.machine import inodes as module
from detbox.machine.inodes import S_IFIFO, InodeTable
from detbox.supervisor.reachable import reachable

_PIPES = 7  # a device


@pytest.fixture
def table(monkeypatch: pytest.MonkeyPatch) -> InodeTable:
    monkeypatch.setattr(module, "_NAMELESS", 10)
    made = InodeTable(0, lambda: 0)
    made._most_nameless = 10
    made.pipe_dev = _PIPES
    return made


def _pass_by(table: InodeTable, count: int) -> None:
    for number in range(1000, 1000 + count):
        table.find((_PIPES, number), S_IFIFO)


def test_what_is_open_keeps_its_number(table: InodeTable) -> None:
    table.reachable = lambda: ({(_PIPES, 1)}, 0)
    first, closed = table.find((_PIPES, 1), S_IFIFO), table.find((_PIPES, 2), S_IFIFO)
    _pass_by(table, 100)
    assert table.find((_PIPES, 1), S_IFIFO) is first
    assert table.known_as((_PIPES, 2), S_IFIFO) is not closed
    assert len(table._nameless) <= 12


def test_nothing_is_forgotten_while_it_is_unclear(table: InodeTable) -> None:
    table.reachable = lambda: (None, 0)
    first = table.find((_PIPES, 1), S_IFIFO)
    _pass_by(table, 100)
    assert table.find((_PIPES, 1), S_IFIFO) is first


@pytest.mark.parametrize(("open_files", "looks"), [(0, 0), (500, 0), (0, 500)])
def test_each_costs_little(table: InodeTable, open_files: int, looks: int) -> None:
    asked: list[int] = []

    def found() -> tuple[set[tuple[int, int]], int]:
        asked.append(1)
        return {(_PIPES, number) for number in range(1000, 1000 + open_files)}, looks

    table.reachable = found
    _pass_by(table, 2000)
    assert len(asked) <= 10 + 2000 // max(10, open_files, looks)


def _proc(top: Path, about_socket: str) -> Any:
    """A procfs with one process of two threads, the second of which has a file and a socket open."""
    for tid in ("5", "6"):
        (top / "5" / "task" / tid / "fd").mkdir(parents=True)
        (top / "5" / "task" / tid / "fdinfo").mkdir()
    (top / "file").write_text("")
    (top / "exe").write_text("")
    other = top / "5" / "task" / "6"
    (other / "exe").symlink_to(top / "exe")
    (other / "fd" / "0").symlink_to(top / "file")
    os.mknod(top / "socket", 0o140600)
    (other / "fd" / "3").symlink_to(top / "socket")
    (other / "fdinfo" / "3").write_text(f"pos:\t0\n{about_socket}")
    return SimpleNamespace(proc_fd=os.open(top, os.O_PATH), processes={})


def _key(path: Path) -> tuple[int, int]:
    return path.stat().st_dev, path.stat().st_ino


def test_files_of_every_thread_count(tmp_path: Path) -> None:
    found, looks = reachable(_proc(tmp_path, "scm_fds: 0\n"))
    assert found == {_key(tmp_path / name) for name in ("file", "exe", "socket")}
    assert looks == 2 * 3 + 2


def test_a_descriptor_in_a_message_may_be_anything(tmp_path: Path) -> None:
    assert reachable(_proc(tmp_path, "scm_fds: 1\n"))[0] is None


def test_a_mount_of_something_removed(tmp_path: Path) -> None:
    m = _proc(tmp_path, "")
    (tmp_path / "5" / "mountinfo").write_text("60 50 8:1 /d//deleted /mnt rw - ext4 /dev/sda rw\n")
    m.processes[5] = SimpleNamespace(namespaces=False)
    assert reachable(m)[0] is not None
    m.processes[5].namespaces = True
    assert reachable(m)[0] is None
