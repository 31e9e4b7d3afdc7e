"""The store: blobs are verified, results come back newest first, and a store survives a change of root."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbox.cache.store import Store


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


def test_a_blob_comes_back(store: Store, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"content")
    digest = store.put_bytes(b"content")
    assert store.put_file(str(tmp_path / "file")) == digest
    assert store.open_blob(digest) == b"content"


def test_a_damaged_blob_is_missing(store: Store, tmp_path: Path) -> None:
    digest = store.put_bytes(b"content")
    place = next((tmp_path / "cache").rglob(digest[2:]))
    place.write_bytes(b"c0ntent")
    assert store.open_blob(digest) is None
    assert store.put_bytes(b"content") == digest
    assert store.open_blob(digest) == b"content"


def test_results_come_newest_first(store: Store) -> None:
    for manifest in (b"one", b"two", b"one"):
        store.publish("key", manifest, [])
    assert store.candidates("key") == [b"one", b"two"]
    assert store.candidates("other") == []


def test_nothing_temporary_stays(store: Store, tmp_path: Path) -> None:
    store.put_bytes(b"content")
    with pytest.raises(FileNotFoundError):
        store.put_file(str(tmp_path / "missing"))
    assert not list((tmp_path / "cache").glob("*/tmp/*"))


def test_runs_are_remembered(store: Store) -> None:
    store.log_run({"result": "miss"})
    store.log_run({"result": "hit"})
    assert [run["result"] for run in store.runs()] == ["hit", "miss"]
