"""Whether the facts of a stored result hold."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.cache import facts
from detbox.cache.check import Checker
from detbox.cache.manifest import Manifest
from detbox.cache.places import Places, Sources
from detbox.cache.store import Store


@pytest.fixture
def checker(tmp_path: Path) -> Checker:
    (tmp_path / "work").mkdir()
    sources = Sources(shown=(("/work", str(tmp_path / "work")),))
    return Checker(Places(sources), Store(str(tmp_path / "cache")))


def result(**rows: list[Any]) -> Manifest:
    """One with facts about files in /work."""
    return Manifest({f"/work/{name}": row for name, row in rows.items()}, {}, [], 0, "", [], {})


def fact(path: Path, content: bytes) -> list[Any]:
    """That of a file which is written now."""
    path.write_bytes(content)
    return [facts.kind_of(os.fsencode(path))[0], len(content), facts.digest_of(content)]


def test_what_did_not_hold_once_is_not_looked_at_again(checker: Checker, tmp_path: Path) -> None:
    work = tmp_path / "work"
    old, now, same = fact(work / "edited", b"old"), fact(work / "edited", b"new"), fact(work / "same", b"same")
    first = result(same=same, edited=old)
    assert not checker.is_known_wrong(first.to_bytes())
    assert checker.first_change(first) == "/work/edited: content"
    assert checker.is_known_wrong(first.to_bytes())
    assert checker.is_known_wrong(result(edited=old, gone=[facts.ABSENT]).to_bytes())
    right = result(same=same, edited=now, edited2=[facts.ABSENT])
    assert not checker.is_known_wrong(right.to_bytes())
    assert checker.first_change(right) is None


def test_files_of_read_only_file_systems_are_hashed_each_time(
    checker: Checker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "work" / "in"
    row, signature = fact(path, b"content"), list(facts.signature_of(path.stat()))
    monkeypatch.setattr("detbox.cache.check.is_lasting", lambda st: True)
    assert checker.finish({"/work/in": [row, None, signature]})[2] == {"/work/in": signature}
    flags = os.statvfs(path).f_flag | os.ST_RDONLY
    monkeypatch.setattr("os.statvfs", lambda path: SimpleNamespace(f_flag=flags))
    again = Checker(checker._places, checker._store)
    rows, _, hints, _ = again.finish({"/work/in": [[*row[:2], "wrong"], None, signature]})
    assert (rows, hints) == ({"/work/in": row}, {"/work/in": None})
