"""Virtual time: one monotonic counter from which every clock of the guest is derived.

Time moves for three reasons only, all of them the guest's own doing: an intercepted call costs a fixed
amount, looking at a clock costs a little more each time it is done again and again, and when every
thread waits, time jumps to the earliest deadline.  The computer's speed plays no part.

All times are integers in nanoseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

#: Monotonic time when the first process starts: the machine has been up for so long.
BOOT_NS = 1_000_000_000_000
#: What an intercepted call costs.  Real jobs make 1,000 to 100,000 calls in a CPU second.
CALL_NS = 10_000
#: What a first look at a clock costs.
LOOK_NS = 1_000
#: What a file-time stamp costs: microseconds, so that stamps differ in programs that cut them there.
STAMP_NS = 1_000
#: A thread that has done nothing but look at clocks for this often is waiting: its looks get dearer.
PATIENCE = 64
#: After each further so many looks in a row the cost doubles …
DOUBLING = 16
#: … up to this: a busy wait of an hour ends after some 36,000 looks.
LOOK_NS_MAX = 100_000_000


@dataclass(slots=True)
class Timer:
    """A handle of :class:`Timers`: an expiration that is still to come."""

    deadline: int
    callback: Callable[[], None] | None


@dataclass(slots=True)
class Timers:
    """Expirations in the order of their deadlines; equal deadlines in the order they were set."""

    _heap: list[tuple[int, int, Timer]] = field(default_factory=list)
    _count: int = 0

    def add(self, deadline: int, callback: Callable[[], None]) -> Timer:
        """Have ``callback()`` called when this queue's time reaches ``deadline``."""
        timer = Timer(deadline, callback)
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, timer))
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Forget a timer; without effect if it has expired or is None."""
        if timer is not None:
            timer.callback = None

    def next_deadline(self) -> int | None:
        """The earliest deadline, or None."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else None

    def expire(self, now: int) -> int:
        """Call back every timer whose deadline is ``now`` or earlier; how many there were.

        A callback may add timers; one that is due at once is called in the same sweep.
        """
        expired = 0
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            timer = heapq.heappop(self._heap)[2]
            callback, timer.callback = timer.callback, None
            if callback is not None:
                callback()
                expired += 1
        return expired


class Accounted(Protocol):
    """What the clock needs of a thread or of a process; ``data`` holds handlers' state."""

    cpu_ns: int
    data: dict[str, Any]


class Runner(Accounted, Protocol):
    """What the clock needs of a thread (a ``Task``)."""

    looks: int  # looks at clocks since the thread last did anything else

    @property
    def process(self) -> Accounted:
        """The thread's process, which has its own ``cpu_ns`` and ``data``."""


#: Key in ``data`` of the :class:`Timers` that expire by CPU time (ITIMER_PROF, timers on a CPU clock).
CPU_TIMERS = "cpu timers"
#: Key in a process's ``data`` of the CPU time of the children that it has waited for, in ns.
CHILDREN_NS = "children cpu"


def cpu_timers(owner: Accounted) -> Timers:
    """The queue of timers that expire by the CPU time of a thread or process."""
    queue: Timers = owner.data.setdefault(CPU_TIMERS, Timers())
    return queue


def reap(parent: Accounted, child: Accounted) -> int:
    """Account for a child process that has been waited for; its CPU time with its children's, in ns."""
    total = child.cpu_ns + int(child.data.get(CHILDREN_NS, 0))
    parent.data[CHILDREN_NS] = int(parent.data.get(CHILDREN_NS, 0)) + total
    return total


def user_and_system(cpu_ns: int) -> tuple[int, int]:
    """CPU time as it is shown: (user, system), in equal parts, because nothing measures the real ones."""
    return cpu_ns - cpu_ns // 2, cpu_ns // 2


class Clock:
    """The virtual time of a run.

    Every user reaches it through ``m.clock``, so that a later version may give each process its own,
    joined where processes communicate.
    """

    __slots__ = ("epoch_ns", "now", "timers")

    def __init__(self, epoch_ns: int) -> None:
        """``epoch_ns``: nanoseconds since 1970 when the first process starts."""
        self.epoch_ns = epoch_ns
        #: Monotonic time, without advancing it.
        self.now = BOOT_NS
        #: What expires by monotonic time.
        self.timers = Timers()

    def charge(self, t: Runner, *, looking: bool = False) -> None:
        """Account for one intercepted call of a thread.

        ``looking``: the call only reads a clock or yields, so that it may be part of a busy wait.
        """
        if not looking:
            t.looks = 0
        self._spend(t, CALL_NS)

    def look(self, t: Runner | None = None) -> int:
        """Advance a little, and return the monotonic time.

        With ``t`` the look is that thread's, whose CPU time advances too: if it goes on looking and does
        nothing else, it is waiting for a time to come, and each look brings that nearer.
        """
        if t is None:
            self.now += LOOK_NS
            return self.now
        t.looks += 1
        cost = LOOK_NS
        if t.looks > PATIENCE:
            # The shift is bounded so that a long wait does not build huge integers.
            cost = min(LOOK_NS << min((t.looks - PATIENCE) // DOUBLING, 20), LOOK_NS_MAX)
        self._spend(t, cost)
        return self.now

    def _spend(self, t: Runner, ns: int) -> None:
        self.now += ns
        t.cpu_ns += ns
        process = t.process
        process.cpu_ns += ns
        if CPU_TIMERS in process.data:
            process.data[CPU_TIMERS].expire(process.cpu_ns)
        if CPU_TIMERS in t.data:
            t.data[CPU_TIMERS].expire(t.cpu_ns)

    def realtime(self, monotonic: int | None = None) -> int:
        """Nanoseconds since 1970 at a monotonic time (default: now)."""
        return (self.now if monotonic is None else monotonic) - BOOT_NS + self.epoch_ns

    def monotonic(self, realtime: int) -> int:
        """The monotonic time at which the wall clock shows ``realtime``."""
        return realtime - self.epoch_ns + BOOT_NS

    def stamp(self) -> int:
        """A file time: nanoseconds since 1970, later than every stamp and every look before."""
        self.now += STAMP_NS
        return self.realtime()

    def jump_to(self, ns: int) -> None:
        """Let the monotonic time be at least ``ns``: nobody can run before then."""
        self.now = max(self.now, ns)

    def next_deadline(self) -> int | None:
        """When the earliest timer expires, or None."""
        return self.timers.next_deadline()

    def expire(self) -> int:
        """Expire the timers that are due; how many."""
        return self.timers.expire(self.now)
