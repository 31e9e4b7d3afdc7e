"""Programs that compute until a timer's signal comes: their instructions are counted.

While a process has a timer that is to send a signal soon, each stretch of its
code that follows a call is single-stepped.  If the stretch is long enough to
stand for the time that is left, virtual time jumps to the expiration, and the
signal arrives at exactly this instruction.  See docs/counting.md.
"""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from detbox.errors import NotDeterministic
from detbox.handlers import timers
from detbox.kernel import _native, siginfo
from detbox.kernel.numbers import NUMBERS
from detbox.policy import BY_NUMBER, TABLE, Action
from detbox.spin import PtraceStepper
from detbox.spin.stepper import OFFSET, RIP, register
from detbox.supervisor import arming, passes, signals

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.task import Process, Task

#: What a counted instruction stands for: what counting one really takes, so that a counted wait
#: is about as long in real time as it is in virtual time.
NS_PER_INSTRUCTION = 20_000
#: Shorter stretches between calls are too common to mean that a program waits.
SHORTEST = 2_000
#: Each further expiration waits longer than the one before, so that handlers get ahead of an interval timer.
GROWTH = 250
#: To timers that are further away than this (in ns) nobody is stepped.
SOON = 1_000_000_000
#: Further away than SOON, and up to this, passes of a loop are counted instead of its instructions.
LATER = 4_000_000_000
#: Steps that one arming of a timer, and one process in its life, may cost (some 2 and 6 s).
BUDGET = 100_000
LIFETIME_BUDGET = 300_000
#: Real seconds beyond the time that a timer has left, after which a thread that still computes is given up.
GRACE = 30.0

#: With an interrupt pending these would be restarted again and again (kernel/fork.c, copy_process()): their
#: thread is asked to stop when the new one has been announced.
_CREATING = frozenset(NUMBERS[name] for name in ("fork", "vfork", "clone", "clone3"))
_PTRACE_INTERRUPT = 0x4207
# Steps between two looks at the control descriptor: 0.1 s.
_PORTION = 5_000
_STEPPED_ALL, _BEFORE_CALL, _OTHER_STOP = 0, 1, 2
_TICK = 0.01
_LEFT = "counting"  # in a task's data: instructions left of its stretch
_BUDGET = "counting_budget"  # in a process's data: steps left for this arming
_SPENT = "counting_spent"  # in a process's data: steps made in its life
_EXPIRED = "counting_expired"  # in a process's data: stretches that this arming has seen to their end
_LATE = "counting_late"  # in a task's data: ns that its passes stand for
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")


class Counting:
    """The counted threads of one run."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        #: Whether any process has been counted: spares the others the question.
        self.active = False
        self.steps = 0
        self._waited: tuple[Task, int, float] | None = None
        # Calls that the filter decides alone, whatever their arguments: they are stepped over.
        self._known = bytearray(max(BY_NUMBER) + 1)
        for row in TABLE:
            self._known[row.number] = not row.args and row.action in (Action.ALLOW, Action.REFUSE)
        arming.watch(sup, arming.TIMERS + arming.LIMITS, self._armed)

    # -- deterministic points -------------------------------------------------------

    def _armed(self, task: Task) -> None:
        """A timer was armed: the next stretches of code are counted."""
        due = timers.next_signal(task.process)
        if due is None:
            return
        data = task.process.data
        data[_BUDGET] = min(BUDGET, LIFETIME_BUDGET - data.get(_SPENT, 0))
        data[_EXPIRED] = 0
        self.active = True
        if due[0] > SOON and (due[0] > LATER or self._deadly(task, *due[1:])):
            data[_BUDGET] = 0  # a watchdog

    def counts(self, process: Process) -> bool:
        """Whether stretches of this process may be counted: its looks at clocks end them, and have to be seen."""
        return self.active and process.data.get(_BUDGET, 0) > 0

    def before_return(self, task: Task) -> None:
        """A call is about to be answered: the thread stops at its end if it is to be counted."""
        task.data.pop(_LEFT, None)
        passes.end(task)
        if task.nr not in _CREATING:
            self.before_signal(task)

    def before_signal(self, task: Task) -> None:
        """A stopped thread is about to go on, maybe into a signal handler: it is to stop there."""
        if not self.active:
            return
        passes.end(task)
        if task.data.get(_LEFT) or self._begin(task):
            _native.ptrace_request(_PTRACE_INTERRUPT, task.tid, 0, 0)

    def _begin(self, task: Task) -> bool:
        """Begin a stretch if a timer's signal is due soon."""
        if task.process.data.get(_BUDGET, 0) <= 0:
            return False
        due = timers.next_signal(task.process)
        if due is None or due[0] > LATER:
            return False
        if due[0] > SOON:
            task.data[_LEFT] = SHORTEST
            return True
        shortest = SHORTEST + GROWTH * task.process.data[_EXPIRED]
        task.data[_LEFT] = max(due[0] // NS_PER_INSTRUCTION, shortest)
        return True

    # -- counting -----------------------------------------------------------------

    def on_pause(self, task: Task) -> bool:
        """A thread is stopped in its own code; True if it is counted, and has been dealt with."""
        left = task.data.pop(_LEFT, 0)
        if not left or signals.restarts(task):
            return False
        loops, mm = self.sup.spinning.loops, task.process.mm
        stepper = PtraceStepper(task.tid) if loops.armed(mm) else None
        if stepper is not None:
            loops.disarm(mm, stepper)
        status, why, left = self._count(task, left)
        late = 0
        if why == _STEPPED_ALL and not left:
            late = self._late(task)
            if late:
                address, status, why = passes.rarest(task, self._known)
        if stepper is not None and why != _OTHER_STOP:
            loops.arm(mm, stepper)
        if why == _OTHER_STOP:
            task.data[_LEFT] = left
            self.sup.on_stop(task.tid, status)
        elif why == _BEFORE_CALL or left:
            self.sup.cont(task, 0)
        elif late:
            self._count_passes(task, address, late)
        else:
            self._reached(task)
        return True

    def _count(self, task: Task, left: int) -> tuple[int, int, int]:
        """Step until ``left`` instructions are done or something else comes: (status, why, left).

        Ends early with instructions left when the process has used up its budget.
        """
        data = task.process.data
        while left and data[_BUDGET] > 0:
            done, status, why = _native.step_many(task.tid, min(left, data[_BUDGET], _PORTION), self._known)
            left -= done
            self.steps += done
            data[_BUDGET] -= done
            data[_SPENT] = data.get(_SPENT, 0) + done
            if why == _BEFORE_CALL and left and self._unseen(task):
                done, status, why = _native.step_many(task.tid, 1, b"\1" * len(self._known))
                left -= done
            if why != _STEPPED_ALL:
                return status, why, left
            if select.select([self.sup.control], [], [], 0)[0]:
                raise KeyboardInterrupt
        return 0, _STEPPED_ALL, left

    def _late(self, task: Task) -> int:
        """The ns to wait for, if they are too many to be stepped: to the next timer, or to another deadline."""
        due = timers.next_signal(task.process)
        if due is None or due[0] <= SOON:
            return 0
        clock = self.sup.m.clock
        deadline = clock.next_deadline()
        return due[0] if deadline is None else min(due[0], max(deadline - clock.now, passes.NS_PER_PASS))

    def _count_passes(self, task: Task, address: int | None, ns: int) -> None:
        """Let the thread run until it has passed ``address`` often enough; freely, if there is none."""
        if address is not None and passes.begin(task, address, max(ns // passes.NS_PER_PASS, 1)):
            task.data[_LATE] = ns
        self.sup.cont(task, 0)

    def on_trap(self, task: Task) -> bool:
        """A SIGTRAP stop; True if it was a pass, and has been dealt with."""
        if not self.active:
            return False
        last = passes.trapped(task, siginfo.code_of(_native.get_siginfo(task.tid)))
        if last is None:
            return False
        if not last:
            self.sup.cont(task, 0)
            return True
        task.process.data[_EXPIRED] += 1
        self._pass_time(task, task.data.pop(_LATE))
        self.sup.m.scheduler.make_ready(task, lambda: self._again(task))
        return True

    def _unseen(self, task: Task) -> bool:
        """Whether the filter lets the call that comes next pass (or refuses it) because of its arguments."""
        registers = _native.get_regs(task.tid)
        row = BY_NUMBER.get(register(registers, OFFSET["rax"]))
        if row is None or not row.args:
            return False
        arguments = tuple(register(registers, OFFSET[name]) for name in _ARGUMENTS)
        return row.verdict(arguments)[0] is not Action.WATCH

    def _reached(self, task: Task) -> None:
        """The stretch stands for the time to the next expiration: it passes, and others may run first."""
        sup, process = self.sup, task.process
        due = timers.next_signal(process)
        if due is not None and self._deadly(task, *due[1:]):
            # Where the process dies makes no difference to anybody: `on_tick` sees to it.
            process.data[_BUDGET] = 0
        elif due is not None:
            process.data[_EXPIRED] += 1
            self._pass_time(task, due[0])
        sup.m.scheduler.make_ready(task, lambda: self._again(task))

    def _again(self, task: Task) -> None:
        """Go on after an expiration; while others have to react to it, they are given turns."""
        if not self._begin(task) and self.sup.m.scheduler.ready and task.process.data[_BUDGET] > 0:
            task.data[_LEFT] = SHORTEST
        self.sup.proceed(task)

    def _pass_time(self, task: Task, ns: int) -> None:
        """Let ``ns`` pass, or less if something expires before; the thread used its processor meanwhile."""
        clock = self.sup.m.clock
        deadline = clock.next_deadline()
        if deadline is not None:
            ns = min(ns, max(deadline - clock.now, 0))
        clock.jump_to(clock.now + ns)
        task.cpu.spend(ns)
        clock.expire()

    def _deadly(self, task: Task, signo: int, receiver: Task | Process) -> bool:
        """Whether the signal would end the process (or do nothing): it is neither caught nor blocked."""
        if receiver is not task and receiver is not task.process:
            return False
        sets = signals.pending(self.sup.m, task)
        return not (sets.caught | sets.blocked) & signals.bit(signo)

    # -- what cannot be counted -------------------------------------------------------

    def on_tick(self, task: Task) -> None:
        """The running thread has made no call for one tick.

        Raises NotDeterministic if it computes far beyond the time that its timer has left.
        """
        sup = self.sup
        activity = sup.notifications + sup.stops
        if self._waited is None or self._waited[:2] != (task, activity):
            self._waited = (task, activity, 0.0)
        waited = self._waited[2] + _TICK
        self._waited = (task, activity, waited)
        if waited < GRACE:
            return
        due = timers.next_signal(task.process)
        if due is None or waited < GRACE + due[0] / 1e9:
            return
        self._waited = None
        if self._deadly(task, *due[1:]):
            sup.m.doubt(task, "its own timer's signal ended it in a long computation; real time decided when")
            self._pass_time(task, due[0])
            return
        who = f"process {task.process.pid} ({os.fsdecode(task.process.comm)}), thread {task.tid}"
        raise NotDeterministic(
            f"{who}, computes without a system call at {self._place(task)}, "
            f"and signal {due[1]} of its timer is due in {due[0] / 1e9:.3f} s",
            "its instructions cannot be counted for so long; let it make a system call from time to time",
        )

    def _place(self, task: Task) -> str:
        """Where a running thread is: the address, and the offset in the mapped file."""
        try:
            _native.ptrace_request(_PTRACE_INTERRUPT, task.tid, 0, 0)
            _native.wait_tid(task.tid, 0)
            rip = register(_native.get_regs(task.tid), RIP)
            maps = os.open(f"{task.tid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.sup.m.proc_fd)
        except OSError:
            return "an unknown place"
        with open(maps, "rb") as lines:
            for line in lines:
                fields = line.split(None, 5)
                start, end = (int(part, 16) for part in fields[0].split(b"-"))
                if start <= rip < end and len(fields) > 5:
                    offset = rip - start + int(fields[2], 16)
                    return f"{rip:#x} ({os.fsdecode(fields[5].strip())}+{offset:#x})"
        return f"{rip:#x}"
