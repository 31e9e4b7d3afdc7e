"""Guest memory through /proc/TID/mem, which also writes to read-only (code) pages."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence

from detbox.cpu.edits import Edit


def peek(tid: int, address: int, length: int) -> bytes:
    """Read ``length`` bytes of a stopped thread's memory; OSError if not all is mapped."""
    fd = _open(tid)
    try:
        return _read(fd, address, length)
    finally:
        os.close(fd)


def poke(tid: int, address: int, data: bytes) -> None:
    """Write memory; a private copy of a read-only page is made (FOLL_FORCE)."""
    fd = _open(tid)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)


def apply(tid: int, edits: Sequence[Edit], base: int = 0) -> bool:
    """Make all edits, or none and return False if the memory is not what one of them expects.

    ``base``: what is added to their addresses.
    """
    fd = _open(tid)
    try:
        for edit in edits:
            if _read(fd, base + edit.address, len(edit.old)) != edit.old:
                return False
        for edit in edits:
            os.pwrite(fd, edit.new, base + edit.address)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _read(fd: int, address: int, length: int) -> bytes:
    data = os.pread(fd, length, address)
    if len(data) != length:
        raise OSError(errno.EFAULT, "short read of guest memory")
    return data


def _open(tid: int) -> int:
    return os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
