"""openat2(2): an open whose path may be kept inside a directory, or away from links.

The supervisor has the kernel walk the path under the same limits, which gives the object; opening that object
is then an ordinary open, by its canonical path.  Two limits are of the supervisor's own making.  RESOLVE_NO_XDEV
compares virtual devices at both ends, since the container is made of more mounts than the guest sees.
RESOLVE_CACHED would tell what the host's kernel remembers, so that everything counts as remembered.
"""

from __future__ import annotations

import errno
import os
from stat import S_ISLNK
from typing import TYPE_CHECKING

from detbox.decision import InstallFd
from detbox.handlers import opening, paths
from detbox.kernel import _native
from detbox.machine.inodes import ROOT_DEV

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_M32 = 0xFFFFFFFF
_SIZE = 24  # struct open_how, first version
_PAGE = 4096
_O_TMPFILE = opening.O_TMPFILE
_CREATES = os.O_CREAT | _O_TMPFILE
_PATH_FLAGS = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH, _IN_ROOT, _CACHED = 1, 2, 4, 8, 16, 32
_BY_KERNEL = _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH | _IN_ROOT


def openat2(m: Machine, t: Task, a: Args) -> Decision:
    """long openat2(int dirfd, const char *path, const struct open_how *how, size_t size)"""
    if a[3] < _SIZE:
        return -errno.EINVAL
    if a[3] > _PAGE:
        return -errno.E2BIG
    how = t.read(a[2], a[3])
    if any(how[_SIZE:]):
        return -errno.E2BIG
    flags, mode, limits = (int.from_bytes(how[i : i + 8], "little") for i in (0, 8, 16))
    if flags & ~opening.KNOWN_FLAGS or mode & ~0o7777 or mode and not flags & _CREATES:
        return -errno.EINVAL
    if limits & ~(_BY_KERNEL | _NO_XDEV | _CACHED) or limits & (_BENEATH | _IN_ROOT) == _BENEATH | _IN_ROOT:
        return -errno.EINVAL
    if flags & os.O_PATH and flags & ~_PATH_FLAGS:
        return -errno.EINVAL
    if limits & _CACHED and flags & (_CREATES | os.O_TRUNC | os.O_PATH):
        return -errno.EAGAIN  # an O_PATH descriptor is made by the kernel, which must not be asked this
    path = t.cstr(a[1])
    if not limits & ~_CACHED:
        return opening.open_at(m, t, a[0], path, flags, mode)
    start = _start(t, a[0], path, limits)
    try:
        return _open(m, t, start, path, flags, mode, limits)
    finally:
        os.close(start)


def _start(t: Task, dirfd: int, path: bytes, limits: int) -> int:
    """A descriptor of the directory where the walk begins."""
    if path[:1] == b"/" and not limits & (_BENEATH | _IN_ROOT):
        return t.process.fs.root_fd()
    if dirfd & _M32 == paths.AT_FDCWD:
        return os.dup(t.process.fs.cwd_fd())
    return t.process.files.borrow(t, dirfd)


def _walk(t: Task, start: int, path: bytes, flags: int, limits: int) -> int:
    """An O_PATH descriptor of what the path leads to."""
    limits &= _BY_KERNEL
    if path[:1] == b"/" and not limits & (_BENEATH | _IN_ROOT) and t.process.fs.special:
        limits |= _IN_ROOT  # the supervisor's own root is not the thread's
    return _native.openat2(start, path, os.O_PATH | os.O_CLOEXEC | flags & os.O_NOFOLLOW, 0, limits)


def _device(m: Machine, fd: int) -> int:
    return m.inodes.devices.get(os.fstat(fd).st_dev, ROOT_DEV)


def _open(m: Machine, t: Task, start: int, path: bytes, flags: int, mode: int, limits: int) -> Decision:
    try:
        found = _walk(t, start, path, flags, limits)
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
        return _create(m, t, start, path, flags, mode, limits)
    try:
        st = os.fstat(found)
        if limits & _NO_XDEV and _device(m, found) != _device(m, start):
            return -errno.EXDEV
        if flags & os.O_CREAT and flags & os.O_EXCL:
            return -errno.EEXIST
        if S_ISLNK(st.st_mode) and not flags & os.O_PATH:
            return -errno.ELOOP
        if flags & os.O_PATH:
            return opening.by_guest(t)
        name = paths.path_of(m, found)
    finally:
        os.close(found)
    if flags & _O_TMPFILE:
        return opening.nameless(m, t, None, name, flags, mode)
    return opening.open_existing(m, t, paths.AT_FDCWD, name, flags & ~_CREATES, None, name)


def _create(m: Machine, t: Task, start: int, path: bytes, flags: int, mode: int, limits: int) -> Decision:
    """A new file: its directory is found under the limits, and it is made there."""
    if path.endswith(b"/"):
        return -errno.EISDIR
    name = path.rpartition(b"/")[2]
    directory = _walk(t, start, path[: len(path) - len(name)] or b".", 0, limits)
    try:
        if limits & _NO_XDEV and _device(m, directory) != _device(m, start):
            return -errno.EXDEV
        decision = opening.create(m, t, directory, name, flags, mode)
    except FileExistsError:
        # A dangling link: the kernel would make what it points to.
        return -errno.EEXIST if flags & os.O_EXCL else -errno.ELOOP
    finally:
        os.close(directory)
    assert isinstance(decision, InstallFd)
    return decision
