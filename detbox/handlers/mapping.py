"""mmap(2) of files: which mappings change files, and which bring in code."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.machine.inodes import VInode
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

#: A bit of mmap's descriptor, of which the kernel looks at the lower half alone: the supervisor's own mappings.
OWN_MAPPING = 1 << 62
_PROT_WRITE, _PROT_EXEC = 2, 4
_MAP_SHARED = 1  # also a bit of MAP_SHARED_VALIDATE
_MAP_ANONYMOUS = 0x20
_PAGE = 4096
_SHARED = "shared file mappings"  # key of Process.data: list of (start, end, inode)


def mmap(m: Machine, t: Task, a: Args) -> Decision:
    """void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)

    When a store through a mapping moves mtime differs from file system to file system (tmpfs: never).  Here
    it moves when a shared writable mapping is made, and at each msync.
    """
    if a[3] & _MAP_ANONYMOUS:
        return CONTINUE
    writes = a[2] & _PROT_WRITE and a[3] & _MAP_SHARED
    patch = None
    if a[2] & _PROT_EXEC and not a[3] & _MAP_SHARED and m.code_mapped is not None:
        patch = m.code_mapped(t, a[4] & 0xFFFFFFFF, a[1], a[5])
    vnode = None
    if writes:
        entry = t.process.files.get(a[4])
        vnode = entry.vnode if entry.kind is Kind.REG else None
    if vnode is None and patch is None:
        return CONTINUE

    def look(task: Task, result: int) -> int | None:
        if -4096 < result < 0:
            return None
        addr = result & 0xFFFFFFFFFFFFFFFF
        if vnode is not None:
            _remember(task, addr, a[1], vnode)
            m.inodes.touch(vnode)
        if patch is not None:
            patch(task, addr)
        return None

    return ContinueThen(look)


def _remember(t: Task, addr: int, length: int, vnode: VInode) -> None:
    known: list[tuple[int, int, VInode]] = t.process.data.setdefault(_SHARED, [])
    end = addr + length
    known[:] = [entry for entry in known if entry[1] <= addr or entry[0] >= end]
    known.append((addr, end, vnode))


def msync(m: Machine, t: Task, a: Args) -> Decision:
    """int msync(void *addr, size_t length, int flags)"""
    for start, end, vnode in t.process.data.get(_SHARED, ()):
        if start < a[0] + a[1] and a[0] < end:
            m.inodes.touch(vnode)
    return CONTINUE


def mincore(m: Machine, t: Task, a: Args) -> Decision:
    """int mincore(void *addr, size_t length, unsigned char *vec): everything is resident"""
    if a[0] % _PAGE:
        return -errno.EINVAL

    def look(task: Task, result: int) -> int | None:
        if result == 0:
            task.write(a[2], b"\1" * -(-a[1] // _PAGE))
        return None

    return ContinueThen(look)
