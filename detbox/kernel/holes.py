"""Holes of files, found by content: a page of zeros counts as one wherever the file system has left something out."""

from __future__ import annotations

import errno
import os

PAGE = 4096
CHUNK = 1 << 20
ZEROS = bytes(CHUNK)
_ZERO_PAGE = bytes(PAGE)


def missing_blocks(fd: int) -> int:
    """How many blocks (of 512 bytes) a regular file lacks, as its pages of zeros; 0 if it has been written in full.

    Whether something was left out is asked of the file system (lseek(2), SEEK_HOLE), what counts then is the content:
    how much is allocated at a time differs between file systems.  But a last page that has been written is one, even
    if it is nothing but a zero.  Raises OSError.
    """
    size = os.fstat(fd).st_size
    if not size or os.lseek(fd, 0, os.SEEK_HOLE) >= size:
        return 0
    present, end, at, data = 0, 0, 0, b""
    while end < size:
        try:
            first = os.lseek(fd, end, os.SEEK_DATA)
        except OSError as error:
            if error.errno == errno.ENXIO:
                break  # a hole up to the end
            raise
        start, end = first // PAGE * PAGE, -(-os.lseek(fd, first, os.SEEK_HOLE) // PAGE) * PAGE
        for at in range(start, end, CHUNK):
            data = os.pread(fd, min(CHUNK, end - at), at)
            present += _pages_with_data(data)
    if end >= size and not any(data[(size - 1) // PAGE * PAGE - at :]):
        present += 1
    return (-(-size // PAGE) - present) * (PAGE // 512)


def _pages_with_data(data: bytes) -> int:
    if data == ZEROS[: len(data)]:
        return 0
    pages = (data[at : at + PAGE] for at in range(0, len(data), PAGE))
    return sum(page != _ZERO_PAGE[: len(page)] for page in pages)


def seek(fd: int, offset: int, *, data: bool) -> int:
    """Where the next data (or hole) at or after ``offset`` begins; -1 if there is none.  Raises OSError."""
    size = os.fstat(fd).st_size
    if offset >= size:
        return -1
    start = offset
    while offset < size:
        try:
            extent = os.lseek(fd, offset, os.SEEK_DATA)
        except OSError as e:
            if e.errno != errno.ENXIO:
                raise
            extent = size  # nothing but a hole up to the end
        if extent > offset:
            hole = -(-offset // PAGE) * PAGE  # whole pages only; the file system's blocks may be smaller
            if hole + PAGE <= extent or extent == size:
                if not data:
                    return max(start, min(hole, size)) if offset > start else start
                offset = extent // PAGE * PAGE if extent < size else size
                continue
        found = _scan(fd, offset, size, data)
        if found[1]:
            return max(start, found[0])
        offset = found[0]
    return -1 if data else size


def _scan(fd: int, offset: int, size: int, data: bool) -> tuple[int, bool]:
    """Look through one chunk.  ``(position, found)``."""
    base = offset // PAGE * PAGE
    chunk = os.pread(fd, CHUNK, base)
    if not chunk:
        return size, False
    for at in range(0, len(chunk), PAGE):
        page = chunk[at : at + PAGE]
        if (page != _ZERO_PAGE[: len(page)]) == data:
            return base + at, True
    return min(base + len(chunk), size), False
