"""Holes of files, found by content: a page of zeros counts as one wherever the file system has left something out."""

from __future__ import annotations

import errno
import os

PAGE = 4096
CHUNK = 1 << 20
_ZEROS = bytes(CHUNK)


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
    if data == _ZEROS[: len(data)]:
        return 0
    pages = (data[at : at + PAGE] for at in range(0, len(data), PAGE))
    return sum(page != _ZEROS[: len(page)] for page in pages)
