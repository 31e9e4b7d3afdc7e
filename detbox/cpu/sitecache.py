"""Remembers on disk which sites an ELF file has and what can be moved around them.

Each library is scanned once per user, not per run.

The key is the content (XXH3 reads some 10 GB/s from the page cache), not the build id: tools that edit a file
in place keep its id.  The cache is never needed: whatever is wrong with it, from a damaged entry to a full
disk, the file is scanned again.  Entries are written to a temporary name and renamed, so a killed run leaves
none that is half written.
"""

from __future__ import annotations

import contextlib
import mmap
import os
from collections.abc import Callable, Sequence
from typing import TypeVar

import xxhash

from detbox.cpu import entries
from detbox.cpu.elf import NotElf
from detbox.cpu.sites import SCANNER_VERSION, Site, find_sites
from detbox.cpu.trampoline import PLANNER_VERSION, Displacement, displacements

_Row = TypeVar("_Row", Site, Displacement)


class SiteCache:
    """What is known about files, from the cache in ``directory`` or by scanning; None: scanning only."""

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._directory = directory

    def sites(self, fd: int) -> list[Site]:
        """The sites of the file that ``fd`` is open on for reading; none if it is not an ELF64 x86-64 file.

        Raises OSError if the file cannot be read.
        """
        return self._look_up(fd, f"v{SCANNER_VERSION}", find_sites, Site)

    def displacements(self, fd: int) -> list[Displacement]:
        """What can be moved in the file to make room for jumps to trampolines; otherwise as :meth:`sites`."""
        return self._look_up(fd, f"v{SCANNER_VERSION}.{PLANNER_VERSION}-moves", _plan, Displacement)

    def _look_up(
        self, fd: int, version: str, find: Callable[[mmap.mmap], list[_Row]], row: type[_Row]
    ) -> list[_Row]:
        size = os.fstat(fd).st_size
        if size < 64 or os.pread(fd, 4, 0) != b"\x7fELF":
            return []
        with mmap.mmap(fd, size, access=mmap.ACCESS_READ) as data:
            path = self._path(version, data)
            found = _load(path, row) if path else None
            if found is None:
                try:
                    found = find(data)
                except NotElf:
                    found = []
                if path:
                    with contextlib.suppress(OSError):
                        _store(path, found)
            return found

    def _path(self, version: str, data: mmap.mmap) -> str | None:
        if self._directory is None:
            return None
        digest = xxhash.xxh3_128_hexdigest(data)
        return os.path.join(self._directory, version, digest[:2], f"{digest[2:]}-{len(data)}")


def _plan(data: mmap.mmap) -> list[Displacement]:
    return displacements(data, find_sites(data))


def _load(path: str, row: type[_Row]) -> list[_Row] | None:
    """The entry's rows, or None if there is no whole and unchanged entry."""
    try:
        with open(path, "rb") as file:
            return entries.decoded(file.read(), row)
    except OSError:
        return None


def _store(path: str, found: Sequence[Site | Displacement]) -> None:
    parent, name = os.path.split(path)
    os.makedirs(parent, mode=0o700, exist_ok=True)
    directory = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        entries.store(name, entries.encoded(found), directory)
    finally:
        os.close(directory)
