"""statfs(2): one fixed answer for each kind of file system."""

from __future__ import annotations

import errno
import os
import struct
from stat import S_ISCHR
from typing import TYPE_CHECKING

from detbox.handlers import paths
from detbox.machine import constants, inodes

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_STATFS = struct.Struct("<7q2i3q32x")
#: ST_VALID, and that reading leaves the time of access alone.
_VALID_NOATIME = 0x0420
#: Magic numbers (include/uapi/linux/magic.h) by virtual device.
_TYPES = {
    inodes.PROC_DEV: 0x9FA0,
    inodes.SYS_DEV: 0x62656572,
    inodes.PTS_DEV: 0x1CD1,
    inodes.MQUEUE_DEV: 0x19800202,
    inodes.DEV_DEV: 0x01021994,
    inodes.SHM_DEV: 0x01021994,
    inodes.TMP_DEV: 0x01021994,
    inodes.MEMFD_DEV: 0x01021994,
    inodes.PIPE_DEV: 0x50495045,
    inodes.SOCK_DEV: 0x534F434B,
    inodes.ANON_DEV: 0x09041934,
}
_EXT4 = 0xEF53
_TMPFS = 0x01021994
_WITH_BLOCKS = frozenset((0x01021994, _EXT4))


def statfs(m: Machine, t: Task, a: Args) -> Decision:
    """int statfs(const char *path, struct statfs *buf)"""

    def call(at: int | None, name: bytes) -> tuple[int, int]:
        fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=at)
        try:
            return os.fstat(fd).st_dev, flags_of(fd)
        finally:
            os.close(fd)

    dev, flags = paths.resolve(m, t, paths.AT_FDCWD, t.cstr(a[0]), call, follow=True)
    t.write(a[1], _answer(m, t, dev, flags))
    return 0


def fstatfs(m: Machine, t: Task, a: Args) -> Decision:
    """int fstatfs(int fd, struct statfs *buf)"""
    fd = t.process.files.borrow(t, a[0])
    try:
        st, flags = os.fstat(fd), flags_of(fd)
    finally:
        os.close(fd)
    vnode = m.inodes.of(st)
    if vnode.mode:  # a synthetic file
        t.write(a[1], pack(inodes.PROC_DEV, flags & os.ST_RDONLY))
    else:
        t.write(a[1], _answer(m, t, st.st_dev, flags))
    return 0


def flags_of(fd: int) -> int:
    """The mount's flags as statvfs(3) has them; that the container's devices are bound read-only does not show."""
    flags = os.statvfs(fd).f_flag
    return flags & ~os.ST_RDONLY if S_ISCHR(os.fstat(fd).st_mode) else flags


def ustat(m: Machine, t: Task, a: Args) -> Decision:
    """int ustat(dev_t dev, struct ustat *buf): obsolete"""
    return -errno.ENOSYS


def _answer(m: Machine, t: Task, real_dev: int, flags: int) -> bytes:
    if not m.mounting.private(t.process):
        flags &= ~os.ST_NOSUID  # detbox's own, or the host's
    return pack(m.inodes.devices.get(real_dev, inodes.ROOT_DEV), flags)


def pack(dev: int, real_flags: int) -> bytes:
    """struct statfs of the virtual device ``dev``."""
    kind = _TYPES.get(dev, _TMPFS if inodes.OWN_DEV <= dev < inodes.ROOT_DEV else _EXT4)
    sizes = (0, 0, 0, 0, 0)
    if kind in _WITH_BLOCKS:
        free = constants.STATFS_BLOCKS_FREE
        sizes = (constants.STATFS_BLOCKS, free, free, constants.STATFS_FILES, constants.STATFS_FILES_FREE)
    flags = _VALID_NOATIME | real_flags & (os.ST_RDONLY | os.ST_NOSUID)
    size = constants.STATFS_BLOCK_SIZE
    return _STATFS.pack(kind, size, *sizes, dev, 0, constants.STATFS_NAME_MAX, size, flags)
