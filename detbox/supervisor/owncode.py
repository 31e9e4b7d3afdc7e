"""Whether a running thread is in its own code, or may be in a call that a request to stop would change.

It is told without stopping the thread.  The kernel books each of its ticks (1 to 10 ms) to the code that it finds
running, and shows a thread's processor time divided in that proportion (cputime_adjust() in kernel/sched/cputime.c).
While the thread is in a call, all ticks are the kernel's; if its own time grows by nearly all that passes, it is not.
What was booked before could hide that only if the ticks had found the thread ten times as often as it ran, and that for
almost a second.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from detbox.kernel.numbers import NUMBERS
from detbox.records import record

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

# Calls that a request to stop would cut short or make the kernel begin anew; and the seconds of processor time after
# which it is no more believed that the kernel is at one.  On a busy host a call may take any time.
_CUT_SHORT = frozenset(
    NUMBERS[name]
    for name in ("clone", "clone3", "fork", "vfork", "sendfile", "splice", "tee", "vmsplice", "copy_file_range",
                 "write", "writev", "pwrite64", "pwritev", "pwritev2", "read", "readv", "pread64", "preadv", "preadv2",
                 "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg")
)  # fmt: skip
_CALL_DELAY = 5.0
# Seconds from one look to the next.
_PAUSE = 0.1
# In the units of /proc/TID/stat: how much the thread has to compute from one look to the next, and one part in how many
# of that may be the kernel's.
_TICKS = os.sysconf("SC_CLK_TCK")
_ENOUGH, _KERNELS = int(0.8 * _PAUSE * _TICKS), 8


@record
class OwnCode:
    """What is known of a thread since its last call; ``times``: its own and the kernel's at the last look.

    ``began``: those at the first one.
    """

    times: tuple[int, int] | None = None
    began: tuple[int, int] | None = None
    found: bool = False

    def pause(self, m: Machine, task: Task, waited: float) -> float:
        """For how many seconds the thread, which has made no call for ``waited``, is to be left alone."""
        if not task.native or task.nr not in _CUT_SHORT or self.found:
            return 0.0
        now = _times(m, task)
        if now is None:
            return max(0.0, min(_CALL_DELAY - waited, _PAUSE))
        before = self.times = self.times or now
        began = self.began = self.began or now
        own, kernels = now[0] - before[0], now[1] - before[1]
        if own + kernels >= _ENOUGH:
            self.times = now
            self.found = own >= _ENOUGH and kernels * _KERNELS <= own
        self.found = self.found or sum(now) - sum(began) >= _CALL_DELAY * _TICKS
        return 0.0 if self.found else _PAUSE


def _times(m: Machine, task: Task) -> tuple[int, int] | None:
    """Processor time of a thread: in its own code, and in the kernel."""
    try:
        fd = os.open(f"{task.process.pid}/task/{task.tid}/stat", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    except OSError:
        return None
    with open(fd, "rb") as line:
        fields = line.read().rpartition(b")")[2].split()
    return int(fields[11]), int(fields[12])
