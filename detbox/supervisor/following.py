"""Programs that look at their CPU time again and again by a call (``times``, ``getrusage``): they measure work.

Between many short stretches there may be a long one: Perl's Benchmark waits for a tick, works, and looks once more.  So
measuring some of them (gauging.py) is not enough.  Such a program is *followed*: from a look to its next other call it
stays in its copies, each stretch is counted, and what was counted passes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.counted.translate import CALL_WEIGHT
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import FIRST_MEASURE, NEVER
from detbox.machine.tracees import is_traced
from detbox.records import record
from detbox.supervisor import signals
from detbox.supervisor.copying import LEFT
from detbox.supervisor.gauge import GAUGE, LEAST, PER_US, TOO_LITTLE, Gauge
from detbox.supervisor.stretch import PER_NS
from detbox.supervisor.task import State

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.copying import Copying
    from detbox.supervisor.loop import Handler, Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_CALLS = ("times", "getrusage")
#: Who has made so many such looks is followed.
LOOKS = 20
#: What may be spent on a program, in us (gauge.py): at first, and for each such look.
ALLOWED, EARNED = 100_000, 20
#: How many of a program are counted, and what a call stands for.
MOST_COUNTED, CALL = 1 << 36, 10_000
#: Copies that may be made from one look to the next call.
COPIES = 640
#: From so many instructions of a stretch on a thread is looked at, since it may be one that spins, and how closely (see
#: Pace in detbox.spin): at first, and at most.
SPINS, LIMIT, CLOSEST = 8_000_000, 96, 4_000
_PROGRAM = "followed program"  # in an address space's data
#: In a task's data: how many more looks of a thread that is counted for another reason show what has been counted.
SHOWN = "shown work"


@record
class _Program:
    """How often a program has looked at CPU time, what was ``spent`` on it, in us, and instructions."""

    looks: int = 0
    spent: int = 0
    counted: int = 0
    unable: bool = False  # its code cannot be copied


class Following:
    """Who is followed in one run.  ``counted``: whether a thread's instructions are counted anyway."""

    calls: tuple[str, ...] = _CALLS
    most = MOST_COUNTED

    def __init__(self, sup: Supervisor, copying: Copying, counted: Callable[[Task], bool]) -> None:
        self.sup = sup
        self.copying = copying
        self._counted = counted
        for number in map(NUMBERS.__getitem__, self.calls):
            handler = sup.table[number]
            if handler is not None:
                sup.table[number] = self._watched(handler)

    def _program(self, task: Task) -> _Program:
        program: _Program = task.process.mm.data.setdefault(_PROGRAM, _Program())
        return program

    @staticmethod
    def left(task: Task) -> int:
        """Instructions that a thread may make in its copies behind the call that it has made there; 0: not followed."""
        gauge: Gauge | None = task.data.get(GAUGE)
        return gauge.budget if gauge is not None and gauge.following else 0

    # -- begin -------------------------------------------------------------------------

    def _watched(self, handler: Handler) -> Handler:
        def look(m: Machine, task: Task, arguments: Args) -> Decision:
            decision = handler(m, task, arguments)
            program = self._program(task)
            program.looks += 1
            free = GAUGE not in task.data and not is_traced(task)
            if program.looks > LOOKS and free and self._allowed(program) and not self._counted(task):
                self._begin(task)
            return decision

        return look

    @staticmethod
    def _allowed(program: _Program) -> bool:
        allowed = ALLOWED + EARNED * program.looks - program.spent
        return allowed >= TOO_LITTLE and program.counted < MOST_COUNTED and not program.unable

    def _begin(self, task: Task, copies: int = COPIES, looks: int = 0, calls: int = 0) -> None:
        """A thread's look is about to be answered: it stops behind it, and goes on in its copies."""
        made = self.copying.made(task)
        task.data[GAUGE] = Gauge(
            LEAST, None, made, made + copies, counting=True, stretches=1, following=True, looks=looks, calls=calls
        )
        task.cpu.work_ns, task.cpu.measure_at = 0, NEVER
        _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)

    # -- end ---------------------------------------------------------------------------

    def on_call(self, task: Task, looking: bool) -> None:
        """A thread that is followed has made a call: its next stretch is counted, too, if this was a look."""
        gauge, program = task.data[GAUGE], self._program(task)
        self._count(task, gauge.budget - self.copying.left(task) - CALL_WEIGHT)
        instructions, gauge.last = gauge.total - gauge.last, gauge.total
        program.counted += CALL
        more = self._goes_on(task, gauge, looking, instructions) and program.counted < self.most
        if more and self.copying.in_call(task):
            gauge.budget = LEAST
        else:
            self.end(task)

    def _goes_on(self, task: Task, gauge: Gauge, looking: bool, instructions: int) -> bool:
        """Whether a thread is followed behind a call that it has made after so many instructions."""
        return looking

    def reached(self, task: Task) -> None:
        """What was to be counted of a stretch has been: more is."""
        gauge: Gauge = task.data[GAUGE]
        counted = gauge.budget
        self._count(task, counted)
        gauge.extend(self.copying.made(task))
        if counted > LEAST and self.sup.spinning.examine(task, min(LIMIT * counted // SPINS, CLOSEST)):
            if task.state is State.PARKED:
                self.end(task)
        elif self._program(task).counted < self.most:
            self.copying.in_turn(task, lambda: self.sup.proceed(task))
        else:
            self.end(task)
            self.copying.let_go_in_turn(task)

    def give_up(self, task: Task, left: int) -> None:
        """To go on would take too long; the thread is stopped in its own code."""
        gauge: Gauge = task.data[GAUGE]
        self._count(task, gauge.budget - left)
        if gauge.steps <= 0:
            self._unable(task)
        self.end(task)
        self.copying.let_go_in_turn(task)

    def _unable(self, task: Task) -> None:
        """A thread has executed code that cannot be copied."""
        self._program(task).unable = True

    def cancel(self, task: Task) -> None:
        """A signal has stopped a thread that is followed."""
        task.data.pop(LEFT, None)
        self.end(task)
        self.copying.rearm(task)

    def give_up_for(self, task: Task) -> None:
        """A thread that is followed is to be counted for another reason."""
        self.end(task)

    def end(self, task: Task) -> None:
        """A thread is not followed any more, until it looks again."""
        self._ended(task)
        task.cpu.work_ns, task.cpu.measure_at = None, task.cpu.looks + FIRST_MEASURE

    def _ended(self, task: Task) -> Gauge:
        """A thread's measurement, which is over: what it has taken was spent on its program."""
        gauge: Gauge = task.data.pop(GAUGE)
        self._program(task).spent += gauge.spent(self.copying.made(task)) - gauge.total // PER_US
        return gauge

    def _count(self, task: Task, instructions: int) -> None:
        gauge, program, instructions = task.data[GAUGE], self._program(task), max(instructions, 0)
        gauge.total += instructions
        program.counted += instructions
        self.sup.m.clock.work(task.cpu, instructions // PER_NS)


class FollowingOn(Following):
    """Threads are followed through signals, too.

    ``shows``: so many looks show what is counted of one that is to be counted for another reason.
    """

    shows: int

    def cancel(self, task: Task) -> None:
        """A signal has stopped a thread that is followed: it is, too, from the handler's beginning on."""
        task.data.setdefault(LEFT, task.data[GAUGE].budget)

    def give_up_for(self, task: Task) -> None:
        """A thread that is followed is to be counted for another reason."""
        self.end(task)
        task.data[SHOWN] = self.shows
