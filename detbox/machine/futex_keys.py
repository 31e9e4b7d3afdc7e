"""Which words are the same futex: keys for private and shared futexes.

A private futex is its address in one address space.  A shared one is the
object that is mapped there (inode and offset), so that processes that map one
file at different addresses meet.  The kernel keeps private and shared futexes
on the same anonymous word apart (FUT_OFF_MMSHARED, kernel/futex/core.c), and
so do the keys: glibc relies on neither kind waking the other.
"""

from __future__ import annotations

from collections.abc import Hashable
from errno import EFAULT, EINVAL
from typing import TYPE_CHECKING

from detbox.kernel.mappings import shared_at

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
    """Look up what is mapped there; raises OSError(EFAULT)."""
    shared = shared_at(proc_fd, tid, address)
    return ("anonymous", mm, address) if shared is None else ("shared", *shared)
