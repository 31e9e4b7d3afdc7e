"""The store: blobs are verified, results come back newest first, damage is a miss, and it stays small."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import time
from pathlib import Path

import pytest

from detbox.cache import gc
from detbox.cache.key import engine
from detbox.cache.store import FORMAT, Store


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
    store.log_run({"result": "miss", "saved": 0})
    store.log_run({"result": "hit", "saved": 1.5})
    assert [run["result"] for run in store.runs()] == ["hit", "miss"]
    assert store.counts() == {"runs: hit": 1, "runs: miss": 1, "seconds saved": 1.5}


def index_of(top: Path, number: int = 0) -> Path:
    return top / "cache" / f"v{FORMAT}" / f"index-{number}.sqlite"


def test_a_damaged_index_is_set_aside(tmp_path: Path) -> None:
    first = Store(str(tmp_path / "cache"))
    digest = first.put_bytes(b"content")
    first.publish("key", b"manifest", [digest])
    first.close()
    index_of(tmp_path).write_bytes(b"this is no data base" * 1000)
    second = Store(str(tmp_path / "cache"))
    assert "set aside" in second.trouble
    assert second.candidates("key") == []
    assert second.publish("key", b"manifest", [digest])
    second.close()
    third = Store(str(tmp_path / "cache"))
    assert third.trouble == ""
    assert third.candidates("key") == [b"manifest"]
    assert third.open_blob(digest) == b"content"


def test_an_index_that_turns_out_to_be_damaged(tmp_path: Path) -> None:
    """Found in the middle of a run, when the store cannot be opened again."""
    first = Store(str(tmp_path / "cache"))
    first.publish("key", b"manifest" * 10000, [])
    first.close()
    second = Store(str(tmp_path / "cache"))
    data = bytearray(index_of(tmp_path).read_bytes())
    for page in range(4096, len(data), 4096):
        data[page : page + 64] = bytes(64)
    index_of(tmp_path).write_bytes(data)
    assert second.candidates("key") == []
    assert not second.publish("key", b"manifest", [])
    second.close()
    third = Store(str(tmp_path / "cache"))
    assert third.publish("key", b"manifest", [])
    assert third.candidates("key") == [b"manifest"]


@pytest.mark.parametrize("damage", ["flip", "truncate"])
def test_what_is_damaged_is_missing_and_never_wrong(tmp_path: Path, damage: str) -> None:
    """In every kind of file, at random places: what comes back is what was kept, or nothing."""
    manifests = {b"manifest %d" % number + b"x" * 500 for number in range(8)}
    blobs = {hashlib.sha256(data).hexdigest(): data for data in (b"blob %d" % number * 50 for number in range(8))}
    pristine = tmp_path / "cache"
    store = Store(str(pristine))
    for manifest, data in zip(sorted(manifests), blobs.values(), strict=True):
        store.publish("key", manifest, [store.put_bytes(data)])
    store.set_hint("hint", b"note")
    store.log_run({"result": "miss", "saved": 1})
    names = sorted(str(path.relative_to(pristine)) for path in pristine.rglob("*") if path.is_file())
    assert {Path(name).suffix for name in names} == {"", ".sqlite", ".sqlite-wal", ".sqlite-shm"}
    chance = random.Random(5)
    for turn in range(120):
        copy = tmp_path / "copy"
        shutil.copytree(pristine, copy)
        victim = copy / (names[turn % len(names)] if turn % 2 else chance.choice([n for n in names if "sqlite" in n]))
        spoil(victim, damage, chance)
        found = Store(str(copy))
        assert set(found.candidates("key")) <= manifests
        for digest, data in blobs.items():
            assert found.open_blob(digest) in (None, data)
        assert found.hint("hint") in (None, b"note")
        assert all(run["result"] == "miss" for run in found.runs())
        gc.check(found)
        found.close()
        again = Store(str(copy))
        digest = again.put_bytes(b"blob 0" * 50)
        assert again.publish("key", b"another", [digest]), again.trouble
        assert b"another" in again.candidates("key") and again.open_blob(digest) == b"blob 0" * 50
        again.close()
        shutil.rmtree(copy)
    store.close()


def spoil(path: Path, damage: str, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    if damage == "truncate" or not data:
        path.write_bytes(data[: chance.randrange(len(data) or 1)])
        return
    for _ in range(chance.choice((1, 1, 8))):
        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)


def test_other_formats_are_left_alone(tmp_path: Path) -> None:
    for name in ("v1", "v99"):
        (tmp_path / "cache" / name).mkdir(parents=True)
        (tmp_path / "cache" / name / "index.sqlite").write_bytes(b"of another version")
    store = Store(str(tmp_path / "cache"))
    store.publish("key", b"manifest", [])
    assert store.other_formats() == ["v1", "v99"]
    gc.collect(store, 0)
    assert (tmp_path / "cache" / "v99" / "index.sqlite").read_bytes() == b"of another version"


def test_an_index_of_another_version_is_set_aside(tmp_path: Path) -> None:
    Store(str(tmp_path / "cache")).close()
    data = sqlite3.connect(index_of(tmp_path))
    data.execute("pragma user_version = 77")
    data.close()
    store = Store(str(tmp_path / "cache"))
    assert "set aside" in store.trouble
    assert store.publish("key", b"manifest", [])
    assert index_of(tmp_path, 1).exists()


def test_the_store_can_be_carried_through_a_fork(store: Store) -> None:
    store.publish("key", b"manifest", [])
    store.rest()
    pid = os.fork()
    if pid == 0:
        inside = Store(store.directory)
        inside.publish("key", b"from the child", [])
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    assert store.candidates("key") == [b"from the child", b"manifest"]


# -- keeping it small ----------------------------------------------------------------------


def age(store: Store, key: str, seconds: float) -> None:
    """As if a result had been made and used so long ago."""
    then = time.time() - seconds
    store._index.write(("update results set used = ?, made = ? where key = ?", (then, then, key)))
    for entry in store.entries():
        if entry.key == key:
            for digest in entry.blobs:
                os.utime(Path(store.directory) / f"v{FORMAT}" / digest[:2] / digest[2:], (then, then))


def filled(store: Store) -> dict[str, str]:
    digests = {}
    for number in range(6):
        digests[f"k{number}"] = store.put_bytes(bytes([number]) * 1000)
        store.publish(f"k{number}", b"manifest %d" % number, [digests[f"k{number}"]])
        age(store, f"k{number}", 7200 - number)
    return digests


def test_what_was_used_least_recently_goes_first(store: Store) -> None:
    digests = filled(store)
    store.use(["k0"])
    gc.collect(store, max_bytes=3100)
    assert {entry.key for entry in store.entries()} == {"k0", "k4", "k5"}
    assert [key for key, digest in digests.items() if store.has(digest)] == ["k0", "k4", "k5"]


def test_what_is_old_goes(store: Store) -> None:
    filled(store)
    age(store, "k3", 40 * 86400)
    assert gc.collect(store, max_age_s=30 * 86400)["results removed"] == 1
    assert "k3" not in {entry.key for entry in store.entries()}


def test_a_blob_that_somebody_is_about_to_publish_stays(store: Store) -> None:
    digests = filled(store)
    fresh = store.put_bytes(b"not yet published")
    store.put_bytes(bytes([1]) * 1000)  # is there, and will be part of another result
    gc.collect(store, max_bytes=0)
    assert store.has(fresh) and store.has(digests["k1"]) and not store.has(digests["k2"])


def test_a_shared_blob_stays_with_its_last_result(store: Store) -> None:
    digest = store.put_bytes(b"both")
    for key in ("a", "b"):
        store.publish(key, b"manifest", [digest])
    age(store, "a", 7200)
    gc.collect(store, max_age_s=3600)
    assert store.open_blob(digest) == b"both"


def test_the_limit_is_kept_after_publishing(store: Store) -> None:
    for number in range(40):
        store.publish(f"k{number}", b"m", [store.put_bytes(os.urandom(1000))])
        gc.keep_small(store, 20_000)
    totals = store.totals()
    assert totals["blob bytes"] <= 21_000
    assert store.candidates("k39") and not store.candidates("k0")


def test_check_removes_what_is_damaged(store: Store) -> None:
    digests = filled(store)
    place = Path(store.directory) / f"v{FORMAT}" / digests["k2"][:2] / digests["k2"][2:]
    place.write_bytes(b"other")
    report = gc.check(store)
    assert [problem.split(":")[0] for problem in report["problems"]] == [f"blob {digests['k2']}", "result k2"]
    assert gc.check(store)["problems"] == []
    assert "k2" not in {entry.key for entry in store.entries()}


def test_leftovers_of_a_killed_process_go(store: Store) -> None:
    leftover = Path(store.directory) / f"v{FORMAT}" / "tmp" / "1-abc"
    leftover.write_bytes(b"half")
    gc.collect(store)
    assert leftover.exists()
    os.utime(leftover, (1, 1))
    gc.collect(store)
    assert not leftover.exists()


def test_files_are_cloned_where_that_is_possible(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cloned(target: int, source: int) -> bool:
        os.pwrite(target, (wrong and wrong.pop()) or os.pread(source, 1 << 21, 0), 0)
        return True

    wrong: list[bytes] = []
    monkeypatch.setattr("detbox.cache.blobs._cloned", cloned)
    content = b"content" * 200_000
    (tmp_path / "file").write_bytes(content)
    digest = store.put_file(str(tmp_path / "file"))
    assert store.open_blob(digest) == content
    for _ in ("right", "wrong"):
        with (tmp_path / "copy").open("w+b", buffering=0) as file:
            assert store.write_blob(digest, file.fileno())
        assert (tmp_path / "copy").read_bytes() == content
        wrong.append(b"something else, and longer" * 100_000)


def test_the_digest_of_the_engine_follows_its_files(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "engine" / "part" / "one.py"
    source.parent.mkdir(parents=True)
    source.write_text("1")
    os.utime(source, (0, 0))
    monkeypatch.setattr("detbox.__file__", str(tmp_path / "engine" / "__init__.py"))
    monkeypatch.setattr("detbox.cache.key.RACY_NS", -(10**12))
    first = engine(store)
    assert engine(store) == first
    source.write_text("2")
    second = engine(store)
    assert second != first
    source.write_text("1")
    assert engine(store) == first
