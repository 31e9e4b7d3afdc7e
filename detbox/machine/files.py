"""What is known of a process's descriptors, working directory and umask."""

from __future__ import annotations

import errno
import os
from enum import Enum
from stat import S_IFCHR, S_IFDIR, S_IFIFO, S_IFMT, S_IFREG, S_IFSOCK
from typing import TYPE_CHECKING, Any

from detbox.kernel import _native

if TYPE_CHECKING:
    from detbox.machine.inodes import InodeTable, VInode
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task


class Kind(Enum):
    """What a descriptor refers to."""

    REG = "regular file"
    DIR = "directory"
    PIPE = "pipe"
    SOCKET = "socket"
    CHAR = "character device"
    TTY = "terminal"
    RANDOM = "random device"
    EVENTFD = "eventfd"
    EPOLL = "epoll"
    TIMERFD = "timerfd"
    SIGNALFD = "signalfd"
    INOTIFY = "inotify"
    PIDFD = "pidfd"
    MEMFD = "memory file"
    PROC = "procfs file"
    STDIN = "standard input of the run"
    STDOUT = "output of the run"
    STDERR = "error output of the run"
    OTHER = "other"

    # Each call looks kinds up in sets, and Enum's own is a function of Python's.
    __hash__ = object.__hash__


_BY_FORMAT = {S_IFREG: Kind.REG, S_IFDIR: Kind.DIR, S_IFIFO: Kind.PIPE, S_IFSOCK: Kind.SOCKET}
#: By the link text of /proc/PID/fd/N, after "anon_inode:".
_ANONYMOUS = {
    b"[eventfd]": Kind.EVENTFD,
    b"[eventpoll]": Kind.EPOLL,
    b"[timerfd]": Kind.TIMERFD,
    b"[signalfd]": Kind.SIGNALFD,
    b"inotify": Kind.INOTIFY,
    b"[pidfd]": Kind.PIDFD,
}
#: Key of Machine.data: st_dev of what /proc/PID/ns leads to, once there are namespaces of the guest's own.
NSFS = "nsfs"
#: Key of Machine.data: the guest has made devices, which a cache would take for files.
DEVICES_MADE = "devices made"
#: Devices that the guest may make: those that the container has and that are no terminals.
DEVICES = {os.makedev(1, minor): name for minor, name in (
    (3, b"null"), (5, b"zero"), (7, b"full"), (8, b"random"), (9, b"urandom"))}  # fmt: skip
RANDOM_DEVICES = (os.makedev(1, 8), os.makedev(1, 9))
# Consoles, /dev/tty and /dev/ptmx, pseudo-terminals (Documentation/admin-guide/devices.txt).
_TTY_MAJORS = frozenset((3, 4, 5, *range(128, 144)))
# Looking at a thread that has left: it has no number, or (until its process ends) no descriptors, and its
# procfs entries belong to the host's root.
_GONE = (FileNotFoundError, ProcessLookupError, PermissionError)


def is_tty(rdev: int) -> bool:
    """Whether a character device is a terminal (or the multiplexer that makes them)."""
    return os.major(rdev) in _TTY_MAJORS


class OpenFile:
    """One open file description as far as it is known.

    ``dev`` and ``ino`` are the real ones (the identity); ``vnode`` has what the guest sees.
    """

    __slots__ = ("kind", "dev", "ino", "vnode", "rdev", "data")

    def __init__(self, kind: Kind, st: os.stat_result | None = None, vnode: VInode | None = None) -> None:
        self.kind = kind
        self.vnode = vnode
        self.data: Any = None  # free for the handler that created the file
        self.dev = self.ino = self.rdev = 0
        if st is not None:
            self.dev = st.st_dev
            self.ino = st.st_ino
            self.rdev = st.st_rdev

    def __repr__(self) -> str:
        return f"<{self.kind.value} {self.dev:x}:{self.ino}>"


def device_kind(rdev: int) -> Kind:
    """The kind of a character device."""
    if rdev in RANDOM_DEVICES:
        return Kind.RANDOM
    return Kind.TTY if is_tty(rdev) else Kind.CHAR


def kind_of(st: os.stat_result, inodes: InodeTable, link: bytes) -> Kind:
    """The kind of an open object; ``link``: its /proc/PID/fd text, needed for anonymous inodes only."""
    if link.startswith((b"anon_inode:", b"pidfd:")):
        return _ANONYMOUS.get(link[11:], Kind.PIDFD if link.startswith(b"pidfd:") else Kind.OTHER)
    fmt = S_IFMT(st.st_mode)
    if fmt == S_IFCHR:
        return device_kind(st.st_rdev)
    if fmt == S_IFREG:
        if st.st_dev == inodes.memfd_dev and link.startswith(b"/memfd:"):
            return Kind.MEMFD
        if st.st_dev in inodes.odd_devs:
            return Kind.PROC
    return _BY_FORMAT.get(fmt, Kind.OTHER)


class FileTable:
    """The descriptors of one process (or of several that share them), looked up lazily.

    Entries of closed descriptors stay: every call that creates a descriptor replaces them.
    """

    __slots__ = ("m", "pid", "_open")

    def __init__(self, m: Machine, pid: int) -> None:
        self.m = m
        self.pid = pid  # any process that uses the table
        self._open: dict[int, OpenFile] = {}

    def copy(self, pid: int) -> FileTable:
        """A forked child's table: the same descriptions under the same numbers."""
        child = FileTable(self.m, pid)
        child._open = dict(self._open)
        return child

    def get(self, fd: int) -> OpenFile:
        """The description behind ``fd`` (a raw argument); OSError(EBADF)."""
        known = self._open.get(fd)
        if known is not None:
            return known
        fd &= 0xFFFFFFFF
        known = self._open.get(fd)
        return known if known is not None else self._look(fd)

    def known(self, fd: int) -> OpenFile | None:
        """The description behind ``fd`` if it has been looked up already."""
        return self._open.get(fd & 0xFFFFFFFF)

    def _look(self, fd: int) -> OpenFile:
        if fd > 0x7FFFFFFF:
            raise OSError(errno.EBADF, "no such descriptor")
        st, link = self._stat(fd)
        inodes = self.m.inodes
        vnode = inodes.of(st)
        kind = self.m.stdio.get((st.st_dev, st.st_ino)) if self.m.stdio else None
        if kind is None:
            kind = Kind.PROC if vnode.mode else kind_of(st, inodes, link)
        entry = OpenFile(kind, st, vnode)
        self._open[fd] = entry
        return entry

    def _stat(self, fd: int) -> tuple[os.stat_result, bytes]:
        process = self.m.processes.get(self.pid)
        # A leader that has called exit(2) has lost its descriptors, while its other threads go on.
        for tid in (self.pid, *(process.tasks if process is not None else ())):
            try:
                name = b"%d/fd/%d" % (tid, fd)
                st = os.stat(name, dir_fd=self.m.proc_fd)
                # A text longer than PATH_MAX cannot be read; that of a plain file or directory is not needed.
                plain = S_IFMT(st.st_mode) in (S_IFREG, S_IFDIR) and st.st_dev != self.m.inodes.memfd_dev
                if plain and st.st_dev != self.m.inodes.anon_dev:
                    return st, b""
                return st, os.readlink(name, dir_fd=self.m.proc_fd)
            except _GONE:
                continue
        raise OSError(errno.EBADF, "no such descriptor")

    def borrow(self, t: Task, fd: int) -> int:
        """The supervisor's own descriptor of the same description; the caller closes it.  OSError(EBADF)."""
        return _native.borrow_fd(*self._whose(t, fd))

    def borrow_blocking(self, t: Task, fd: int, mask: int) -> int:
        """The same; -1 if it is nonblocking, or has an event of ``mask``, an error or a hang-up (0: no matter what)."""
        return _native.borrow_blocking(*self._whose(t, fd), mask)

    def borrow_idle(self, t: Task, fd: int, mask: int) -> int:
        """The same; -1 if it has an event of ``mask``, an error or a hang-up."""
        return _native.borrow_idle(*self._whose(t, fd), mask)

    def takes_at_once(self, t: Task, fd: int, wanted: int) -> bool:
        """Whether a write of so many bytes to a pipe or socket surely does not wait: it may fail; OSError(EBADF)."""
        return _native.takes_at_once(*self._whose(t, fd), wanted)

    @staticmethod
    def _whose(t: Task, fd: int) -> tuple[int, int]:
        fd &= 0xFFFFFFFF
        if fd > 0x7FFFFFFF:
            raise OSError(errno.EBADF, "no such descriptor")
        process = t.process
        return t.tid if process.data.get("leader_gone") else process.pid, fd

    def set(self, fd: int, entry: OpenFile | None) -> None:
        """``fd`` refers to ``entry`` from now on (None: to something to be looked up)."""
        if entry is None:
            self._open.pop(fd, None)
        else:
            self._open[fd] = entry

    def forget(self, fd: int) -> None:
        """``fd`` may refer to something else from now on."""
        self._open.pop(fd & 0xFFFFFFFF, None)

    def forget_all(self) -> None:
        """Any number may refer to something else from now on."""
        self._open.clear()


class FsContext:
    """Working directory, root and umask; shared by CLONE_FS."""

    __slots__ = ("m", "pid", "umask", "special", "searched", "_cwd", "_cwd_path")

    def __init__(self, m: Machine, pid: int, umask: int = 0o022) -> None:
        self.m = m
        self.pid = pid
        self.umask = umask
        self.special = False  # the root directory or mount namespace is not the supervisor's
        self.searched = -1  # Machine.ways when everybody could search the working directory
        self._cwd = -1
        self._cwd_path = b""

    def copy(self, pid: int) -> FsContext:
        """A forked child's context."""
        child = FsContext(self.m, pid, self.umask)
        child.special = self.special
        child.searched = self.searched
        return child

    def cwd_fd(self) -> int:
        """O_PATH descriptor of the working directory; valid until the next change."""
        if self._cwd < 0:
            self._cwd = self._open(b"cwd")
        return self._cwd

    def cwd_path(self) -> bytes:
        """Canonical path of the working directory, as it was when it was last asked for after a change."""
        if not self._cwd_path:
            self._cwd_path = os.readlink(b"self/fd/%d" % self.cwd_fd(), dir_fd=self.m.proc_fd)
        return self._cwd_path

    def forget_path(self) -> None:
        """The working directory may have got another name."""
        self._cwd_path = b""

    def root_fd(self) -> int:
        """A new O_PATH descriptor of the root directory; the caller closes it."""
        return self._open(b"root") if self.special else os.open(b"/", os.O_PATH)

    def _open(self, link: bytes) -> int:
        process = self.m.processes.get(self.pid)
        for tid in (self.pid, *(process.tasks if process is not None else ())):
            try:
                return os.open(b"%d/%s" % (tid, link), os.O_PATH, dir_fd=self.m.proc_fd)
            except _GONE:
                continue
        raise OSError(errno.ESRCH, "the process is gone")

    def changed_cwd(self) -> None:
        """The working directory is another one from now on."""
        self.searched = -1
        self.close()

    def close(self) -> None:
        """Release the cached descriptor."""
        self._cwd_path = b""
        if self._cwd >= 0:
            os.close(self._cwd)
            self._cwd = -1

    def __del__(self) -> None:
        self.close()
