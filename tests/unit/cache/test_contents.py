"""Digests of inputs, remembered as long as the files are as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detbox.cache import facts
from detbox.cache.contents import Known
from detbox.cache.store import Store

OLD_S = 1_500_000_000
PATH = b"/work/in"


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "cache"))


def remembered(store: Store, st: os.stat_result) -> bool:
    """Whether the digest of a file with this status is known without a look at it: there is none."""
    return Known(store).content_of(PATH, b"/nowhere", st) is not None


def status(st: os.stat_result, **changes: int) -> os.stat_result:
    """Another status; the times of change are old."""
    values = {name: getattr(st, name) for name in dir(st) if name.startswith("st_")}
    values |= {"st_ctime_ns": OLD_S * 10**9, "st_mtime_ns": OLD_S * 10**9} | changes
    names = ("st_mode", "st_ino", "st_dev", "st_nlink", "st_uid", "st_gid", "st_size")
    first = [values.pop(name) for name in names]
    return os.stat_result(first + [OLD_S] * 3, values)


def test_what_lasts_is_remembered_also_in_an_overlay(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text("content")
    st = status(path.stat())
    known = Known(store)
    assert known.content_of(PATH, os.fsencode(path), st) == facts.digest_of(b"content")
    assert not remembered(store, st)  # until it is saved
    known.save()
    assert remembered(store, st)
    assert remembered(store, status(st, st_ino=st.st_ino | 1 << 63))
    for change in ({"st_size": 8}, {"st_mtime_ns": 1}, {"st_ctime_ns": 1}, {"st_ino": st.st_ino + 1}):
        assert not remembered(store, status(st, **change))


def test_what_has_just_been_changed_is_not(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "in"
    path.write_text("content")
    known = Known(store)
    known.content_of(PATH, os.fsencode(path), path.stat())
    known.save()
    assert not remembered(store, path.stat())
