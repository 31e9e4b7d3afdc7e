"""Segments of memory (kernel/vectors.c): read, added up, gathered and filled; a process may do that to itself."""

from __future__ import annotations

import ctypes
import errno
import os
import struct

import pytest

from detbox.kernel import _native

ME = os.getpid()
NOWHERE = 4096


def memory(data: bytes) -> tuple[ctypes.Array[ctypes.c_char], int]:
    held = ctypes.create_string_buffer(data, len(data))
    return held, ctypes.addressof(held)


def test_segments_are_read() -> None:
    held, at = memory(struct.pack("<4Q", 1 << 63, 5, 7, 0))
    assert _native.read_segments(ME, at, 2) == [(1 << 63, 5), (7, 0)]
    assert _native.read_segments(ME, NOWHERE, 0) == []


@pytest.mark.parametrize(("length", "count", "error"), [(1 << 63, 1, errno.EINVAL), (1, 1025, errno.EINVAL)])
def test_what_cannot_be_is_refused(length: int, count: int, error: int) -> None:
    held, at = memory(struct.pack("<2Q", 0, length))
    with pytest.raises(OSError) as caught:
        _native.read_segments(ME, at, count)
    assert caught.value.errno == error
    with pytest.raises(OSError) as caught:
        _native.read_segments(ME, NOWHERE, 1)
    assert caught.value.errno == errno.EFAULT


def test_the_sum_ends_where_the_kernel_ends_it() -> None:
    assert _native.total([(0, 3), (9, 0), (9, 4)], 100) == 7
    assert _native.total([(0, (1 << 64) - 1)] * 3, 100) == 100
    assert _native.total([], 100) == 0


@pytest.mark.parametrize("many", [3, 1024, 2500])
def test_data_is_gathered_and_scattered(many: int) -> None:
    data = bytes(index % 251 for index in range(3 * many))
    held, at = memory(data)
    # Backwards, two bytes of each three, and an empty one behind each.
    segments = [pair for index in reversed(range(many)) for pair in ((at + 3 * index, 2), (NOWHERE, 0))]
    whole = b"".join(data[3 * index : 3 * index + 2] for index in reversed(range(many)))
    for skip, limit in ((0, 2 * many), (0, 1 << 40), (3, 2), (5, 1 << 40), (2 * many, 9), (2 * many + 1, 9), (0, 0)):
        assert _native.gather(ME, segments, skip, limit) == whole[skip : skip + limit]
    _native.scatter(ME, segments, 1, b"abc")
    assert held.raw[3 * many - 3 :] == bytes((data[3 * many - 3], ord("a"), data[3 * many - 1]))
    assert held.raw[3 * many - 6 : 3 * many - 4] == b"bc"
    _native.scatter(ME, segments, 0, memoryview(bytes(9 * many)))
    assert _native.gather(ME, segments, 0, 2 * many) == bytes(2 * many)


def test_memory_that_is_not_there() -> None:
    held, at = memory(b"abcd")
    segments = [(at, 2), (NOWHERE, 2)]
    assert _native.gather(ME, segments, 0, 2) == b"ab"
    for call in (lambda: _native.gather(ME, segments, 0, 3), lambda: _native.scatter(ME, segments, 0, b"xyz")):
        with pytest.raises(OSError) as caught:
            call()
        assert caught.value.errno == errno.EFAULT
    assert held.raw == b"xycd", "what came before has been written"
