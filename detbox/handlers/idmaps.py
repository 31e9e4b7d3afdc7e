"""/proc/PID/uid_map, gid_map, projid_map and setgroups: who writes them says what users are called in a namespace.

The kernel's own files were written when the namespace was made (:mod:`detbox.supervisor.userspaces`).  Who opens one of
these for writing gets a memory file, and each write is judged by the rules of user_namespaces(7).  So it is with the
limit of the namespaces below one, /proc/sys/user/max_user_namespaces.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from detbox.handlers import paths
from detbox.handlers.waiting import Segments, gather, total
from detbox.machine.userspaces import CAP_SYS_ADMIN, CAP_SYS_RESOURCE, LIMIT
from detbox.records import NamedTuple

if TYPE_CHECKING:
    from detbox.machine.creds import Creds
    from detbox.machine.files import OpenFile
    from detbox.machine.inodes import VInode
    from detbox.machine.userspaces import UserSpace
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

#: Key of Machine.data: what has been opened for writing, by the real (device, inode) of its memory file.
_OPENED = "maps of users"
#: More than a page is refused, whatever it is.
_ENOUGH = 4096


class _Opened(NamedTuple):
    """A description of one of these files: what it is about, and who has opened it."""

    space: UserSpace
    name: str
    creds: Creds


def open_for_writing(m: Machine, t: Task, path: bytes, dev: int) -> _Opened:
    """The file of procfs with that path in the one with st_dev ``dev`` is about to be opened; OSError."""
    if path == LIMIT:
        creds = t.process.creds
        if creds.space.parent is None or not creds.capable(CAP_SYS_RESOURCE):
            raise OSError(errno.EACCES, "the container's limit")
        return _Opened(creds.space, os.fsdecode(path.rpartition(b"/")[2]), creds.copy())
    process = paths.process_at(m, path, dev)
    if process is None:
        raise OSError(errno.EACCES, "not a process of the guest's")
    opened = _Opened(process.creds.space, os.fsdecode(path.rpartition(b"/")[2]), t.process.creds.copy())
    if opened.name == "setgroups" and not opened.creds.capable(CAP_SYS_ADMIN, opened.space):
        raise OSError(errno.EACCES, "no rights in the namespace")
    return opened


def remember(m: Machine, vnode: VInode, opened: _Opened) -> None:
    """The memory file ``vnode`` stands for it."""
    m.data.setdefault(_OPENED, {})[vnode.key] = opened


def write(m: Machine, t: Task, fd: int, f: OpenFile, segments: Segments, *, placed: bool) -> int | None:
    """What a write to one of these files gives, ``placed`` if it names a position; None for other files of procfs."""
    opened: _Opened | None = m.data.get(_OPENED, {}).get((f.dev, f.ino))
    if opened is None:
        return None
    if placed:
        return -errno.ESPIPE  # seq_open() in fs/seq_file.c
    length = total(segments)
    own = t.process.files.borrow(t, fd)
    try:
        data = gather(t, segments, 0, min(length, _ENOUGH))
        opened.space.write(opened.name, data, os.lseek(own, 0, os.SEEK_CUR), opened.creds, t.process.creds)
        os.lseek(own, length, os.SEEK_SET)
    finally:
        os.close(own)
    return length
