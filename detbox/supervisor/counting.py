"""Programs that compute until a timer's signal comes: their instructions are counted.

While a process has a timer that is to send a signal, each stretch of its code that follows a call is executed
as a copy that counts (copying.py), which makes the next call, too.  If the stretch is long enough to stand for the
time that is left, virtual time jumps to the expiration, and the signal arrives at exactly this place.  See
docs/counting.md.
"""

from __future__ import annotations

import resource
import signal
from typing import TYPE_CHECKING

from detbox.counted.translate import CALL_WEIGHT
from detbox.handlers import limits, timers
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import WINDOW
from detbox.machine.tracees import is_traced
from detbox.supervisor import arming, signals
from detbox.supervisor.copying import EXPIRED, LEFT, Copying
from detbox.supervisor.following import SHOWN, Following
from detbox.supervisor.gauge import GAUGE, Gauge
from detbox.supervisor.gauging import Gauging
from detbox.supervisor.giving_way import GivingWay
from detbox.supervisor.longloops import LongLoops
from detbox.supervisor.looks import Looks
from detbox.supervisor.other_processes import LONG_WORK, OtherProcesses
from detbox.supervisor.rising import FORESEEN, Rising
from detbox.supervisor.stopwatch import Stopwatch
from detbox.supervisor.stretch import GAVE_WAY, LOOPED, PER_NS, SHORTEST, STRETCH, Stretch
from detbox.supervisor.task import State

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: Each further expiration waits longer than the one before, so that handlers get ahead of an interval timer.
GROWTH = 2_500
#: Timers that are further away than this (in ns) are watchdogs: nothing is counted for them.
FAR = 60_000_000_000
#: A limit of CPU time concerns children, too; they are counted if it is not larger than this, in seconds.
INHERITED = 10
#: Stretches of one process that are counted from a stop on (each costs some 0.1 ms).
STRETCHES = 50_000
#: Turns behind an expiration become twice as long each time, and from so many instructions on there are none: others
#: that compute are not those that react to it.
FREELY = SHORTEST << 16
#: With an interrupt pending these would be restarted again and again (kernel/fork.c, copy_process()): their
#: thread is asked to stop when the new one has been announced.
_CREATING = frozenset(NUMBERS[name] for name in ("fork", "vfork", "clone", "clone3"))
_BUDGET = "counting_budget"  # in a process's data: stretches that may still be counted


class Counting:
    """The counted threads of one run."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self.copying = Copying(
            sup, self._reached, lambda task, left: self._measurer(task).give_up(task, left), self._too_dear
        )
        self.following = Following(sup, self.copying, self._counts)
        self.stopwatch = Stopwatch(sup, self.copying, self._counts)
        self.rising = Rising(sup, self.copying, self._counts)
        self.gauging = Gauging(sup, self.copying)
        self.giving_way = GivingWay(sup, self.copying)
        self.others = OtherProcesses(sup, self.copying)
        self.long_loops = LongLoops(sup)
        self.copying.original = self.long_loops.original
        arming.watch(sup, arming.TIMERS + arming.LIMITS, self._armed)
        sup.fork_hooks += [self._on_fork, self.rising.on_fork]
        sup.thread_hooks.append(self._on_thread)

    # -- deterministic points -------------------------------------------------------

    def _armed(self, task: Task) -> None:
        """A timer was armed: the next stretches of code are counted, of the process by whose CPU time it goes."""
        for process in (task.process, *timers.measured(task.process)):
            due = timers.next_signal(process)
            if due is not None and due[0] <= FAR:
                process.data.setdefault(_BUDGET, STRETCHES)
                process.data[EXPIRED] = 0
                process.counted = True
                self.others.armed(process)

    def _on_fork(self, m: Machine, parent: Process, child: Process) -> None:
        if parent.counted and limits.limits_of(parent)[resource.RLIMIT_CPU][0] <= INHERITED:
            child.data.update({_BUDGET: STRETCHES, EXPIRED: 0})
            child.counted = True

    def _on_thread(self, parent: Task, child: Task) -> None:
        child.process.counted = True

    def measures(self, task: Task) -> bool:
        """Whether a thread is counted up to its next look at a clock, which therefore has to be seen."""
        if not task.data or SHOWN in task.data:
            return bool(task.data)
        return self.gauging.counting(task) and self._measurer(task) is not self.following

    def to_stop(self, task: Task) -> bool:
        """Whether a thread that runs in its own code has been asked to stop as soon as its call ends."""
        return bool(task.data.get(LEFT)) or self.gauging.counting(task)

    def _counts(self, task: Task) -> bool:
        """Whether a thread's instructions are counted: because of a timer, or of others."""
        return self.others.concerned(task) and (
            self._due(task) is not None or self.giving_way.waits(task) or self.others.waits(task)
        )

    def rests(self, task: Task) -> bool:
        """Whether a thread would not be counted now, nor later as long as nobody makes a call or is ready."""
        process = task.process
        if not self.others.concerned(task):
            return True
        if process.timed or any(timers.next_signal(each) for each in (process, *process.ancestors())):
            return False
        return not (self.giving_way.waits(task) or self.others.waits(task))

    @staticmethod
    def _due(task: Task) -> int | None:
        """In how many ns a timer of a thread's process sends its signal, if there is one for which it is counted."""
        data = task.process.data
        if _BUDGET not in data or data[_BUDGET] <= 0:
            return None
        due = timers.next_signal(task.process)
        return due[0] if due is not None and due[0] <= FAR else None

    def after_look(self, task: Task) -> None:
        """A thread has looked at a clock, and it is time to measure what it does between its looks."""
        if is_traced(task):
            task.cpu.measure_at = task.cpu.looks + WINDOW
        elif FORESEEN in task.data:
            self.rising.after_look(task)
        elif self.following.left(task) or (self._counts(task) and not self.gauging.counting(task)):
            task.cpu.measure_at = task.cpu.looks + WINDOW
            if task.cpu.work_ns is None:
                task.cpu.work_ns = 0  # its time passes as it computes: it need not be taken for one that waits
        else:
            self.gauging.after_look(task)

    def on_call(self, task: Task, looking: bool) -> None:
        """A thread has made a call: what it has computed since the one before takes time, if that was counted."""
        data = task.data
        if GAUGE in data:
            self._measurer(task).on_call(task, looking)
        if not looking and FORESEEN in data:
            self.rising.on_other_call(task)
        data.pop(GAVE_WAY, None)
        data.pop(LOOPED, None)
        stretch: Stretch | None = data.pop(STRETCH, None)
        used = 0
        if stretch is not None and self.copying.in_call(task):
            used = max(stretch.before + stretch.piece - self.copying.left(task) - CALL_WEIGHT, 0)
            if not stretch.for_other_processes or used >= LONG_WORK:
                self.sup.m.clock.work(task.cpu, used // stretch.per_ns)
            if stretch.others:
                self._account(stretch).counted(task, stretch, used)
        if SHOWN in data:
            self.stopwatch.shown(task, looking, used)

    def _measurer(self, task: Task) -> Gauging | Following:
        """Whose the measurement of a thread is."""
        return self._follower(task) if self.following.left(task) else self.gauging

    def _follower(self, task: Task) -> Following:
        """Who follows a thread."""
        gauge: Gauge = task.data[GAUGE]
        return self.rising if gauge.rise is not None else self.stopwatch if gauge.looks else self.following

    def _account(self, stretch: Stretch) -> GivingWay | OtherProcesses:
        return self.others if stretch.for_other_processes else self.giving_way

    def before_return(self, task: Task) -> None:
        """A call is about to be answered: if the thread is to be counted, it goes on in a copy or stops at its end."""
        data = task.data
        data.pop(LEFT, None)
        gauged = GAUGE in data
        if gauged and self.following.left(task) and self._counts(task):
            self._follower(task).give_up_for(task)
        if self.copying.in_call(task):
            if gauged and (followed := self.following.left(task)):
                self.copying.before_return(task, followed)
            elif not (gauged and self.gauging.counting(task)):
                self.copying.before_return(task, data[LEFT] if self._begin(task) else 0)
        elif task.nr not in _CREATING:
            self.before_signal(task)

    def before_signal(self, task: Task) -> None:
        """A stopped thread is about to go on, maybe into a signal handler: it is to stop there."""
        left = task.data.get(LEFT)
        if is_traced(task) or not left and not self.others.concerned(task):
            return
        if not left and self._begin(task):
            left = task.data[LEFT]
            if not task.data[STRETCH].others:
                task.process.data[_BUDGET] -= 1
        if left:
            _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)

    def _begin(self, task: Task) -> bool:
        """Begin a stretch if a timer's signal is due, or others wait."""
        if is_traced(task):
            return False
        due = self._due(task)
        if due is None:
            stretch = self.giving_way.begin(task) or self.others.begin(task)
            if stretch is None:
                return False
        else:
            clock = self.sup.m.clock
            deadline = clock.next_deadline()
            ns = due if deadline is None else min(due, max(deadline - clock.now, 0))
            total = max(ns * PER_NS, SHORTEST + GROWTH * task.process.data[EXPIRED])
            stretch = Stretch(total, total)
        task.data[STRETCH], task.data[LEFT] = stretch, stretch.piece
        return True

    def go_on_counted(self, task: Task) -> bool:
        """Let a thread that is stopped at a deterministic point go on counted, if there is a reason."""
        if not self.others.concerned(task) or not self._begin(task):
            return False
        if not task.data[STRETCH].others:
            task.process.data[_BUDGET] -= 1
        self.sup.proceed(task)
        return True

    # -- counting -----------------------------------------------------------------

    def on_pause(self, task: Task) -> bool:
        """A thread is stopped in its own code; True if it is counted, and has been dealt with."""
        left = task.data.pop(LEFT, 0) or self.gauging.left(task)
        if not left or is_traced(task) or signals.restarts(task):
            return False
        self.copying.begin(task, left)
        return True

    def _reached(self, task: Task) -> None:
        """The stretch stands for the time to the next expiration: it passes, and others may run first."""
        task.data.pop(LEFT, None)
        stretch: Stretch | None = task.data.pop(STRETCH, None)
        if self.gauging.counting(task):
            self._measurer(task).reached(task)
            return
        if stretch is not None and stretch.others:
            self._give_way(task, stretch)
            return
        due = timers.next_signal(task.process)
        turn = SHORTEST
        if due is not None:
            task.process.data[EXPIRED] += 1
            self.pass_time(task, due[0])
        elif stretch is not None:
            turn = 2 * stretch.total
        self.sup.m.scheduler.make_ready(task, lambda: self._again(task, turn))

    def _give_way(self, task: Task, stretch: Stretch) -> None:
        """A piece of a stretch is over that is counted for others: it may be a spin, or their time has come."""
        looks: Looks = task.looks
        looks.left = max(looks.left - stretch.piece, 1)
        stretch.before += stretch.piece
        rest = stretch.total - stretch.before
        if rest > 0:
            limit = looks.looked()
            stretch.piece = min(looks.left, rest)
            task.data[STRETCH], task.data[LEFT] = stretch, stretch.piece
            if self.sup.spinning.examine(task, limit):
                if task.state is State.PARKED:
                    self._let_be(task)
                    task.looks = None
                    self._account(stretch).spins(task, stretch)
            else:
                self.sup.proceed(task)
            return
        if stretch.idle:
            self.copying.let_go(task)
            return
        self._account(stretch).reached(task, stretch)
        ns = stretch.total // stretch.per_ns
        if stretch.whole:
            self.sup.m.clock.work(task.cpu, ns)
        else:
            self.pass_time(task, ns)
        if stretch.reason is not None:
            self.sup.m.scheduler.nobody_waits()
        self.sup.m.scheduler.make_ready(task, lambda: self._again(task, FREELY))

    def _too_dear(self, task: Task, left: int) -> None:
        """A stretch that is counted for others needs too many copies: its rest is not."""
        stretch: Stretch = task.data[STRETCH]
        self._account(stretch).counted(task, stretch, max(stretch.before + stretch.piece - left, 0))
        self._let_be(task)
        self.copying.let_go(task)

    def traced(self, task: Task) -> None:
        """A thread has stopped for a tracer of the guest's: it is counted no more."""
        self._let_be(task)
        if self.gauging.counting(task):
            self._measurer(task).cancel(task)
        self.sup.spinning.let_be(task)

    @staticmethod
    def _let_be(task: Task) -> None:
        for key in (STRETCH, LEFT):
            task.data.pop(key, None)

    def on_clone(self, parent: Task, child: Task) -> None:
        """A thread has made another."""
        if self.copying.inside(parent):
            self.copying.come_out(child)
            stretch: Stretch | None = parent.data.get(STRETCH)
            # The new one may be a better reason than other processes that wait, and a thread than others that sleep.
            own = stretch is not None and not stretch.for_other_processes
            if stretch is not None and stretch.others and child.process is parent.process:
                own = False
            counted = own or self.gauging.counting(parent) or child.process.vfork_parent is not None
            if not counted and self.others.concerned(parent) and self._begin(parent):
                self.copying.stays(parent, parent.data[LEFT])
        else:
            self.before_signal(parent)

    def on_birth(self, task: Task) -> None:
        """A new thread goes on for the first time: it may be counted at once, since it need not make a call."""
        if self.others.concerned(task) and self._begin(task):
            self.sup.proceed(task)
        else:
            self.sup.cont(task, 0)

    def on_trap(self, task: Task) -> bool:
        """A SIGTRAP stop; True if it was at a breakpoint of what counts, and has been dealt with."""
        return self.copying.on_trap(task) or self.long_loops.on_trap(task)

    def on_stop(self, task: Task, signo: int, paused: bool) -> None:
        """A thread has stopped; ``paused``: at the end of a call, because it was asked to."""
        if signo == signal.SIGTRAP:
            if paused:
                self.copying.come_out(task)
            return
        # Something that has nothing to do with counting.
        self.copying.surface(task)
        if self.gauging.counting(task):
            self._measurer(task).cancel(task)

    def _again(self, task: Task, turn: int) -> None:
        """Go on after a stretch.  ``turn``: instructions up to the others' turn, who have to react to an expiration."""
        turns = turn < FREELY and _BUDGET in task.process.data
        if not self._begin(task) and turns and self.sup.m.scheduler.used_up():
            task.data[STRETCH], task.data[LEFT] = Stretch(turn, turn), turn
        self.sup.proceed(task)

    def pass_time(self, task: Task, ns: int) -> None:
        """Let ``ns`` pass, or less if something expires before; the thread used its processor meanwhile."""
        clock = self.sup.m.clock
        task.cpu.spend(clock.advance(ns))
        clock.expire()
