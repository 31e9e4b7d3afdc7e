"""Guest memory through /proc/TID/mem, which also writes to read-only (code) pages."""

from __future__ import annotations

import os


def peek(tid: int, address: int, length: int) -> bytes:
    """Read ``length`` bytes of a stopped thread's memory; OSError if not all is mapped."""
    fd = _open(tid)
    try:
        data = os.pread(fd, length, address)
    finally:
        os.close(fd)
    if len(data) != length:
        raise OSError(14, "short read of guest memory")
    return data


def poke(tid: int, address: int, data: bytes) -> None:
    """Write memory; a private copy of a read-only page is made (FOLL_FORCE)."""
    fd = _open(tid)
    try:
        os.pwrite(fd, data, address)
    finally:
        os.close(fd)


def _open(tid: int) -> int:
    return os.open(f"/proc/{tid}/mem", os.O_RDWR | os.O_CLOEXEC)
