"""Coarse steps for the counters that every process can see.

When a program ends, virtual time, the next process number and the next inode number are rounded up.  Otherwise a
program that makes one call more than last time would change what every later one sees of them.
"""

from __future__ import annotations

import contextlib
import os

from detbox.machine.clock import Clock
from detbox.machine.inodes import InodeTable

#: Virtual nanoseconds: when a program starts, and when it ends.
START_NS, END_NS = 1_000_000, 4_000_000
PROCESS_STEP = 4
INODE_STEP = 64
#: The kernel's smallest pid_max is 32768; the numbers begin again well before, on every host.
LAST_PROCESS = 32_000
#: Where they begin again (RESERVED_PIDS, kernel/pid.c).
FIRST_AGAIN = 300


class Numbering:
    """The counters of one run."""

    def __init__(self, clock: Clock, inodes: InodeTable, proc_fd: int) -> None:
        self._clock = clock
        self._inodes = inodes
        self.last_process = 2
        try:
            self._fd = os.open("sys/kernel/ns_last_pid", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        except OSError:
            self._fd = -1  # a kernel without CONFIG_CHECKPOINT_RESTORE

    def created(self, number: int) -> None:
        """A process or thread has been given a number.  Where the kernel itself begins again is the host's setting."""
        self.last_process = number
        if number >= LAST_PROCESS:
            self.set_last_process(FIRST_AGAIN - 1)

    def program_starts(self) -> None:
        """A program is about to run its first instruction."""
        self._clock.round_up(START_NS)

    def program_ends(self) -> None:
        """The process that executed a program is gone."""
        self._clock.round_up(END_NS)
        self._inodes.round_up(INODE_STEP)
        last = -(-(self.last_process + 1) // PROCESS_STEP) * PROCESS_STEP - 1
        self.set_last_process(last if last < LAST_PROCESS else FIRST_AGAIN - 1)

    def set_last_process(self, number: int) -> None:
        """The next process gets the number after this one, or the next that is free."""
        if number == self.last_process:
            return
        self.last_process = number
        if self._fd >= 0:
            os.pwrite(self._fd, b"%d" % number, 0)
            return
        while _use_up() not in (number, 0):
            pass


def _use_up() -> int:
    """Take one process number."""
    with contextlib.suppress(OSError):
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        return pid
    return 0
