"""Files of the system that an ordinary user cannot change or see: made the user's own, or refused to root too.

In a container that an ordinary user has made, the system's files belong to somebody whom the user namespace
does not map.  The kernel refuses to change such a file even though an overlay would take the change, because
it could not give the copy the same owner.  The guest is root all the same; so the supervisor does by hand what
the overlay would have done: it puts a copy in the file's place, which then belongs to the user.  (All
directories are the user's own from the start, see ``container.overlay.Overlay``.)

Files that not everybody may read cannot be copied.  For the guest to see the same whoever started detbox,
they cannot be read or changed in root's containers either, unless the run has made them.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from stat import S_IMODE, S_ISDIR, S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, TypeVar

from detbox.handlers import paths
from detbox.kernel import _native

if TYPE_CHECKING:
    from detbox.machine.inodes import VInode
    from detbox.supervisor.machine import Machine

T = TypeVar("T")

#: How the kernel refuses to change what belongs to others.
REFUSED = (errno.EACCES, errno.EPERM, errno.EOVERFLOW)
_TAKEN = "copies of the system's files"  # key of Machine.data: real (device, inode) → path of its copy
_CLOSED = "directories that the run has closed"  # key of Machine.data: their inodes
_TEMPORARY = b"/.detbox-copy"
_OTHERS_READ = 0o004
_CHUNK = 1 << 30

#: What changes a file: called with the directory's descriptor and the name.
Change = Callable[[int | None, bytes], T]


def owned(m: Machine, at: int | None, name: bytes, follow: bool, change: Change[T]) -> T:
    """``change(at, name)``; once more, on the copy, if the file had to be made the user's own first."""
    if not m.layers.limited:
        return change(at, name)
    try:
        return change(at, name)
    except OSError as e:
        if e.errno not in REFUSED:
            raise
        path = take(m, at, name, follow)
        if path is None:
            raise
    return change(None, path)


def take(m: Machine, at: int | None, name: bytes, follow: bool) -> bytes | None:
    """Put a copy in the place of a file of the system.  The copy's path; None if it is not needed or possible."""
    return _replace(m, at, name, follow) if m.layers.limited else None


def before_link(m: Machine, at: int | None, name: bytes, follow: bool, st: os.stat_result, vnode: VInode) -> None:
    """Put a copy in the place of a file of the system that is to get a second name, whoever runs detbox.

    An overlay shows a file that it has copied under the lower file's number as long as it has one name and
    stays in the kernel's cache; its second name, and later the first, under another.
    """
    if st.st_nlink == 1 and S_ISREG(st.st_mode) and vnode.btime == m.inodes.epoch_ns:
        _replace(m, at, name, follow)


def _replace(m: Machine, at: int | None, name: bytes, follow: bool) -> bytes | None:
    try:
        fd = os.open(name, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=at)
    except OSError:
        return None
    try:
        before = os.fstat(fd)
        # Whoever is not mapped shows as the overflow user, never as root.
        if m.layers.limited and before.st_uid == 0 and before.st_gid == 0 or not _in_overlay(m, fd):
            return None
        known = copy_of(m, before)
        if known is not None:
            return known
        path = paths.path_of(m, fd)
        if not _copy(m, fd, before, os.path.dirname(path) + _TEMPORARY, path):
            return None
    except OSError:
        return None
    finally:
        os.close(fd)
    # Other names of the file go on meaning the old one, as after a copy that the overlay makes.
    m.inodes.same(before, os.stat(path, follow_symlinks=False), lasting=before.st_nlink == 1)
    m.data.setdefault(_TAKEN, {})[before.st_dev, before.st_ino] = path
    return path


def copy_of(m: Machine, st: os.stat_result) -> bytes | None:
    """Where the copy of a file of the system is that an open descriptor still shows; None without a copy.

    None too if the copy has been moved or removed since.
    """
    path: bytes | None = m.data.get(_TAKEN, {}).get((st.st_dev, st.st_ino))
    if path is not None:
        try:
            now = os.stat(path, follow_symlinks=False)
        except OSError:
            return None
        if m.inodes.of(now) is m.inodes.of(st):
            return path
    return None


def _copy(m: Machine, fd: int, st: os.stat_result, temporary: bytes, path: bytes) -> bool:
    current = os.stat(path, follow_symlinks=False)
    if (current.st_dev, current.st_ino) != (st.st_dev, st.st_ino):
        return False  # the descriptor's file has lost its name
    if S_ISLNK(st.st_mode):
        os.symlink(os.readlink(b"", dir_fd=fd), temporary)
    elif S_ISREG(st.st_mode):
        if st.st_size == 0:
            os.mknod(temporary, st.st_mode)
        else:
            source = os.open(b"self/fd/%d" % fd, os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
            try:
                _copy_content(source, st, temporary)
            finally:
                os.close(source)
    else:
        return False
    os.rename(temporary, path)
    return True


def _copy_content(source: int, st: os.stat_result, temporary: bytes) -> None:
    target = os.open(temporary, os.O_CREAT | os.O_WRONLY | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        while os.sendfile(target, source, None, _CHUNK):
            pass
        for attribute in os.listxattr(source):
            if attribute.startswith("user."):
                os.setxattr(target, attribute, os.getxattr(source, attribute))
        os.fchmod(target, S_IMODE(st.st_mode))
    except OSError:
        os.unlink(temporary)
        raise
    finally:
        os.close(target)


def _in_overlay(m: Machine, fd: int) -> bool:
    return _native.mount_id(fd, b"") in m.layers.mounts


def private(m: Machine, fd: int, st: os.stat_result, vnode: VInode) -> bool:
    """Whether the file is one that an ordinary user could not read; ``fd`` may be an O_PATH descriptor."""
    layers = m.layers
    if st.st_mode & _OTHERS_READ or not layers.host or vnode.btime != m.inodes.epoch_ns:
        return False
    if not (S_ISREG(st.st_mode) and st.st_size or S_ISDIR(st.st_mode)) or not _in_overlay(m, fd):
        return False  # nothing is hidden in an empty file, such as the lock of dpkg's data base
    path = paths.path_of(m, fd)
    if S_ISDIR(st.st_mode):
        return path not in layers.emptied and vnode not in m.data.get(_CLOSED, ())
    # What the run has changed is in the upper layer.  The device's number does not tell: a copied file keeps
    # the lower one's (Documentation/filesystems/overlayfs.rst, "Inode properties").
    top = path[: path.index(b"/", 1)]
    try:
        os.stat(layers.uppers[top] + path[len(top) :], dir_fd=layers.scratch, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return True
    return False


def closed(m: Machine, vnode: VInode) -> None:
    """The run has taken others' rights from a directory of the system, whose content stays known to it."""
    if m.layers.host and vnode.btime == m.inodes.epoch_ns:
        m.data.setdefault(_CLOSED, set()).add(vnode)


def check(
    m: Machine, at: int | None, name: bytes, st: os.stat_result, vnode: VInode, *, follow: bool = True
) -> None:
    """OSError(EACCES) if the file is private; ``st``: what it is."""
    if st.st_mode & _OTHERS_READ or not m.layers.host:
        return
    fd = os.open(name, os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW), dir_fd=at)
    try:
        if private(m, fd, st, vnode):
            raise OSError(errno.EACCES, "a private file of the host")
    finally:
        os.close(fd)
