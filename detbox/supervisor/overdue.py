"""Threads that compute without a call while somebody's timer has long been due by the host's clock.

Where instructions are counted (counting.py) that does not happen.  What is left is decided by the processor time
that the thread has really used: if the timer's signal ends it, the run goes on, and says so; otherwise it ends with
a report.
"""

from __future__ import annotations

import os
from math import inf
from typing import TYPE_CHECKING

from detbox.errors import NotDeterministic
from detbox.handlers import limits, timers
from detbox.kernel import _native
from detbox.kernel.mappings import mapping_at
from detbox.records import record
from detbox.spin.stepper import RIP, register
from detbox.supervisor import signals

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.task import Process, Task

#: Seconds of real processor time beyond the time that a thread's own timer has left, after which it is given up.
GRACE = 30.0
#: Before so many seconds nothing is done; then a thread has used up a timer of an ancestor's if it has
#: computed for twice the time that this has left.
LEAST, TIMES = 5.0, 2
_PAUSE = 0.5  # seconds between two looks at the processor time, at least


@record
class _Watch:
    """Since a thread's last call: its virtual CPU time, the real one in seconds, and the virtual time."""

    cpu_ns: int
    used: float
    since: int
    waited: float = 0.0  # seconds since the last look


class Overdue:
    """The threads of one run that have made no call for long."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self._watches: dict[Task, _Watch] = {}

    def on_tick(self, task: Task, waited: float) -> float:
        """The running thread has made no call for so many seconds; in how many the next look is due.

        Raises NotDeterministic if it computes far beyond the time that its own timer has left.
        """
        due = timers.next_signal(task.process)
        if due is not None and due[2] not in (task.process, *task.process.tasks.values()):
            due = None  # another process's, by this one's CPU time
        left = self._ancestors(task) if due is None else due[0]
        if left is None:
            return inf
        watch = self._watches.get(task)
        if watch is None or watch.cpu_ns != task.cpu.ns:
            living = self.sup.m.tasks.values()
            self._watches = {each: old for each, old in self._watches.items() if each in living}
            self._watches[task] = _Watch(task.cpu.ns, self._used(task), self.sup.m.clock.now)
            return LEAST
        watch.waited += waited
        if watch.waited < _PAUSE:
            return _PAUSE - watch.waited
        watch.waited = 0.0
        used = self._used(task) - watch.used
        if due is not None:
            limit = GRACE + left / 1e9
            if used > limit:
                del self._watches[task]
                self._own(task, *due)
        else:
            limit = max(LEAST, TIMES * (self.sup.m.clock.now + left - watch.since) / 1e9)
            if used > limit:
                self._let_others(task, watch, left)
        return max(limit - used, _PAUSE)

    def _used(self, task: Task) -> float:
        """Seconds of real processor time of a running thread."""
        name = f"{task.process.pid}/task/{task.tid}/schedstat"
        try:
            fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.sup.m.proc_fd)
        except OSError:
            return 0.0
        with open(fd, "rb") as line:
            return int(line.read().split()[0]) / 1e9

    # -- an ancestor's timer -------------------------------------------------------------

    def _ancestors(self, task: Task) -> int | None:
        """Nanoseconds to the first signal of a timer of an ancestor that waits; None if there is none."""
        left = [
            due[0]
            for process in task.process.ancestors()
            if process.mm is not task.process.mm and (due := timers.next_signal(process)) is not None
        ]
        return min(left, default=None)

    def _let_others(self, task: Task, watch: _Watch, left: int) -> None:
        sup = self.sup
        if not sup.spinning.interrupt(task):
            return
        sup.m.doubt(task, "computed until the time limit of a process above it; real time decided when")
        sup.counting.pass_time(task, left)
        watch.cpu_ns = task.cpu.ns
        sup.m.scheduler.make_ready(task, lambda: sup.cont(task, 0))

    # -- its own timer -------------------------------------------------------------------

    def _own(self, task: Task, left: int, signo: int, receiver: Task | Process) -> None:
        sup = self.sup
        if self._deadly(task, signo, receiver):
            limited = limits.next_signal(task.process) == (left, signo, receiver)
            what = "it reached its limit of processor time" if limited else "its own timer's signal ended it"
            sup.m.doubt(task, f"{what} in a long computation; real time decided when")
            sup.counting.pass_time(task, left)
            return
        who = f"process {task.process.pid} ({os.fsdecode(task.process.comm)}), thread {task.tid}"
        raise NotDeterministic(
            f"{who}, computes without a system call at {self._place(task)}, "
            f"and signal {signo} of its timer is due in {left / 1e9:.3f} s",
            "its instructions cannot be counted here; let it make a system call from time to time",
        )

    def _deadly(self, task: Task, signo: int, receiver: Task | Process) -> bool:
        """Whether the signal would end the process (or do nothing): it is neither caught nor blocked."""
        if receiver is not task and receiver is not task.process:
            return False
        sets = signals.pending(self.sup.m, task)
        return not (sets.caught | sets.blocked) & signals.bit(signo)

    def _place(self, task: Task) -> str:
        """Where a running thread is: the address, and the offset in the mapped file."""
        try:
            _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)
            _native.wait_tid(task.tid, 0)
            rip = register(_native.get_regs(task.tid), RIP)
            found = mapping_at(self.sup.m.proc_fd, task.tid, rip)
        except OSError:
            return "an unknown place"
        if found is None or not found.name:
            return f"{rip:#x}"
        return f"{rip:#x} ({os.fsdecode(found.name)}+{rip - found.start + found.offset:#x})"
