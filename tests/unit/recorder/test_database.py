"""Traces as databases: kept for the next question, and made anew where that cannot be."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest

from detbox.recorder import database
from detbox.recorder.read import Trace
from tests.unit.recorder.test_trace import CALLS, record


def count(path: Path, kept: Path | None) -> int:
    trace = Trace(path)
    _, rows = database.query(database.opened(trace, kept), "SELECT count(*) FROM calls WHERE arguments <> ''")
    assert trace.complete
    number: int = rows[0][0]
    return number


def test_a_database_is_kept_and_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, kept = record(tmp_path / "t", CALLS), tmp_path / "kept"
    first = count(path, kept)
    assert first == count(path, None) > 0
    (name,) = os.listdir(kept)
    assert not name.startswith(".")
    monkeypatch.setattr(database, "_fill", None)
    assert count(path, kept) == first
    path.rename(tmp_path / "other")
    assert count(tmp_path / "other", kept) == first


@pytest.mark.parametrize("content", [b"", b"no database" * 100])
def test_a_damaged_database_is_made_anew(content: bytes, tmp_path: Path) -> None:
    path, kept = record(tmp_path / "t", CALLS), tmp_path / "kept"
    first = count(path, kept)
    (kept / os.listdir(kept)[0]).write_bytes(content)
    assert count(path, kept) == first == count(path, kept)


def test_a_trace_that_is_not_whole_is_not_kept(tmp_path: Path) -> None:
    trace = Trace(record(tmp_path / "t", CALLS, close=False))
    database.opened(trace, tmp_path / "kept")
    assert not trace.complete and not os.listdir(tmp_path / "kept")


def test_no_place_to_keep_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = record(tmp_path / "t", CALLS)
    assert count(path, Path("/proc/nowhere")) == count(path, None)

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(os, "rename", full)
    assert count(path, tmp_path / "kept") == count(path, None)
    assert not os.listdir(tmp_path / "kept")


def test_what_was_not_used_for_longest_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept"
    for place in range(3):
        count(record(tmp_path / f"t{place}", CALLS * (place + 1)), kept)
        newest = max(os.scandir(kept), key=lambda entry: entry.stat().st_mtime_ns)
        os.utime(newest, (place, place))
        monkeypatch.setattr(database, "MOST_BYTES", 2 * newest.stat().st_size + 1)
    oldest, *_ = sorted(os.scandir(kept), key=lambda entry: entry.stat().st_mtime_ns)
    assert (len(os.listdir(kept)), oldest.stat().st_mtime) == (2, 1)
