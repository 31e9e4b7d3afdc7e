"""access(2) and readlink(2): questions about a path that are neither stat nor open."""

from __future__ import annotations

import errno
import os
import re
from stat import S_ISLNK
from typing import TYPE_CHECKING

from detbox.handlers import claim, paths
from detbox.handlers.stat import of_fd, of_path
from detbox.handlers.statfs import flags_of
from detbox.kernel import _native
from detbox.machine import constants
from detbox.machine.files import NSFS
from detbox.machine.inodes import link_name

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_AT_EACCESS = 0x200
_NAMESPACE = re.compile(rb"([a-z_]+):\[(\d+)\]")
_PID_DIR = re.compile(rb"/proc/(\d+)(?:/task/\d+)?/fd/(\d+)")


def access(m: Machine, t: Task, a: Args) -> Decision:
    """int access(const char *path, int mode)"""
    return _access(m, t, paths.AT_FDCWD, t.cstr(a[0]), a[1], 0)


def faccessat(m: Machine, t: Task, a: Args) -> Decision:
    """int faccessat(int dirfd, const char *path, int mode)"""
    return _access(m, t, a[0], t.cstr(a[1]), a[2], 0)


def faccessat2(m: Machine, t: Task, a: Args) -> Decision:
    """int faccessat2(int dirfd, const char *path, int mode, int flags)"""
    return _access(m, t, a[0], t.cstr(a[1]), a[2], a[3] & 0xFFFFFFFF)


def _access(m: Machine, t: Task, dirfd: int, path: bytes, mode: int, flags: int) -> int:
    mode &= 0xFFFFFFFF
    if mode & ~7 or flags & ~(_AT_EACCESS | paths.AT_SYMLINK_NOFOLLOW | paths.AT_EMPTY_PATH):
        return -errno.EINVAL
    if not path and flags & paths.AT_EMPTY_PATH:
        st, vnode = of_fd(m, t, dirfd)
    elif not path or paths.absent(t, path, follow=not flags & paths.AT_SYMLINK_NOFOLLOW):
        return -errno.ENOENT
    else:
        st, vnode = of_path(m, t, dirfd, path, follow=not flags & paths.AT_SYMLINK_NOFOLLOW)
    if mode & paths.WRITE and _read_only(m, t, dirfd, path):
        return -errno.EROFS
    if mode & 6 and path and not st.st_mode & 4:
        follow = not flags & paths.AT_SYMLINK_NOFOLLOW
        paths.resolve(
            m, t, dirfd, path, lambda at, name: claim.check(m, at, name, st, vnode, follow=follow), follow=follow
        )
    return 0 if paths.may(t, st, vnode, mode, real=not flags & _AT_EACCESS) else -errno.EACCES


def _read_only(m: Machine, t: Task, dirfd: int, path: bytes) -> bool:
    """Whether the file system refuses all writing; only the kernel knows the mount's flags."""
    if not path:
        return False
    try:
        flags = paths.resolve(m, t, dirfd, path, _mount_flags, follow=True)
    except OSError:
        return False
    return bool(flags & os.ST_RDONLY)


def _mount_flags(dir_fd: int | None, name: bytes) -> int:
    fd = os.open(name, os.O_PATH, dir_fd=dir_fd)
    try:
        return flags_of(fd)
    finally:
        os.close(fd)


def readlink(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t readlink(const char *path, char *buf, size_t size)"""
    return _readlink(m, t, paths.AT_FDCWD, t.cstr(a[0]), a[1], a[2])


def readlinkat(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t readlinkat(int dirfd, const char *path, char *buf, size_t size)"""
    return _readlink(m, t, a[0], t.cstr(a[1]), a[2], a[3])


def _readlink(m: Machine, t: Task, dirfd: int, path: bytes, buf: int, size: int) -> int:
    size &= 0xFFFFFFFF
    if not 0 < size < 1 << 31:
        return -errno.EINVAL
    fs, procfs = t.process.fs, False
    try:
        if fs.special:
            text = _slow_text(m, t, dirfd, path)
        elif path:
            at, name = paths.at(m, t, dirfd, path)
            if t.process.creds.checked and not paths.check_search(m, t, at, name, path, follow=False):
                return -errno.ENOENT
            found = _native.link_text(at, name)
            if found == -errno.EINVAL:
                return found  # exists, and is no link: the commonest answer in builds
            if isinstance(found, int):
                raise OSError(-found, "no text")
            text = found
            procfs = t.process.creds.checked and _in_procfs(m, at, name)
        else:
            text = _descriptor_text(m, t, dirfd)
    except OSError as e:
        if e.errno != errno.ELOOP:
            paths.check_dirfd(t, dirfd, path, e)
            raise
        text = _slow_text(m, t, dirfd, path)
    else:
        # Only links of procfs have texts that must be made here: numbers (self), kinds of objects
        # (pipe:[1]), and the loops that cover the supervisor's directory.
        if procfs or text[:1] in b"1234567890" or text[:8] == b"/proc/1/" or b":" in text or b"/proc/" in path:
            text = _slow_text(m, t, dirfd, path)
    text = text[:size]
    t.write(buf, text)
    return len(text)


def _descriptor_text(m: Machine, t: Task, dirfd: int) -> bytes:
    """An empty path: the descriptor itself is an O_PATH descriptor of a link."""
    if dirfd & 0xFFFFFFFF == paths.AT_FDCWD:
        raise OSError(errno.ENOENT, "empty path")
    fd = t.process.files.borrow(t, dirfd)
    try:
        dev = os.fstat(fd).st_dev
        return _proc_text(m, t, fd, dev) if dev in m.inodes.proc_devs else os.readlink(b"", dir_fd=fd)
    finally:
        os.close(fd)


def _slow_text(m: Machine, t: Task, dirfd: int, path: bytes) -> bytes:
    if not path:
        return _descriptor_text(m, t, dirfd)
    with paths.walk(m, t, dirfd, path, follow=False) as place:
        fd = os.open(place.name, os.O_PATH | os.O_NOFOLLOW, dir_fd=place.dir_fd)
        try:
            st = os.fstat(fd)
            inodes = m.inodes
            if inodes.cover_dev and st.st_dev == inodes.cover_dev:
                raise OSError(errno.EACCES, "the supervisor's own")
            if not S_ISLNK(st.st_mode):
                raise OSError(errno.EINVAL, "no link")
            if st.st_dev not in inodes.proc_devs:
                return os.readlink(b"", dir_fd=fd)
            return _proc_text(m, t, fd, st.st_dev, place)
        finally:
            os.close(fd)


def _in_procfs(m: Machine, dir_fd: int | None, name: bytes) -> bool:
    return os.stat(name, dir_fd=dir_fd, follow_symlinks=False).st_dev in m.inodes.proc_devs


def _proc_text(m: Machine, t: Task, fd: int, dev: int, place: paths.Place | None = None) -> bytes:
    """The text of a procfs link, of which ``fd`` is an O_PATH descriptor; ``place``: by which path it was found."""
    path = paths.proc_path(m, t, paths.path_of(m, fd), dev, fd)
    name = path.rpartition(b"/")[2]
    own = paths.proc_link(m, t, name, dev)
    if own is not None and path.count(b"/") == 2:
        return own  # not the kernel's text, which is about the supervisor
    paths.check_link(m, t, fd)
    text = os.readlink(b"", dir_fd=fd)
    namespace = _NAMESPACE.fullmatch(text)
    if namespace and b"/ns/" in path:
        known = m.inodes.table.get((m.data.get(NSFS, -1), int(namespace[2])))
        number = constants.NAMESPACE_INODES.get(name.decode(), 4026531835) if known is None else known.ino
        return b"%s:[%d]" % (namespace[1], number)
    if _PID_DIR.fullmatch(path):
        st = os.stat(name, dir_fd=place.dir_fd) if place else os.stat(paths.path_of(m, fd))
        return link_name(m.inodes.of(st), text)
    return text
