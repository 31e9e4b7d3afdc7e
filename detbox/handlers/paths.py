"""How a path that the guest names is found by the supervisor, and what virtual users may do there.

Nearly always the kernel does it: the supervisor stands in the guest's mount namespace, and a relative path
is resolved from an O_PATH descriptor of the working directory or through /proc/TID/fd/N.  Two cases differ.
/proc/self means the supervisor when the supervisor resolves it; its own directory, /proc/1, is covered by a
directory in which every link loops (see ``cover``), so that such paths fail with ELOOP, and only then are
walked here, component by component, in the guest's terms.  A task with a root of its own is always walked.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
from collections.abc import Callable
from stat import S_ISDIR, S_ISLNK, S_ISVTX
from typing import TYPE_CHECKING, TypeVar

from detbox.kernel import _native
from detbox.machine.inodes import PIPE_DEV, VInode
from detbox.machine.userspaces import CAP_SYS_RESOURCE, LIMIT

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

T = TypeVar("T")

AT_FDCWD = 0xFFFFFF9C  # -100, as the low half of a register
AT_SYMLINK_NOFOLLOW = 0x100
AT_REMOVEDIR = 0x200
AT_SYMLINK_FOLLOW = 0x400
AT_EMPTY_PATH = 0x1000
_M32 = 0xFFFFFFFF
_MAX_LINKS = 40  # include/linux/namei.h MAXSYMLINKS
_HERE = os.O_PATH | os.O_NOFOLLOW

# A path below /proc; without that prefix if it was found through the supervisor's own mount of procfs.
_PROCESS = re.compile(rb"(?:/proc)?/(\d+)(?:/|$)")

_NATIVE_CWD = -100
#: Key of Machine.data: numbers of the mounts of procfs and sysfs that everybody has.
_MOUNTS = "mounts of procfs and sysfs"

READ, WRITE, EXECUTE = 4, 2, 1


def at(m: Machine, t: Task, dirfd: int, path: bytes) -> tuple[int | None, bytes]:
    """``(dir_fd, path)`` for the functions of :mod:`os`; ``path`` is not empty."""
    if path[:1] == b"/":
        return None, path
    if dirfd & _M32 == AT_FDCWD:
        return t.process.fs.cwd_fd(), path
    return m.proc_fd, b"%d/fd/%d/%s" % (t.tid, dirfd & _M32, path)


class Place:
    """A resolved path: ``name`` below ``dir_fd``.  Use it as a context manager: it owns descriptors.

    ``magic``: the name is a link in the supervisor's own /proc/self/fd, to be followed.
    """

    __slots__ = ("dir_fd", "name", "magic", "_fds")

    def __init__(self, dir_fd: int | None, name: bytes, fds: tuple[int, ...], magic: bool) -> None:
        self.dir_fd = dir_fd
        self.name = name
        self.magic = magic
        self._fds = fds

    def __enter__(self) -> Place:
        return self

    def __exit__(self, *exc: object) -> None:
        for fd in self._fds:
            os.close(fd)


def resolve(
    m: Machine, t: Task, dirfd: int, path: bytes, call: Callable[[int | None, bytes], T], *, follow: bool
) -> T:
    """``call(dir_fd, name)`` on what the guest means by the path.

    ``follow``: whether ``call`` follows a final symbolic link.  OSError as the kernel would give it.
    """
    if not path:
        raise OSError(errno.ENOENT, "empty path")
    if not t.process.fs.special:
        try:
            dir_fd, name = at(m, t, dirfd, path)
            if not check_search(m, t, dir_fd, name, path, follow=follow):
                raise OSError(errno.ENOENT, "no such directory")
            return call(dir_fd, name)
        except OSError as e:
            # A loop, or a name in the cover of the supervisor's directory that is to be made or removed.
            if e.errno not in (errno.ELOOP, errno.EROFS):
                check_dirfd(t, dirfd, path, e)
                raise
    with walk(m, t, dirfd, path, follow=follow) as place:
        return call(place.dir_fd, place.name)


def check_dirfd(t: Task, dirfd: int, path: bytes, error: OSError) -> None:
    """Replace ENOENT by EBADF if it was the directory's descriptor that does not exist."""
    if error.errno == errno.ENOENT and path[:1] != b"/" and dirfd & _M32 != AT_FDCWD:
        os.close(t.process.files.borrow(t, dirfd))


class _Walk:
    """The state of one walk: where it stands and which descriptors it holds."""

    def __init__(self, m: Machine, t: Task) -> None:
        self.m = m
        self.t = t
        self.root = t.process.fs.root_fd()
        self.fds = [self.root]
        self.cur = self.root
        self.links = 0

    def keep(self, fd: int) -> int:
        self.fds.append(fd)
        return fd

    def start(self, dirfd: int, path: bytes) -> None:
        if path[:1] == b"/":
            self.cur = self.root
        elif dirfd & _M32 == AT_FDCWD:
            self.cur = self.keep(os.dup(self.t.process.fs.cwd_fd()))
        else:
            self.cur = self.keep(self.t.process.files.borrow(self.t, dirfd))

    def parent(self) -> None:
        here, top = os.fstat(self.cur), os.fstat(self.root)
        if (here.st_dev, here.st_ino) != (top.st_dev, top.st_ino):
            self.cur = self.keep(os.open(b"..", _HERE | os.O_DIRECTORY, dir_fd=self.cur))

    def search(self) -> None:
        """OSError(EACCES) unless the virtual user may look for a name where the walk stands."""
        if self.t.process.creds.checked:
            st = os.fstat(self.cur)
            # As `restricted` has it, which leaves out what everybody may search.
            if S_ISDIR(st.st_mode) and st.st_mode & 0o111 != 0o111:
                require_at(self.m, self.t, self.cur, b".", st, EXECUTE)

    def place(self, name: bytes, *, magic: bool = False) -> Place:
        fds, self.fds = tuple(self.fds), []
        return Place(self.m.proc_fd if magic else self.cur, name, fds, magic)

    def release(self) -> None:
        for fd in self.fds:
            os.close(fd)


def walk(m: Machine, t: Task, dirfd: int, path: bytes, *, follow: bool) -> Place:
    """Resolve a path in the guest's terms.  The last component need not exist.

    With ``follow`` the result is never a symbolic link (except a magic one).
    """
    if not path:
        raise OSError(errno.ENOENT, "empty path")
    state = _Walk(m, t)
    try:
        return _walk(state, dirfd, path, follow)
    finally:
        state.release()


def _walk(state: _Walk, dirfd: int, path: bytes, follow: bool) -> Place:
    state.start(dirfd, path)
    slash = b"/" if path.endswith((b"/", b"/.")) else b""
    todo = _components(path)
    while todo:
        name = todo.pop()
        state.search()
        if name == b"..":
            state.parent()
            continue
        if not todo and not follow and not slash:
            return state.place(name)
        try:
            fd = state.keep(os.open(name, _HERE, dir_fd=state.cur))
        except FileNotFoundError:
            if todo:
                raise
            return state.place(name + slash)
        st = os.fstat(fd)
        if S_ISLNK(st.st_mode):
            text = _link_text(state, name, fd, st)
            if text is not None:
                if text[:1] == b"/":
                    state.cur = state.root
                if not todo and text.endswith((b"/", b"/.")):
                    slash = b"/"
                todo += _components(text)
                continue
            # A magic link (exe, cwd, root, fd/N) leads to an object, whatever its text says.
            check_link(state.m, state.t, fd)
            fd = state.keep(os.open(name, os.O_PATH, dir_fd=state.cur))
            if not todo:
                return state.place(b"self/fd/%d%s" % (fd, slash), magic=True)
        elif not todo:
            return state.place(name + slash)
        state.cur = fd
    return state.place(b".")


def _components(path: bytes) -> list[bytes]:
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _link_text(state: _Walk, name: bytes, fd: int, st: os.stat_result) -> bytes | None:
    """Where a symbolic link leads for the guest; None if it is a magic one."""
    state.links += 1
    if state.links > _MAX_LINKS:
        raise OSError(errno.ELOOP, "too many symbolic links")
    inodes = state.m.inodes
    if inodes.cover_dev and st.st_dev == inodes.cover_dev:
        raise OSError(errno.EACCES, "the supervisor's own")
    if st.st_dev in inodes.proc_devs:
        text = proc_link(state.m, state.t, name, st.st_dev)
        if text is not None:
            return text
        if name not in (b"mounts", b"net"):
            return None
    text = os.readlink(b"", dir_fd=fd)
    if text[:5] == b"net:[" and st.st_dev in inodes.proc_devs:
        return None  # a namespace, and not /proc/net
    if not text:
        raise OSError(errno.ENOENT, "empty link")
    return text


def proc_link(m: Machine, t: Task, name: bytes, dev: int) -> bytes | None:
    """Text of self and thread-self for this task in the procfs with st_dev ``dev``; None for other names."""
    if name not in (b"self", b"thread-self"):
        return None
    pid, tid = m.own_numbers(t, dev)
    return b"%d" % pid if name == b"self" else b"%d/task/%d" % (pid, tid)


def path_of(m: Machine, fd: int) -> bytes:
    """Canonical path of one of the supervisor's descriptors."""
    return os.readlink(b"self/fd/%d" % fd, dir_fd=m.proc_fd)


def proc_path(m: Machine, t: Task, path: bytes, dev: int, fd: int) -> bytes:
    """The path of a file as if its procfs were mounted on /proc, or its sysfs on /sys; of others ``path`` as it is.

    ``fd`` is open on the file, and ``path`` what path_of() says of it: the guest may have mounted any part anywhere.
    """
    inodes = m.inodes
    if dev not in inodes.proc_devs and dev != inodes.sys_dev or _in_its_place(m, fd):
        return path
    inside = m.mounting.inside(t, fd, path)
    top = b"/sys" if dev == inodes.sys_dev else b"/proc"
    return top + (b"/unreachable" if inside is None else inside.rstrip(b"/"))


def _in_its_place(m: Machine, fd: int) -> bool:
    """Whether a file of procfs or sysfs is in the mount that everybody has (or the supervisor's own)."""
    known: set[int] | None = m.data.get(_MOUNTS)
    if known is None:
        known = m.data[_MOUNTS] = {_native.mount_id(m.proc_fd, b"")}
        for top in (b"/proc", b"/sys"):
            with contextlib.suppress(OSError):
                known.add(_native.mount_id(_NATIVE_CWD, top))
    return _native.mount_id(fd, b"") in known


def check_link(m: Machine, t: Task, fd: int) -> None:
    """OSError(EACCES) if ``fd`` is a link of a process that the thread may not debug (proc_fd_access_allowed())."""
    dev = os.fstat(fd).st_dev
    if dev in m.inodes.proc_devs:
        process = process_at(m, proc_path(m, t, path_of(m, fd), dev, fd), dev)
        if process is not None and not (process is t.process or t.process.creds.may_debug(process.creds)):
            raise OSError(errno.EACCES, "another user's process")


def may(t: Task, st: os.stat_result, vnode: VInode, mask: int, *, real: bool = False) -> bool:
    """Whether the virtual user has all the rights of ``mask`` (READ, WRITE, EXECUTE).

    ``real``: the real user ids decide instead of the file system ones, as access(2) wants it.
    """
    creds = t.process.creds
    if real:
        creds = creds.really()
    uid, gid = creds.fsuid, creds.fsgid
    if uid == vnode.uid or vnode.dev == PIPE_DEV:  # a pipe has no name: only its users' /proc/PID/fd leads to it
        granted = st.st_mode >> 6
    elif vnode.gid == gid or vnode.gid in creds.groups:
        granted = st.st_mode >> 3
    else:
        granted = st.st_mode
    if not mask & ~granted & 7:
        return True
    return creds.overrides(vnode.uid, vnode.gid, st.st_mode, mask, directory=S_ISDIR(st.st_mode))


def check_dir(m: Machine, t: Task, dir_fd: int | None, name: bytes, *, remove: bool = False) -> None:
    """OSError(EACCES or EPERM) unless the virtual user may change the entry ``name`` of its directory."""
    creds = t.process.creds
    if not creds.checked:
        return
    parent = os.stat(dirname(name), dir_fd=dir_fd)
    owner = m.inodes.of(parent)
    if not may(t, parent, owner, WRITE | EXECUTE):
        # The kernel looks at the mount first (mnt_want_write()).
        closed = parent.st_dev not in m.inodes.odd_devs and _read_only(dirname(name), dir_fd)
        raise OSError(errno.EROFS if closed else errno.EACCES, "no right to change the directory")
    if remove and parent.st_mode & S_ISVTX and owner.uid != creds.fsuid:
        entry = m.inodes.of(os.stat(name, dir_fd=dir_fd, follow_symlinks=False))
        if not creds.owns(entry.uid, entry.gid):
            raise OSError(errno.EPERM, "sticky directory")


def _read_only(name: bytes, dir_fd: int | None) -> bool:
    fd = os.open(name, os.O_PATH | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        return bool(os.fstatvfs(fd).f_flag & os.ST_RDONLY)
    finally:
        os.close(fd)


def check_search(m: Machine, t: Task, dir_fd: int | None, name: bytes, path: bytes, *, follow: bool) -> bool:
    """OSError(EACCES) unless the virtual user may search each directory that the path leads through.

    False if it was seen that one of them does not exist, which is ENOENT for every call.

    ``dir_fd`` and ``name`` are what :func:`at` has made of ``path``; ``follow``: whether a final link is
    followed.  Below a link of procfs to an object, nothing is looked at.
    """
    if not t.process.creds.checked:
        return True
    # What comes before the path is the supervisor's name of a directory: that alone is looked at.
    end = max(0, len(name) - len(path) - 1)
    here = dir_fd is not None and not end
    fs = t.process.fs
    known = here and fs.searched == m.ways
    if here:
        fs.searched = -1
    while found := _native.restricted(dir_fd, name, end, known, follow):
        (name, end, magic), known = found, True
        where = name[:end] or (b"/" if name[:1] == b"/" else b".")
        if magic:
            fd = os.open(where, _HERE, dir_fd=dir_fd)
            try:
                check_link(m, t, fd)
            finally:
                os.close(fd)
            return True
        require_at(m, t, dir_fd, where, os.stat(where, dir_fd=dir_fd), EXECUTE)
        here = False
    if here:
        fs.searched = m.ways
    return found is None


def searched_stat(
    m: Machine, t: Task, dir_fd: int | None, name: bytes, path: bytes, *, follow: bool
) -> os.stat_result | None:
    """The status of what :func:`check_search` lets the virtual user reach; None: as it says of ENOENT.  OSError."""
    if not check_search(m, t, dir_fd, name, path, follow=False):
        return None
    st = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
    if follow and S_ISLNK(st.st_mode):
        check_search(m, t, dir_fd, name, path, follow=True)
        st = os.stat(name, dir_fd=dir_fd)
    return st


def absent(t: Task, path: bytes, *, follow: bool) -> bool:
    """Whether one look tells that there is nothing at a path: programs ask for much that is absent.

    An exception, which the whole way to that answer takes, costs more than the look.
    """
    process = t.process
    if path[:1] != b"/" or process.fs.special or process.creds.checked:
        return False
    return _native.stat_at(None, path, follow) == -errno.ENOENT


def closes(mode: int) -> bool:
    """Whether what has this type and these permissions is, or may lead to, what not everybody may search."""
    return S_ISLNK(mode) or S_ISDIR(mode) and mode & 0o111 != 0o111


def ways_change(m: Machine) -> None:
    """A directory that not everybody may search is made, moved or changed, or a link: ways may have closed."""
    m.ways += 1
    _native.forget_ways()


def demand(m: Machine, t: Task, dirfd: int, path: bytes, mask: int, *, follow: bool = True) -> None:
    """OSError(EACCES) unless the virtual user has all the rights of ``mask`` on what the path leads to.

    For calls that are left to the kernel, which knows the container's user alone.
    """

    def look(at: int | None, name: bytes) -> None:
        require_at(m, t, at, name, os.stat(name, dir_fd=at, follow_symlinks=follow), mask)

    if t.process.creds.checked:
        resolve(m, t, dirfd, path, look, follow=follow)


def may_at(m: Machine, t: Task, dir_fd: int | None, name: bytes, st: os.stat_result, mask: int) -> bool:
    """The same as :func:`may` for a path, since who owns an entry of procfs follows from the path."""
    vnode = m.inodes.of(st)
    if st.st_dev in m.inodes.proc_devs and t.process.creds.checked:
        fd = os.open(name, os.O_PATH, dir_fd=dir_fd)
        try:
            vnode = VInode(vnode.key, vnode.dev, 0, vnode.fmt, 0)
            path = proc_path(m, t, path_of(m, fd), st.st_dev, fd)
            vnode.uid, vnode.gid = proc_owner(m, path, st.st_dev)
            creds = t.process.creds
            if path == LIMIT and creds.capable(CAP_SYS_RESOURCE):
                vnode.uid = creds.fsuid  # set_permissions() in kernel/ucount.c
        finally:
            os.close(fd)
    return may(t, st, vnode, mask)


def require_at(m: Machine, t: Task, dir_fd: int | None, name: bytes, st: os.stat_result, mask: int) -> None:
    """OSError(EACCES) unless :func:`may_at`."""
    if not may_at(m, t, dir_fd, name, st, mask):
        raise OSError(errno.EACCES, "no right to what the path leads to")


def proc_owner(m: Machine, path: bytes, dev: int) -> tuple[int, int]:
    """User and group of a path below /proc: a process's directory is the process's own."""
    process = process_at(m, path, dev)
    return (process.creds.euid, process.creds.egid) if process else (0, 0)


def process_at(m: Machine, path: bytes, dev: int) -> Process | None:
    """The process whose directory a path below /proc leads through; ``dev``: st_dev of the procfs that is meant."""
    found = _PROCESS.match(path)
    if found is None:
        return None
    number = int(found[1]) if dev in (m.inodes.proc_dev, m.inodes.cover_dev) else m.nested.outer_at(int(found[1]), dev)
    return m.process_of(number)


def dirname(name: bytes) -> bytes:
    """The directory part of a path, as a path of its own."""
    head, slash, _ = name.rstrip(b"/").rpartition(b"/")
    return head or (b"/" if slash else b".")
