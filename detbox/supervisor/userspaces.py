"""The kernel's user namespaces of the guest's making, and those that stand for them here.

Each is mapped as soon as it is made, by a child of the supervisor: the kernel's root in it is root above it.  So
all of the guest's processes are root everywhere to the kernel, on every host, whoever the guest takes them for, and
own the files that they make.  Maps that the guest writes are kept in :mod:`detbox.machine.userspaces` alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING

from detbox.kernel.invoke import call
from detbox.machine.networks import NETWORK, Network
from detbox.machine.userspaces import TOP, UserSpace
from detbox.supervisor.children import with_guest
from detbox.supervisor.setup import number_namespace

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process

_CLONE_NEWUSER = 0x10000000
#: What namespaces of the guest's own are called, in the order in which they are made (the kernel begins there, too).
_FIRST_NUMBER = 4026532000


class UserSpaces:
    """The user namespaces of one run."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        #: By inode.  The kernel gives the number of one that is gone to a new one, which replaces it here.
        self._known: dict[int, UserSpace] = {}
        self._networks: dict[int, Network] = {}
        self._next = _FIRST_NUMBER

    def before_change(self, process: Process) -> None:
        """The process may be about to make or join namespaces; the first one that does is in the container's."""
        if not self._known:
            self._known[self._inode(process)] = TOP

    def number(self, process: Process, names: Iterable[str]) -> None:
        """The process has been put in new namespaces of these kinds."""
        for name in names:
            number_namespace(self._m, process.pid, name, self._next)
            self._next += 1
            if name == "net":
                self._networks[self._inode(process, name)] = process.network

    def born(self, process: Process, names: list[str]) -> None:
        """A process was made in new namespaces of these kinds; maybe it is the first one of another PID namespace."""
        called = self._m.nested.numbers(process.pid, self._m.nested.space(process.pid))
        self.number(process, names + ["pid"] * (called is not None and called[0] == 1))

    def _inode(self, process: Process, name: str = "user") -> int:
        return os.stat(f"{process.pid}/ns/{name}", dir_fd=self._m.proc_fd).st_ino

    def network(self, process: Process) -> Network:
        """The network namespace that a process is in, which has joined it."""
        return self._networks.get(self._inode(process, "net"), NETWORK)

    def of(self, fd: int) -> UserSpace | None:
        """The user namespace behind the supervisor's ``fd``; None if it is none of the guest's."""
        return self._known.get(os.fstat(fd).st_ino)

    def made(self, process: Process) -> None:
        """The process, which is stopped, has got a new user namespace; its credentials are in it already."""
        self._known[self._inode(process)] = process.creds.space
        with_guest(process.pid, lambda guest: _map(guest, self._m.proc_fd))


def _map(guest: int, proc_fd: int) -> None:
    """In a child: only who is in a namespace, or in the one directly above, may map its users."""
    call("setns", guest, _CLONE_NEWUSER)
    for name in ("uid_map", "gid_map"):
        fd = os.open(f"self/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        os.write(fd, b"0 0 1")
        os.close(fd)
