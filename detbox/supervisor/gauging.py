"""How much a thread computes between two looks at a clock: measured now and then, by counting its instructions.

Virtual time stands still while a thread computes.  Who looks at the clock to see how long something takes, or whether
the time for it is over, needs time to pass: so when a thread has made several looks with nothing else between them, a
few stretches of its code from one look to the next are executed as copies that count (copying.py).  The time that
they stand for passes, and is what the looks after them cost.

A stretch begins behind a look and is counted up to the next call, or for a number of instructions: both are places in
the guest's own code.  What is counted depends on the guest alone, and so do the limits here.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING

from detbox.counted.translate import CALL_WEIGHT
from detbox.kernel import _native
from detbox.machine.clock import FIRST_MEASURE, NEVER
from detbox.records import field, record
from detbox.supervisor import signals
from detbox.supervisor.gauge import GAUGE, STEPS, Gauge

if TYPE_CHECKING:
    from detbox.supervisor.copying import Copying
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.task import Process, Task

#: How many instructions stand for a nanosecond (as in counting.py).
PER_NS = 16
#: Stretches of one measurement: one in two may be the program's own account of the time.
STRETCHES = 4
#: Instructions of a stretch that are counted; so many times more if they were not enough.
LEAST, MOST, GROWTH = 1_000_000, 16_000_000_000, 8
#: Having counted so many, the rest of a stretch is not.
LONG = 4_000_000_000
#: A loop looks from the same places, by what the calls' arguments tell of the stack: no more than these, of so many
#: looks in a row.  Python looks at the clock with each lock, 1,600 times to import asyncio, and from many places.
PLACES, ROW = 2, 20
#: Looks between two measurements: so many, and a quarter of those that were made before; half of them where
#: something is known from so many measurements.
BETWEEN, ENOUGH = 4, 3
#: What the measurements of one program may take, in us by the figures below: at first (with several threads its looks
#: are many, and most of them a runtime's own), and for each look that it makes.
ALLOWED, ALLOWED_THREADS, EARNED, TOO_LITTLE = 40_000, 15_000, 1, 2_000
COPY_US, STRETCH_US, STEP_US = 70, 150, 20
#: Copies that one measurement may make: more and more with each look.
AT_ONCE, MOST_AT_ONCE = 48, 256


@record
class _Program:
    """What is known of one program: the time that was spent on it, in us, and (ns, measurements) by place."""

    spent: int = 0
    known: dict[Hashable, tuple[int, int]] = field(default_factory=dict)


class Gauging:
    """The measurements of one run."""

    def __init__(self, sup: Supervisor, copying: Copying) -> None:
        self.sup = sup
        self.copying = copying
        self._programs: dict[object, _Program] = {}  # by address space
        sup.exec_hooks.append(lambda m, task: self._begins(task))
        sup.exit_hooks.append(lambda m, process: self._ends(process))

    def _begins(self, task: Task) -> None:
        task.cpu.looked = 0

    def _ends(self, process: Process) -> None:
        living = {other.mm for other in self.sup.m.processes.values() if other is not process}
        self._programs = {mm: program for mm, program in self._programs.items() if mm in living}

    def _program(self, task: Task) -> _Program:
        return self._programs.setdefault(task.process.mm, _Program())

    @staticmethod
    def counting(task: Task) -> bool:
        """Whether a thread is measured now."""
        gauge: Gauge | None = task.data.get(GAUGE)
        return gauge is not None and gauge.counting

    @staticmethod
    def left(task: Task) -> int:
        """Instructions that a thread stopped behind its look is to be followed for; 0 if it is not."""
        gauge: Gauge | None = task.data.get(GAUGE)
        return gauge.budget if gauge is not None and gauge.counting else 0

    # -- begin -------------------------------------------------------------------------

    def after_look(self, task: Task) -> None:
        """A thread's look is about to be answered, and it is time to measure: it stops behind it."""
        cpu, gauge = task.cpu, task.data.get(GAUGE)
        if gauge is None:
            if not self._at_its_place(task):
                return
            gauge = self._new(task)
            if gauge is None:
                self._later(task)
                return
            task.data[GAUGE] = gauge
        cpu.work_ns = 0  # it is counted
        gauge.counting = True
        _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)

    def _at_its_place(self, task: Task) -> bool:
        """Whether a thread looks from the same few places again and again, and it is not known what it does there."""
        cpu, place = task.cpu, (task.nr, task.args[:2])
        cpu.places = (place, *cpu.places[: ROW - 1])
        known = self._program(task).known.get(place)
        if cpu.work_ns is None and known is not None:
            cpu.work_ns, times = known
            if times >= ENOUGH:
                self._later(task)
                return False
        if len(cpu.places) < ROW:
            cpu.measure_at = cpu.looks + 1
        elif len(set(cpu.places)) <= PLACES:
            return True
        else:
            self._later(task)
        return False

    def _new(self, task: Task) -> Gauge | None:
        cpu = task.cpu
        allowed = ALLOWED if len(task.process.tasks) == 1 else ALLOWED_THREADS
        allowed += EARNED * cpu.looked - self._program(task).spent
        if allowed < TOO_LITTLE:
            return None
        made = self.copying.made(task)
        more = min(allowed // COPY_US, AT_ONCE * (1 + cpu.looks // 8), MOST_AT_ONCE)
        budget = min(max(LEAST, 4 * PER_NS * (cpu.work_ns or 0)), MOST)
        return Gauge(budget, cpu.work_ns, made, made + more)

    def _later(self, task: Task) -> None:
        cpu = task.cpu
        place = cpu.places[0] if cpu.places else None
        known = self._program(task).known.get(place, (0, 0))[1] >= ENOUGH
        cpu.measure_at = cpu.looks + 1 + max(BETWEEN, cpu.looks // (2 if known else 4))

    # -- end ---------------------------------------------------------------------------

    def on_call(self, task: Task, looking: bool) -> None:
        """A thread with a measurement has made a call."""
        gauge: Gauge = task.data[GAUGE]
        if gauge.counting:
            gauge.counting = False
            self._count(task, gauge, gauge.budget - self.copying.left(task) - CALL_WEIGHT)
            gauge.stretches += 1
            if looking and gauge.stretches == STRETCHES:
                self._known(task, gauge, gauge.total // STRETCHES // PER_NS)
        if not looking and GAUGE in task.data:
            self._close(task)

    def reached(self, task: Task) -> None:
        """What was to be counted of a stretch has been: more is, or else the next look costs as much."""
        gauge: Gauge = task.data[GAUGE]
        counted = gauge.budget
        self._count(task, gauge, counted)
        gauge.budget = min(GROWTH * counted, MOST)
        gauge.made, gauge.steps = self.copying.made(task) + MOST_AT_ONCE, STEPS
        if counted < LONG:
            self._others_first(task, lambda: self.sup.proceed(task))
            return
        gauge.counting = False
        task.cpu.work_ns = gauge.former = counted // PER_NS
        task.cpu.measure_at = task.cpu.looks + 1
        gauge.stretches = gauge.total = 0
        self._go_on(task)

    def give_up(self, task: Task, left: int) -> None:
        """To go on measuring a thread would take too long; it is stopped in its own code."""
        gauge: Gauge = task.data[GAUGE]
        gauge.counting = False
        if gauge.steps <= 0:
            self._program(task).spent = NEVER
            task.cpu.work_ns = gauge.former
            self._close(task)
            self._later(task)
        else:
            self._count(task, gauge, gauge.budget - left)
            self._known(task, gauge, max(gauge.total // (gauge.stretches + 1) // PER_NS, gauge.former or 0))
        if gauge.stretches and task.cpu.looks < 2 * (FIRST_MEASURE + ROW):
            # Most of this code is known now.
            task.cpu.measure_at = task.cpu.looks + 1
        self._go_on(task)

    def cancel(self, task: Task) -> None:
        """A signal has stopped a thread that was measured."""
        gauge: Gauge = task.data[GAUGE]
        task.cpu.work_ns = gauge.former
        self._close(task)
        self._later(task)
        self.copying.rearm(task)

    def _go_on(self, task: Task) -> None:
        self.copying.rearm(task)
        self._others_first(task, lambda: self.sup.cont(task, 0))

    def _others_first(self, task: Task, then: Callable[[], None]) -> None:
        scheduler = self.sup.m.scheduler
        if scheduler.used_up():
            scheduler.make_ready(task, then)
        else:
            then()

    def _count(self, task: Task, gauge: Gauge, instructions: int) -> None:
        instructions = max(instructions, 0)
        gauge.total += instructions
        self.sup.m.clock.work(task.cpu, instructions // PER_NS)

    def _known(self, task: Task, gauge: Gauge, ns: int) -> None:
        cpu, known = task.cpu, self._program(task).known
        cpu.work_ns = ns
        former, times = known.get(cpu.places[0], (0, 0))
        # Work that grows goes on being measured.
        grows = ns > 2 * former
        known[cpu.places[0]] = ns, 1 if grows else times + 1
        self._close(task)
        self._later(task)
        if grows and former:
            cpu.measure_at = cpu.looks + 1 + STRETCHES // 2

    def _close(self, task: Task) -> None:
        gauge: Gauge = task.data.pop(GAUGE)
        program = self._program(task)
        program.spent += COPY_US * (self.copying.made(task) - gauge.first) + STRETCH_US * gauge.stretches
        program.spent += STEP_US * (STEPS - gauge.steps)
