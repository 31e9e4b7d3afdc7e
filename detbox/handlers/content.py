"""Calls that change or examine a file's extent: truncate, fallocate, and lseek to data and holes."""

from __future__ import annotations

import errno
import fcntl
import os
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE
from detbox.handlers import claim, paths
from detbox.handlers.limits import check_size
from detbox.kernel import _native
from detbox.kernel.holes import ZEROS, seek
from detbox.machine import constants
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_SYS_FALLOCATE = 285
_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_SEEK_DATA, _SEEK_HOLE = 3, 4


def truncate(m: Machine, t: Task, a: Args) -> Decision:
    """int truncate(const char *path, off_t length)"""
    if a[1] >> 63:
        return -errno.EINVAL

    def call(at: int | None, name: bytes) -> None:
        before = os.stat(name, dir_fd=at)
        if not S_ISREG(before.st_mode):
            raise OSError(errno.EISDIR if S_ISDIR(before.st_mode) else errno.EINVAL, "not a regular file")
        if not paths.may(t, before, m.inodes.of(before), paths.WRITE):
            raise OSError(errno.EACCES, "no right to write")
        claim.check(m, at, name, before, m.inodes.of(before))
        check_size(m, t, before.st_size, a[1])
        fd = claim.owned(
            m, at, name, True, lambda at, name: os.open(name, os.O_WRONLY | os.O_CLOEXEC, dir_fd=at)
        )
        try:
            os.ftruncate(fd, a[1])
            vnode = m.inodes.same(before, os.fstat(fd))
        finally:
            os.close(fd)
        if before.st_size != a[1]:
            m.inodes.touch(vnode)

    paths.resolve(m, t, paths.AT_FDCWD, t.cstr(a[0]), call, follow=True)
    return 0


def ftruncate(m: Machine, t: Task, a: Args) -> Decision:
    """int ftruncate(int fd, off_t length): by the guest itself, whose size limit counts"""
    entry = t.process.files.get(a[0])
    if entry.kind is Kind.REG and not a[1] >> 63:
        m.inodes.touch(entry.vnode)
    return CONTINUE


def fallocate(m: Machine, t: Task, a: Args) -> Decision:
    """int fallocate(int fd, int mode, off_t offset, off_t length)

    Space is never reserved: the answer depends on the virtual disk's size alone, and not every host's file
    system can.
    """
    entry = t.process.files.get(a[0])
    if entry.kind is not Kind.REG:
        return CONTINUE
    mode, offset, length = a[1] & 0xFFFFFFFF, a[2], a[3]
    if offset >> 63 or length >> 63 or length == 0:
        return -errno.EINVAL
    if mode not in (0, _KEEP_SIZE, _KEEP_SIZE | _PUNCH_HOLE):
        return -errno.EOPNOTSUPP
    if offset + length >= 1 << 44:
        return -errno.EFBIG
    fd = t.process.files.borrow(t, a[0])
    try:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
            return -errno.EBADF
        size = os.fstat(fd).st_size
        if mode == 0:
            check_size(m, t, size, offset + length)
        if mode & _PUNCH_HOLE:
            _clear(fd, offset, min(length, max(0, size - offset)))
        elif length > constants.STATFS_BLOCKS_FREE * constants.STATFS_BLOCK_SIZE:
            return -errno.ENOSPC
        elif entry.vnode is not None:
            entry.vnode.reserved, entry.vnode.missing = True, None
        if mode == 0 and offset + length > size:
            os.ftruncate(fd, offset + length)
    finally:
        os.close(fd)
    m.inodes.touch(entry.vnode)
    return 0


def _clear(fd: int, offset: int, length: int) -> None:
    """Make a range read as zeros, without its blocks if the file system can."""
    if length == 0 or _native.raw_syscall(_SYS_FALLOCATE, fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) == 0:
        return
    while length > 0:
        written = os.pwrite(fd, ZEROS[:length], offset)
        offset += written
        length -= written


def lseek(m: Machine, t: Task, a: Args) -> Decision:
    """off_t lseek(int fd, off_t offset, int whence): SEEK_DATA and SEEK_HOLE

    A hole is a page of zeros.  That is a function of the content; what the file system has allocated only
    saves reading.
    """
    whence = a[2] & 0xFFFFFFFF
    entry = t.process.files.get(a[0])
    if whence not in (_SEEK_DATA, _SEEK_HOLE) or entry.kind is not Kind.REG:
        return CONTINUE
    fd = t.process.files.borrow(t, a[0])
    try:
        # A description that cannot read (or only names the file) is asked through another one.
        reader = os.open(b"self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
        try:
            found = seek(reader, a[1], data=whence == _SEEK_DATA)
        finally:
            os.close(reader)
        if found < 0:
            return -errno.ENXIO
        return os.lseek(fd, found, os.SEEK_SET)
    finally:
        os.close(fd)
