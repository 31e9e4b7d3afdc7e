"""rt_sigaction(2) for the signals that trapped instructions, breakpoints and single steps raise.

The kernel forces such a signal: if the thread blocks or the process ignores it, its disposition becomes the
default (kernel/signal.c, force_sig_info_to_task).  The supervisor puts it back, and so has to know it.
"""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

#: Key of Process.data: struct sigaction by signal number, where it is not the default.  Never changed in
#: place.
DISPOSITIONS = "dispositions"
SIZE = 32  # of the kernel's struct sigaction: handler, flags, restorer, mask
SA_RESETHAND = 0x80000000
#: The signals that are recorded.
RECORDED = (signal.SIGILL, signal.SIGSEGV, signal.SIGTRAP)
_SET_SIZE = 8


def rt_sigaction(m: Machine, t: Task, a: Args) -> Decision:
    """int rt_sigaction(int signo, const struct sigaction *act, struct sigaction *old, size_t setsize)"""
    if a[1] and a[3] == _SET_SIZE:
        act = t.read(a[1], SIZE)
        known: dict[int, bytes] = dict(t.process.data.get(DISPOSITIONS, {}))
        known.pop(a[0] & 0xFFFFFFFF, None)
        if handler(act) != signal.SIG_DFL:
            known[a[0] & 0xFFFFFFFF] = act
        t.process.data[DISPOSITIONS] = known
    return CONTINUE


def handler(act: bytes) -> int:
    """The handler's address, or SIG_DFL or SIG_IGN."""
    return int.from_bytes(act[:8], "little")


def resets(act: bytes) -> bool:
    """Whether the first delivery makes the disposition the default again."""
    return bool(int.from_bytes(act[8:16], "little") & SA_RESETHAND)


def after_fork(m: Machine, parent: Process, child: Process) -> None:
    """The child has the parent's dispositions."""
    child.data[DISPOSITIONS] = parent.data.get(DISPOSITIONS, {})


def after_exec(m: Machine, t: Task) -> None:
    """What was ignored stays ignored."""
    known = t.process.data.get(DISPOSITIONS, {})
    t.process.data[DISPOSITIONS] = {no: act for no, act in known.items() if handler(act) == signal.SIG_IGN}
