"""Core files (core(5)): whom a signal makes leave one, and what is told of who has left one.

The kernel writes none, and its wait statuses tell of none, since where to and by whom is a setting of the host's: the
supervisor writes them (:mod:`detbox.supervisor.dumping`), always as ``core`` in the working directory.
"""

from __future__ import annotations

import os
import signal
from resource import RLIMIT_CORE
from typing import TYPE_CHECKING

from detbox.handlers.limits import limits_of
from detbox.kernel import siginfo

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process

#: Signals whose default action is to end the process with a core file (signal(7)).
SIGNALS = frozenset(map(int, (
    signal.SIGQUIT, signal.SIGILL, signal.SIGTRAP, signal.SIGABRT, signal.SIGFPE, signal.SIGSEGV, signal.SIGBUS,
    signal.SIGSYS, signal.SIGXCPU, signal.SIGXFSZ,
)))  # fmt: skip
#: Key of Process.data: it has left a core file.
LEFT = "left a core file"
#: Key of Machine.data: si_code of ended processes of which the kernel tells another one, by number.
_TOLD = "ends that the kernel tells of otherwise"
_DUMPED = 0x80  # of a wait status
_LEAST = 4096  # bytes: with a lower limit there is none (min_coredump in fs/binfmt_elf.c)


def limit(process: Process) -> int:
    """How many bytes a core file of a process may have, 0 if it leaves none."""
    most = limits_of(process)[RLIMIT_CORE][0]
    return most if most >= _LEAST and process.mm.dumpable else 0


def end(m: Machine, process: Process, status: int) -> int:
    """The wait status of a process that has ended, which the kernel knows by another one if a core file counts."""
    told: dict[int, int] = m.data.setdefault(_TOLD, {})
    told.pop(process.pid, None)
    if not os.WIFSIGNALED(status):
        return status
    shown = status & ~_DUMPED | (_DUMPED if LEFT in process.data else 0)
    if shown != status:
        told[process.pid] = siginfo.how_it_ended(shown)[0]
    return shown


def code(m: Machine, pid: int, told: int) -> int:
    """``si_code`` for a child that the kernel tells of with ``told``."""
    ends: dict[int, int] = m.data.get(_TOLD, {})
    return ends.get(pid, told) if told in (siginfo.CLD_KILLED, siginfo.CLD_DUMPED) else told


def told_otherwise(m: Machine, process: Process) -> bool:
    """Whether the kernel tells of the end of a process that a core file was left, or none, and it is not so."""
    return process.pid in m.data.get(_TOLD, ())
