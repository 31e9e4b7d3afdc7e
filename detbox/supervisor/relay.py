"""Threads that wait for each other by turns in loops that are known: what each turn changes is done in C.

A barrier in memory is passed thousands of times a second: who arrives runs into a breakpoint, is parked, others see
that their memory has changed, and the first of them goes on.  As long as nothing but that happens, kernel/relay.c does
it, and here it is told what it may go by, and entered what has become of everybody.  The result is what it would be
otherwise, so that it does not matter when that is done: nobody else is ready, no time comes, nothing is counted, and
who looks at a clock ends it.  What a thread executes from one loop to the next is executed there, too, if it is little
and known (detbox/spin/ground.py): then the thread itself does not go on at all.
"""

from __future__ import annotations

import signal
from functools import partial
from typing import TYPE_CHECKING

from detbox.handlers import dispositions
from detbox.kernel import _native
from detbox.machine.clock import NEVER
from detbox.scheduler.core import RECHECK, turn_length
from detbox.spin import Loop
from detbox.supervisor.stretch import GAVE_WAY
from detbox.supervisor.task import INHERITED, State
from detbox.supervisor.ticking import TICK_MS

if TYPE_CHECKING:
    from detbox.machine.clock import CpuTime
    from detbox.supervisor.spinning import Spinning
    from detbox.supervisor.task import Task

#: What a spin takes for each instruction of its loop before it is parked, in ns: some fifth of what it takes to
#: find.  Else no time would pass where two threads wait for each other in loops until a third one has slept.
SPIN_NS, SPIN_MOST_NS = 5_000, 1_000_000
#: As kernel/relay.c has them.
_MOST_THREADS, _MOST_LOOPS, _WAITS, _READY = 64, 64, 1, 2

#: In a task's data: what only calls ask for, or is of interest when other processes are ready.
_KEPT = {GAVE_WAY, *INHERITED}
_NOTHING = 0, ()  # to wait for


class Relay:
    """The threads of one run that wait by turns."""

    def __init__(self, spinning: Spinning) -> None:
        self.spinning = spinning
        self.sup = spinning.sup

    def take(self, task: Task) -> bool:
        """A thread has been chosen that was parked at a loop: False if it goes on as any other."""
        ready = list(self.sup.m.scheduler.ready)  # those that have been let go, too
        tasks = [task, *ready, *(each for each in self.spinning.parked if each.state is State.PARKED)]
        if not self._alone() or len(tasks) > _MOST_THREADS or not all(map(_quiet, tasks)):
            return False
        processes = {each.process: each for each in tasks}
        if not all(self._calm(each) for each in processes.values()):
            return False
        crowd = self.sup.counting.giving_way.uncounted(tasks) if len(processes) == 1 else 0
        if ready and not (crowd and all(map(self._let_go, ready))):
            return False
        spaces = list({each.mm: None for each in processes})
        loops = [(at, loop) for at, mm in enumerate(spaces) for loop in self.spinning.loops.quick(mm)]
        if len(loops) > _MOST_LOOPS:
            return False
        grounds = [self.spinning.loops.ground(mm, self.sup.m.proc_fd) for mm in spaces]
        parked, deadline = self.spinning.parked, self.sup.m.clock.next_deadline()
        found = _native.relay(
            (self.sup.m.listener, self.sup.control, TICK_MS),
            tuple(
                (
                    each.tid,
                    spaces.index(each.process.mm),
                    each.cpu,
                    *(parked[each].watch if each in parked else _NOTHING),
                )
                for each in tasks
            ),
            tuple((ground, ground.places) for ground in grounds),
            tuple((at, loop.turns.instructions, loop.turns.start, loop.turns.code) for at, loop in loops if loop.turns),
            self.sup.guest_clock,
            (NEVER if deadline is None else deadline, SPIN_NS, SPIN_MOST_NS),
            (len(ready), crowd),
        )
        if found is None:
            return False
        tid, status, stops, threads, counts = found
        self._enter(tasks, [loop for _, loop in loops], stops, threads, counts)
        if tid:
            self.sup.on_stop(tid, status)
        return True

    # -- whether it can be done --------------------------------------------------------

    def _alone(self) -> bool:
        """Whether nothing else can happen before a time comes, but what the threads do."""
        scheduler = self.sup.m.scheduler
        others = scheduler.deferred or scheduler.watched or scheduler.awaited or self.sup.running
        return not (others or RECHECK in scheduler.waiting)

    def _let_go(self, task: Task) -> bool:
        """Whether a thread that is ready was parked at a loop."""
        action = task.action
        return isinstance(action, partial) and action.func == self.spinning.again

    def _calm(self, task: Task) -> bool:
        """Whether a process of which this is a thread takes no signals, has no timers, and is not counted."""
        process = task.process
        busy = process.signalled or process.exiting or process.job_stop or len(process.children) > 1
        caught = signal.SIGTRAP in process.data.get(dispositions.DISPOSITIONS, {})
        return not (busy or caught) and self.sup.counting.rests(task)

    # -- what has been done ------------------------------------------------------------

    def _enter(
        self,
        tasks: list[Task],
        loops: list[Loop],
        stops: int,
        threads: tuple[tuple[int, int, int, int, int, bytes | None, tuple[tuple[int, bytes], ...] | None], ...],
        counts: tuple[tuple[int, int], ...],
    ) -> None:
        """All that has changed but for registers, memory and time; ``threads`` and ``counts`` are relay.c's."""
        sup, scheduler = self.sup, self.sup.m.scheduler
        for loop, (visits, spins) in zip(loops, counts, strict=True):
            loop.visits += visits
            loop.spins += spins
            self.spinning.visits += visits
            if visits and loop.turns is not None:
                loop.turns.vain = 0
        sup.stops += stops
        scheduler.ready.clear()  # all of them are among the tasks
        scheduler.stirred = scheduler.stirred or stops > 0
        for task, (state, _, since, chosen, at, path, watched) in sorted(
            zip(tasks, threads, strict=True), key=lambda each: each[1][1]
        ):
            again = chosen - (task is tasks[0])
            scheduler.turns += again
            sup.counting.giving_way.went_on(task, again)
            if chosen:
                task.quantum, task.forked, task.exposed = turn_length(task.turns), False, True
            if state == _WAITS and path is None:
                continue
            scheduler.withdraw(task)
            self.spinning.parked.pop(task, None)
            if state == _WAITS:
                turns = loops[at].turns
                assert turns is not None and path is not None and watched is not None
                self.spinning.park(task, turns.spin(path, watched), since)
            elif state == _READY:
                scheduler.make_ready(task, partial(self.spinning.again, task))
            else:
                task.state, task.native = State.RUNNING, False
                sup.running += 1


def _quiet(task: Task) -> bool:
    """Whether nothing is to be done about a thread when it stops or goes on."""
    if not task.data.keys() <= _KEPT or task.look is not None or task.leads is not None or task.rest:
        return False
    cpu: CpuTime | None = task.cpu
    while cpu is not None:
        if cpu.timers is not None and cpu.timers.next_deadline() is not None:
            return False
        cpu = cpu.parent
    return True
