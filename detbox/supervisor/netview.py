"""Which sockets the guest has: the kernel's tables name them by the host's inode numbers, in the host's order."""

from __future__ import annotations

import os
import re
from stat import S_IFSOCK
from typing import TYPE_CHECKING

from detbox.machine.userspaces import TOP
from detbox.records import NamedTuple

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_SOCKET = re.compile(rb"socket:\[(\d+)\]")


class Held(NamedTuple):
    """A socket that some process has open: its virtual inode number, and the user of the first such process."""

    ino: int
    uid: int


class Sockets:
    """The sockets that guest processes hold, by real inode number; looked for when they are first asked for.

    They are met process by process and descriptor by descriptor, so that those that nobody has looked at yet get
    numbers that follow from the guest alone.  What is only in a message or in a queue of ``listen`` is not among them.
    """

    def __init__(self, m: Machine, reader: Task | None) -> None:
        self._m = m
        self._space = TOP if reader is None else reader.process.creds.space
        self._held: dict[int, Held] | None = None

    def get(self, ino: int) -> Held | None:
        """The socket with that real inode number; None if it is not the guest's."""
        if self._held is None:
            self._held = self._look()
        return self._held.get(ino)

    def _look(self) -> dict[int, Held]:
        held: dict[int, Held] = {}
        m = self._m
        for pid, process in sorted(m.processes.items()):
            for real in _descriptors(m, (pid, *process.tasks)):
                if real not in held:
                    vnode = m.inodes.find((m.inodes.sock_dev, real), S_IFSOCK)
                    held[real] = Held(vnode.ino, self._space.shown_user(process.creds.fsuid))
        return held


def _descriptors(m: Machine, tids: tuple[int, ...]) -> list[int]:
    """Real inode numbers of a process's sockets in the order of its descriptors.

    ``tids``: its threads, the first one of which may have given up its descriptors while others go on.
    """
    for tid in tids:
        try:
            place = os.open(b"%d/fd" % tid, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=m.proc_fd)
        except OSError:
            continue
        try:
            numbers = sorted(map(int, os.listdir(place)))
            links = [_SOCKET.fullmatch(os.fsencode(os.readlink(str(number), dir_fd=place))) for number in numbers]
        except OSError:
            continue
        finally:
            os.close(place)
        if numbers:
            return [int(link[1]) for link in links if link]
    return []
