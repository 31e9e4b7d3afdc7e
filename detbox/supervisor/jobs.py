"""Job control: processes that stop and continue, and signals that the kernel sends on its own.

A traced thread that takes part in a group stop is caught at PTRACE_EVENT_STOP and told to listen: it stays
stopped until SIGCONT.  The process counts as stopped, for its parent's wait as in the kernel, when its last
thread has stopped; threads that wait in a call have to come out of it for that.

Terminals, hang-ups, the end of a session's last parent and descriptors that are ready (O_ASYNC) make the kernel
send signals that no call of a guest names.  They are looked for when no thread is ready, which is the same moment in
each run.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

from detbox.handlers import ptys
from detbox.kernel import _native
from detbox.machine.io import KERNEL_SIGNALS, SIGNALS_SEEN, THREAD_SIGNALS
from detbox.machine.tracees import is_traced
from detbox.supervisor import signals, tracing
from detbox.supervisor.task import Process, State, Task

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor

STOP_SIGNALS = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
_PTRACE_LISTEN = 0x4208
_TRAPPED = "trapped_again"  # in a task's data: it has left the stop already


class Jobs:
    """The stopped processes of one run."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self.stopped: dict[Process, None] = {}  # with a thread that is stopped, or dead since

    def on_stop(self, task: Task, signo: int) -> None:
        """A thread has taken part in a group stop."""
        process = task.process
        task.state = State.STOPPED
        # The request waits until the thread sleeps, and before that it has sent its parent SIGCHLD
        # (kernel/ptrace.c, ptrace_check_attach(); kernel/signal.c, ptrace_stop()).
        _native.ptrace_request(_PTRACE_LISTEN, task.tid, 0, 0)
        if not process.job_stop:
            process.job_stop = signo
            self.stopped[process] = None
            for other in list(process.tasks.values()):
                if other.state is State.PARKED:
                    signals.interrupt(self.sup.m, other)
        self.look_at(process)

    def look_at(self, process: Process) -> None:
        """Tell the parent of a stopping process once all of its threads have stopped or are gone."""
        if process.job_stop and not process.data.get("stopped") and process.tasks:
            if all(task.state is State.STOPPED for task in process.tasks.values()):
                process.data["stopped"] = True
                self._notify_parent(process)

    def on_trap(self, task: Task) -> None:
        """A stopped thread has left its stop: SIGCONT has come, and whoever sent it is about to be dealt with."""
        task.data[_TRAPPED] = True

    def on_continue(self, process: Process) -> None:
        """SIGCONT has been sent to a stopping or stopped process."""
        sup = self.sup
        self.stopped.pop(process, None)
        process.job_stop = 0
        process.data.pop("stop_reported", None)
        if process.data.pop("stopped", False):
            process.data["continued"] = True
        for task in list(process.tasks.values()):
            if task.state is not State.STOPPED:
                continue
            if task.data.pop(_TRAPPED, False) or sup.await_stop(task.tid) is not None:
                sup.m.scheduler.make_ready(task, partial(self._proceed, task))
        self._notify_parent(process)

    def _proceed(self, task: Task) -> None:
        if not is_traced(task) or not tracing.asked(self.sup, task):
            self.sup.proceed(task)

    def _notify_parent(self, process: Process) -> None:
        if process.parent is not None:
            self.sup.m.wake(("child", process.parent.pid))
            self.sup.m.notice_signals(process.parent)

    def sweep(self) -> bool:
        """Look for signals that the kernel has sent on its own; True if a thread is ready because of one."""
        m = self.sup.m
        for process in list(self.stopped):
            if process.status is not None:
                del self.stopped[process]
            elif self._pending(process) & signals.bit(signal.SIGCONT):
                self.on_continue(process)
        if m.data.get(KERNEL_SIGNALS):
            ptys.flush_all(m)
            m.scheduler.collect()
            for process in list(m.processes.values()):
                if process.status is None and not process.job_stop:
                    seen = process.data.get(SIGNALS_SEEN, 0)
                    process.data[SIGNALS_SEEN] = sets = self._pending(process)
                    if sets:
                        signals.notice(m, process, again=sets == seen)
        return bool(m.scheduler.ready or m.scheduler.deferred)

    def _pending(self, process: Process) -> int:
        """Pending signals of the process, with those of its threads if the kernel may send them any."""
        m, found = self.sup.m, 0
        for task in process.tasks.values():
            try:
                sets = signals.pending(m, task)
            except (OSError, ValueError):
                continue
            if not m.data.get(THREAD_SIGNALS):
                return sets.shared
            found |= sets.shared | sets.private
        return found
