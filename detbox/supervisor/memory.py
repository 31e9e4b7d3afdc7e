"""Guest memory through /proc/TID/mem, which also writes to read-only (code) pages."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from detbox.kernel import _native

if TYPE_CHECKING:
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


def apply(tid: int, edits: list[Edit], base: int = 0) -> bool:
    """Make all edits, or none and return False if the memory is not what one of them expects.

    ``base``: what is added to their addresses.
    """
    try:
        return _native.exchange(tid, edits, base)
    except OSError:
        return False


def _read(fd: int, address: int, length: int) -> bytes:
    data = os.pread(fd, length, address)
    if len(data) != length:
        raise OSError(errno.EFAULT, "short read of guest memory")
    return data


def _open(tid: int) -> int:
    return os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
