"""How many signals may wait (RLIMIT_SIGPENDING): the guest's own limit, by the kernel's count of the guest's processes.

The kernel counts them for each of its users, of whom the guest's processes are one, and is kept from refusing
anything as far as the host's hard limit goes.
"""

from __future__ import annotations

import os
from resource import RLIMIT_SIGPENDING
from typing import TYPE_CHECKING

from detbox.handlers.limits import limits_of

if TYPE_CHECKING:
    from detbox.handlers.timers import ProcessTimers
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: The last signal's number (the kernel's _NSIG).
NSIG = 64
#: Signals from here on wait as often as they are sent, each with what it tells (SIGRTMIN of the kernel's).
REALTIME = 32
#: Key of Process.data: its timers.
TIMERS = "timers"
#: Key of Machine.data: no more signals than so many wait, but for one of each number for each thread.
_AT_MOST = "waiting signals"


def room(m: Machine, process: Process) -> bool:
    """Whether one more signal may wait that tells of itself (``sig_get_ucounts()`` in kernel/signal.c)."""
    most = limits_of(process)[RLIMIT_SIGPENDING][0]
    found = m.data.get(_AT_MOST, 0) + 1
    if found + NSIG * len(m.tasks) > most:
        found = waiting(m, process) + 1
        if found > most:
            return False
    m.data[_AT_MOST] = found
    return True


def waiting(m: Machine, process: Process) -> int:
    """How many signals wait, with a place for each POSIX timer."""
    try:
        fd = os.open(f"{process.pid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    except FileNotFoundError:
        return 0
    with open(fd, "rb") as file:
        count = int(file.read().partition(b"\nSigQ:\t")[2].partition(b"/")[0] or 0)
    for other in m.processes.values():
        timers: ProcessTimers | None = other.data.get(TIMERS)
        if timers is not None:
            count += sum(1 for timer in timers.posix.values() if not timer.sent)
    return count


def ran_out(m: Machine, t: Task) -> None:
    """The kernel has refused a signal that the guest's own limit allows."""
    m.doubt(t, "more signals wait than the host's hard limit allows (RLIMIT_SIGPENDING): "
               f"{limits_of(t.process)[RLIMIT_SIGPENDING][0]} were promised")  # fmt: skip
