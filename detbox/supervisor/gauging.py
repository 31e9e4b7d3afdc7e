"""How much a thread computes between two looks at a clock: measured now and then, by counting its instructions.

Virtual time stands still while a thread computes.  Who looks at the clock to see how long something takes, or whether
the time for it is over, needs time to pass: so when a thread has made several looks with nothing else between them, a
few stretches of its code from one look to the next are executed as copies that count (copying.py).  The time that
they stand for passes, and is what the looks after them cost.

Others measure one piece of work after the other, and write each result before they begin the next: they make rows of
a few looks (machine.clock.Rows).  When there have been several of the same length from the same place, the next one is
measured: from its first look to its last, time passes as it is counted.  Work that grows goes on being measured; if it
stays as it is, the rows after it cost what it does, and if it is little, they are left alone for longer and longer.

Who looks at CPU time by calls is followed instead (following.py).

A stretch begins behind a look and is counted up to the next call, or for a number of instructions: both are places in
the guest's own code.  What is counted depends on the guest alone, and so do the limits here.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from detbox.counted.translate import CALL_WEIGHT
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import FIRST_MEASURE, NEVER, WINDOW, Rows
from detbox.records import field, record
from detbox.supervisor import signals
from detbox.supervisor.copying import LEFT
from detbox.supervisor.gauge import COPY_US, GAUGE, LEAST, MOST, MOST_AT_ONCE, PER_US, TOO_LITTLE, Gauge

if TYPE_CHECKING:
    from detbox.machine.clock import CpuTime
    from detbox.supervisor.copying import Copying
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.task import Task

#: How many instructions stand for a nanosecond: other ones than in stretches that are counted throughout (stretch.py).
PER_NS = 16
#: Stretches of one measurement: one in two may be the program's own account of the time.
STRETCHES = 4
#: Having counted so many, the rest of a stretch is not.
LONG = 4_000_000_000
#: A loop looks from the same places, by what the calls' arguments tell of the stack: no more than these, of so many
#: looks in a row.  Python looks at the clock with each lock, 1,600 times to import asyncio, and from many places: after
#: a look that is between others, as many are left alone as there were before it.  An interpreter that looks whether its
#: time is over does so from wherever it happens to be: with each doubling of so many looks there may be one place more.
PLACES, ROW, LONG_ROW = 2, 20, 80
#: From a single place it takes fewer looks: who doubles the work from one to the next has done much by then.
ALIKE = 10
#: So many places that are known to be between others are remembered.
MANY = 1_000
#: Looks between two measurements: so many, and a quarter of those that were made before; half of them where
#: something is known from so many measurements.
BETWEEN, ENOUGH = 4, 3
#: What the measurements of one program may take, in us (gauge.py): at first (with several threads its looks are many,
#: and most of them a runtime's own), and for each look that it makes.
ALLOWED, ALLOWED_THREADS, EARNED = 40_000, 15_000, 1
#: What the measurements of rows may take at first.
ALLOWED_ROWS = 25_000
#: Rows from one that begins with a call to the next (it may be another one now), and from one measurement to the next.
NEAR, FAR = 15, 1023
#: Copies that the measurement of one row may make.
ROW_COPIES = 640
#: In ns: work that is worth a measurement each time, as long as it grows; it may do so as often as that.
MUCH, MOST_GROWTH = 200_000, 64
#: Copies that one measurement may make: more and more with each look, up to MOST_AT_ONCE.
AT_ONCE = 240
_PROGRAM = "gauged program"  # in an address space's data
#: Looks with fewer than two arguments.
_ARGUMENTS = {NUMBERS["times"]: 1, NUMBERS["time"]: 1, NUMBERS["sched_yield"]: 0}


def _place(task: Task) -> Hashable:
    """Where a thread looks from: what the call's arguments tell of the stack."""
    return task.nr, task.args[: _ARGUMENTS.get(task.nr, 2)]


@record
class _Program:
    """What is known of one program: the time that was spent on it, in us, and (ns, measurements) by place.

    ``rows``: what was spent on rows.  ``strays``: places that were found between others.
    """

    spent: int = 0
    rows: int = 0
    known: dict[Hashable, tuple[int, int]] = field(default_factory=dict)
    strays: set[Hashable] = field(default_factory=set)


class Gauging:
    """The measurements of one run."""

    def __init__(self, sup: Supervisor, copying: Copying) -> None:
        self.sup = sup
        self.copying = copying
        sup.exec_hooks.append(lambda m, task: self._begins(task))

    def _begins(self, task: Task) -> None:
        task.cpu.looked = 0
        task.cpu.rows = Rows()
        whole = task.cpu.parent or task.cpu
        whole.rest, whole.rises, whole.unable, task.cpu.turns = 0, True, False, 0

    @staticmethod
    def _program(task: Task) -> _Program:
        program: _Program = task.process.mm.data.setdefault(_PROGRAM, _Program())
        return program

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
            if cpu.measure_at == 1:
                cpu.measure_at = FIRST_MEASURE
                gauge = self._new_row(task)
            elif self._at_its_place(task):
                gauge = self._new(task)
            if gauge is None:
                return
            task.data[GAUGE] = gauge
        cpu.work_ns = 0  # it is counted
        gauge.counting = True
        _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)

    def _at_its_place(self, task: Task) -> bool:
        """Whether a thread looks from the same few places again and again, and it is not known what it does there."""
        cpu, place = task.cpu, _place(task)
        program = self._program(task)
        known = program.known.get(place)
        if known is not None and cpu.looks < cpu.measure_again:
            self._next_window(cpu)
            return False
        cpu.places = (place, *cpu.places[: ROW - 1])
        if cpu.work_ns is None and known is not None:
            cpu.work_ns, times = known
            if times >= ENOUGH:
                self._later(task)
                return False
        places, strays = set(cpu.places), program.strays
        longer = (cpu.looks // LONG_ROW).bit_length()
        if len(places) > PLACES + longer:
            if len(strays) > MANY:
                strays.clear()
            strays |= places
            cpu.measure_at, cpu.places = 2 * cpu.looks + 1, ()
        elif not longer and place in strays and len(places) == len(cpu.places):
            cpu.measure_at = 2 * cpu.looks + 1
        elif (wanting := TOO_LITTLE - self._allowed(task)) > 0:
            # A measurement has to be earned by so many looks first.
            cpu.measure_at, cpu.places = cpu.looks + max(wanting // EARNED, BETWEEN), ()
        elif len(cpu.places) < (ROW if len(places) > 1 else ALIKE):
            cpu.measure_at = cpu.looks + 1
        else:
            strays -= places
            return True
        return False

    def _allowed(self, task: Task) -> int:
        """What a measurement may take, in us."""
        at_first = ALLOWED if len(task.process.tasks) == 1 else ALLOWED_THREADS
        return at_first + EARNED * task.cpu.looked - self._program(task).spent

    def _new(self, task: Task) -> Gauge:
        cpu, allowed = task.cpu, self._allowed(task)
        made = self.copying.made(task)
        more = min(allowed // COPY_US, AT_ONCE * (1 + cpu.looks // 8), MOST_AT_ONCE)
        budget = min(max(LEAST, 4 * PER_NS * (cpu.work_ns or 0)), MOST)
        return Gauge(budget, cpu.work_ns, made, made + more)

    def _new_row(self, task: Task) -> Gauge | None:
        """The measurement of the row of which a thread has made the first look; or it costs what is known."""
        cpu, rows, place = task.cpu, task.cpu.rows, _place(task)
        if rows.place is None:
            rows.place, rows.next = place, rows.again + 1
            rows.measure = max(rows.measure, rows.next)
            return None
        if place != rows.place:
            self._missed(rows)
            return None
        if rows.again < rows.measure:
            rows.missed = 0
            cpu.work_ns = rows.ns // (rows.length - 1)
            rows.next = rows.again + 1 if rows.ns >= MUCH else min(rows.measure, rows.again + NEAR)
            return None
        program = self._program(task)
        allowed = ALLOWED_ROWS + EARNED * cpu.looked - program.rows
        if allowed < TOO_LITTLE or program.spent >= NEVER:
            self._next_row(rows)
            return None
        made = self.copying.made(task)
        budget = min(max(LEAST, 4 * PER_NS * rows.ns), MOST)
        return Gauge(budget, None, made, made + min(allowed // COPY_US, ROW_COPIES), row=rows.length)

    @staticmethod
    def _missed(rows: Rows) -> None:
        """A row that was to be measured is none of those before it: the next one may be, or they are others now."""
        rows.missed += 1
        if rows.place is None or rows.missed >= ENOUGH:
            rows.place, rows.ns, rows.times, rows.missed, rows.step = None, 0, 0, 0, 1
            rows.strays = min(2 * rows.strays + 1, NEAR)
            rows.next = rows.measure = rows.again + rows.strays

    @staticmethod
    def _next_row(rows: Rows) -> None:
        """Measure a row again after twice as many as the last time, and one: they may differ by turns."""
        rows.step = min(2 * rows.step + 1, FAR)
        rows.measure = rows.again + rows.step
        rows.next = min(rows.measure, rows.again + NEAR)

    def _later(self, task: Task) -> None:
        cpu = task.cpu
        place = cpu.places[0] if cpu.places else None
        known = self._program(task).known.get(place, (0, 0))[1] >= ENOUGH
        cpu.measure_again = cpu.looks + 1 + max(BETWEEN, cpu.looks // (2 if known else 4))
        self._next_window(cpu)

    @staticmethod
    def _next_window(cpu: CpuTime) -> None:
        """Who looks by itself is seen once in a window: it may be in another loop by then."""
        cpu.measure_at = min(cpu.measure_again, cpu.looks + WINDOW - cpu.looks % WINDOW)

    # -- end ---------------------------------------------------------------------------

    def on_call(self, task: Task, looking: bool) -> None:
        """A thread with a measurement has made a call."""
        gauge: Gauge = task.data[GAUGE]
        if gauge.counting:
            gauge.counting = False
            self._count(task, gauge, gauge.budget - self.copying.left(task) - CALL_WEIGHT)
            gauge.stretches += 1
            if looking and gauge.stretches == STRETCHES and not gauge.row:
                self._known(task, gauge, gauge.total // STRETCHES // PER_NS)
        if looking and gauge.row:
            if task.cpu.looks + 1 >= gauge.row:
                self._row_known(task, gauge)
            else:
                task.cpu.measure_at = task.cpu.looks + 1
        if not looking and GAUGE in task.data:
            if gauge.row:
                self._missed(task.cpu.rows)
            self._close(task)

    def reached(self, task: Task) -> None:
        """What was to be counted of a stretch has been: more is, or else the next look costs as much."""
        gauge: Gauge = task.data[GAUGE]
        counted = gauge.budget
        self._count(task, gauge, counted)
        gauge.extend(self.copying.made(task))
        if counted < LONG:
            self.copying.in_turn(task, lambda: self.sup.proceed(task))
            return
        gauge.counting = False
        task.cpu.work_ns = counted // PER_NS
        if not gauge.row:
            gauge.former = task.cpu.work_ns
            task.cpu.measure_at = task.cpu.looks + 1
            gauge.stretches = gauge.total = 0
        self.copying.let_go_in_turn(task)

    def give_up(self, task: Task, left: int) -> None:
        """To go on measuring a thread would take too long; it is stopped in its own code."""
        gauge: Gauge = task.data[GAUGE]
        gauge.counting = False
        if gauge.steps <= 0:
            self._program(task).spent = NEVER
            task.cpu.work_ns = gauge.former
            self._close(task)
            self._later(task)
        elif gauge.row:
            # More of this code is known when the next row begins.
            self._count(task, gauge, gauge.budget - left)
            self._close(task)
            task.cpu.measure_at = FIRST_MEASURE
            task.cpu.rows.next = task.cpu.rows.measure = task.cpu.rows.again + 1
        else:
            self._count(task, gauge, gauge.budget - left)
            self._known(task, gauge, max(gauge.total // (gauge.stretches + 1) // PER_NS, gauge.former or 0))
        if gauge.steps > 0 and not gauge.row and self._allowed(task) >= TOO_LITTLE:
            # More of this code is known now.
            task.cpu.measure_at = task.cpu.measure_again = task.cpu.looks + 1
        self.copying.let_go_in_turn(task)

    def cancel(self, task: Task) -> None:
        """A signal has stopped a thread that was measured."""
        task.data.pop(LEFT, None)
        gauge: Gauge = task.data[GAUGE]
        task.cpu.work_ns = gauge.former
        self._close(task)
        self._later(task)
        self.copying.rearm(task)

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
            cpu.measure_at = cpu.measure_again = cpu.looks + 1 + STRETCHES // 2

    def _row_known(self, task: Task, gauge: Gauge) -> None:
        rows, ns = task.cpu.rows, gauge.total // PER_NS
        grows = 2 * ns > 3 * rows.ns > 0
        if ns >= MUCH:
            if grows and rows.grown < MOST_GROWTH:
                rows.times, rows.grown = 0, rows.grown + 1
            rows.times += 1
            rows.next = rows.measure = rows.again + 1
            if rows.times >= ENOUGH:
                rows.measure += min(max(BETWEEN, rows.again // 4), 1 << rows.times - ENOUGH)
            rows.step, rows.strays = 1, 0
        else:
            if grows:
                rows.step = 1
            self._next_row(rows)
        rows.ns, rows.missed = ns, 0
        task.cpu.measure_at = FIRST_MEASURE
        self._close(task)

    def _close(self, task: Task) -> None:
        gauge: Gauge = task.data.pop(GAUGE)
        program = self._program(task)
        spent = gauge.spent(self.copying.made(task))
        if gauge.row:
            program.rows += spent - gauge.total // PER_US
        else:
            program.spent += spent
