"""Who may commit next: a deterministic run queue.

The scheduler knows tasks, conditions and virtual time, but no descriptors of
its own: readiness of parked descriptors comes from a callable, so that a test
can drive it without a kernel.

Policy.  The running thread keeps running until its call parks, it yields, or it
has made some ``QUANTUM`` intercepted calls while another thread was ready.  Ready
threads run first come first served; those that can wait (programs that have not begun yet, and whoever waits for a
child that has ended) come after the others, and of them a child before its parent and what began first before
what began later: what a program starts is done before its surroundings go on.  Conditions are looked at only when a
choice is made; all that became ready meanwhile enters the queue in the order in
which it was parked.  When nothing is ready, virtual time jumps to the earliest
deadline; without a deadline the guest is deadlocked.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, Protocol

from detbox.decision import Park, Wake
from detbox.records import record
from detbox.supervisor.task import State, Task

if TYPE_CHECKING:
    from detbox.machine.clock import Clock, Timers

#: Intercepted calls after which a thread makes way for another ready one.  Small
#: enough that a thread polling with system calls lets the one that it waits for
#: run soon, large enough that switches do not cost anything.
QUANTUM = 256
#: Turns of others after which a thread that can wait is ready like any other.
PATIENCE = 256
#: Turns of a thread for which another one stays behind it that has let it go first.
LEADS = 256
#: Who has forked has at least so many calls left of its turn, once in each: mostly it begins to wait soon, and when the
#: child runs, it can be seen for what.
AFTER_FORK = 192
# How far a turn's length may be from that: a power of two.
_SPREAD = 128

#: Key on which calls wait whose condition no event announces; it is woken when
#: another thread has run.
RECHECK = "recheck"
#: A wait for a time that was further away (in ns) when it began is not heeded, but for a sleep, by whom that has
#: found; nor is one that was still further.  A sleep of up to so many ns is heeded only by what the process has
#: started: it looks whether that is done.
FAR, FAR_MOST, NAP = 10_000_000_000, 60_000_000_000, 10_000_000


def turn_length(turns: int) -> int:
    """How many intercepted calls a thread that has used up ``turns`` turns may make in its next one.

    Turns of one length can keep step with a loop, so that the thread is stopped at the same place of it
    each time: where it holds a lock that it gives back for a moment in each round, say, and everybody
    who waits for that lock waits for ever.  Multiples of the golden ratio fall everywhere.
    """
    return QUANTUM - _SPREAD // 2 + (turns * 0x9E3779B1 % (1 << 32)) * _SPREAD // (1 << 32)


class Readiness(Protocol):
    """Watches the descriptors of parked calls."""

    def add(self, task: Task, fds: Iterable[tuple[int, int]]) -> None: ...

    def remove(self, task: Task, close: bool) -> None: ...

    def poll(self) -> list[tuple[Task, tuple[int, ...]]]: ...


_WAITED = "waited"  # in a process's data: how long it has waited for a time when it did so last
_RESTS = "rests"  # in a process's data: a wait for more than a nap has come to its end since


@record
class Awaited:
    """A wait for a time.

    ``length``: in ns.  ``sleeps``: it is for nothing else.  ``told``: what else it is for is announced when it comes,
    and need not be looked for.  ``nap``: it is short, and not twice as long as the
    process's last one, as with who waits for longer and longer until something is done, nor what a longer one has
    left: who rounds its timeout down waits a second time for the rest.  ``first``: there was no last.
    """

    deadline: int
    length: int
    sleeps: bool
    told: bool
    nap: bool
    first: bool


class Scheduler:
    """The run queue and the parked threads."""

    def __init__(self, clock: Clock, timers: Timers, readiness: Readiness) -> None:
        self.clock = clock
        self.timers = timers
        self.readiness = readiness
        self.ready: deque[Task] = deque()
        self.deferred: dict[Task, int] = {}  # ready as well, but others come first: number of the turn since when
        self.waiting: dict[Hashable, deque[Task]] = {}
        self.parked: dict[Task, None] = {}
        self.watched = 0  # parked tasks with descriptors
        self.release_spinners: Callable[[], None] | None = None
        #: Hears of who waits while several of its children live.
        self.parent_waits: Callable[[Task, Park], None] = lambda task, park: None
        #: Looks for what nobody has announced, before time passes; True if a task is ready now.
        self.sweep: Callable[[], bool] | None = None
        #: Threads that wait for a time to come, or for their turn after such a wait: other processes heed them.
        self.awaited: dict[Task, Awaited] = {}
        self._longer: set[Task] = set()  # those that wait for a time, other than for another thread, and for no nap
        self._heeding = True
        self.stirred = True  # some thread has run since RECHECK was last woken
        self.turns = 0  # that have been given, or used up
        self.jumps = 0  # how often nobody was ready
        self._seq = 0
        self._timer_of: dict[Task, Any] = {}

    def make_ready(self, task: Task, action: Callable[[], None]) -> None:
        """Queue a held task; ``action`` continues it when it is chosen."""
        task.state = State.READY
        task.exposed = True
        task.action = action
        self.ready.append(task)
        if task.leads is not None:
            self._lead(task)

    def yield_to(self, task: Task, park: Park) -> None:
        """Queue a held task that lets others go first: all, or as many as were queued last, who come before the rest.

        In the latter case it stays behind them for some of their turns, until they wait for something.  Its own turn
        goes on then: who does that again and again is not always the next.
        """
        others = park.extra["first"]
        # Who is stopped is not queued when it is woken.
        first = [self.ready.pop() for _ in range(min(others or 0, len(self.ready)))]
        self.make_ready(task, lambda: self.resume(task, park, Wake("event")))
        if others is None:
            return
        for other in first:
            other.leads = task, LEADS
        self.ready.remove(task)
        self.ready.extendleft((task, *first))
        task.rest = task.quantum

    def _lead(self, task: Task) -> None:
        """Who has let a task go first stays behind it."""
        assert task.leads is not None
        (other, times), task.leads = task.leads, None
        if times and other.state is State.READY and other in self.ready:
            self.ready.remove(other)
            self.ready.append(other)
            task.leads = other, times - 1

    def stand_aside(self, task: Task, others: Sequence[Task], action: Callable[[], None]) -> None:
        """Queue a task that has been chosen directly behind some of those that are queued: they are the next."""
        self.make_ready(task, action)
        for each in (task, *others):
            if self.deferred.pop(each, None) is None:
                self.ready.remove(each)
        self.ready.extendleft((task, *reversed(others)))

    def defer(self, task: Task, action: Callable[[], None]) -> None:
        """Queue a held task that can wait until nobody else is ready."""
        task.state = State.READY
        task.exposed = True
        task.action = action
        self.deferred[task] = self.turns

    def park(self, task: Task, park: Park) -> None:
        """Hold a task until a condition of ``park`` holds."""
        self._seq += 1
        task.seq, task.leads = self._seq, None
        task.state = State.PARKED
        task.park = park
        self.parked[task] = None
        for key in park.events:
            self.waiting.setdefault(key, deque()).append(task)
        if park.fds:
            self.watched += 1
            self.readiness.add(task, park.fds)
        if park.deadline is not None:
            self._timer_of[task] = self.timers.add(park.deadline, lambda: self.unpark(task, Wake("deadline")))
            self._note_deadline(task, park)
            if self._heeding:
                self._note_wait(task, park)
        elif len(task.process.children) > 1:
            self.parent_waits(task, park)

    @staticmethod
    def _note_deadline(task: Task, park: Park) -> None:
        if park.deadline is not None and "nap" not in park.extra:
            task.process.timed[task] = park.deadline

    def _note_wait(self, task: Task, park: Park) -> None:
        """Other processes heed a sleep, and what the process has started any wait with a timeout.

        Such a wait for another thread of the process is one if it is no nap: interpreters have many of them.
        """
        assert park.deadline is not None
        length = park.deadline - self.clock.now
        sleeps = not park.fds and not park.events
        if length > FAR_MOST or not (sleeps or (length < FAR and task.process.children)):
            return
        if not (sleeps or park.fds):
            if length > NAP:
                self.awaited[task] = Awaited(park.deadline, length, sleeps=False, told=True, nap=False, first=False)
        else:
            last = task.process.data.get(_WAITED, 0)
            grows = 3 * last <= 2 * length <= 8 * last if last else length <= NAP // 10
            rest = "nap" not in park.extra and task.process.data.pop(_RESTS, False)
            nap = length <= NAP and not grows and not rest
            self.awaited[task] = Awaited(park.deadline, length, sleeps, told=False, nap=nap, first=not last)
            if length > NAP:
                self._longer.add(task)
            task.process.data[_WAITED] = length

    def heed_nobody(self) -> None:
        """Forget who waits for a time, from now on."""
        self._heeding = False
        self.awaited.clear()
        self._longer.clear()

    def wake(self, key: Hashable, count: int | None = None, value: Any = None) -> int:
        """Resume up to ``count`` (None: all) tasks parked on ``key``, oldest first; how many they were."""
        queue = self.waiting.get(key)
        woken = 0
        while queue and (count is None or woken < count):
            self.unpark(queue[0], Wake("event", key, value))
            woken += 1
        return woken

    def unpark(self, task: Task, wake: Wake) -> None:
        """Move a parked task to the run queue."""
        awaited, longer = self.awaited.get(task), task in self._longer
        park = self.withdraw(task)
        if park is not None:
            if awaited is not None:
                self.awaited[task] = awaited
            if wake.kind == "deadline":
                self._note_deadline(task, park)
                if longer:
                    task.process.data[_RESTS] = True
            queue = self.defer if "can wait" in park.extra else self.make_ready
            queue(task, lambda: self.resume(task, park, wake))

    def resume(self, task: Task, park: Park, wake: Wake) -> None:
        """Continue a call that had parked; replaced by the loop, which carries the decision out."""
        raise NotImplementedError

    def withdraw(self, task: Task) -> Park | None:
        """Take a task out of its park without queueing it; its Park, or None if it was not parked."""
        park = task.park
        if park is None:
            return None
        task.park = None
        self.parked.pop(task, None)
        for key in park.events:
            queue = self.waiting.get(key)
            if queue is not None:
                if task in queue:
                    queue.remove(task)
                if not queue:
                    del self.waiting[key]
        if park.fds:
            self.watched -= 1
            self.readiness.remove(task, not park.keep_fds)
        timer = self._timer_of.pop(task, None)
        if timer is not None:
            self.timers.cancel(timer)
            task.process.timed.pop(task, None)
            self.awaited.pop(task, None)
            self._longer.discard(task)
        return park

    def remove(self, task: Task) -> None:
        """Forget a task that is gone."""
        self.withdraw(task)
        self.deferred.pop(task, None)
        task.process.timed.pop(task, None)
        self.awaited.pop(task, None)
        if task.state is State.READY and task in self.ready:
            self.ready.remove(task)
        task.state = State.DEAD

    def collect(self) -> None:
        """Queue everything whose condition holds now."""
        if self.watched:
            found = self.readiness.poll()
            for task, fds in sorted(found, key=lambda item: item[0].seq):
                self.unpark(task, Wake("fd", fds=fds))
        self.timers.expire(self.clock.now)
        if self.stirred and RECHECK in self.waiting:
            self.stirred = False
            self.wake(RECHECK)
        if self.release_spinners is not None:
            self.release_spinners()
        for task in [task for task, since in self.deferred.items() if self.turns - since >= PATIENCE]:
            del self.deferred[task]
            self.ready.append(task)

    @staticmethod
    def forked(task: Task) -> None:
        """A thread has made a process."""
        if not task.forked and task.quantum < AFTER_FORK:
            task.quantum, task.forked = AFTER_FORK, True

    def used_up(self) -> bool:
        """The running thread has used its turn up; whether it has to make way."""
        self.turns += 1
        self.collect()
        return bool(self.ready)

    def next(self) -> Task | None:
        """The thread to continue now; None if all are parked without a deadline."""
        while True:
            self.collect()
            if self.ready or self.deferred:
                task = self.ready.popleft() if self.ready else self._deepest()
                task.quantum, task.forked, task.rest = task.rest or turn_length(task.turns), False, 0
                task.process.timed.pop(task, None)
                self.awaited.pop(task, None)
                self.turns += 1
                return task
            self.jumps += 1
            if self.sweep is not None and self.sweep():
                continue
            deadline = self.timers.next_deadline()
            if deadline is None:
                return None
            self.clock.jump_to(deadline)
            self.timers.expire(self.clock.now)

    def nobody_waits(self) -> None:
        """Who could wait is ready like any other: somebody has computed for long."""
        while self.deferred:
            self.ready.append(self._deepest())

    def undisturbed(self, task: Task, turns: int, jumps: bool) -> bool:
        """Whether a held task and its descendants would have the next ``turns`` turns, the queue being as it is.

        ``jumps``: there are moments at which all of them wait for time to pass.
        """
        if not turns:
            return True
        if self.ready or (jumps and self.deferred):
            return False
        place = _depth_first(task)
        return all(
            _depth_first(other) > place and self.turns - since + turns < PATIENCE
            for other, since in self.deferred.items()
        )

    def _deepest(self) -> Task:
        """The deferred task whose turn it is."""
        task = min(self.deferred, key=_depth_first) if len(self.deferred) > 1 else next(iter(self.deferred))
        del self.deferred[task]
        return task


def _depth_first(task: Task) -> list[float]:
    """Orders tasks by their processes' places in the fork tree: what is below a process comes before it."""
    return [*map(int, task.process.lineage.split(".")), inf]
