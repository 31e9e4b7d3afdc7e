"""Calls that change directories: make, link, rename and remove names."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK, S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from detbox.handlers import claim, opening, paths
from detbox.kernel import _native
from detbox.machine.creds import CAP_MKNOD
from detbox.machine.files import DEVICES_MADE
from detbox.machine.userspaces import TOP

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_CWD = paths.AT_FDCWD
_M32 = 0xFFFFFFFF
_SYS_LINKAT = 265
_SYS_RENAMEAT2 = 316
_NOREPLACE, _EXCHANGE = 1, 2
_NATIVE_CWD = -100


def mkdir(m: Machine, t: Task, a: Args) -> Decision:
    """int mkdir(const char *path, mode_t mode)"""
    return _mkdir(m, t, _CWD, t.cstr(a[0]), a[1])


def mkdirat(m: Machine, t: Task, a: Args) -> Decision:
    """int mkdirat(int dirfd, const char *path, mode_t mode)"""
    return _mkdir(m, t, a[0], t.cstr(a[1]), a[2])


def _mkdir(m: Machine, t: Task, dirfd: int, path: bytes, mode: int) -> int:
    mode &= 0o1777 & ~t.process.fs.umask

    def make(at: int | None, name: bytes) -> None:
        os.mkdir(name, mode, dir_fd=at)

    return _make(m, t, dirfd, path.rstrip(b"/") or path, make)


def mknod(m: Machine, t: Task, a: Args) -> Decision:
    """int mknod(const char *path, mode_t mode, dev_t dev)"""
    return _mknod(m, t, _CWD, t.cstr(a[0]), a[1], a[2])


def mknodat(m: Machine, t: Task, a: Args) -> Decision:
    """int mknodat(int dirfd, const char *path, mode_t mode, dev_t dev)"""
    return _mknod(m, t, a[0], t.cstr(a[1]), a[2], a[3])


def _mknod(m: Machine, t: Task, dirfd: int, path: bytes, mode: int, device: int) -> int:
    """Who makes a device gets an empty file that is shown as one, and that opens to the container's if it has it."""
    fmt = S_IFMT(mode & 0xFFFF) or S_IFREG
    node = (fmt, device & _M32) if fmt in (S_IFCHR, S_IFBLK) else None
    # A number of zeros is an overlay's mark of a name that is gone, which is everybody's to make.
    if node not in (None, (S_IFCHR, 0)) and not t.process.creds.capable(CAP_MKNOD, TOP):
        return -errno.EPERM
    if node is None and fmt not in (S_IFREG, S_IFIFO, S_IFSOCK):
        return -errno.EPERM if fmt == S_IFDIR else -errno.EINVAL
    mode = (S_IFREG if node else fmt) | mode & 0o7777 & ~t.process.fs.umask

    def make(at: int | None, name: bytes) -> None:
        os.mknod(name, mode, dir_fd=at)
        if node:
            m.data[DEVICES_MADE] = True

    return _make(m, t, dirfd, path, make, node)


def symlink(m: Machine, t: Task, a: Args) -> Decision:
    """int symlink(const char *target, const char *path)"""
    return _symlink(m, t, t.cstr(a[0]), _CWD, t.cstr(a[1]))


def symlinkat(m: Machine, t: Task, a: Args) -> Decision:
    """int symlinkat(const char *target, int dirfd, const char *path)"""
    return _symlink(m, t, t.cstr(a[0]), a[1], t.cstr(a[2]))


def _symlink(m: Machine, t: Task, target: bytes, dirfd: int, path: bytes) -> int:
    def make(at: int | None, name: bytes) -> None:
        os.symlink(target, name, dir_fd=at)

    return _make(m, t, dirfd, path, make)


def _make(
    m: Machine, t: Task, dirfd: int, path: bytes, make: Callable[[int | None, bytes], None],
    node: tuple[int, int] | None = None,
) -> int:  # fmt: skip
    """Create one name with ``make`` and enter the new inode."""

    def call(at: int | None, name: bytes) -> None:
        if t.process.creds.checked:
            opening.check_create(m, t, at, name)
        make(at, name)
        st = os.stat(name, dir_fd=at, follow_symlinks=False)
        if paths.closes(st.st_mode):
            paths.ways_change(m)
        opening.new_entry(m, t, at, name, st).node = node

    paths.resolve(m, t, dirfd, path, call, follow=False)
    return 0


def note_created(m: Machine, t: Task, path: bytes) -> int:
    """Enter a file that the kernel has created for the guest (bind of a Unix socket); its virtual inode number."""

    def call(at: int | None, name: bytes) -> int:
        st = os.stat(name, dir_fd=at, follow_symlinks=False)
        opening.new_entry(m, t, at, name, st)
        return m.inodes.of(st).ino

    return paths.resolve(m, t, _CWD, path, call, follow=False)


def unlink(m: Machine, t: Task, a: Args) -> Decision:
    """int unlink(const char *path)"""
    return _remove(m, t, _CWD, t.cstr(a[0]), os.unlink)


def rmdir(m: Machine, t: Task, a: Args) -> Decision:
    """int rmdir(const char *path)"""
    return _remove(m, t, _CWD, t.cstr(a[0]), os.rmdir)


def unlinkat(m: Machine, t: Task, a: Args) -> Decision:
    """int unlinkat(int dirfd, const char *path, int flags)"""
    if a[2] & _M32 & ~paths.AT_REMOVEDIR:
        return -errno.EINVAL
    return _remove(m, t, a[0], t.cstr(a[1]), os.rmdir if a[2] & paths.AT_REMOVEDIR else os.unlink)


def _remove(m: Machine, t: Task, dirfd: int, path: bytes, remove: Callable[..., None]) -> int:
    def call(at: int | None, name: bytes) -> None:
        before = os.stat(name, dir_fd=at, follow_symlinks=False)
        if t.process.creds.checked:
            paths.check_dir(m, t, at, name, remove=True)
        remove(name + slash, dir_fd=at)
        _dropped(m, before)
        _touch_parent(m, at, name)

    path, slash = _last(path)
    paths.resolve(m, t, dirfd, path, call, follow=False)
    return 0


def _last(path: bytes) -> tuple[bytes, bytes]:
    """A path without the slash at its end, and the slash.

    Who removes or renames means the last component itself: with the slash, a link that it is would be followed.
    """
    short = path.rstrip(b"/")
    return (short, path[len(short) :]) if short else (path, b"")


def _dropped(m: Machine, before: os.stat_result) -> None:
    """One name of the inode is gone."""
    vnode = m.inodes.of(before)
    if before.st_nlink <= 1 or S_ISDIR(before.st_mode):
        m.inodes.unlinked(vnode)
    m.inodes.touch_status(vnode)


def _touch_parent(m: Machine, at: int | None, name: bytes) -> None:
    m.inodes.touch(m.inodes.of(os.stat(paths.dirname(name), dir_fd=at)))


def rename(m: Machine, t: Task, a: Args) -> Decision:
    """int rename(const char *old, const char *new)"""
    return _rename(m, t, _CWD, t.cstr(a[0]), _CWD, t.cstr(a[1]), 0)


def renameat(m: Machine, t: Task, a: Args) -> Decision:
    """int renameat(int olddirfd, const char *old, int newdirfd, const char *new)"""
    return _rename(m, t, a[0], t.cstr(a[1]), a[2], t.cstr(a[3]), 0)


def renameat2(m: Machine, t: Task, a: Args) -> Decision:
    """int renameat2(int olddirfd, const char *old, int newdirfd, const char *new, unsigned flags)

    RENAME_WHITEOUT is refused, as on file systems that do not have it.
    """
    flags = a[4] & _M32
    if flags & ~(_NOREPLACE | _EXCHANGE) or flags == _NOREPLACE | _EXCHANGE:
        return -errno.EINVAL
    return _rename(m, t, a[0], t.cstr(a[1]), a[2], t.cstr(a[3]), flags)


def _rename(m: Machine, t: Task, dir1: int, old: bytes, dir2: int, new: bytes, flags: int) -> int:
    (old, slash1), (new, slash2) = _last(old), _last(new)
    slashes = (slash1, slash2)
    return paths.resolve(
        m, t, dir1, old,
        lambda at1, name1: paths.resolve(
            m, t, dir2, new, lambda at2, name2: _rename_at(m, t, at1, name1, at2, name2, slashes, flags), follow=False
        ),
        follow=False,
    )  # fmt: skip


def _rename_at(
    m: Machine,
    t: Task,
    at1: int | None,
    old: bytes,
    at2: int | None,
    new: bytes,
    slashes: tuple[bytes, bytes],
    flags: int,
) -> int:
    try:
        source = os.stat(old, dir_fd=at1, follow_symlinks=False)
        try:
            target = os.stat(new, dir_fd=at2, follow_symlinks=False)
        except FileNotFoundError:
            target = None
        if t.process.creds.checked:
            for at, name, there in ((at1, old, True), (at2, new, target is not None)):
                paths.check_dir(m, t, at, name, remove=there)
    except (FileNotFoundError, PermissionError):
        # The kernel looks at the mounts before it looks at the names and rights (fs/namei.c, do_renameat2()).
        if _mount_of(m, at1, old) != _mount_of(m, at2, new):
            raise OSError(errno.EXDEV, "other mount") from None
        raise
    claim.check(m, at1, old, source, m.inodes.of(source), follow=False)
    if flags & _EXCHANGE and target is not None:
        claim.check(m, at2, new, target, m.inodes.of(target), follow=False)
        claim.take(m, at2, new, False)
    slash, new_name = slashes[0], new + slashes[1]
    claim.owned(m, at1, old, False, lambda at, name: _rename_for_real(at, name + slash, at2, new_name, flags))
    if not S_ISREG(source.st_mode) or flags & _EXCHANGE:
        paths.ways_change(m)
    if target is not None and (target.st_dev, target.st_ino) == (source.st_dev, source.st_ino):
        return 0  # two names of one file: rename does nothing
    inodes = m.inodes
    moved = inodes.same(source, os.stat(new, dir_fd=at2, follow_symlinks=False))
    if flags & _EXCHANGE and target is not None:
        inodes.touch_status(inodes.same(target, os.stat(old, dir_fd=at1, follow_symlinks=False)))
    elif target is not None:
        _dropped(m, target)
    inodes.touch_status(moved)
    _touch_parent(m, at1, old)
    _touch_parent(m, at2, new)
    return 0


def _mount_of(m: Machine, at: int | None, name: bytes) -> bytes:
    """The number of the mount that a name's directory is in."""
    fd = os.open(paths.dirname(name), os.O_PATH | os.O_CLOEXEC, dir_fd=at)
    try:
        about = os.open(b"self/fdinfo/%d" % fd, os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
        try:
            return os.read(about, 4096).partition(b"mnt_id:")[2].split()[0]
        finally:
            os.close(about)
    finally:
        os.close(fd)


def _rename_for_real(at1: int | None, old: bytes, at2: int | None, new: bytes, flags: int) -> None:
    if not flags:
        os.rename(old, new, src_dir_fd=at1, dst_dir_fd=at2)
        return
    fds = [_NATIVE_CWD if at is None else at for at in (at1, at2)]
    error = _native.raw_syscall(_SYS_RENAMEAT2, fds[0], old + b"\0", fds[1], new + b"\0", flags)
    if error < 0:
        raise OSError(-error, "renameat2")


def link(m: Machine, t: Task, a: Args) -> Decision:
    """int link(const char *old, const char *new)"""
    return _link(m, t, _CWD, t.cstr(a[0]), _CWD, t.cstr(a[1]), 0)


def linkat(m: Machine, t: Task, a: Args) -> Decision:
    """int linkat(int olddirfd, const char *old, int newdirfd, const char *new, int flags)"""
    flags = a[4] & _M32
    if flags & ~(paths.AT_SYMLINK_FOLLOW | paths.AT_EMPTY_PATH):
        return -errno.EINVAL
    return _link(m, t, a[0], t.cstr(a[1]), a[2], t.cstr(a[3]), flags)


def _link(m: Machine, t: Task, dir1: int, old: bytes, dir2: int, new: bytes, flags: int) -> int:
    def place(at1: int | None, name1: bytes) -> int:
        return paths.resolve(
            m, t, dir2, new, lambda at2, name2: _link_at(m, t, at1, name1, at2, name2, follow), follow=False
        )

    follow = bool(flags & paths.AT_SYMLINK_FOLLOW)
    if not old and flags & paths.AT_EMPTY_PATH:
        follow = True
        return place(m.proc_fd, b"%d/fd/%d" % (t.tid, dir1 & _M32))
    return paths.resolve(m, t, dir1, old, place, follow=follow)


def _link_at(
    m: Machine, t: Task, at1: int | None, old: bytes, at2: int | None, new: bytes, follow: bool
) -> int:
    source = os.stat(old, dir_fd=at1, follow_symlinks=follow)
    if t.process.creds.checked:
        opening.check_create(m, t, at2, new)
    vnode = m.inodes.of(source)
    claim.check(m, at1, old, source, vnode, follow=follow)
    claim.before_link(m, at1, old, follow, source, vnode)
    at_flags = paths.AT_SYMLINK_FOLLOW if follow else 0

    def make(at: int | None, name: bytes) -> None:
        fds = [_NATIVE_CWD if at is None else at for at in (at, at2)]
        error = _native.raw_syscall(_SYS_LINKAT, fds[0], name + b"\0", fds[1], new + b"\0", at_flags)
        if error < 0:
            raise OSError(-error, "linkat")

    claim.owned(m, at1, old, follow, make)
    inodes = m.inodes
    after = os.stat(new, dir_fd=at2, follow_symlinks=False)
    if paths.closes(after.st_mode):
        paths.ways_change(m)
    vnode = inodes.same(source, after)
    inodes.named(vnode)
    inodes.touch_status(vnode)
    _touch_parent(m, at2, new)
    return 0
