"""The cache of sites gives what the scanner gives, whatever state it is in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detbox import values
from detbox.cpu import sitecache
from detbox.cpu.sites import find_sites

LOADER = Path("/lib64/ld-linux-x86-64.so.2")


def ask(cache: sitecache.SiteCache, path: Path) -> object:
    fd = os.open(path, os.O_RDONLY)
    try:
        return cache.sites(fd)
    finally:
        os.close(fd)


@pytest.fixture
def entry(tmp_path: Path) -> Path:
    ask(sitecache.SiteCache(tmp_path), LOADER)
    (found,) = (path for path in tmp_path.rglob("*") if path.is_file())
    return found


def test_a_hit_does_not_scan(tmp_path: Path, entry: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = find_sites(LOADER.read_bytes())
    monkeypatch.setattr(sitecache, "find_sites", lambda data: pytest.fail("scanned"))
    assert ask(sitecache.SiteCache(tmp_path), LOADER) == expected
    copy = tmp_path / "copy"
    copy.write_bytes(LOADER.read_bytes())
    assert ask(sitecache.SiteCache(tmp_path), copy) == expected


@pytest.mark.parametrize("damage", [b"", b"x", b"\xff\n[]", b"0123456789abcdef\n[[1,2,3]]"])
def test_a_damaged_entry_is_a_miss_and_is_mended(tmp_path: Path, entry: Path, damage: bytes) -> None:
    good = entry.read_bytes()
    entry.write_bytes(damage)
    assert ask(sitecache.SiteCache(tmp_path), LOADER) == find_sites(LOADER.read_bytes())
    assert entry.read_bytes() == good


def test_one_changed_byte_is_noticed(tmp_path: Path, entry: Path) -> None:
    good = entry.read_bytes()
    entry.write_bytes(good.replace(b"cpuid", b"rdtsc", 1))
    assert ask(sitecache.SiteCache(tmp_path), LOADER) == find_sites(LOADER.read_bytes())


def test_no_directory_and_no_permission() -> None:
    expected = find_sites(LOADER.read_bytes())
    assert ask(sitecache.SiteCache(None), LOADER) == expected
    assert ask(sitecache.SiteCache(Path("/proc/nowhere")), LOADER) == expected


@pytest.mark.parametrize("content", [b"", b"#!/bin/sh\n" * 20, b"\x7fELF" + bytes(200)])
def test_other_files_have_no_sites(tmp_path: Path, content: bytes) -> None:
    other = tmp_path / "other"
    other.write_bytes(content)
    assert ask(sitecache.SiteCache(tmp_path / "cache"), other) == []


def test_where_it_is() -> None:
    assert values.site_directory({b"XDG_CACHE_HOME": b"/c", b"HOME": b"/absent"}) == "/c/detbox/sites"
    assert values.site_directory({b"XDG_CACHE_HOME": b"relative", b"HOME": b"/tmp"}) == "/tmp/.cache/detbox/sites"
    assert values.site_directory({b"HOME": b"/absent"}) is None


def test_where_a_user_keeps_things() -> None:
    assert values.own_directory("data", {b"HOME": b"/h"}) == "/h/.local/share/detbox"
    assert values.own_directory("data", {b"HOME": b"/h", b"XDG_DATA_HOME": b"/d"}) == "/d/detbox"
    database = values.own_directory("cache", {})
    assert database.startswith("/") and database == values.own_directory("cache", {b"HOME": b""})
