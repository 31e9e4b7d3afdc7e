"""The index by inode gives what was noted, and nothing for a file that is, or may be, another one."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from detbox.cpu.siteindex import SiteIndex
from detbox.cpu.sites import Site
from detbox.cpu.trampoline import Displacement

SITES = [Site(4096, 2, "cpuid", 0x401000), Site(5000, 3, "xgetbv", 0x401388, 0.9)]


def settled(path: Path) -> os.stat_result:
    """As if the file had been there for an hour."""
    path.write_bytes(b"\x7fELF")
    st = os.stat(path)
    fields = list(st)
    past = time.time_ns() - 3600 * 10**9
    return os.stat_result(fields, {"st_mtime_ns": past, "st_ctime_ns": past})


def test_what_was_noted_is_found(tmp_path: Path) -> None:
    st = settled(tmp_path / "file")
    assert SiteIndex(tmp_path).find(st, Site) is None
    SiteIndex(tmp_path).note(st, Site, SITES)
    SiteIndex(tmp_path).note(st, Displacement, [])
    assert SiteIndex(tmp_path).find(st, Site) == SITES
    assert SiteIndex(tmp_path).find(st, Displacement) == []
    os.utime(tmp_path / "file", ns=(0, 0))
    assert SiteIndex(tmp_path).find(os.stat(tmp_path / "file"), Site) is None


def test_a_file_that_has_just_changed_is_not_noted(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"\x7fELF")
    st = os.stat(tmp_path / "file")
    SiteIndex(tmp_path).note(st, Site, SITES)
    assert SiteIndex(tmp_path).find(st, Site) is None


@pytest.mark.parametrize("damage", [b"", b"x", b"0123456789abcdef\n[[1,2,3]]"])
def test_a_damaged_entry_is_a_miss(tmp_path: Path, damage: bytes) -> None:
    st = settled(tmp_path / "file")
    SiteIndex(tmp_path).note(st, Site, SITES)
    (entry,) = (tmp_path / "inodes").iterdir()
    entry.write_bytes(damage)
    assert SiteIndex(tmp_path).find(st, Site) is None


@pytest.mark.parametrize("directory", [None, Path("/proc/nowhere")])
def test_without_a_directory_nothing_is_noted(tmp_path: Path, directory: Path | None) -> None:
    st = settled(tmp_path / "file")
    index = SiteIndex(directory)
    index.note(st, Site, SITES)
    assert index.find(st, Site) is None
