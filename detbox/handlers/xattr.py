"""Extended attributes: the user's own are the host file's; all other classes do not exist here."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, TypeVar

from detbox.handlers import claim, paths, stat

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

T = TypeVar("T")
#: What an attribute call works on: a path, or a descriptor.
Target = bytes | int

_OVERLAY = b"user.overlay."  # overlayfs keeps its own notes in these (mount option userxattr)
_MAX_SIZE = 65536  # XATTR_SIZE_MAX
_NONE = (errno.EOPNOTSUPP, errno.EPERM)
#: The name of a socket's protocol, by which `lsfd` knows it (net/socket.c); nobody else has this attribute.
_PROTOCOL = b"system.sockprotoname"


def _on_path(m: Machine, t: Task, path: bytes, follow: bool, write: bool, call: Callable[[Target], T]) -> T:
    """``call(path)`` with the working directory set so that the path means the right file."""

    def inside(at: int | None, name: bytes) -> T:
        before = os.stat(name, dir_fd=at, follow_symlinks=follow)
        _check(m, t, before, write)
        claim.check(m, at, name, before, m.inodes.of(before), follow=follow)
        if write:
            claim.take(m, at, name, follow)
        if at is not None:
            if at == m.proc_fd and not follow:
                return call(name)
            os.fchdir(at)  # these calls have no form with a directory's descriptor before Linux 6.13
        try:
            result = call(name)
            if write:
                m.inodes.touch_status(m.inodes.same(before, os.stat(name, follow_symlinks=follow)))
            return result
        finally:
            os.chdir("/")

    return paths.resolve(m, t, paths.AT_FDCWD, path, inside, follow=follow)


def _on_fd(m: Machine, t: Task, fd: int, write: bool, call: Callable[[Target], T]) -> T:
    borrowed = t.process.files.borrow(t, fd)
    try:
        before = os.fstat(borrowed)
        _check(m, t, before, write)
        copy = claim.take(m, m.proc_fd, b"self/fd/%d" % borrowed, True) if write else None
        result = call(borrowed if copy is None else copy)
        if write:
            m.inodes.touch_status(m.inodes.same(before, os.fstat(borrowed)))
        return result
    finally:
        os.close(borrowed)


def _check(m: Machine, t: Task, st: os.stat_result, write: bool) -> None:
    if t.process.creds.checked:
        if not paths.may(t, st, m.inodes.of(st), paths.WRITE if write else paths.READ):
            raise OSError(errno.EACCES, "no right to the attributes")


def _run(m: Machine, t: Task, a: Args, kind: str, write: bool, call: Callable[[Target, bool], T]) -> T:
    """``kind``: "", "l" or "f", as in the calls' names."""
    if kind == "f":
        return _on_fd(m, t, a[0], write, lambda fd: call(fd, True))
    follow = kind == ""
    return _on_path(m, t, t.cstr(a[0]), follow, write, lambda path: call(path, follow))


def _name(t: Task, addr: int) -> bytes:
    name = t.cstr(addr)
    if not name or len(name) > 255:
        raise OSError(errno.ERANGE, "attribute name")
    return name


def _is_users(name: bytes) -> bool:
    return name.startswith(b"user.") and not name.startswith(_OVERLAY)


def _get(m: Machine, t: Task, a: Args, kind: str) -> int:
    name = _name(t, a[1])
    if not _is_users(name) and name != _PROTOCOL:
        if kind == "f":
            t.process.files.get(a[0])
        else:
            stat.check(m, t, a[0], follow=kind == "")
        return -errno.ENODATA

    def call(target: Target, follow: bool) -> bytes:
        try:
            if isinstance(target, int):
                return os.getxattr(target, name)
            return os.getxattr(target, name, follow_symlinks=follow)
        except OSError as e:
            # A file system without attributes has none; EPERM: not a regular file.
            raise OSError(errno.ENODATA, "no such attribute") if e.errno in _NONE else e from None

    return _give(t, _run(m, t, a, kind, False, call), a[2], a[3])


def _give(t: Task, value: bytes, buf: int, size: int) -> int:
    """Return a value the way these calls do: size 0 asks for the length."""
    if size:
        if size < len(value):
            return -errno.ERANGE
        t.write(buf, value)
    return len(value)


def _list(m: Machine, t: Task, a: Args, kind: str) -> int:
    def call(target: Target, follow: bool) -> bytes:
        try:
            if isinstance(target, int):
                names = os.listxattr(target)
            else:
                names = os.listxattr(target, follow_symlinks=follow)
        except OSError as e:
            if e.errno != errno.EOPNOTSUPP:
                raise
            names = []
        return b"".join(name + b"\0" for name in sorted(map(os.fsencode, names)) if _is_users(name))

    return _give(t, _run(m, t, a, kind, False, call), a[1], a[2])


def _refuse_foreign(name: bytes) -> None:
    if not _is_users(name):
        known = name.startswith((b"security.", b"trusted.", _OVERLAY))
        raise OSError(errno.EPERM if known else errno.EOPNOTSUPP, "only user attributes can be set")


def _set(m: Machine, t: Task, a: Args, kind: str) -> int:
    name = _name(t, a[1])
    flags = a[4] & 0xFFFFFFFF
    if flags & ~3:
        return -errno.EINVAL
    if a[3] > _MAX_SIZE:
        return -errno.E2BIG
    value = t.read(a[2], a[3]) if a[3] else b""

    def call(target: Target, follow: bool) -> None:
        _refuse_foreign(name)
        if isinstance(target, int):
            os.setxattr(target, name, value, flags)
        else:
            os.setxattr(target, name, value, flags, follow_symlinks=follow)

    _run(m, t, a, kind, True, call)
    return 0


def _remove(m: Machine, t: Task, a: Args, kind: str) -> int:
    name = _name(t, a[1])

    def call(target: Target, follow: bool) -> None:
        _refuse_foreign(name)
        if isinstance(target, int):
            os.removexattr(target, name)
        else:
            os.removexattr(target, name, follow_symlinks=follow)

    _run(m, t, a, kind, True, call)
    return 0


def getxattr(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t getxattr(const char *path, const char *name, void *value, size_t size)"""
    return _get(m, t, a, "")


def lgetxattr(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size)"""
    return _get(m, t, a, "l")


def fgetxattr(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t fgetxattr(int fd, const char *name, void *value, size_t size)"""
    return _get(m, t, a, "f")


def listxattr(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t listxattr(const char *path, char *list, size_t size)"""
    return _list(m, t, a, "")


def llistxattr(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t llistxattr(const char *path, char *list, size_t size)"""
    return _list(m, t, a, "l")


def flistxattr(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t flistxattr(int fd, char *list, size_t size)"""
    return _list(m, t, a, "f")


def setxattr(m: Machine, t: Task, a: Args) -> Decision:
    """int setxattr(const char *path, const char *name, const void *value, size_t size, int flags)"""
    return _set(m, t, a, "")


def lsetxattr(m: Machine, t: Task, a: Args) -> Decision:
    """int lsetxattr(const char *path, const char *name, const void *value, size_t size, int flags)"""
    return _set(m, t, a, "l")


def fsetxattr(m: Machine, t: Task, a: Args) -> Decision:
    """int fsetxattr(int fd, const char *name, const void *value, size_t size, int flags)"""
    return _set(m, t, a, "f")


def removexattr(m: Machine, t: Task, a: Args) -> Decision:
    """int removexattr(const char *path, const char *name)"""
    return _remove(m, t, a, "")


def lremovexattr(m: Machine, t: Task, a: Args) -> Decision:
    """int lremovexattr(const char *path, const char *name)"""
    return _remove(m, t, a, "l")


def fremovexattr(m: Machine, t: Task, a: Args) -> Decision:
    """int fremovexattr(int fd, const char *name)"""
    return _remove(m, t, a, "f")
