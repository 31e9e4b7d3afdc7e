"""Programs that measure work by clocks that runtimes do not look at for themselves: they may adapt it to what they see.

Threads that look at the time of day, at CPU time or at the raw clock may be timing a piece of work, and the next piece
may be ten or a hundred times as large, by what they have seen: after six pieces Go's benchmarks repeat theirs 10^9
times, and the tools that choose the cost of a key need no more than three.  So these looks are calls, and their threads
are followed (following.py) behind most of them: as long as the work is long, and fewer and fewer if it is short.

They are followed up to their next other call; but calls for memory belong to the work, and once it has been long a few
others do, too, such as those of a runtime that interrupts it.  A thread that is counted for another reason
(counting.py) is not followed, but its next looks show what has been counted.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING

from detbox.handlers import clocks
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import FIRST_MEASURE
from detbox.machine.tracees import is_traced
from detbox.records import field, record
from detbox.supervisor.following import SHOWN, FollowingOn
from detbox.supervisor.gauge import COPY_US, GAUGE, LEAST, MOST_AT_ONCE, TOO_LITTLE, Gauge
from detbox.supervisor.stretch import PER_NS

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.loop import Handler
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_OTHERS = (clocks.MONOTONIC, clocks.MONOTONIC_COARSE, clocks.REALTIME_COARSE, clocks.BOOTTIME)
#: Looks that are left alone at first: many programs make one or two.
FIRST = 2
#: What may be spent on a program, in us (gauge.py): at first, and for each look of any kind; and how many instructions
#: are counted.
ALLOWED, EARNED, MOST_COUNTED = 40_000, 1, 1 << 38
#: A thread is followed up to so many further looks, and so many calls: anew behind each stretch that is not short.
MORE_LOOKS, MORE_CALLS = 6, 16
MEMORY = frozenset(NUMBERS[name] for name in ("brk", "mmap", "munmap", "mremap", "mprotect", "madvise"))
#: Nobody is followed through these.
_ENDS = frozenset(
    NUMBERS[name]
    for name in ("execve", "execveat", "exit", "exit_group", "fork", "vfork", "clone", "clone3", "rt_sigreturn")
)
#: Work of so many ns is long.  After so many short pieces in a row some rows of looks are left alone: twice as many
#: each time, and no more than that.
LONG, SHORT, MOST_REST = 200_000, 8, 1023
#: When so many pieces of work behind looks from one place have taken about the same, some of the next ones cost what
#: they did: twice as many each time, and no more than that.
ALIKE, MOST_ALIKE = 3, 64
_PROGRAM = "timed program"  # in an address space's data
#: Of so many places something is known.
_PLACES = 1_000
_PLACE = "timed place"  # in a task's data: from where it has looked


@record
class _Work:
    """What is known of the work behind looks from one place: in ns, up to so many looks; how often it was the same.

    ``left``: how often it is taken to be that again.
    """

    ns: int = 0
    looks: int = 1
    times: int = 0
    left: int = 0


@record
class _Program:
    """What is known of a program: its ``looks``, what was ``spent`` on it, in us, and instructions.

    ``short``: how many pieces of work in a row were; ``rest``: rows of looks that were left alone the last time.
    """

    looks: int = 0
    spent: int = 0
    counted: int = 0
    unable: bool = False  # its code cannot be copied
    short: int = 0
    rest: int = 0
    known: dict[Hashable, _Work] = field(default_factory=dict)


class Stopwatch(FollowingOn):
    """Who is followed in one run, because it may be timing work."""

    calls = ("times", "getrusage", "clock_gettime", "gettimeofday", "time")
    most, shows = MOST_COUNTED, MORE_LOOKS

    def _program(self, task: Task) -> _Program:  # type: ignore[override]
        program: _Program = task.process.mm.data.setdefault(_PROGRAM, _Program())
        return program

    # -- begin -------------------------------------------------------------------------

    def _watched(self, handler: Handler) -> Handler:
        gettime = NUMBERS["clock_gettime"]

        def look(m: Machine, task: Task, arguments: Args) -> Decision:
            decision = handler(m, task, arguments)
            if task.nr != gettime or arguments[0] not in _OTHERS:
                self._looked(task)
            return decision

        return look

    def _looked(self, task: Task) -> None:
        """A thread has looked at one of these clocks: that may be the beginning or the end of a piece of work."""
        cpu, program = task.cpu, self._program(task)
        whole = cpu.parent or cpu
        if whole.rest:
            return
        cpu.timing += 1
        if GAUGE in task.data or is_traced(task) or cpu.timing >= FIRST_MEASURE or program.unable:
            return
        program.looks += 1
        if program.looks <= FIRST:
            return
        known = program.known.get(self._place(task))
        if known is not None and known.left:
            known.left -= 1
            cpu.work_ns, cpu.measure_at = known.ns // known.looks, cpu.looks + FIRST_MEASURE
            return
        if self._counted(task):
            task.data[SHOWN] = MORE_LOOKS
            return
        allowed = ALLOWED + EARNED * cpu.looked - program.spent
        if allowed < TOO_LITTLE:
            whole.rest = max((TOO_LITTLE - allowed) // EARNED, 1)
        elif program.counted < self.most:
            task.data[_PLACE] = self._place(task)
            self._begin(task, min(allowed // COPY_US, MOST_AT_ONCE), MORE_LOOKS, MORE_CALLS)

    @staticmethod
    def _place(task: Task) -> Hashable:
        """Where a thread looks from: what the call's arguments tell of the stack."""
        return task.nr, task.args[:2]

    # -- end ---------------------------------------------------------------------------

    @staticmethod
    def shown(task: Task, looking: bool, instructions: int) -> None:
        """A thread has made a call whose looks show what has been counted."""
        left = MORE_LOOKS if instructions >= LEAST else task.data[SHOWN] - looking
        if left and (looking or task.nr in MEMORY or instructions >= LEAST):
            task.data[SHOWN] = left
        else:
            del task.data[SHOWN]

    def _goes_on(self, task: Task, gauge: Gauge, looking: bool, instructions: int) -> bool:
        if instructions >= LEAST:
            gauge.looks, gauge.calls = MORE_LOOKS, MORE_CALLS
        if looking:
            gauge.looks -= 1
            return gauge.looks > 0
        gauge.calls -= 1
        if gauge.calls <= 0 or task.nr in _ENDS:
            return False
        return task.nr in MEMORY or gauge.total >= LONG * PER_NS

    def _unable(self, task: Task) -> None:
        super()._unable(task)
        (task.cpu.parent or task.cpu).unable = True

    def end(self, task: Task) -> None:
        """A thread is not followed any more, until it looks again."""
        cpu, gauge, program = task.cpu, self._ended(task), self._program(task)
        cpu.work_ns, cpu.measure_at = None, cpu.looks + FIRST_MEASURE
        ns = gauge.total // PER_NS
        place = task.data.pop(_PLACE)
        if ns < LONG:
            program.short += 1
            if program.short >= SHORT:
                program.rest = (cpu.parent or cpu).rest = min(2 * program.rest + 1, MOST_REST)
            return
        program.short = program.rest = 0
        if len(program.known) > _PLACES:
            program.known.clear()
        work = program.known.setdefault(place, _Work())
        work.times = work.times + 1 if 2 * work.ns < 3 * ns < 5 * work.ns else 0
        work.ns, work.looks = ns, max(MORE_LOOKS - gauge.looks, 1)
        if work.times >= ALIKE:
            work.left = min(1 << work.times - ALIKE, MOST_ALIKE)
