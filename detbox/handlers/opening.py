"""open(2) and its family: the supervisor opens, looks at what it got, and hands the descriptor over."""

from __future__ import annotations

import errno
import fcntl
import os
from stat import S_IFBLK, S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_ISDIR, S_ISGID
from typing import TYPE_CHECKING

from detbox.decision import ContinueThen, InstallFd
from detbox.handlers import claim, fifo, paths, procfs
from detbox.kernel import _native
from detbox.machine.files import DEVICES, Kind, OpenFile, device_kind, is_tty
from detbox.machine.inodes import VInode

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_M32 = 0xFFFFFFFF
O_TMPFILE = 0o20000000  # without O_DIRECTORY, which O_TMPFILE includes
# Not O_DIRECT and O_NOATIME, which depend on the host's file systems, and which nothing can observe; not
# O_ASYNC, which open ignores.
_KEPT = (
    os.O_ACCMODE | os.O_CREAT | os.O_EXCL | os.O_TRUNC | os.O_APPEND | os.O_NONBLOCK | os.O_DSYNC | os.O_SYNC
    | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_PATH | O_TMPFILE
)  # fmt: skip
#: What openat2 accepts: also O_LARGEFILE, which is no flag of its own here.
KNOWN_FLAGS = _KEPT | os.O_NOCTTY | os.O_CLOEXEC | os.O_DIRECT | os.O_NOATIME | os.O_ASYNC | 0o100000
# Nothing that the supervisor opens may block it or become its controlling terminal.
_OURS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
# F_SETFL changes these; the others that it is given, it ignores.
_SETTABLE = os.O_APPEND | os.O_NONBLOCK
_MAKING = os.O_CREAT | os.O_EXCL
_MEMORY_MAJOR = 1  # Documentation/admin-guide/devices.txt


def open_(m: Machine, t: Task, a: Args) -> Decision:
    """int open(const char *path, int flags, mode_t mode)"""
    return open_at(m, t, paths.AT_FDCWD, t.cstr(a[0]), a[1], a[2])


def openat(m: Machine, t: Task, a: Args) -> Decision:
    """int openat(int dirfd, const char *path, int flags, mode_t mode)"""
    return open_at(m, t, a[0], t.cstr(a[1]), a[2], a[3])


def creat(m: Machine, t: Task, a: Args) -> Decision:
    """int creat(const char *path, mode_t mode)"""
    return open_at(m, t, paths.AT_FDCWD, t.cstr(a[0]), os.O_CREAT | os.O_WRONLY | os.O_TRUNC, a[1])


def open_at(m: Machine, t: Task, dirfd: int, path: bytes, flags: int, mode: int) -> Decision:
    """Open ``path`` for the guest with the guest's flags and mode; OSError."""
    if flags & (os.O_CREAT | O_TMPFILE | os.O_PATH):
        return _not_plain(m, t, dirfd, path, flags & 0x7FFFFFFF, mode)
    fs = t.process.fs
    if fs.special or flags & (os.O_ACCMODE | os.O_TRUNC):
        return _checked(m, t, dirfd, path, flags & 0x7FFFFFFF)
    at: int | None = None
    known: os.stat_result | None = None
    if path[:1] != b"/":
        if not path or dirfd & _M32 != paths.AT_FDCWD:
            return _checked(m, t, dirfd, path, flags & 0x7FFFFFFF)
        at = fs.cwd_fd()
    try:
        if t.process.creds.checked:
            found = paths.searched_stat(m, t, at, path, path, follow=not flags & os.O_NOFOLLOW)
            if found is None:
                return -errno.ENOENT
            # Who asks has to be looked at, unless it is a file that everybody may read.
            if found.st_mode & 0o170444 != S_IFREG | 0o444:
                return _checked(m, t, dirfd, path, flags & 0x7FFFFFFF)
            if found.st_dev not in m.inodes.odd_devs:
                known = found
        # Of a regular file nothing has to be waited for.
        ours = _OURS if known is None else _OURS & ~os.O_NONBLOCK
        opened = _native.open_file(at, path, flags & _KEPT | ours, flags & _SETTABLE)
    except OSError as e:
        if e.errno == errno.ENOENT:
            return -errno.ENOENT
        return _checked(m, t, dirfd, path, flags & 0x7FFFFFFF)
    if isinstance(opened, int):
        return opened if opened == -errno.ENOENT else _checked(m, t, dirfd, path, flags & 0x7FFFFFFF)
    fd, st = opened
    if known is None and (st.st_mode & 0o170004 != S_IFREG | 4 or st.st_dev in m.inodes.odd_devs):
        return _opened(m, t, dirfd, path, flags, fd, st)
    known = known or st
    vnode = m.inodes.table.get((known.st_dev, known.st_ino))
    if vnode is not None and vnode.node is not None:
        os.close(fd)
        return _open_node(m, vnode.node, flags)
    return InstallFd(
        fd,
        bool(flags & os.O_CLOEXEC),
        None,
        OpenFile(Kind.REG, known, m.inodes.of(known) if vnode is None else vnode),
    )


def _not_plain(m: Machine, t: Task, dirfd: int, path: bytes, flags: int, mode: int) -> Decision:
    """O_PATH, O_CREAT and O_TMPFILE."""
    if not flags & os.O_PATH:
        if flags & os.O_CREAT:
            return _open_or_create(m, t, dirfd, path, flags, mode)
        return paths.resolve(
            m, t, dirfd, path, lambda at, name: nameless(m, t, at, name, flags, mode), follow=True
        )
    if t.process.creds.checked:
        paths.resolve(
            m, t, dirfd, path, lambda at, name: None, follow=not flags & os.O_NOFOLLOW
        )
    return by_guest(t)


def _checked(m: Machine, t: Task, dirfd: int, path: bytes, flags: int) -> Decision:
    """An existing file, with every check that the fast way leaves out."""
    follow = not flags & os.O_NOFOLLOW
    return paths.resolve(
        m, t, dirfd, path, lambda at, name: open_existing(m, t, dirfd, path, flags, at, name), follow=follow
    )


def open_existing(
    m: Machine,
    t: Task,
    dirfd: int,
    path: bytes,
    flags: int,
    at: int | None,
    name: bytes,
    *,
    walked: bool = False,
) -> Decision:
    """Open what exists at ``name`` below ``at``; the guest has asked for ``path`` at ``dirfd``.

    ``walked``: the place was found by :func:`paths.walk`.
    """
    before = None
    if t.process.creds.checked or flags & (os.O_ACCMODE | os.O_TRUNC):
        before = os.stat(name, dir_fd=at, follow_symlinks=not flags & os.O_NOFOLLOW)
        if t.process.creds.checked:
            _check(m, t, at, name, before, flags)
        if S_IFMT(before.st_mode) == S_IFBLK:
            raise OSError(errno.EACCES, "block device")
        if not before.st_mode & 4:
            claim.check(m, at, name, before, m.inodes.of(before), follow=not flags & os.O_NOFOLLOW)
    ours = _OURS if before is None or not _opens_at_once(m, before) else _OURS & ~os.O_NONBLOCK
    try:
        fd = claim.owned(
            m, at, name, not flags & os.O_NOFOLLOW,
            lambda at, name: os.open(name, flags & _KEPT | ours, dir_fd=at),
        )  # fmt: skip
    except OSError as e:
        if e.errno == errno.ENXIO:
            return _no_peer(m, t, at, name, flags)
        if e.errno != errno.EACCES or os.stat(name, dir_fd=at).st_dev not in m.inodes.odd_devs:
            raise
        # A setting that only the host's root may read: the table says what the guest's root sees.
        fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=at)
    st = os.fstat(fd)
    if before is not None and S_IFMT(st.st_mode) == S_IFREG:
        m.inodes.same(before, st)
    return _opened(m, t, dirfd, path, flags, fd, st, walked=walked, nonblock=bool(ours & os.O_NONBLOCK))


def _opens_at_once(m: Machine, st: os.stat_result) -> bool:
    """Whether nothing has to be waited for: a regular file, or a device of memory (null and its like)."""
    fmt = S_IFMT(st.st_mode)
    if fmt == S_IFREG:
        return st.st_dev not in m.inodes.odd_devs
    return fmt == S_IFCHR and os.major(st.st_rdev) == _MEMORY_MAJOR


def _check(m: Machine, t: Task, at: int | None, name: bytes, st: os.stat_result, flags: int) -> None:
    # Before rights are looked at (do_open() and may_open() in fs/namei.c).
    if S_ISDIR(st.st_mode) and flags & os.O_ACCMODE:
        raise OSError(errno.EISDIR, "a directory")
    if not S_ISDIR(st.st_mode) and flags & os.O_DIRECTORY:
        raise OSError(errno.ENOTDIR, "not a directory")
    if S_IFMT(st.st_mode) not in (S_IFREG, S_IFDIR, S_IFIFO, S_IFCHR):
        return
    mask = {os.O_RDONLY: paths.READ, os.O_WRONLY: paths.WRITE}.get(flags & os.O_ACCMODE, 6)
    if flags & os.O_TRUNC:
        mask |= paths.WRITE
    if S_IFMT(st.st_mode) == S_IFCHR and is_tty(st.st_rdev):
        return
    paths.require_at(m, t, at, name, st, mask)


def _no_peer(m: Machine, t: Task, at: int | None, name: bytes, flags: int) -> Decision:
    """ENXIO: a FIFO that nobody reads, a terminal that the supervisor does not have, or a socket."""
    st = os.stat(name, dir_fd=at)
    fmt = S_IFMT(st.st_mode)
    if fmt == S_IFIFO:
        target = os.open(name, os.O_PATH, dir_fd=at)
        return fifo.open_writer(m, t, target, m.inodes.of(st), flags)
    if fmt == S_IFCHR and is_tty(st.st_rdev):
        return by_guest(t)
    return -errno.ENXIO


def by_guest(t: Task) -> Decision:
    """The guest opens it itself.

    Terminals: opening one can make it the opener's controlling terminal.  O_PATH: seccomp hands over no such
    descriptor (seccomp_notify_addfd uses fget, which refuses them).
    """

    def look(task: Task, result: int) -> None:
        if result >= 0:
            task.process.files.forget(result)

    return ContinueThen(look)


def _opened(
    m: Machine,
    t: Task,
    dirfd: int,
    path: bytes,
    flags: int,
    fd: int,
    st: os.stat_result,
    *,
    walked: bool = False,
    nonblock: bool = True,
) -> Decision:
    """Decide by what was opened, with O_NONBLOCK or without.  ``fd`` belongs to this function."""
    try:
        decision = _classify(m, t, flags, fd, st, walked, nonblock)
    except procfs.Covered:
        os.close(fd)
        if walked:
            return -errno.EACCES
        with paths.walk(m, t, dirfd, path, follow=not flags & os.O_NOFOLLOW) as place:
            return open_existing(m, t, dirfd, path, flags, place.dir_fd, place.name, walked=True)
    except BaseException:
        os.close(fd)
        raise
    if not (isinstance(decision, InstallFd) and decision.fd == fd):
        if not fifo.holds(decision, fd):
            os.close(fd)
    return decision


def _classify(
    m: Machine, t: Task, flags: int, fd: int, st: os.stat_result, walked: bool, nonblock: bool
) -> Decision:
    inodes = m.inodes
    cloexec = bool(flags & os.O_CLOEXEC)
    fmt = S_IFMT(st.st_mode)
    if st.st_dev in inodes.odd_devs:
        return procfs.opened(m, t, flags, fd, st, walked)
    vnode = inodes.of(st)
    if fmt == S_IFCHR:
        if is_tty(st.st_rdev):
            return by_guest(t)
        kind = device_kind(st.st_rdev)
    elif fmt == S_IFIFO:
        return fifo.opened(m, t, fd, vnode, flags)
    elif fmt == S_IFBLK:
        return -errno.EACCES
    elif vnode.node is not None:
        return _open_node(m, vnode.node, flags)
    else:
        kind = Kind.DIR if fmt == S_IFDIR else Kind.REG
        if not st.st_mode & 4 and claim.private(m, fd, st, vnode):
            return -errno.EACCES
        if st.st_dev == inodes.memfd_dev:
            kind = Kind.PROC if vnode.mode else Kind.MEMFD
        if flags & os.O_TRUNC and fmt == S_IFREG:
            inodes.touch(vnode)
    if nonblock:
        clear_nonblock(fd, flags)
    return InstallFd(fd, cloexec, None, OpenFile(kind, st, vnode))


def _open_node(m: Machine, node: tuple[int, int], flags: int) -> Decision:
    """Open a device that the guest has made."""
    name = DEVICES.get(node[1]) if node[0] == S_IFCHR else None
    if name is None:
        return -errno.ENXIO
    fd = os.open(b"/dev/" + name, flags & (os.O_ACCMODE | os.O_APPEND) | _OURS)
    st = os.fstat(fd)
    clear_nonblock(fd, flags)
    return InstallFd(fd, bool(flags & os.O_CLOEXEC), None, OpenFile(device_kind(st.st_rdev), st, m.inodes.of(st)))


def clear_nonblock(fd: int, flags: int) -> None:
    """Give the description the guest's own status flags."""
    if not flags & os.O_NONBLOCK:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & _SETTABLE)


def _open_or_create(m: Machine, t: Task, dirfd: int, path: bytes, flags: int, mode: int) -> Decision:
    """O_CREAT.  O_EXCL goes first: it is the kernel's word that the file is new."""
    if flags & os.O_DIRECTORY:
        return -errno.EINVAL
    named = path.rstrip(b"/")
    if named != path and named.rpartition(b"/")[2] not in (b"", b".", b".."):
        # A file cannot be made under a directory's name, whatever is there.
        paths.resolve(m, t, dirfd, named, _holder_exists, follow=False)
        return -errno.EISDIR
    # An exception takes longer than the call.
    there = not flags & os.O_EXCL and _is_there(m, t, dirfd, path)
    while True:
        try:
            if not there:
                return paths.resolve(
                    m, t, dirfd, path, lambda at, name: create(m, t, at, name, flags, mode), follow=False
                )
        except FileExistsError:
            if flags & os.O_EXCL:
                raise
        # A missing file behind a symbolic link is created where the link leads.
        there = False
        try:
            found = _checked(m, t, dirfd, path, flags & ~os.O_CREAT)
            if isinstance(found, InstallFd) and _is_dir(found):
                os.close(found.fd)
                return -errno.EISDIR
            return found
        except FileNotFoundError:
            pass
        with paths.walk(m, t, dirfd, path, follow=True) as place:
            return create(m, t, place.dir_fd, place.name, flags, mode)


def _is_dir(opened: InstallFd) -> bool:
    if opened.info is not None and opened.info.kind in (Kind.REG, Kind.CHAR):
        return False
    return S_ISDIR(os.fstat(opened.fd).st_mode)


def _is_there(m: Machine, t: Task, dirfd: int, path: bytes) -> bool:
    """Whether one look tells that there is something at a path."""
    process = t.process
    if not path or process.fs.special or process.creds.checked:
        return False
    return not isinstance(_native.stat_at(*paths.at(m, t, dirfd, path), False), int)


def _holder_exists(at: int | None, name: bytes) -> None:
    os.stat(paths.dirname(name) + b"/.", dir_fd=at)


def create(m: Machine, t: Task, at: int | None, name: bytes, flags: int, mode: int) -> Decision:
    """Make a new regular file; OSError(EEXIST, …)."""
    if t.process.creds.checked:
        check_create(m, t, at, name)
    fd = os.open(name, flags & _KEPT | _MAKING | _OURS, mode & 0o7777 & ~t.process.fs.umask, dir_fd=at)
    st = os.fstat(fd)
    vnode = new_entry(m, t, at, name, st)
    if not flags & os.O_NONBLOCK:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags & os.O_APPEND)
    return InstallFd(fd, bool(flags & os.O_CLOEXEC), None, OpenFile(Kind.REG, st, vnode))


def check_create(m: Machine, t: Task, at: int | None, name: bytes) -> None:
    """OSError unless the virtual user may create ``name``; EEXIST is left to the creation itself."""
    try:
        os.stat(name, dir_fd=at, follow_symlinks=False)
    except FileNotFoundError:
        paths.check_dir(m, t, at, name)


def new_entry(m: Machine, t: Task, at: int | None, name: bytes, st: os.stat_result) -> VInode:
    """Enter what was just created at ``name``: owner, times, and the directory's times."""
    parent = os.stat(paths.dirname(name), dir_fd=at)
    directory = m.inodes.of(parent)
    creds = t.process.creds
    gid = directory.gid if parent.st_mode & S_ISGID else creds.fsgid
    vnode = m.inodes.created(st, creds.fsuid, gid)
    directory.changed = True
    directory.set_times(directory.atime, vnode.mtime, vnode.mtime)
    return vnode


def nameless(m: Machine, t: Task, at: int | None, name: bytes, flags: int, mode: int) -> Decision:
    """O_TMPFILE in the directory ``name``."""
    if t.process.creds.checked:
        paths.check_dir(m, t, at, name + b"/x")
    fd = os.open(name, flags & _KEPT | _OURS, mode & 0o7777 & ~t.process.fs.umask, dir_fd=at)
    clear_nonblock(fd, flags)
    st = os.fstat(fd)
    vnode = m.inodes.created(st, t.process.creds.fsuid, t.process.creds.fsgid)
    return InstallFd(fd, bool(flags & os.O_CLOEXEC), None, OpenFile(Kind.REG, st, vnode))
