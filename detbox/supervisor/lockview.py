"""Which file locks the guest holds: the kernel's own list has the host's inode numbers, and everybody's locks."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine

_LOCK = b"lock:\t"


def locks(m: Machine) -> list[bytes]:
    """The lines of /proc/locks without their numbers, in the order of processes and descriptors.

    fdinfo names the locks that are held through a descriptor (fs/locks.c, show_fd_locks).
    """
    found: dict[bytes, bytes] = {}
    for pid in sorted(m.processes):
        try:
            place = os.open(b"%d/fdinfo" % pid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=m.proc_fd)
        except OSError:
            continue
        try:
            for number in sorted(map(int, os.listdir(place))):
                for line, identity in _of_descriptor(m, pid, number, place):
                    found.setdefault(identity, line)
        finally:
            os.close(place)
    return list(found.values())


def _of_descriptor(m: Machine, pid: int, number: int, place: int) -> list[tuple[bytes, bytes]]:
    """Each lock as it is shown, and as the kernel shows it, by which it is known when others hold it, too."""
    try:
        info = os.open(str(number), os.O_RDONLY | os.O_CLOEXEC, dir_fd=place)
        try:
            lines = [line for line in os.read(info, 65536).splitlines() if line.startswith(_LOCK)]
        finally:
            os.close(info)
        if not lines:
            return []
        vnode = m.inodes.of(os.stat(b"%d/fd/%d" % (pid, number), dir_fd=m.proc_fd))
    except OSError:  # the process is about to end
        return []
    shown = []
    for line in lines:
        # "1: POSIX  ADVISORY  WRITE 17 08:01:4711 0 EOF"
        kind, how, mode, owner, _, *extent = line.removeprefix(_LOCK).split()[1:]
        # What the supervisor has locked for the guest has the supervisor's number.
        owner = owner if int(owner) in m.processes or owner == b"-1" else b"%d" % pid
        where = b"%02x:%02x:%d" % (os.major(vnode.dev), os.minor(vnode.dev), vnode.ino)
        text = b"%-6s %-9s %s %s %s %s\n" % (kind, how, mode, owner, where, b" ".join(extent))
        shown.append((text, line.partition(b": ")[2]))
    return shown
