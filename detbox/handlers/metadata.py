"""Modes, owners and times: modes are real, owners virtual, times virtual and written back at the end."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable
from stat import S_IFMT, S_IMODE, S_ISCHR, S_ISDIR, S_ISGID, S_ISLNK, S_ISREG, S_ISUID
from typing import TYPE_CHECKING

from detbox.handlers import claim, paths
from detbox.machine.creds import CAP_CHOWN, CAP_FSETID
from detbox.machine.inodes import VInode

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_CWD = paths.AT_FDCWD
_M32 = 0xFFFFFFFF
_NS = 10**9
_UTIME_NOW, _UTIME_OMIT = 0x3FFFFFFF, 0x3FFFFFFE
_FOUR = struct.Struct("<4q")

#: ``(dir_fd, name, follow, what is there)``
Change = Callable[[int | None, bytes, bool, os.stat_result, VInode], None]


def change(m: Machine, t: Task, dirfd: int, path: bytes, flags: int, apply: Change) -> int:
    """Run ``apply`` on what the arguments of a ``…at`` call name, and note the change of its status."""
    follow = not flags & paths.AT_SYMLINK_NOFOLLOW

    def call(at: int | None, name: bytes, follow: bool = follow) -> None:
        before = os.stat(name, dir_fd=at, follow_symlinks=follow)
        if before.st_dev in m.inodes.odd_devs:
            raise OSError(errno.EPERM, "procfs and sysfs cannot be changed")
        vnode = m.inodes.of(before)
        claim.check(m, at, name, before, vnode, follow=follow)
        claim.owned(m, at, name, follow, lambda at, name: apply(at, name, follow, before, vnode))
        m.inodes.same(before, os.stat(name, dir_fd=at, follow_symlinks=follow))

    if path:
        paths.resolve(m, t, dirfd, path, call, follow=follow)
    elif not flags & paths.AT_EMPTY_PATH:
        return -errno.ENOENT
    elif dirfd & _M32 == _CWD:
        call(t.process.fs.cwd_fd(), b".", True)
    else:
        try:
            call(m.proc_fd, b"%d/fd/%d" % (t.tid, dirfd & _M32), True)
        except FileNotFoundError:
            return -errno.EBADF
    return 0


def _bound_device(m: Machine, st: os.stat_result) -> bool:
    """Whether this is a device of the host's, which the container has by a mount: the guest must not change it."""
    return S_ISCHR(st.st_mode) and st.st_dev not in m.inodes.devices


def _must_own(t: Task, vnode: VInode) -> None:
    if not t.process.creds.owns(vnode.uid, vnode.gid):
        raise OSError(errno.EPERM, "not the owner")


def _must_be_open(t: Task, fd: int) -> None:
    """OSError(EBADF) for what is no descriptor, or an O_PATH one, which only the calls with paths accept."""
    own = t.process.files.borrow(t, fd)
    try:
        if fcntl.fcntl(own, fcntl.F_GETFL) & os.O_PATH:
            raise OSError(errno.EBADF, "opened with O_PATH")
    finally:
        os.close(own)


def chmod(m: Machine, t: Task, a: Args) -> Decision:
    """int chmod(const char *path, mode_t mode)"""
    return _chmod(m, t, _CWD, t.cstr(a[0]), a[1], 0)


def fchmod(m: Machine, t: Task, a: Args) -> Decision:
    """int fchmod(int fd, mode_t mode)"""
    _must_be_open(t, a[0])
    return _chmod(m, t, a[0], b"", a[1], paths.AT_EMPTY_PATH)


def fchmodat(m: Machine, t: Task, a: Args) -> Decision:
    """int fchmodat(int dirfd, const char *path, mode_t mode)"""
    return _chmod(m, t, a[0], t.cstr(a[1]), a[2], 0)


def fchmodat2(m: Machine, t: Task, a: Args) -> Decision:
    """int fchmodat2(int dirfd, const char *path, mode_t mode, unsigned flags)"""
    if a[3] & _M32 & ~(paths.AT_SYMLINK_NOFOLLOW | paths.AT_EMPTY_PATH):
        return -errno.EINVAL
    return _chmod(m, t, a[0], t.cstr(a[1]), a[2], a[3] & _M32)


def _chmod(m: Machine, t: Task, dirfd: int, path: bytes, mode: int, flags: int) -> int:
    def apply(at: int | None, name: bytes, follow: bool, st: os.stat_result, vnode: VInode) -> None:
        _must_own(t, vnode)
        if S_ISLNK(st.st_mode):
            raise OSError(errno.EOPNOTSUPP, "symbolic links have no mode")
        new = mode & 0o7777
        creds = t.process.creds
        if not creds.in_group(vnode.gid) and not creds.capable_over(CAP_FSETID, vnode.uid, vnode.gid):
            new &= ~S_ISGID
        if not _bound_device(m, st):
            os.chmod(name, new, dir_fd=at)
            if S_ISDIR(st.st_mode):
                claim.closed(m, vnode)
            if paths.closes(S_IFMT(st.st_mode) | new):
                paths.ways_change(m)
        elif new != S_IMODE(st.st_mode):
            raise OSError(errno.EPERM, "devices keep their modes")
        m.inodes.touch_status(vnode)

    return change(m, t, dirfd, path, flags, apply)


def chown(m: Machine, t: Task, a: Args) -> Decision:
    """int chown(const char *path, uid_t owner, gid_t group)"""
    return _chown(m, t, _CWD, t.cstr(a[0]), a[1], a[2], 0)


def lchown(m: Machine, t: Task, a: Args) -> Decision:
    """int lchown(const char *path, uid_t owner, gid_t group)"""
    return _chown(m, t, _CWD, t.cstr(a[0]), a[1], a[2], paths.AT_SYMLINK_NOFOLLOW)


def fchown(m: Machine, t: Task, a: Args) -> Decision:
    """int fchown(int fd, uid_t owner, gid_t group)"""
    _must_be_open(t, a[0])
    return _chown(m, t, a[0], b"", a[1], a[2], paths.AT_EMPTY_PATH)


def fchownat(m: Machine, t: Task, a: Args) -> Decision:
    """int fchownat(int dirfd, const char *path, uid_t owner, gid_t group, int flags)"""
    if a[4] & _M32 & ~(paths.AT_SYMLINK_NOFOLLOW | paths.AT_EMPTY_PATH):
        return -errno.EINVAL
    return _chown(m, t, a[0], t.cstr(a[1]), a[2], a[3], a[4] & _M32)


def _chown(m: Machine, t: Task, dirfd: int, path: bytes, uid: int, gid: int, flags: int) -> int:
    space = t.process.creds.space
    uid, gid = space.user(uid & _M32, keep=True), space.gid(gid & _M32, keep=True)

    def apply(at: int | None, name: bytes, follow: bool, st: os.stat_result, vnode: VInode) -> None:
        creds = t.process.creds
        if creds.checked and not creds.capable_over(CAP_CHOWN, vnode.uid, vnode.gid):
            own = creds.fsuid == vnode.uid
            groups = own and (gid == vnode.gid or creds.in_group(gid))
            if uid != _M32 and not (own and uid == vnode.uid) or gid != _M32 and not groups:
                raise OSError(errno.EPERM, "may not give away")
        # The real call, which changes nothing, finds out about read-only file systems.
        if not _bound_device(m, st):
            os.chown(name, -1, -1, dir_fd=at, follow_symlinks=follow)
        if S_ISREG(st.st_mode) and st.st_mode & (S_ISUID | S_ISGID):
            drop = S_ISUID | (S_ISGID if st.st_mode & 0o010 else 0)
            os.chmod(name, S_IMODE(st.st_mode) & ~drop, dir_fd=at)
        vnode.uid = vnode.uid if uid == _M32 else uid
        vnode.gid = vnode.gid if gid == _M32 else gid
        m.inodes.touch_status(vnode)

    return change(m, t, dirfd, path, flags, apply)


def utimensat(m: Machine, t: Task, a: Args) -> Decision:
    """int utimensat(int dirfd, const char *path, const struct timespec times[2], int flags)"""
    flags = a[3] & _M32
    if flags & ~(paths.AT_SYMLINK_NOFOLLOW | paths.AT_EMPTY_PATH):
        return -errno.EINVAL
    times = _timespecs(t.read(a[2], 32)) if a[2] else None
    if not a[1]:
        if a[0] & _M32 == _CWD:
            return -errno.EFAULT
        return set_times(m, t, a[0], b"", flags | paths.AT_EMPTY_PATH, times)
    return set_times(m, t, a[0], t.cstr(a[1]), flags, times)


def _timespecs(data: bytes) -> tuple[int | str, ...]:
    """Two times in nanoseconds, or "now", or "omit"."""
    seconds_a, nanos_a, seconds_m, nanos_m = _FOUR.unpack(data)
    times: list[int | str] = []
    for seconds, nanos in ((seconds_a, nanos_a), (seconds_m, nanos_m)):
        if nanos in (_UTIME_NOW, _UTIME_OMIT):
            times.append("now" if nanos == _UTIME_NOW else "omit")
        elif not 0 <= nanos < _NS:
            raise OSError(errno.EINVAL, "nanoseconds out of range")
        else:
            times.append(seconds * _NS + nanos)
    return tuple(times)


def futimesat(m: Machine, t: Task, a: Args) -> Decision:
    """int futimesat(int dirfd, const char *path, const struct timeval times[2])"""
    times = _timevals(t, a[2])
    if not a[1]:
        return set_times(m, t, a[0], b"", paths.AT_EMPTY_PATH, times)
    return set_times(m, t, a[0], t.cstr(a[1]), 0, times)


def utimes(m: Machine, t: Task, a: Args) -> Decision:
    """int utimes(const char *path, const struct timeval times[2])"""
    return set_times(m, t, _CWD, t.cstr(a[0]), 0, _timevals(t, a[1]))


def _timevals(t: Task, addr: int) -> tuple[int | str, ...] | None:
    if not addr:
        return None
    seconds_a, micros_a, seconds_m, micros_m = _FOUR.unpack(t.read(addr, 32))
    if not (0 <= micros_a < 10**6 and 0 <= micros_m < 10**6):
        raise OSError(errno.EINVAL, "microseconds out of range")
    return seconds_a * _NS + micros_a * 1000, seconds_m * _NS + micros_m * 1000


def utime(m: Machine, t: Task, a: Args) -> Decision:
    """int utime(const char *path, const struct utimbuf *times)"""
    times = None
    if a[1]:
        atime, mtime = struct.unpack("<2q", t.read(a[1], 16))
        times = atime * _NS, mtime * _NS
    return set_times(m, t, _CWD, t.cstr(a[0]), 0, times)


def set_times(
    m: Machine, t: Task, dirfd: int, path: bytes, flags: int, times: tuple[int | str, ...] | None
) -> int:
    """The common end of the utime family; ``times``: None means now for both."""
    wanted = times or ("now", "now")
    if wanted == ("omit", "omit"):
        return 0

    def apply(at: int | None, name: bytes, follow: bool, st: os.stat_result, vnode: VInode) -> None:
        if wanted != ("now", "now") or not paths.may(t, st, vnode, paths.WRITE):
            if not t.process.creds.owns(vnode.uid, vnode.gid):
                raise OSError(errno.EPERM if times else errno.EACCES, "not the owner")
        now = m.inodes.stamp()
        atime, mtime = (
            now if new == "now" else old if isinstance(new, str) else new
            for new, old in zip(wanted, (vnode.atime, vnode.mtime), strict=True)
        )
        if not _bound_device(m, st):
            os.utime(name, ns=(atime, mtime), dir_fd=at, follow_symlinks=follow)
        vnode.changed = True
        vnode.set_times(atime, mtime, now)

    return change(m, t, dirfd, path, flags, apply)
