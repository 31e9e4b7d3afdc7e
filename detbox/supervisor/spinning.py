"""Threads that wait by spinning: noticed by the tick, proved, parked, and released when memory changes.

A proved spinner is held in its ptrace stop, as a parked task without a call.
Whenever the scheduler chooses, the memory that each spinner watches is compared
with what it was; who sees a change is queued.  See docs/spin.md.
"""

from __future__ import annotations

import os
import signal
import time
from functools import partial
from typing import TYPE_CHECKING

from detbox.decision import Decision, Park, Wake
from detbox.handlers import dispositions
from detbox.kernel import _native
from detbox.machine.tracees import is_traced
from detbox.records import field, record
from detbox.spin import (
    LoopTable,
    NotSpin,
    Pace,
    PtraceStepper,
    Spin,
    Stepper,
    Verdict,
    attempt,
    enter,
    prove,
    prove_from,
    settle,
    visit,
)
from detbox.spin.decode import prepared
from detbox.spin.pace import LONGEST_LIMIT
from detbox.spin.stepper import OFFSET, RIP, one_processor, register
from detbox.supervisor import arming, signals
from detbox.supervisor.owncode import OwnCode
from detbox.supervisor.relay import SPIN_MOST_NS, SPIN_NS, Relay
from detbox.supervisor.task import State

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

_EVENT_STOP = 128
#: In a task's data: it is to stop, where it may be in an endless loop; where that is.
_PROBE, _AT_CALL, _AT_HANDLER = "spin_probe", 1, 2
# How often a process is looked at after arming a timer or taking a signal: each time costs some
# 4 ms at most, too much for one that takes thousands of signals and does not loop without end.
_PROBES = 200
# So many instructions behind a call that has armed a timer are surveyed first, which takes less than a walk: mostly it
# was a watchdog.
_SURVEYED = 96
# From this limit on (some 0.3 s), a loop that counts is looked for as well.
_COUNTING_LIMIT = 384
# From this limit on (some 3 s), one whose turns are not alike is walked as well.
_BLIND_LIMIT = 1536
# Nobody else could end a spin: it is only looked for to report the deadlock.  A long walk takes some 0.1 s.
_ALONE_DELAY, _ALONE_BLIND_DELAY = 1.0, 20.0
# A thread that a stop would make take a signal of its process, for which the kernel has chosen another one
# (kernel/signal.c, get_signal()), is left alone for so many seconds.
_SIGNAL_DELAY = 5.0
# Nobody's calls are received while a thread is to stop; after so many ms it may have ended.
_NOBODY, _PATIENCE_MS = -1, 20
# A walk takes at most so many times the processor time of the supervisor alone: the kernel works for the other thread.
_WALK_SHARE = 5
#: The two forms of the instruction.
_INT3 = (b"\xcc", b"\xcd\x03")
_UNPREPARED = NotSpin("the disassembler has not been imported", 0)


@record
class _Watch:
    """The running thread, as the ticks see it; ``activity`` changes when it makes a call or stops."""

    task: Task
    activity: int
    waited: float = 0.0
    pace: Pace = field(default_factory=Pace)
    own_code: OwnCode = field(default_factory=OwnCode)


@record
class _Spinner:
    """A parked thread; ``since``: virtual time up to which its CPU time has been charged."""

    spin: Spin
    since: int

    @property
    def watch(self) -> tuple[int, tuple[tuple[int, bytes], ...]]:
        """Since when it waits, and for what."""
        return self.since, self.spin.watched


class Spinning:
    """Everything about spinning threads in one run."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self.loops = LoopTable()
        self.parked: dict[Task, _Spinner] = {}
        self.proofs = 0
        self.visits = 0
        self.relay = Relay(self)
        self._watch: _Watch | None = None
        sup.fork_hooks.append(self._on_fork)
        sup.exit_hooks.append(self._on_exit)
        arming.watch(sup, arming.TIMERS, self._armed)

    # -- finding ----------------------------------------------------------------

    def on_tick(self, task: Task, waited: float) -> float:
        """The running thread has made no call for so many seconds; in how many the next look is due."""
        sup = self.sup
        activity = sup.notifications + sup.stops
        watch = self._watch
        if watch is None or watch.task is not task or watch.activity != activity:
            if task.pace is None:
                task.pace = Pace()
            task.pace.eased()
            watch = self._watch = _Watch(task, activity, pace=task.pace)
        watch.waited += waited
        if pause := watch.own_code.pause(sup.m, task, watch.waited):
            return pause
        scheduler = sup.m.scheduler
        others = scheduler.ready or scheduler.deferred or self.parked or sup.m.timers.next_deadline() is not None
        due = max(watch.pace.delay, 0.0 if others else _alone(watch.pace))
        if watch.waited < due:
            return due - watch.waited
        if watch.waited < _SIGNAL_DELAY and self._would_take(task):
            return _SIGNAL_DELAY - watch.waited
        if self.interrupt(task):
            self._prove(task, watch)
        return max(watch.pace.delay, 0.0 if others else _alone(watch.pace)) - watch.waited

    def _would_take(self, task: Task) -> bool:
        """Whether a signal waits that a stop would give to this thread, while the kernel has chosen another for it."""
        try:
            sets = signals.pending(self.sup.m, task)
        except (OSError, ValueError):
            return False
        return bool(sets.shared & ~sets.blocked)

    def interrupt(self, task: Task) -> bool:
        """Stop the thread in the middle of its own code; False if something else comes first."""
        sup = self.sup
        # The stop that a thread has been asked for is another one, at a deterministic point.
        if task.look is not None or task.data.get(_PROBE) or sup.counting.to_stop(task):
            return False
        if _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0) < 0:
            return False
        status = self._stopped(task)
        if status is None:
            return False
        if status >> 16 != _EVENT_STOP or (status >> 8) & 0xFF != signal.SIGTRAP:
            sup.on_stop(task.tid, status)
            return False
        sup.hold(task)
        # Inside of a system call the registers are the kernel's business.  This stop comes before those of signals
        # (kernel/signal.c, get_signal()): the thread may have executed a breakpoint that is still to be reported.
        in_call = register(_native.get_regs(task.tid), OFFSET["orig_rax"]) >> 63 == 0
        sets = signals.pending(sup.m, task)
        if in_call or (sets.private | sets.shared) & signals.bit(signal.SIGTRAP):
            sup.cont(task, 0)
            return False
        return True

    def _stopped(self, task: Task) -> int | None:
        """Wait until a thread stops that has been asked to; its status, or None if it has ended instead.

        The kernel reports the end of a process's first thread after those of the others, which the loop has to hear of.
        """
        while True:
            stopped, status = _native.wait_tid(task.tid, os.WNOHANG)
            if stopped:
                return status
            status = _native.await_call(_NOBODY, task.tid, _PATIENCE_MS)
            if status is not None:
                return int(status)
            try:
                if signals.is_zombie(self.sup.m, task):
                    return None
            except OSError:
                return None

    def _prove(self, task: Task, watch: _Watch) -> None:
        self.proofs += 1
        watch.waited = 0.0
        started, own = time.perf_counter(), time.thread_time()
        stepper = PtraceStepper(task.tid)
        verdict = self._verdict(task, watch.pace, stepper)
        if isinstance(verdict, Spin):
            watch.pace.restart()
        elif verdict is not _UNPREPARED:
            # Where others want the processor, the walk may have waited for it.
            took = min(time.perf_counter() - started, (time.thread_time() - own) * _WALK_SHARE)
            watch.pace.failed(took)
        self._settle(task, stepper, verdict)
        if verdict is _UNPREPARED:
            prepared(now=True)  # while the thread goes on

    def _verdict(self, task: Task, pace: Pace, stepper: PtraceStepper) -> Verdict:
        mm, limit = task.process.mm, pace.limit

        def prover(walked: Stepper) -> Verdict:
            if limit < _BLIND_LIMIT and not stepper.survey(pace.survey):
                return NotSpin("its turns are not alike", 0)
            if not prepared():
                return _UNPREPARED
            with one_processor(task.tid):
                return prove(walked, limit)

        verdict = attempt(self.loops, mm, stepper, prover)
        if isinstance(verdict, Spin) or not verdict.steps or not stepper.stepped or limit < _COUNTING_LIMIT:
            return verdict
        with one_processor(task.tid):
            verdict = attempt(self.loops, mm, stepper, lambda _: _prove_counting(stepper))
        if isinstance(verdict, Spin) and not (verdict.exact or verdict.settled):
            where = f"a loop at {min(verdict.addresses):#x} counts while it waits for another thread"
            self.sup.m.doubt(task, f"{where}: how far it counts the first time depends on the machine")
        return verdict

    def examine(self, task: Task, limit: int) -> bool:
        """A thread is stopped at a deterministic point, where it may spin; True if it has been dealt with.

        ``limit``: as in :class:`Pace`.
        """
        stepper, pace = PtraceStepper(task.tid), Pace(limit=limit)

        def prover(walked: Stepper) -> Verdict:
            if not stepper.survey(pace.survey):
                return NotSpin("its turns are not alike", 0)
            prepared(now=True)
            with one_processor(task.tid):
                return prove(walked, limit)

        verdict = attempt(self.loops, task.process.mm, stepper, prover)
        if not stepper.stepped or isinstance(verdict, Spin):
            self._settle(task, stepper, verdict)
            return True
        return False

    def on_trap(self, task: Task) -> bool:
        """An ``int3``; True if it was one of our breakpoints, and has been dealt with."""
        mm = task.process.mm
        if not self.loops.known(mm):
            return False
        stepper = PtraceStepper(task.tid)
        rip = register(stepper.registers(), RIP)
        if self.loops.at_breakpoint(mm, rip) is None:
            return self._gone(task, stepper, rip)
        self.sup.image.undo_force(task, signal.SIGTRAP)
        verdict = visit(self.loops, mm, stepper)
        assert verdict is not None
        self.visits += 1
        self._settle(task, stepper, verdict)
        return True

    def _gone(self, task: Task, stepper: PtraceStepper, rip: int) -> bool:
        """Whether the breakpoint has been taken out since: the thread executes what is there now."""
        try:
            before = stepper.read(rip - 1, 1)
            if before == b"\x03":
                before = stepper.read(rip - 2, 2)
        except OSError:
            before = b""
        if before in _INT3:
            return False
        self.sup.image.undo_force(task, signal.SIGTRAP)
        stepper.assign(((RIP, rip - 1),))
        self.sup.proceed(task)
        return True

    # -- loops that count until a timer's signal comes ------------------------------

    def _armed(self, task: Task) -> None:
        """A timer was armed: from the call's end on, an endless loop is looked for."""
        task.process.data.setdefault("spin_probes", _PROBES)
        self._probe(task, _AT_CALL)

    def before_signal(self, task: Task) -> None:
        """Have the thread stop at the beginning of the handler."""
        self._probe(task, _AT_HANDLER)

    @staticmethod
    def _probe(task: Task, where: int) -> None:
        left = task.process.data.get("spin_probes", 0) if not is_traced(task) else 0
        if left and not task.data.get(_PROBE):
            task.process.data["spin_probes"] = left - 1
            _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)
        if left:
            task.data[_PROBE] = where

    @staticmethod
    def let_be(task: Task) -> None:
        """Forget that a thread is to stop."""
        task.data.pop(_PROBE, None)

    def on_pause(self, task: Task) -> bool:
        """The stop that was asked for: a deterministic point.  True if it has been dealt with."""
        where = task.data.pop(_PROBE, None)
        if where is None or signals.restarts(task):
            return False
        stepper = PtraceStepper(task.tid)

        def prover(walked: Stepper) -> Verdict:
            # A handler is walked to its end, and what it has interrupted behind it.
            if where == _AT_CALL and not stepper.survey(_SURVEYED):
                return NotSpin("its turns are not alike", 0)
            return prove_from(walked)

        self._settle(task, stepper, attempt(self.loops, task.process.mm, stepper, prover))
        return True

    # -- parking ----------------------------------------------------------------

    def _settle(self, task: Task, stepper: PtraceStepper, verdict: Verdict) -> None:
        """Park a spinner; let any other thread go on."""
        sup = self.sup
        if stepper.stepped and signal.SIGTRAP in task.process.data.get(dispositions.DISPOSITIONS, {}):
            sup.image.undo_force(task, signal.SIGTRAP)
        if not stepper.stepped:
            # A signal or the thread's end interrupted the walk: that is still to be handled.
            sup.on_stop(task.tid, stepper.status)
        elif isinstance(verdict, Spin):
            sup.guest_clock.settle()
            self.park(task, verdict, sup.m.clock.now)
            self._await_cpu_timers(task)
            sup.m.clock.advance(min(SPIN_NS * len(verdict.addresses), SPIN_MOST_NS))
            sup.m.clock.expire()
        else:
            sup.proceed(task)

    def park(self, task: Task, spin: Spin, since: int) -> None:
        """Hold a spinner that is where it is parked."""
        self.parked[task] = _Spinner(spin, since)
        why = f"spins at {spin.address:#x} on memory that nobody changes"
        self.sup.m.scheduler.park(task, Park(_no_call, why=why, extra={"spin": True}))

    def release(self) -> None:
        """Queue every spinner whose memory has changed: called when the scheduler chooses."""
        if not self.parked:
            return
        for task, spinner in list(self.parked.items()):
            if task.state is not State.PARKED:
                del self.parked[task]
            elif not spinner.spin.unchanged(task.tid):
                self.let_go(task)

    def let_go(self, task: Task, *, signalled: bool = False) -> None:
        """Queue a spinner, to look at its memory again or to take a signal.

        The walk would do for a signal, too, unless it is known by heart: then no instruction is executed.
        """
        self._charge(task)
        self.parked.pop(task, None)
        if self.sup.m.scheduler.withdraw(task) is not None:
            then = partial(self.sup.cont, task, 0) if signalled else partial(self.again, task)
            self.sup.m.scheduler.make_ready(task, then)

    def again(self, task: Task) -> None:
        """Continue a spinner; its next turn is walked here, and not by way of the breakpoint.

        How far it is walked depends on what has been remembered: if it is counted, then from where it was parked.
        """
        if self.sup.counting.go_on_counted(task):
            return
        # Its steps may be looks at the clock.
        self.sup.grant(task)
        stepper = PtraceStepper(task.tid)
        try:
            loop = self.loops.at(task.process.mm, register(stepper.registers(), RIP))
        except OSError:
            loop = None
        if loop is None:
            self.sup.cont(task, 0)
            return
        if self.relay.take(task):
            return
        self.visits += 1
        self._settle(task, stepper, enter(self.loops, task.process.mm, loop, stepper))

    def _charge(self, task: Task) -> None:
        """A spinner uses its processor all the time that it waits."""
        spinner = self.parked.get(task)
        now = self.sup.m.clock.now
        if spinner is not None and now > spinner.since:
            elapsed, spinner.since = now - spinner.since, now
            task.cpu.spend(elapsed)

    def _await_cpu_timers(self, task: Task) -> None:
        """Timers on the spinner's CPU time expire while it spins."""
        clock = self.sup.m.clock
        for cpu in (task.cpu, task.cpu.parent):
            deadline = cpu.timers.next_deadline() if cpu is not None and cpu.timers is not None else None
            if cpu is not None and deadline is not None:
                clock.timers.add(clock.now + max(deadline - cpu.ns, 0), lambda: self._charge(task))

    # -- address spaces -----------------------------------------------------------

    def _on_fork(self, m: Machine, parent: Process, child: Process) -> None:
        if parent.mm is not child.mm:
            self.loops.inherit(parent.mm, child.mm)

    def _on_exit(self, m: Machine, process: Process) -> None:
        if self.loops.empty:
            return  # there may be thousands of processes
        self.loops.keep(m.other_spaces(process))


def _alone(pace: Pace) -> float:
    """Seconds that a thread without which nothing would happen anyway is left alone."""
    return _ALONE_DELAY if pace.limit < _BLIND_LIMIT else _ALONE_BLIND_DELAY


def _prove_counting(stepper: PtraceStepper) -> Verdict:
    """Prove that a loop counts, and take it to where it is parked whenever it is found, if that can be told."""
    verdict = prove_from(stepper)
    if isinstance(verdict, NotSpin) or verdict.exact:
        return verdict
    settled = settle(stepper, verdict)
    if settled is None and stepper.stepped:
        again = prove(stepper, LONGEST_LIMIT)  # a narrow counter comes back to each of its values soon
        settled = again if isinstance(again, Spin) else None
    return settled or verdict


def _no_call(wake: Wake) -> Decision:
    raise AssertionError("a spinner has no call to resume")
