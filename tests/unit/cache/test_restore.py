"""Putting a result in place: all of it or nothing."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from detbox.cache.restore import Restore, remove_leftovers
from detbox.cache.store import Store


def file_of(store: Store, path: str, text: bytes, **more: Any) -> dict[str, Any]:
    blob = store.put_bytes(text)
    return {"path": path, "do": "file", "was": "-", "mode": 0o640, "times": [5, 7], "blob": blob, **more}


@pytest.fixture
def work(tmp_path: Path) -> Path:
    work = tmp_path / "work"
    work.mkdir()
    (work / "old").write_text("old")
    return work


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


def restore(work: Path, store: Store, changes: list[dict[str, Any]]) -> bool:
    return Restore(changes, lambda path: os.fsencode(work) + path[len(b"/work") :], str(work)).carry_out(store)


def test_files_directories_and_links(work: Path, store: Store) -> None:
    directory = {"path": "/work/d", "do": "directory", "was": "-", "mode": 0o500, "times": [1, 2]}
    second = {"path": "/work/d/g", "do": "link", "was": "-", "to": "/work/d/f"}
    gone = {"path": "/work/old", "do": "remove", "was": "f"}
    assert restore(work, store, [directory, file_of(store, "/work/d/f", b"new"), second, gone])
    assert sorted(os.listdir(work)) == ["d"]
    assert (work / "d/f").stat().st_mtime_ns == 7 and (work / "d/g").samefile(work / "d/f")
    assert (work / "d").stat().st_mtime_ns == 2 and (work / "d").stat().st_mode & 0o7777 == 0o500


def test_a_missing_blob_changes_nothing(work: Path, store: Store) -> None:
    lost = {**file_of(store, "/work/b", b"x"), "blob": "0" * 64}
    assert not restore(work, store, [file_of(store, "/work/a", b"new"), lost])
    assert os.listdir(work) == ["old"]


def test_what_fails_in_the_middle_is_undone(work: Path, store: Store) -> None:
    before = work.stat().st_mtime_ns
    missing_directory = file_of(store, "/work/none/f", b"x")
    changed = file_of(store, "/work/old", b"new", was="f")
    assert not restore(work, store, [changed, missing_directory])
    assert (work / "old").read_text() == "old" and os.listdir(work) == ["old"]
    assert work.stat().st_mtime_ns == before


def test_a_user_link_is_not_written_through(work: Path, store: Store) -> None:
    os.link(work / "old", work / "other")
    assert restore(work, store, [file_of(store, "/work/old", b"new", was="f")])
    assert (work / "other").read_text() == "old"


def test_a_directory_in_a_files_place(work: Path, store: Store) -> None:
    directory = {"path": "/work/old", "do": "directory", "was": "f", "mode": 0o755, "times": [1, 2]}
    assert restore(work, store, [directory, file_of(store, "/work/old/x", b"y")])
    assert (work / "old/x").read_text() == "y"


@pytest.mark.parametrize("steps", range(8))
def test_who_is_killed_in_the_middle_leaves_old_or_new(work: Path, store: Store, steps: int) -> None:
    for number in range(3):
        (work / f"f{number}").write_text("old")
    changes = [file_of(store, f"/work/f{number}", b"new", was="f") for number in range(3)]
    pid = os.fork()
    if pid == 0:
        left = steps
        plain = os.rename

        def rename(*names: Any) -> None:
            nonlocal left
            left -= 1
            if left < 0:
                os._exit(9)
            plain(*names)

        os.rename = rename  # type: ignore[assignment]
        restore(work, store, changes)
        os._exit(0)
    os.waitpid(pid, 0)
    assert {(work / f"f{number}").read_text() for number in range(3)} <= {"old", "new"}
    remove_leftovers(str(work))
    assert sorted(os.listdir(work)) == ["f0", "f1", "f2", "old"]
    assert restore(work, store, changes) and (work / "f0").read_text() == "new"


def test_an_interrupt_in_the_middle_is_undone(
    work: Path, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = os.rename
    changes = [file_of(store, "/work/old", b"new", was="f"), file_of(store, "/work/more", b"more")]

    def rename(source: bytes, target: bytes) -> None:
        if target.endswith(b"more"):
            raise KeyboardInterrupt
        plain(source, target)

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(KeyboardInterrupt):
        restore(work, store, changes)
    assert (work / "old").read_text() == "old" and os.listdir(work) == ["old"]
