"""Flushing to disk: the descriptors are checked, but nothing is flushed.

What a run leaves behind is taken over when it has ended; a crash of the machine before that loses the
run anyway.  So the only thing that a flush could add is real time.
"""

from __future__ import annotations

import os
from errno import EBADF, EINVAL, ESPIPE
from typing import TYPE_CHECKING

from detbox.decision import Decision
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from detbox.machine.files import OpenFile
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_STREAMS = (Kind.PIPE, Kind.SOCKET)
_ON_DISK = (Kind.REG, Kind.DIR, Kind.MEMFD)
_SYNC_FILE_RANGE_FLAGS = 7


def _file(m: Machine, t: Task, register: int) -> OpenFile:
    fd = register & 0xFFFFFFFF
    file = t.process.files.get(fd)
    # The table may remember a descriptor that has been closed since: the kernel knows.
    try:
        flags = _flags(m, t, fd)
    except FileNotFoundError:
        raise OSError(EBADF, os.strerror(EBADF)) from None
    if flags & os.O_PATH:
        raise OSError(EBADF, os.strerror(EBADF))
    return file


def _flags(m: Machine, t: Task, fd: int) -> int:
    info = os.open(f"{t.tid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        for line in os.read(info, 4096).splitlines():
            if line.startswith(b"flags:"):
                return int(line.split()[1], 8)
    finally:
        os.close(info)
    return 0


def fsync(m: Machine, t: Task, a: Args) -> Decision:
    """``fsync(fd)``: EINVAL for what has no storage."""
    return 0 if _file(m, t, a[0]).kind in _ON_DISK else -EINVAL


def fdatasync(m: Machine, t: Task, a: Args) -> Decision:
    """``fdatasync(fd)``."""
    return fsync(m, t, a)


def syncfs(m: Machine, t: Task, a: Args) -> Decision:
    """``syncfs(fd)``: any descriptor will do."""
    _file(m, t, a[0])
    return 0


def sync_file_range(m: Machine, t: Task, a: Args) -> Decision:
    """``sync_file_range(fd, offset, count, flags)``."""
    file = _file(m, t, a[0])
    if a[3] & 0xFFFFFFFF & ~_SYNC_FILE_RANGE_FLAGS or (a[1] | a[2] | (a[1] + a[2])) >> 63:
        return -EINVAL
    return -ESPIPE if file.kind in _STREAMS or file.kind not in _ON_DISK else 0
