"""The kernel's listing of memory, read."""

from __future__ import annotations

import ctypes
import mmap
import os

import pytest

from detbox.kernel import mappings
from detbox.kernel.mappings import CODE, Mapping


def test_lines_are_read_whatever_the_name() -> None:
    lines = [
        b"00400000-00452000 r-xp 00001000 08:02 173521      /usr/bin/a name\rwith all \\012",
        b"7fff0000-7fff1000 rw-p 00000000 00:00 0                          [stack]",
        b"7ffff7ff0000-7ffff7ff1000 rw-s 00000000 00:00 0 ",
        b"",
    ]
    code, stack, shared = mappings.parse(lines)
    name = b"/usr/bin/a name\rwith all \\012"
    assert code == Mapping(0x400000, 0x452000, CODE, 0x1000, os.makedev(8, 2), 173521, name)
    assert [found.is_code for found in (code, stack, shared)] == [True, False, False]
    assert (stack.name, shared.name, shared.perms) == (b"[stack]", b"", b"rw-s")


def test_memory_without_a_name() -> None:
    trap = b"00400000-00452000 r-xp 00001000 08:02 173521".ljust(73) + b"/rw-p 00000000 00:00 0 "
    found, named = mappings.parse([b"7ffff7ff0000-7ffff7ff1000 ---p 00000000 00:00 0 ", trap])
    assert found == Mapping(0x7FFFF7FF0000, 0x7FFFF7FF1000, b"---p", 0, 0, 0, b"")
    assert (named.name, named.ino) == (trap[73:], 173521)


def test_a_place_is_found_below_what_is_mapped() -> None:
    occupied = [(10, 20), (50, 60), (24, 30), (60, 70), (95, 120)]
    assert mappings.place_below(occupied, 20, 70) == 30
    assert mappings.place_below(occupied, 20, 100) == 75
    assert mappings.place_below(occupied, 21, 94) is None, "the lowest range has nothing below it"
    assert mappings.place_below(occupied, 4, 30) == 20
    assert mappings.place_below([], 4, 30) is None


def test_own_memory_is_found_by_address() -> None:
    proc = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = mappings.mapping_at(proc, os.getpid(), id(mmap))
        assert found is not None
        assert found.start <= id(mmap) < found.end
        assert found.perms.startswith(b"rw")
        assert mappings.mapping_at(proc, os.getpid(), 0) is None
        every = [each for each in mappings.mappings(proc, os.getpid()) if each.is_code]
        for each in every:
            assert [mappings.mapping_at(proc, os.getpid(), place) for place in (each.start, each.end - 1)] == [each] * 2
            after = mappings.mapping_at(proc, os.getpid(), each.end)
            assert after is None or after.start == each.end
        assert every and mappings.mapping_at(proc, os.getpid(), 1 << 64) is None
    finally:
        os.close(proc)


def test_what_can_be_executed() -> None:
    fd = os.open("/proc", os.O_RDONLY)
    try:
        found = list(mappings.executable_mappings(fd, os.getpid()))
        assert found == [each for each in mappings.mappings(fd, os.getpid()) if each.perms[2:3] == b"x"] != []
    finally:
        os.close(fd)


def test_what_is_shared_is_told_alike_by_query_and_list() -> None:
    proc, me = os.open("/proc", os.O_RDONLY | os.O_DIRECTORY), os.getpid()
    try:
        with mmap.mmap(-1, 8192) as shared, mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE) as private:
            # The kernel lists the mappings of both by their addresses, which ctypes knows.
            places = [ctypes.addressof(ctypes.c_char.from_buffer(memory)) for memory in (shared, private)]
            told = [mappings.shared_at(proc, me, places[0] + 4100), mappings.shared_at(proc, me, places[1])]
            assert told == [mappings._shared_at(proc, me, places[0] + 4100), None]
            assert told[0] is not None and told[0][2] == 4100
        for look in (mappings.shared_at, mappings._shared_at):
            with pytest.raises(OSError, match="unmapped"):
                look(proc, me, 4096)
    finally:
        os.close(proc)
