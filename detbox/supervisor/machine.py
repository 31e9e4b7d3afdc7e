"""The virtual machine that handlers see: state of one run, and the services of the supervisor."""

from __future__ import annotations

import errno
import os
import signal
import socket
from collections.abc import Callable, Hashable, Iterable
from types import ModuleType
from typing import TYPE_CHECKING, Any

from detbox.cpu import service
from detbox.decision import Decision
from detbox.errors import NotDeterministic
from detbox.handlers.claim import REFUSED
from detbox.handlers.limits import descriptors_ran_out
from detbox.kernel import _native
from detbox.machine.clock import Clock
from detbox.machine.futexes import FutexTable
from detbox.machine.inodes import InodeTable
from detbox.machine.layers import Layers
from detbox.scheduler.core import Scheduler
from detbox.supervisor import injection, lifecycle, signals
from detbox.supervisor.console import Console
from detbox.supervisor.readiness import EpollReadiness
from detbox.supervisor.task import Process, State, Task

if TYPE_CHECKING:
    from detbox.cpu.model import CpuModel
    from detbox.machine.tracees import Stop
    from detbox.spec import RunSpec
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.mounting import Mounting
    from detbox.supervisor.nested import Nested
    from detbox.supervisor.userspaces import UserSpaces


class Machine:
    """Everything that handlers may use; see docs/adding-a-system-call.md."""

    def __init__(self, spec: RunSpec, console: Console, proc_fd: int, cpu_model: CpuModel) -> None:
        """``proc_fd``: O_PATH descriptor of the guest's /proc."""
        self.spec = spec
        self.console = console
        self.proc_fd = proc_fd
        self.cpu_model = cpu_model
        self.clock = Clock(spec.epoch_ns)
        self.timers = self.clock.timers
        self.scheduler = Scheduler(self.clock, self.timers, EpollReadiness())
        self.inodes = InodeTable(spec.epoch_ns, self.clock.stamp)
        self.inodes.reachable = self._reachable
        self.layers = Layers()
        self.ways = 0  # how often ways through directories may have closed (see handlers.paths)
        self.futexes = FutexTable()
        self.tasks: dict[int, Task] = {}
        self.processes: dict[int, Process] = {}
        #: Real user ids, other than root's, of processes that have ended.
        self.former_users: dict[int, int] = {}
        self.listener = -1
        self.doubts: dict[str, int] = {}
        self.unknown_calls: dict[str, int] = {}
        #: (task, fd, length, offset) of a private mapping of code → what to do with its address, if anything.
        self.code_mapped: Callable[[Task, int, int, int], Callable[[Task, int], None] | None] | None = None
        self.data: dict[str, Any] = {}  # state that handler modules keep per run
        self.stdio = console.kinds
        self.requests = -1  # socket to the keeper
        self._sup: Supervisor
        self._mounting: Mounting | None = None
        self._user_spaces: UserSpaces | None = None

    def wake(self, key: Hashable, count: int | None = None, value: Any = None) -> int:
        """Resume tasks parked on ``key``, in the order they parked; returns how many."""
        return self.scheduler.wake(key, count, value)

    def install_fd(self, task: Task, fd: int, cloexec: bool, info: Any = None) -> int:
        """Put a copy of the supervisor's ``fd`` into the guest without finishing the call.

        Returns the guest's number; the caller closes ``fd``.  Raises OSError (EMFILE).
        """
        number = _native.add_fd(self.listener, task.notif, fd, -1, cloexec, False)
        if number < 0:
            if number == -errno.EMFILE:
                descriptors_ran_out(self, task)
            raise OSError(-number, os.strerror(-number))
        task.process.files.set(number, info)
        return number

    def signal(
        self, target: Process | Task, signo: int, *, code: int, value: int = 0, timerid: int = 0,
        overrun: int = 0, sender: Process | None = None,
    ) -> None:  # fmt: skip
        """Send a signal on behalf of the kernel (a virtual timer), or of another process."""
        signals.send(self, target, signo, code=code, value=value, timerid=timerid, overrun=overrun, sender=sender)

    def run_call(self, task: Task, number: int, *args: int) -> int:
        """The signed result of a call that a thread makes for us, in the stop after a watched call."""
        return injection.call(task, number, *args)

    def doubt(self, task: Task, text: str) -> None:
        """Note something that cannot be promised; fatal with ``--strict``."""
        self.doubts[text] = self.doubts.get(text, 0) + 1
        if self.spec.strict:
            raise NotDeterministic(f"process {task.process.pid} ({os.fsdecode(task.process.comm)}): {text}")

    # -- what the handlers of processes and signals need of the loop -------------------

    def bind(self, sup: Supervisor) -> None:
        """Connect the loop."""
        self._sup = sup

    def failed(self, error: OSError) -> int:
        """What the guest gets for a handler's failure: -errno; what is no failure of a call is raised again."""
        if not error.errno:
            raise error
        if error.errno in REFUSED and self.layers.refused is not None:
            self.layers.refused()
        return -error.errno

    def lets_go_first(self, task: Task) -> bool:
        """Whether those that a thread has woken go first; see :mod:`detbox.supervisor.generated` and
        :mod:`detbox.supervisor.giving_way`."""
        from detbox.supervisor.generated import lets_go_first

        return self._sup.counting.giving_way.lets_go_first(task) or lets_go_first(self, task)

    @property
    def nested(self) -> Nested:
        """The PID namespaces of the guest's own."""
        return self._sup.nested

    @property
    def mounting(self) -> Mounting:
        """The mount namespaces of the guest's own; first asked for when there is one."""
        if self._mounting is None:
            from detbox.supervisor.mounting import Mounting

            self._mounting = Mounting(self, self._procview().MOUNTS)
        return self._mounting

    @property
    def user_spaces(self) -> UserSpaces:
        """The user namespaces of the guest's own; first asked for when there is one."""
        if self._user_spaces is None:
            from detbox.supervisor.userspaces import UserSpaces

            self._user_spaces = UserSpaces(self)
        return self._user_spaces

    def own_numbers(self, task: Task, dev: int) -> tuple[int, int]:
        """(process, thread) numbers of a thread in the procfs with st_dev ``dev``."""
        return self._sup.nested.own_numbers(task, dev)

    def leaving(self, task: Task, *, whole_process: bool) -> None:
        """A thread (or all of its process) is about to exit."""
        self._sup.leaving(task, whole_process)

    def forget_reaped(self, process: Process) -> None:
        """Drop the zombie children that the process has waited for, and count what they have used."""
        lifecycle.forget_reaped(self._sup, process)

    def perform(self, task: Task, decision: Decision) -> None:
        """Carry out what was decided about a held call."""
        self._sup.perform(task, decision)

    def redo(self, task: Task) -> None:
        """Ask the handler of a held call again."""
        self._sup.decide(task)

    def notice_signals(self, process: Process) -> None:
        """Interrupt parked threads of a process that have to take a signal."""
        signals.notice(self, process)

    def after_signal(self, sender: Task, signo: int, processes: Iterable[Process]) -> None:
        """A guest thread has sent a signal to these processes."""
        self._sup.after_signal(sender, signo, processes)

    def go_on(self, task: Task, stop: Stop, signo: int) -> None:
        """Queue a thread that its tracer lets go on, with a signal or none (0); not one that another takes with it."""
        if task.state is State.DEAD:
            return
        self.scheduler.make_ready(task, lambda: stop.then(signo))

    @property
    def tracing(self) -> ModuleType:
        """What the loop does for tracers of the guest's; see :mod:`detbox.supervisor.tracing`."""
        from detbox.supervisor import tracing

        return tracing

    def tell_tracer(self, tracer: Process, task: Task, code: int, value: int) -> None:
        """A thread that a process of the guest traces has stopped or ended: ``si_code`` and ``si_status``."""
        self.wake(("child", tracer.pid))
        signals.tell_tracer(self, tracer, task, code, value)

    def stop_for_tracer(self, task: Task) -> None:
        """Have a traced thread stop that may be at anything."""
        self.tracing.interrupt(self._sup, task)

    def listens(self, task: Task, signo: int) -> None:
        """Leave a thread in the stop of its process."""
        self._sup.jobs.on_stop(task, signo)

    def kill(self, process: Process) -> None:
        """End a process at once."""
        os.kill(process.pid, signal.SIGKILL)
        lifecycle.killed(self._sup, process)

    def let_spinner_go(self, task: Task) -> None:
        """Queue a thread that was held because it spins: it is to take a signal."""
        self._sup.spinning.let_go(task, signalled=True)

    def pending_signals(self, task: Task) -> int:
        """The set of signals that are pending for a held thread or its process."""
        sets = signals.pending(self, task)
        return sets.private | sets.shared

    def _reachable(self) -> tuple[set[tuple[int, int]] | None, int]:
        # Imported when it is first needed: few runs have so many files without a name.
        from detbox.supervisor.reachable import reachable

        return reachable(self)

    @staticmethod
    def _procview() -> ModuleType:
        # Imported when it is first needed: many runs never look at /proc.
        from detbox.supervisor import procview

        return procview

    def synth_open(self, task: Task, path: bytes, fd: int, flags: int) -> int:
        """Answer an open of a procfs or sysfs file; see :func:`procview.synth_open`."""
        return self._procview().synth_open(self, task, path, fd, flags)

    def synth_again(self, task: Task, path: bytes, fd: int) -> int:
        """Have a file that was opened show what there is now; see :func:`procview.synth_again`."""
        return self._procview().synth_again(self, task, path, fd)

    def synth_mode(self, task: Task, path: bytes, dev: int) -> int | None:
        """st_mode of a procfs path, None where the guest sees nothing."""
        return self._procview().synth_mode(self, task, path, dev)

    def synth_listing(self, task: Task, path: bytes, names: list[bytes], dev: int) -> list[bytes]:
        """The names in a procfs or sysfs directory; see :func:`procview.synth_listing`."""
        return self._procview().synth_listing(self, task, path, names, dev)

    def repaired_siginfo(self, task: Task, signo: int, info: bytes) -> bytes:
        """A siginfo without host-dependent values."""
        return signals.repaired(self, task, signo, info) or info

    def process_of(self, number: int) -> Process | None:
        """The process of that number, or of the thread of that number: calls and /proc take either."""
        task = self.tasks.get(number)
        return task.process if task is not None else self.processes.get(number)

    def other_spaces(self, process: Process) -> set[object]:
        """The address spaces of all processes but one, which has ended."""
        return {other.mm for other in self.processes.values() if other is not process}

    def need_loopback(self, task: Task) -> None:
        """Bring the loopback device up, the first time that the guest wants a socket."""
        if not self.data.get("loopback") and self.spec.network != "none":
            self.data["loopback"] = True
            with socket.socket(fileno=self.requests) as sock:
                sock.sendall(b"l")
                try:
                    failed = service.receive(sock)
                finally:
                    sock.detach()
            for setting in failed:
                self.doubt(task, f"the host refuses a setting of the loopback device ({setting}): timing may show")
