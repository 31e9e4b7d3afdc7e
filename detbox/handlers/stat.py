"""stat(2) and its family: real type, mode, size and link count; virtual numbers, owners and times."""

from __future__ import annotations

import errno
import os
import struct
from stat import S_IFDIR, S_IFMT, S_IFREG, S_IMODE
from typing import TYPE_CHECKING

from detbox.handlers import claim, paths
from detbox.handlers.cover import shown_mode
from detbox.kernel import _native
from detbox.machine.inodes import PROC_DEV, VInode, blocks_of, procfs_ino, size_and_blocks
from detbox.machine.userspaces import TOP

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.machine.userspaces import UserSpace
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_M32 = 0xFFFFFFFF
_AT_FDCWD = paths.AT_FDCWD
_AT_NOFOLLOW = paths.AT_SYMLINK_NOFOLLOW
_AT_EMPTY_PATH = paths.AT_EMPTY_PATH
_STAT_FLAGS = _AT_NOFOLLOW | 0x800 | _AT_EMPTY_PATH  # and AT_NO_AUTOMOUNT
_STATX_FLAGS = _STAT_FLAGS | 0x6000
_STATX_RESERVED = 0x80000000
# statx's BASIC_STATS and BTIME.  Not MNT_ID: as before Linux 5.8.
_STATX_MASK = 0xFFF
_HEAD = struct.Struct("<QQQIIIIQqqq")
_TAIL = bytes(24)
_STATX = struct.Struct("<IIQIIIHHQQQQqIiqIiqIiqIiIIII")
_PROC_SELF = (b"self", b"thread-self")


def newfstatat(m: Machine, t: Task, a: Args) -> Decision:
    """int newfstatat(int dirfd, const char *path, struct stat *buf, int flags)"""
    flags = a[3] & _M32
    if flags & ~_STAT_FLAGS:
        return -errno.EINVAL
    told = _tell(m, t, a[0], a[1], a[2], flags)
    if told is not None:
        return told
    if flags & _AT_EMPTY_PATH and _is_empty(t, a[1]):
        st, vnode = of_fd(m, t, a[0])
        t.write(a[2], _pack(st, vnode, t.process.creds.space))
        return 0
    return _stat(m, t, a[0], a[1], a[2], not flags & _AT_NOFOLLOW)


def _tell(
    m: Machine, t: Task, dirfd: int, path: int, buf: int | None, flags: int, *, extended: bool = False
) -> int | None:
    """What C tells; None if it leaves that to Python.  Without a path (0) the descriptor is meant."""
    if m.layers.limited:
        flags &= ~_AT_EMPTY_PATH
    return _native.tell(m.inodes.seen, t, dirfd, path, buf, flags, extended)


def _is_empty(t: Task, path: int) -> bool:
    """Whether AT_EMPTY_PATH means the descriptor: glibc's fstat passes "", and since Linux 6.11 a null path will do."""
    return not path or not t.cstr(path)


def stat(m: Machine, t: Task, a: Args) -> Decision:
    """int stat(const char *path, struct stat *buf)"""
    return newfstatat(m, t, (_AT_FDCWD, a[0], a[1], 0))


def lstat(m: Machine, t: Task, a: Args) -> Decision:
    """int lstat(const char *path, struct stat *buf)"""
    return newfstatat(m, t, (_AT_FDCWD, a[0], a[1], _AT_NOFOLLOW))


def fstat(m: Machine, t: Task, a: Args) -> Decision:
    """int fstat(int fd, struct stat *buf)"""
    if a[0] & _M32 > 0x7FFFFFFF:
        return -errno.EBADF  # AT_FDCWD names a directory for other calls
    return newfstatat(m, t, (a[0], 0, a[1], _AT_EMPTY_PATH))


def statx(m: Machine, t: Task, a: Args) -> Decision:
    """int statx(int dirfd, const char *path, int flags, unsigned mask, struct statx *buf)"""
    flags = a[2] & _M32
    if flags & ~_STATX_FLAGS or flags & 0x6000 == 0x6000 or a[3] & _STATX_RESERVED:
        return -errno.EINVAL
    told = _tell(m, t, a[0], a[1], a[4], flags, extended=True)
    if told is not None:
        return told
    if flags & _AT_EMPTY_PATH and _is_empty(t, a[1]):
        st, vnode = of_fd(m, t, a[0])
    else:
        st, vnode = of_path(m, t, a[0], t.cstr(a[1]), follow=not flags & _AT_NOFOLLOW)
    t.write(a[4], _pack_statx(st, vnode, t.process.creds.space))
    return 0


def _stat(m: Machine, t: Task, dirfd: int, address: int, buf: int, follow: bool) -> int:
    """What C leaves: most of it still with one system call on top of the look-up and the write."""
    fs, inodes, checked = t.process.fs, m.inodes, t.process.creds.checked
    path = t.cstr(address)
    if not path:
        return -errno.ENOENT
    try:
        at, name = paths.at(m, t, dirfd, path)
        if checked and not fs.special:
            found = paths.searched_stat(m, t, at, name, path, follow=follow)
            if found is None:
                return -errno.ENOENT
            st = found
        else:
            status = _native.stat_at(at, name, follow)
            if isinstance(status, int):
                if status == -errno.ENOENT and name is path and not fs.special:
                    return status
                raise OSError(-status, "no status")
            st = status
    except OSError as e:
        if e.errno == errno.ENOENT and not fs.special:
            paths.check_dirfd(t, dirfd, path, e)
            return -errno.ENOENT
        st, vnode = of_path(m, t, dirfd, path, follow=follow)
    else:
        if fs.special or st.st_dev in inodes.odd_devs:
            st, vnode = of_path(m, t, dirfd, path, follow=follow)
        else:
            known = inodes.table.get((st.st_dev, st.st_ino))
            vnode = inodes.of(st) if known is None else known
            if path[-3:] == b".py" and not vnode.source:
                inodes.python_source(vnode, name, at, st.st_size)
            if vnode.btime != inodes.epoch_ns:
                inodes.find_holes(vnode, st, name, at)
    t.write(buf, _pack(st, vnode, t.process.creds.space))
    return 0


def of_fd(m: Machine, t: Task, fd: int) -> tuple[os.stat_result, VInode]:
    """What a descriptor (or AT_FDCWD) refers to; OSError(EBADF)."""
    if fd & _M32 == _AT_FDCWD:
        st = os.stat(t.process.fs.cwd_fd())
    else:
        # A thread but the first may have descriptors of its own, which only /proc leads to.
        found = _native.stat_fd(t.tid, fd & _M32) if t.tid == t.process.pid and not fd & 1 << 31 else -errno.EBADF
        if isinstance(found, int):
            try:
                found = os.stat(b"%d/fd/%d" % (t.tid, fd & _M32), dir_fd=m.proc_fd)
            except FileNotFoundError:
                return _bad_descriptor()
        st = found
    inodes = m.inodes
    if st.st_dev in inodes.odd_devs:
        place = b"%d/cwd" % t.tid if fd & _M32 == _AT_FDCWD else b"%d/fd/%d" % (t.tid, fd & _M32)
        opened = os.open(place, os.O_PATH | os.O_CLOEXEC, dir_fd=m.proc_fd)
        try:
            path = os.readlink(place, dir_fd=m.proc_fd)
            return st, _odd(m, st, paths.proc_path(m, t, path, st.st_dev, opened))
        finally:
            os.close(opened)
    if m.layers.limited:
        copy = claim.copy_of(m, st)
        if copy is not None:
            st = os.stat(copy, follow_symlinks=False)
    vnode = inodes.of(st)
    if vnode.btime != inodes.epoch_ns and fd & _M32 != _AT_FDCWD:
        inodes.find_holes(vnode, st, b"%d/fd/%d" % (t.tid, fd & _M32), m.proc_fd)
    return st, vnode


def _bad_descriptor() -> tuple[os.stat_result, VInode]:
    raise OSError(errno.EBADF, "no such descriptor")


def of_path(m: Machine, t: Task, dirfd: int, path: bytes, *, follow: bool) -> tuple[os.stat_result, VInode]:
    """What a path refers to: the slow and complete way.  OSError."""
    try:
        return paths.resolve(m, t, dirfd, path, lambda at, name: _look(m, t, at, name, follow), follow=follow)
    except _Covered:
        pass
    with paths.walk(m, t, dirfd, path, follow=follow) as place:
        return _look(m, t, place.dir_fd, place.name, follow or place.magic, walked=True)


def check(m: Machine, t: Task, path: int, *, follow: bool) -> None:
    """Whether there is a file at a path of the guest's (an address).  OSError."""
    told = _tell(m, t, _AT_FDCWD, path, None, 0 if follow else _AT_NOFOLLOW)
    if told is None:
        of_path(m, t, _AT_FDCWD, t.cstr(path), follow=follow)
    elif told:
        raise OSError(-told, "no such file")


class _Covered(Exception):
    """The path led through /proc/self to the supervisor's place: it has to be walked."""


def _look(
    m: Machine, t: Task, at: int | None, name: bytes, follow: bool, *, walked: bool = False
) -> tuple[os.stat_result, VInode]:
    inodes = m.inodes
    st = os.stat(name, dir_fd=at, follow_symlinks=follow)
    if st.st_dev not in inodes.odd_devs:
        vnode = inodes.of(st)
        if name[-3:] == b".py" and not vnode.source:
            inodes.python_source(vnode, name, at, st.st_size)
        inodes.find_holes(vnode, st, name, at)
        return st, vnode
    if st.st_dev == inodes.cover_dev and not walked:
        raise _Covered
    fd = os.open(name, os.O_PATH | (0 if follow else os.O_NOFOLLOW), dir_fd=at)
    try:
        shown = paths.proc_path(m, t, paths.path_of(m, fd), st.st_dev, fd)
    finally:
        os.close(fd)
    if st.st_dev in inodes.proc_devs and m.synth_mode(t, shown, st.st_dev) is None:
        raise OSError(errno.ENOENT, "not a file of this kernel's")
    return st, _odd(m, st, shown)


def _odd(m: Machine, st: os.stat_result, path: bytes) -> VInode:
    """An entry of procfs or sysfs, made anew at each look: the kernel's numbers for them do not last."""
    inodes = m.inodes
    dev = inodes.devices.get(st.st_dev, PROC_DEV)
    vnode = VInode((st.st_dev, st.st_ino), dev, procfs_ino(path), S_IFMT(st.st_mode), inodes.epoch_ns)
    if st.st_dev == inodes.cover_dev:
        vnode.mode = shown_mode(path.rpartition(b"/")[2], st.st_mode)
        vnode.fmt = S_IFMT(vnode.mode)
    elif dev == PROC_DEV:
        vnode.uid, vnode.gid = paths.proc_owner(m, path, st.st_dev)
        if path.endswith(b"/task"):
            vnode.links = _threads(m, path) + 2
    return vnode


def _threads(m: Machine, path: bytes) -> int:
    """How many threads the process of /proc/PID/task has (Chromium counts its own by the links)."""
    pid = path[len(b"/proc/") : -len(b"/task")]
    process = m.process_of(int(pid)) if pid.isdigit() else None
    return len(process.tasks) if process is not None else 1


def _pack(st: os.stat_result, v: VInode, space: UserSpace) -> bytes:
    """struct stat of x86-64 (arch/x86/include/uapi/asm/stat.h)."""
    mode = v.mode or st.st_mode
    real_size = st.st_size
    if v.fmt == S_IFREG and not v.mode:
        size, blocks, nlink = real_size, blocks_of(v, real_size), st.st_nlink
    else:
        size, blocks = size_and_blocks(v, real_size)
        # 1 means "not counted" to fts and find, as on btrfs and merged overlay directories.
        nlink = (v.links or 1) if v.fmt == S_IFDIR else st.st_nlink
    uid, gid = (v.uid, v.gid) if space is TOP else space.shown(v.uid, v.gid)
    rdev = st.st_rdev
    if v.node is not None:
        mode, rdev, size, blocks = v.node[0] | S_IMODE(mode), v.node[1], 0, 0
    head = _HEAD.pack(v.dev, v.ino, nlink, mode, uid, gid, 0, rdev, size, 4096, blocks)
    return head + v.times + _TAIL


def _pack_statx(st: os.stat_result, v: VInode, space: UserSpace) -> bytes:
    size, blocks = size_and_blocks(v, st.st_size)
    nlink = (v.links or 1) if v.fmt == S_IFDIR or v.mode else st.st_nlink
    mode, rdev = v.mode or st.st_mode, st.st_rdev
    if v.node is not None:
        mode, rdev, size, blocks = v.node[0] | S_IMODE(mode), v.node[1], 0, 0
    atime, ctime = divmod(v.atime, 10**9), divmod(v.ctime, 10**9)
    btime, mtime = divmod(v.btime, 10**9), divmod(v.mtime, 10**9)
    return _STATX.pack(
        _STATX_MASK, 4096, 0, nlink, *space.shown(v.uid, v.gid), mode, 0, v.ino, size, blocks, 0,
        *atime, 0, *btime, 0, *ctime, 0, *mtime, 0,
        os.major(rdev), os.minor(rdev), os.major(v.dev), os.minor(v.dev),
    ) + bytes(112)  # fmt: skip
