"""Opening a file of procfs or sysfs: the real one is looked at, and the guest usually gets a synthetic one.

``Machine.synth_open(task, path, fd, flags)`` decides: it returns ``fd`` itself (the kernel's file is fine) or
a new descriptor with the synthetic contents, or raises OSError.
"""

from __future__ import annotations

import errno
import fcntl
import os
from stat import S_ISREG
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, InstallFd
from detbox.handlers import paths
from detbox.machine.files import Kind, OpenFile
from detbox.machine.userspaces import LIMIT

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task


#: Who opens a file reads it within so many ns, most likely: what it shows is made only once then.
_FRESH = 50_000


class Covered(Exception):
    """The path led through /proc/self to the supervisor's place: it has to be walked."""


def opened(m: Machine, t: Task, flags: int, fd: int, st: os.stat_result, walked: bool) -> Decision:
    """Answer an open that reached procfs or sysfs with ``fd``, which stays the caller's."""
    if st.st_dev == m.inodes.cover_dev and not walked:
        raise Covered
    cloexec = bool(flags & os.O_CLOEXEC)
    if flags & os.O_PATH:
        t.process.files.forget_all()
        return CONTINUE
    if not S_ISREG(st.st_mode):
        return InstallFd(fd, cloexec, None, None)
    path = paths.proc_path(m, t, paths.path_of(m, fd), st.st_dev, fd)
    about = None
    if flags & os.O_ACCMODE != os.O_RDONLY and path.endswith((b"_map", b"/setgroups", LIMIT)):
        import detbox.handlers.idmaps as idmaps

        about = idmaps.open_for_writing(m, t, path, st.st_dev)
    new = m.synth_open(t, path, fd, flags)
    if new == fd and not st.st_mode & 4 and fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_PATH:
        return -errno.EACCES
    if new == fd:
        return InstallFd(fd, cloexec, None, OpenFile(Kind.PROC, st, m.inodes.of(st)))
    shown = os.fstat(new)
    vnode = m.inodes.synthetic(shown, path, st.st_mode)
    if st.st_dev not in m.nested.mounted:
        vnode.fresh = m.clock.now + _FRESH
    if about is not None:
        idmaps.remember(m, vnode, about)
    return InstallFd(new, cloexec, None, OpenFile(Kind.PROC, shown, vnode))


def read(m: Machine, t: Task, fd: int, f: OpenFile, position: int | None = None) -> int:
    """Have an open file show what there is now if it is read from its beginning; an error, or 0.

    ``position``: where it is read, if the call names that.
    """
    vnode = f.vnode
    if vnode is None or vnode.fresh is None or position:
        return 0
    until, vnode.fresh = vnode.fresh, 0
    if m.clock.now < until:
        return 0
    borrowed = t.process.files.borrow(t, fd)
    try:
        if position is None and os.lseek(borrowed, 0, os.SEEK_CUR):
            return 0
        return m.synth_again(t, vnode.name, borrowed)
    finally:
        os.close(borrowed)
