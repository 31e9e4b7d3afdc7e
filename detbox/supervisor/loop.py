"""The main loop: receive an event, decide, reply.

An event is a notification (a guest thread has made a call that the filter
traps) or a ptrace stop.  Only one guest thread runs at a time, so that the next
event is always its own, or one that it caused.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Callable, Iterable
from functools import partial

from detbox.decision import CONTINUE, ContinueThen, Decision, InstallFd, Park, Wake
from detbox.errors import Deadlock, InternalError
from detbox.handlers import futex_exit, limits
from detbox.kernel import _native, siginfo
from detbox.kernel.numbers import NAMES
from detbox.machine import tracees
from detbox.machine.clock import WINDOW, WINDOW_WEIGHT
from detbox.machine.creds import FS_CAPS, Creds
from detbox.machine.files import FsContext
from detbox.machine.inodes import VInode
from detbox.machine.tracees import (
    CALL,
    EVENT_CLONE,
    EVENT_EXEC,
    EVENT_EXIT,
    EVENT_FORK,
    EVENT_STOP,
    EVENT_VFORK,
    is_traced,
)
from detbox.machine.userspaces import TOP
from detbox.policy.later import call_table
from detbox.scheduler.core import turn_length
from detbox.supervisor import lifecycle, signals, tracing
from detbox.supervisor.counting import Counting
from detbox.supervisor.guestclock import GuestClock
from detbox.supervisor.image import Image, Start
from detbox.supervisor.jobs import STOP_SIGNALS, Jobs
from detbox.supervisor.machine import Machine
from detbox.supervisor.nested import Nested
from detbox.supervisor.numbering import Numbering
from detbox.supervisor.overdue import Overdue
from detbox.supervisor.spinning import Spinning
from detbox.supervisor.task import Process, State, Task, waits
from detbox.supervisor.ticking import TICK_MS, tick

PTRACE_CONT = 7
#: TRACESYSGOOD, TRACEFORK, TRACEVFORK, TRACECLONE, TRACEEXEC, TRACEVFORKDONE, EXITKILL (include/uapi/linux/ptrace.h)
TRACE_OPTIONS = 0x1 | 0x2 | 0x4 | 0x8 | 0x10 | 0x20 | 0x100000
NOTIF_CONTINUE = 1
MAX_ERRNO = 4095
RAX_OFFSET = 80  # of rax in struct user_regs_struct

# Looking up a member of an enumeration takes its time, and these are used for every call.
_RUNNING, _HELD = State.RUNNING, State.HELD

Handler = Callable[[Machine, Task, tuple[int, ...]], Decision]


class Supervisor:
    """Runs one guest to its end."""

    #: What each call changes is where kernel/calls.c finds it at once.
    __slots__ = ("running", "notifications", "outcome", "__dict__")

    def __init__(
        self, machine: Machine, handlers: dict[int, Handler], looking: frozenset[int], control: int
    ) -> None:
        """``handlers``: by call number.  ``looking``: numbers of calls that only look at a clock.

        ``control``: descriptor that is readable or closed when the run is to stop.
        """
        self.m = machine
        self.control = control
        self.looking = looking
        self.table: list[Handler | None] = call_table(handlers, max(NAMES) + 1)
        self.calls = [0] * (max(NAMES) + 1)
        self.running = 0  # threads in state RUNNING
        self.main_pid = 0
        self.outcome: int | None = None  # wait status of the first process
        self.gone: dict[int, int] = {}  # of threads whose end was met while another one's was awaited: their statuses
        self.early: dict[int, int] = {}  # stops of children that the parent's event has not announced yet
        self.stops = 0
        self.notifications = 0
        self.fork_hooks: list[Callable[[Machine, Process, Process], None]] = []
        self.thread_hooks: list[Callable[[Task, Task], None]] = []
        self.exec_hooks: list[Callable[[Machine, Task], None]] = []
        self.exit_hooks: list[Callable[[Machine, Process], None]] = []
        #: Asked when a program is about to start: None, or the wait status if its work has been done for it.
        self.answer: Callable[[Task, Start], int | None] | None = None
        #: Hear of each decision; what they return is carried out.
        self.observers: list[Callable[[Task, Decision], Decision]] = []
        machine.bind(self)
        self.guest_clock = GuestClock(machine.clock, not machine.spec.leak and machine.spec.epoch_ns >= 0)
        self.numbering = Numbering(machine.clock, machine.inodes, machine.proc_fd)
        self.image = Image(self)
        self.spinning = Spinning(self)
        self.counting = Counting(self)
        self.overdue = Overdue(self)
        self.jobs = Jobs(self)
        self.nested = Nested(self)
        machine.scheduler.sweep = self.jobs.sweep
        machine.scheduler.release_spinners = self.spinning.release
        machine.scheduler.resume = self.resume  # type: ignore[method-assign]

    # -- the loop -------------------------------------------------------------

    def run(self) -> int:
        """Drive the guest until its first process is gone; its wait status."""
        scheduler, control = self.m.scheduler, self.control
        listener, wait = self.m.listener, TICK_MS
        while self.outcome is None:
            if not self.running:
                task = scheduler.next()
                if task is None:
                    self.deadlock()
                    continue
                action, task.action = task.action, None
                assert action is not None
                action()
                continue
            event = _native.serve(self, listener, control, wait, TICK_MS)
            if event is True:
                raise KeyboardInterrupt
            if isinstance(event, int) and event is not False:
                wait = tick(self, event)
                continue
            wait = TICK_MS
            if event is False:
                listener = -1  # no thread is left that could call; only exits are to come
            elif event:
                self.on_stop(*event)
        return self.outcome

    def turn_ends(self, task: Task, then: Callable[[Task], None] | None = None) -> bool:
        """A held thread has used its turn's calls; True if others go first, and ``then`` (else its call) is queued."""
        task.turns += 1
        task.quantum = turn_length(task.turns)
        scheduler = self.m.scheduler
        if scheduler.used_up():
            scheduler.make_ready(task, partial(then or self.decide, task))
            return True
        return False

    def decide(self, task: Task) -> None:
        """Ask the handler of the thread's call, and carry its decision out."""
        _native.decide(self, task)

    def nobodys(self, nr: int, tid: int) -> None:
        """A call of a thread that is not known."""
        raise InternalError(f"call {nr} of the unknown thread {tid}")

    def unknown(self, task: Task, nr: int) -> int:
        """A call without a policy row: ENOSYS, counted and named at the end."""
        name = NAMES.get(nr, str(nr))
        self.m.unknown_calls[name] = self.m.unknown_calls.get(name, 0) + 1
        self.m.doubt(task, f"system call {name} has no policy row")
        return -38

    def resume(self, task: Task, park: Park, wake: Wake) -> None:
        """Continue a parked call whose condition holds."""
        try:
            decision = park.resume(wake)
        except OSError as error:
            decision = self.m.failed(error)
        self.perform(task, decision)

    def perform(self, task: Task, decision: Decision) -> None:
        """Carry a decision out."""
        returns = task.process.signalled and not isinstance(decision, (Park, InstallFd))
        if returns and signals.stands_aside(self.m, task, partial(self.perform, task, decision)):
            return
        if self.observers:
            for observer in self.observers:
                decision = observer(task, decision)
        if type(decision) is int:
            self.finish(task, decision)
        elif decision is CONTINUE:
            self.finish(task, None)
        elif isinstance(decision, Park):
            if "first" in decision.extra:
                self.m.scheduler.yield_to(task, decision)
            else:
                self.m.scheduler.park(task, decision)
                if decision.extra.get("sigwait") or task.data.pop("signal_check", None):
                    self.m.notice_signals(task.process)
                elif task.exposed or task.process.job_stop or "sigmask" in decision.extra:
                    self._check_signals(task)
        elif isinstance(decision, InstallFd):
            self._install(task, decision)
        elif isinstance(decision, ContinueThen):
            task.look = decision.look
            _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)
            self.finish(task, decision.instead)
        else:
            raise InternalError(f"handler of {NAMES.get(task.nr)} returned {decision!r}")

    def _check_signals(self, task: Task) -> None:
        """A signal that was already pending when the call parked must interrupt it."""
        sets = signals.pending(self.m, task)
        mask = task.park.extra.get("sigmask") if task.park is not None else None
        blocked = sets.blocked if mask is None else mask
        if task.process.job_stop or (sets.private | sets.shared) & signals.effective(task, sets) & ~blocked:
            signals.interrupt(self.m, task)

    def _install(self, task: Task, decision: InstallFd) -> None:
        if task.process.counted or task.data or self.m.scheduler.awaited:
            self.counting.before_return(task)
        self.grant(task)
        at = -1 if decision.at is None else decision.at
        number = _native.add_fd(self.m.listener, task.notif, decision.fd, at, decision.cloexec, True)
        os.close(decision.fd)
        if number < 0:
            if number == -2:  # ENOENT: the thread is dying
                self.released(task)
                return
            if number == -errno.EMFILE:
                limits.descriptors_ran_out(self.m, task)
            self.perform(task, number)
            return
        task.process.files.set(number, decision.info)
        if decision.then is not None:
            decision.then(number)
        self.released(task)

    def finish(self, task: Task, result: int | None) -> None:
        """Answer a call: the signed result, a negative errno or a restart code; None: the kernel executes it."""
        if task.process.counted or task.data or self.m.scheduler.awaited:
            self.counting.before_return(task)
        self.grant(task)
        if result is None:
            _native.reply(self.m.listener, task.notif, 0, 0, NOTIF_CONTINUE)
        elif -MAX_ERRNO <= result < 0:
            _native.reply(self.m.listener, task.notif, 0, result, 0)
        else:
            _native.reply(self.m.listener, task.notif, result, 0, 0)
        self.released(task)
        task.native = result is None

    def released(self, task: Task) -> None:
        task.notif = 0
        task.state = _RUNNING
        task.exposed = task.native = False
        self.running += 1
        if task.data and task.data.pop("leader_leaves", None):
            lifecycle.leader_gone(self, task)

    def grant(self, task: Task) -> None:
        """A thread is about to go on: how long it may look at the clock by itself."""
        if task.cpu.watching or self.guest_clock.open:
            self.guest_clock.grant(task.cpu, not self.counting.measures(task))

    def hold(self, task: Task) -> None:
        """A thread that was running is now held by the supervisor."""
        self.guest_clock.settle()
        if task.state is _RUNNING:
            self.running -= 1
            task.state = _HELD

    # -- ptrace stops -----------------------------------------------------------

    def cont(self, task: Task, signo: int) -> None:
        """Let a ptrace-stopped thread go on, delivering ``signo`` (0: nothing)."""
        self.grant(task)
        request = tracees.request(task) if task.data else PTRACE_CONT
        _native.ptrace_request(request, task.tid, 0, signo)
        task.state = _RUNNING
        task.native = False
        self.running += 1

    def proceed(self, task: Task) -> None:
        """Let a thread that is stopped at a deterministic point go on, counted if need be."""
        if task.process.signalled and signals.stands_aside(self.m, task, partial(self.proceed, task)):
            return
        self.grant(task)
        if not self.counting.on_pause(task):
            self.cont(task, 0)

    def on_stop(self, tid: int, status: int) -> None:
        """A tracee has stopped or is gone."""
        self.stops += 1
        if not os.WIFSTOPPED(status):
            lifecycle.on_exit(self, tid, status)
            return
        signo, event = (status >> 8) & 0xFF, status >> 16
        task = self.m.tasks.get(tid)
        if event == EVENT_EXEC and (task is None or len(task.process.tasks) > 1):
            # It is reported under the leader's number, whichever thread it was.
            task = self.m.tasks.get(_native.event_message(tid))
        if task is None:
            self.early[tid] = status
            return
        self.hold(task)
        self.m.scheduler.stirred = True
        if task.data:
            self.counting.on_stop(task, signo, event == EVENT_STOP)
        if event == 0:
            self.on_signal(task, signo)
        elif event == EVENT_STOP:
            self.on_event_stop(task, signo)
        elif event in (EVENT_FORK, EVENT_VFORK, EVENT_CLONE):
            lifecycle.on_clone(self, task, event)
        elif event == EVENT_EXEC:
            lifecycle.on_exec(self, task)
        elif event == EVENT_EXIT:
            tracing.leaves(self, task)
        else:
            child = _native.event_message(tid)
            self.m.scheduler.make_ready(task, lambda: lifecycle.vfork_done(self, task, child))

    def on_signal(self, task: Task, signo: int) -> None:
        """Signal-delivery stop: trapped instructions are emulated, all else is delivered.  Or a stop at a call."""
        if signo == signal.SIGTRAP | CALL:
            tracing.at_call(self, task)
            return
        info, looks = _native.get_siginfo(task.tid), task.cpu.looks
        if signo == signal.SIGTRAP:
            int3 = siginfo.code_of(info) == siginfo.SI_KERNEL
            if self.counting.on_trap(task) or int3 and self.spinning.on_trap(task):
                return
        if signo in (signal.SIGSEGV, signal.SIGILL, signal.SIGTRAP) and self.image.trapped(task, signo, info):
            # Who waits by looking at the time stamp counter makes no calls.  Other traps depend on the processor.
            if task.cpu.looks != looks:
                task.quantum -= WINDOW_WEIGHT if looks % WINDOW == WINDOW - 1 else 1
            if task.data and tracing.stepped(self, task):
                return
            if task.quantum > 0 or not self.turn_ends(task, self.proceed):
                self.proceed(task)
            return
        if signo == signal.SIGSYS and lifecycle.forbidden(self, task, info):
            return
        signals.repair(self.m, task, signo, info)
        if is_traced(task):
            tracing.takes_signal(self, task, signo)
        else:
            self.deliver(task, signo)

    def deliver(self, task: Task, signo: int) -> None:
        """Let a thread take the signal that it is stopped by."""
        if self.image.hot is not None:
            self.image.hot.before_signal(task)
        self.spinning.before_signal(task)
        self.counting.long_loops.before_signal(task)
        self.counting.before_signal(task)
        signals.before_end(self, task, signo)
        self.cont(task, signo)

    def on_event_stop(self, task: Task, signo: int) -> None:
        """PTRACE_EVENT_STOP: the end of a watched call, a job control stop, or a tick's interrupt."""
        look, task.look = task.look, None
        if look is not None:
            self.look(task, look)
        if signo in STOP_SIGNALS:
            if is_traced(task):
                tracing.group_stop(self, task, signo)
            else:
                self.jobs.on_stop(task, signo)
        elif task.state is State.STOPPED:
            self.jobs.on_trap(task)
        elif is_traced(task) and tracing.asked(self, task):
            return
        elif look is not None:
            self.proceed(task)
        elif not self.spinning.on_pause(task):
            self.proceed(task)

    def look(self, task: Task, look: Callable[[Task, int], int | None]) -> None:
        """Look at the end of a call, at which the thread has stopped."""
        regs = _native.get_regs(task.tid)
        rax = slice(RAX_OFFSET, RAX_OFFSET + 8)
        replaced = look(task, int.from_bytes(regs[rax], "little", signed=True))
        if replaced is not None:
            changed = bytearray(regs)
            changed[rax] = (replaced & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little")
            _native.set_regs(task.tid, changed)

    # -- waiting for one particular thread ----------------------------------------

    def await_first_stop(self, tid: int) -> None:
        """Wait for a new thread's first stop, unless it was seen already."""
        if self.early.pop(tid, None) is None:
            self.await_stop(tid)

    def await_stop(self, tid: int) -> int | None:
        """Block until ``tid`` stops; its status, or None if it exited instead."""
        _, status = _native.wait_tid(tid, 0)
        if os.WIFSTOPPED(status):
            return status
        lifecycle.on_exit(self, tid, status)
        return None

    def await_exit(self, tid: int) -> int:
        """Block until a dying thread is gone; its wait status.  It may be stopped at its end, or stop there."""
        _native.ptrace_request(PTRACE_CONT, tid, 0, 0)
        task = self.m.tasks.get(tid)
        nested = task is not None and task.process.namespaces
        while tid not in self.gone:
            try:
                found, status = _native.wait_tid(tid, os.WNOHANG if nested else 0)
            except ChildProcessError:
                return 0
            if found and not os.WIFSTOPPED(status):
                return status
            if not found:
                lifecycle.take_zombies(self)
            elif status >> 16 == EVENT_EXIT:
                _native.ptrace_request(PTRACE_CONT, tid, 0, 0)
        return self.gone.pop(tid)

    # -- the end ----------------------------------------------------------------

    def deadlock(self) -> None:
        """Every thread is parked and no deadline is left."""
        raise Deadlock("every thread waits, and nothing can wake any of them:\n" + waits(self.m.tasks.values()))

    def leaving(self, task: Task, whole_process: bool) -> None:
        """A thread is about to exit (handlers of exit and exit_group)."""
        if whole_process:
            task.process.exiting = True
        for thread in list(task.process.tasks.values()) if whole_process else [task]:
            futex_exit.before_exit(self.m, thread)
        if not whole_process and task.tid == task.process.pid and len(task.process.tasks) > 1:
            task.data["leader_leaves"] = True

    def after_signal(self, sender: Task, signo: int, processes: Iterable[Process]) -> None:
        """A signal has been sent: stops and deaths that the kernel carries out at once are awaited here."""
        for process in processes:
            if signo == signal.SIGKILL and process is not sender.process and self._dying(process):
                lifecycle.killed(self, process)
                continue
            if signo == signal.SIGCONT:
                tracing.continued(process)
            if signo == signal.SIGCONT and process.job_stop:
                self.jobs.on_continue(process)
            else:
                signals.notice(self.m, process)

    def _dying(self, process: Process) -> bool:
        """Whether SIGKILL has reached the process (it may have been refused for some of a group)."""
        return any(signals.killed(self.m, task) for task in process.tasks.values())


_native.know_files(VInode, Task, Process, FsContext, Creds, FS_CAPS, TOP)
_native.know_calls(Supervisor, Task, Process, _RUNNING, _HELD, CONTINUE, WINDOW_WEIGHT)
