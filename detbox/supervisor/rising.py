"""Programs that measure work, and do ten or a hundred times as much when it took too little.

Most looks at clocks are a runtime's own: Python's at each lock, Java's at each wait.  Seldom several of them in a row
come from the same one or two places.  A benchmark's do: it looks, works, looks, and begins anew with more.  By the time
that twenty looks have told it to be a loop (gauging.py) its work may have grown by 10^9.

So the fifth look in a row from one place, or from two by turns, is a call (guest/clock.c), and from there on the thread
is followed (following.py) as long as its work is long, or grows.  When it is the same by turns the next looks cost what
it was, twice as many each time.  Where it is short, rows of looks from these places are left alone for longer and
longer.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Iterator
from itertools import cycle, islice
from typing import TYPE_CHECKING

from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import FIRST_MEASURE, NEVER, TURNS
from detbox.machine.tracees import is_traced
from detbox.records import field, record
from detbox.supervisor.following import SHOWN, FollowingOn
from detbox.supervisor.gauge import COPY_US, GAUGE, TOO_LITTLE, Gauge, Rise
from detbox.supervisor.generated import code_without_file
from detbox.supervisor.stopwatch import MEMORY, MORE_CALLS
from detbox.supervisor.stretch import PER_NS

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.loop import Handler
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

#: What may be spent on a program and those that it forks, in us (gauge.py): at first, and for each look; and how many
#: instructions are counted.
ALLOWED, EARNED, MOST_COUNTED = 40_000, 1, 1 << 36
#: One row may have this part of what is left: runtimes have several such rows before the program that they run begins.
SHARE = 2
#: Copies that may be made for one row (who is in a loop may make more), and how often that is tried, with more of them
#: known then, if it has not had so many looks: an interpreter makes long rows while it starts.
COPIES, TRIES, EARLY = 1280, 2, 64
#: Looks for which a thread is followed although its work is short and does not grow; the same once it has been long.
MORE_LOOKS, MORE_LATER = 8, 16
#: Work grows if it is so many times what it was two looks before, and it is long if it has so many instructions; so few
#: lie between two looks of the same piece of code anyway.
GROWTH, LONG, LITTLE = 2, 200_000 * PER_NS, 1_000
#: Stretches of which two each are compared; the next ones are foreseen for so many looks at most, but not before so
#: many instructions have been counted in one row: something else may come.
ALIKE, MOST_FORESEEN, SURE = 4, 64, 1 << 33
#: For so many rows looks from the places of a short one do not matter: four times as many and some each time.
FIRST_REST, MOST_REST = 3, 1023
#: In ns: what looks cost where it cannot be counted what is done between them (the last two the same: one of them ends
#: a piece of work); how often that may be at first, and the looks by which it is earned once more: a compiler that
#: times each of its steps has such looks by the thousand.
HURRY = (32_000_000, 1_024_000_000, 1_024_000_000)
HURRIES, HURRY_LOOKS = 32, 4096
#: What a runtime does for the code that it generates, in between.
_OWN_WORK = MEMORY | {NUMBERS["futex"]}
#: Calls that look at a clock, and which argument tells from where on the stack.
_PLACES_OF = {"clock_gettime": 1, "getrusage": 1, "gettimeofday": 0, "time": 0, "times": 0}
_PLACE_OF = {NUMBERS[name]: index for name, index in _PLACES_OF.items()}
_PROGRAM = "rising program"  # in an address space's data
#: In a task's data: what the next looks cost.
FORESEEN = "foreseen work"
_GAVE_UP = -1
# So much of the stack is looked at, in bytes: some frames of a runtime's function that looks at the clock.
_FRAMES = 256
# Calls: to an address that is a part of it, in a register, or in memory.
_CALL_LENGTH = 7
_CALLS = re.compile(rb".{2}\xe8.{4}|.{5}\xff[\xd0-\xd7]|.{4}\xff[\x50-\x57].|.\xff[\x90-\x97].{4}", re.DOTALL)
# Of how many places something is known.
_PLACES = 1_000


@record
class _Program:
    """What was ``spent`` on a program, in us, and instructions.

    ``unable``: places between which there is code that cannot be copied; ``blind``: there is too much of it to follow
    any thread; ``hurried``: how often one hurried there.
    ``rests``: for how many rows looks from certain places do not matter.
    """

    spent: int = 0
    counted: int = 0
    unable: set[int] = field(default_factory=set)
    blind: bool = False
    hurried: int = 0
    rests: dict[int, int] = field(default_factory=dict)


@record
class _Foreseen:
    """What the next looks cost, in ns; then the thread is followed again, if ``rise`` tells from what on."""

    costs: Iterator[int]
    rise: Rise | None


class Rising(FollowingOn):
    """Who is followed in one run, because its work may grow."""

    calls = tuple(_PLACES_OF)
    most, shows = MOST_COUNTED, MORE_LOOKS

    def _program(self, task: Task) -> _Program:  # type: ignore[override]
        program: _Program = task.process.mm.data.setdefault(_PROGRAM, _Program())
        return program

    @staticmethod
    def on_fork(m: Machine, parent: Process, child: Process) -> None:
        """What a program forks has the same account."""
        if child.mm is not parent.mm and _PROGRAM in parent.mm.data:
            child.mm.data[_PROGRAM] = parent.mm.data[_PROGRAM]
            child.cpu.rises = parent.cpu.rises

    # -- begin -------------------------------------------------------------------------

    def _watched(self, handler: Handler) -> Handler:
        def look(m: Machine, task: Task, arguments: Args) -> Decision:
            decision = handler(m, task, arguments)
            if task.cpu.turns >= 0 and task.cpu.turn(arguments[_PLACE_OF[task.nr]] & NEVER - 1):
                self._rises(task)
            return decision

        return look

    def _rises(self, task: Task) -> None:
        """A thread's looks are a loop's, it seems: it may be measuring work."""
        cpu, program = task.cpu, self._program(task)
        if GAUGE in task.data or FORESEEN in task.data or is_traced(task):
            return  # it may go on being followed once that is over
        cpu.turns = -1
        program.blind |= cpu.measure_at >= NEVER
        if program.counted >= self.most:
            (cpu.parent or cpu).rises = False
        elif self._counted(task):
            task.data[SHOWN] = MORE_LOOKS
        elif self._generated(task) or (cpu.two_places() in program.unable and not program.blind):
            self._hurry(task)
        elif program.blind:
            self._rests(task)
        elif self._rise(task, Rise()):
            cpu.tried += 1

    def _generated(self, task: Task) -> bool:
        """Whether generated code looks at the clock: its address is on the stack, directly above what it asks for."""
        try:
            words = array("Q", task.read(task.cpu.place, _FRAMES))
        except OSError:
            return False
        code = code_without_file(self.sup.m, task)
        return any(
            each.start <= word < each.end and _is_behind_call(task, word) for each in code for word in words
        )

    def _rise(self, task: Task, rise: Rise) -> bool:
        """Follow a thread, if that may be done."""
        allowed = ALLOWED + EARNED * task.cpu.looked - self._program(task).spent
        if allowed < TOO_LITTLE:
            return False
        copies = min(max(allowed // SHARE, TOO_LITTLE) // COPY_US, COPIES)
        self._begin(task, copies, MORE_LATER if rise.long else MORE_LOOKS, MORE_CALLS)
        task.data[GAUGE].rise = rise
        return True

    # -- on the way --------------------------------------------------------------------

    def _goes_on(self, task: Task, gauge: Gauge, looking: bool, instructions: int) -> bool:
        rise = gauge.rise
        assert rise is not None
        if not looking:
            gauge.calls -= 1
            return gauge.calls > 0 and task.nr in MEMORY
        gauge.calls = MORE_CALLS
        rise.last = (*rise.last[1 - ALIKE :], instructions)
        before = rise.last[-3] if len(rise.last) >= 3 else 0
        rise.long |= instructions >= LONG
        if instructions > GROWTH * max(before, LITTLE // 2):
            gauge.looks = MORE_LATER if rise.long else MORE_LOOKS
            rise.alike = 0
            return True
        gauge.looks -= 1
        if max(rise.last) >= LONG:
            gauge.looks = MORE_LATER
            return not self._foreseeable(gauge, rise)
        return gauge.looks > 0

    @staticmethod
    def _foreseeable(gauge: Gauge, rise: Rise) -> bool:
        """Whether the last stretches were the same by turns, and the next ones are taken to be so, too."""
        if len(rise.last) < ALIKE or max(rise.last) < LONG or gauge.calls < MORE_CALLS:
            return False
        pairs = rise.last[::2], rise.last[1::2]
        return rise.counted + gauge.total >= SURE and all(3 * max(pair) <= 4 * min(pair) + LITTLE for pair in pairs)

    def after_look(self, task: Task) -> None:
        """A thread has looked: the next stretch is foreseen, or it is followed again."""
        cpu, foreseen = task.cpu, task.data[FORESEEN]
        counted = self._counted(task)
        cost = None if counted else next(foreseen.costs, None)
        if cost is not None:
            cpu.work_ns, cpu.measure_at = cost, cpu.looks + 1
            if foreseen.rise is None:
                cpu.hurry = cost
            return
        self.forget(task)
        rise = foreseen.rise
        if rise is None or counted or not self._rise(task, rise):
            self._leave(task, () if rise is None else rise.last)

    @staticmethod
    def on_other_call(task: Task) -> None:
        """A thread has done something else than to look."""
        if task.cpu.hurry is None or task.nr not in _OWN_WORK:
            Rising.forget(task)

    @staticmethod
    def forget(task: Task) -> None:
        """Nothing is foreseen of a thread any more."""
        task.data.pop(FORESEEN, None)
        task.cpu.hurry = None

    def _hurry(self, task: Task) -> None:
        """What a thread does cannot be counted: each look costs several times as much as the last, to a second once."""
        program = self._program(task)
        if program.hurried < HURRIES + task.cpu.looked // HURRY_LOOKS:
            program.hurried += 1
            task.data[FORESEEN] = _Foreseen(iter(HURRY), None)
            self.after_look(task)
        self._rests(task)

    @staticmethod
    def _leave(task: Task, last: tuple[int, ...]) -> None:
        """A thread is not followed any more: its looks cost the mean of its last stretches, until they are measured."""
        cpu = task.cpu
        mean = sum(last) // max(len(last), 1)
        cpu.work_ns = mean // PER_NS if mean >= LONG else None
        cpu.measure_at = cpu.looks + FIRST_MEASURE

    # -- end ---------------------------------------------------------------------------

    def give_up(self, task: Task, left: int) -> None:
        """To go on would take too long; more of the code is known later in this row."""
        task.data[GAUGE].looks = _GAVE_UP
        super().give_up(task, left)

    def _unable(self, task: Task) -> None:
        unable = self._program(task).unable
        if len(unable) > _PLACES:
            unable.clear()
        unable.add(task.cpu.two_places())

    def end(self, task: Task) -> None:
        """A thread is not followed any more, for a while or in this row."""
        cpu, gauge, program = task.cpu, self._ended(task), self._program(task)
        rise = gauge.rise
        assert rise is not None
        rise.long |= gauge.total - gauge.last >= LONG
        cpu.again = rise.long
        if self._foreseeable(gauge, rise):
            rise.counted += gauge.total
            costs = [ns // PER_NS for ns in rise.last[-2:]]
            times, rise.alike = min(2 << rise.alike, MOST_FORESEEN), rise.alike + 1
            rise.last = rise.last[-2:]  # two more are compared then
            task.data[FORESEEN] = _Foreseen(islice(cycle(costs), times), rise)
            cpu.work_ns, cpu.measure_at = 0, cpu.looks + 1  # what is behind the look that comes now
            return
        gave_up = gauge.looks == _GAVE_UP
        self._leave(task, () if gave_up else rise.last)
        if gave_up and cpu.two_places() in program.unable:
            self._hurry(task)
        elif rise.long:
            program.rests.pop(cpu.two_places(), None)
            cpu.turns = TURNS - 2 if gave_up else 0
        elif gave_up and cpu.tried < TRIES and cpu.looks < EARLY:
            # More of the code is known then.
            cpu.turns = TURNS - 2
        else:
            self._rests(task)

    def _rests(self, task: Task) -> None:
        """Looks from these places do not matter for longer and longer."""
        cpu, rests = task.cpu, self._program(task).rests
        if len(rests) > _PLACES:
            rests.clear()
        places = cpu.two_places()
        rests[places] = rest = min(4 * rests.get(places, 0) + FIRST_REST, MOST_REST)
        cpu.is_dull(rest)


def _is_behind_call(task: Task, address: int) -> bool:
    """Whether there is a call before an address, so that it is where one returns to."""
    try:
        return _CALLS.fullmatch(task.read(address - _CALL_LENGTH, _CALL_LENGTH)) is not None
    except OSError:
        return False
