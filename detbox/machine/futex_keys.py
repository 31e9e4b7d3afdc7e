"""Which words are the same futex: keys for private and shared futexes.

A private futex is its address in one address space.  A shared one is the
object that is mapped there (inode and offset), so that processes that map one
file at different addresses meet.  The kernel keeps private and shared futexes
on the same anonymous word apart (FUT_OFF_MMSHARED, kernel/futex/core.c), and
so do the keys: glibc relies on neither kind waking the other.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from errno import EFAULT, EINVAL
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

# First address that a 64-bit guest may not name (TASK_SIZE_MAX, four-level page tables).
TASK_SIZE = 0x7FFFFFFFF000


def key_of(m: Machine, t: Task, address: int, private: bool) -> Hashable:
    """The futex at ``address`` of ``t``; raises OSError(EINVAL, EFAULT)."""
    if address & 3:
        raise OSError(EINVAL, "unaligned futex")
    if address >= TASK_SIZE:
        raise OSError(EFAULT, "futex outside of user memory")
    if private:
        return ("private", t.process.mm, address)
    t.u32(address)
    return shared_key(m.proc_fd, t.tid, t.process.mm, address)


def shared_key(proc_fd: int, tid: int, mm: Hashable, address: int) -> Hashable:
    """Look the mapping up in /proc/TID/maps; raises OSError(EFAULT)."""
    for line in _maps(proc_fd, tid):
        span, rest = line.split(b" ", 1)
        low, high = (int(bound, 16) for bound in span.split(b"-"))
        if not low <= address < high:
            continue
        mode, offset, device, inode = rest.split(None, 4)[:4]
        if mode[3:4] == b"s":
            return ("shared", device, int(inode), int(offset, 16) + address - low)
        return ("anonymous", mm, address)
    raise OSError(EFAULT, "futex in unmapped memory")


def _maps(proc_fd: int, tid: int) -> list[bytes]:
    # By thread, not by process: a leader that has exited shows no mappings.
    fd = os.open(f"{tid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    with os.fdopen(fd, "rb") as maps:
        return maps.read().splitlines()
