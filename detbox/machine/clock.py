"""Virtual time: one monotonic counter from which every clock of the guest is derived.

Time moves for three reasons only, all of them the guest's own doing: an intercepted call costs a fixed
amount, looking at a clock costs a little more each time it is done again and again, and when every
thread waits, time jumps to the earliest deadline.  The computer's speed plays no part.

All times are integers in nanoseconds.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Hashable

from detbox.kernel import _native
from detbox.records import field, record

#: Monotonic time when the first process starts: the machine has been up for so long.
BOOT_NS = 1_000_000_000_000
#: What an intercepted call costs.  Real jobs make 1,000 to 100,000 calls in a CPU second.
CALL_NS = 10_000
#: What a first look at a clock costs.
LOOK_NS = 1_000
#: What a file-time stamp costs: microseconds, so that stamps differ in programs that cut them there.
STAMP_NS = 1_000
#: Of the looks that a thread makes by itself every so many-th is a call, lest others wait for their turns; the price
#: of looks changes at calls alone.
WINDOW = 256
#: What such a call uses up of the thread's turn: so many looks take as long as a turn of other calls, and who makes
#: them may be waiting for another thread, by memory.
WINDOW_WEIGHT = 256
#: Looks in a row after which each one is a call, to see whether they come from a loop; then it is measured how much the
#: thread computes between them (supervisor/gauging.py): that much time passes from one to the next.
FIRST_MEASURE = 8
#: After so many rows that ended before that was seen, it is begun after twice as many looks; and so many times at most.
UNDECIDED, LATER = 8, 1
#: Where it is not known, a thread that has looked so often is waiting, it seems: its looks get dearer.  After each
#: further WINDOW looks the cost doubles, so many times (to 128 us) …
SHORT_PATIENCE, SHORT_DOUBLINGS = 4096, 7
#: … and again after so many looks, with each so many more, up to so many times in all: a busy wait of an hour ends
#: after 1,030,000 looks.
LONG_PATIENCE, LONG_DOUBLING, LONG_DOUBLINGS = 1_000_192, 1024, 17
#: Whatever is known, who has looked so often by calls (or 33,000,000 times by itself) waits for long.  After each
#: further so many calls the cost doubles, up to 16 ms: a busy wait of an hour ends after some 70,000,000 looks, which
#: take 2 s.
PATIENCE, DOUBLING, DOUBLINGS = 131_072, 16_384, 14
#: Looks in a row of which one at CPU time is a call, to see what is done between them (supervisor/stopwatch.py).  Where
#: that cannot be counted it costs extra: who measures a piece of work, and doubles it until it takes long enough (as
#: gpg's key derivation does: 0.1 s), would double it for ever.
WORK_LOOKS = 18
#: What the first one costs extra there; each further one doubles it, up to 1.3 s.
WORK_NS = 10_000
#: Calls after a look for which a thread counts as one that looks at clocks: it may do so by itself.
WATCHING = 64
#: Who measures one piece of work after the other makes a few looks, something else (it writes the result), and as many
#: looks again.  After so many such rows of one length, and of no more looks, it is measured what is done in one.
ROWS, ROW_LOOKS = 8, 4
#: So many looks at the monotonic clock in a row, from one place or from two by turns, may be those of somebody who
#: measures one piece of work after the other, each ten times as large as the last (supervisor/rising.py).
TURNS = 5
#: What two places make up together (:attr:`CpuTime.dull`), as no two places do: they are aligned.
NOWHERE = 1
#: Later than every deadline.
NEVER = 1 << 63


@record
class Timer:
    """A handle of :class:`Timers`: an expiration that is still to come."""

    deadline: int
    callback: Callable[[], None] | None


@record
class Timers:
    """Expirations in the order of their deadlines; equal deadlines in the order they were set."""

    #: No deadline is earlier than this (a cheap test before :meth:`expire`).
    first: int = NEVER
    _heap: list[tuple[int, int, Timer]] = field(default_factory=list)
    _count: int = 0

    def add(self, deadline: int, callback: Callable[[], None]) -> Timer:
        """Have ``callback()`` called when this queue's time reaches ``deadline``."""
        timer = Timer(deadline, callback)
        self._count += 1
        heapq.heappush(self._heap, (deadline, self._count, timer))
        self.first = min(self.first, deadline)
        return timer

    def cancel(self, timer: Timer | None) -> None:
        """Forget a timer; without effect if it has expired or is None."""
        if timer is not None:
            timer.callback = None

    def next_deadline(self) -> int | None:
        """The earliest deadline, or None."""
        while self._heap and self._heap[0][2].callback is None:
            heapq.heappop(self._heap)
        self.first = self._heap[0][0] if self._heap else NEVER
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


@record
class Rows:
    """Rows of looks of the same length, with other calls between them (supervisor/gauging.py).

    ``length``: looks of the last one, ``again``: how often there was the same before it.  When ``again`` is ``next``
    the next row begins with a call, and when it is ``measure`` it is measured.  ``place``: where rows begin;
    ``ns``: what was computed in the last one that was measured; ``times``: measurements since it grew, ``grown``: how
    often it did; ``step``: rows between two measurements of little work; ``missed``: how many after another
    began elsewhere, ``strays``: how many are left alone after that.  Single looks make no difference.
    """

    length: int = 0
    again: int = 0
    next: int = ROWS
    measure: int = ROWS
    place: Hashable = None
    ns: int = 0
    times: int = 0
    grown: int = 0
    step: int = 1
    missed: int = 0
    strays: int = 0

    def ended(self, looks: int) -> bool:
        """A row of so many looks is over; whether the next one is to begin with a call."""
        if looks not in (1, self.length):
            self.length, self.again = looks, 0
            if self.next < NEVER:
                self.next = self.measure = ROWS
                self.place, self.ns, self.times, self.grown = None, 0, 0, 0
                self.step, self.missed, self.strays = 1, 0, 0
            return False
        self.again += looks == self.length
        return self.again >= self.next and self.length <= ROW_LOOKS


@record
class CpuTime:
    """The CPU time of a thread or of a process (whose threads have it as ``parent``).

    ``looks`` counts a thread's looks at clocks since it last did anything else, ``asked`` those of them that were
    calls, and ``worked`` those at CPU time.  ``work_ns``: what it computes between two of them, as far as that has been
    measured (None: it has not);
    ``measure_at``: the number of the look after which that is to be done, and ``measure_again``, if it looks from where
    it has been done before;
    ``places``: where the last looks before were made, as long as it is not decided whether they come from a loop;
    ``undecided``: rows that ended like that.
    ``looked``: all looks of its program.  ``rows``: its rows of looks.
    ``timing``: those of its looks in a row that may be a stopwatch's (supervisor/stopwatch.py), as long as they are
    calls; ``rest`` (a process's): rows of looks for which its threads may make these by themselves.
    ``watching``: calls for which it may look at clocks by itself.
    ``place``: from where it has looked at the monotonic clock last, ``other``: from where before; ``turns``: so many
    looks in a row came from these two by turns, or -1 if that does not matter; ``rises`` (a process's): whether it
    does in the next row; ``dull``: places from which it does not for so many ``dull_rows``; ``tried``: how often it
    was followed in this row; ``again``: whether its next look is to be followed, from the same places.
    ``hurry``: what the next look costs in any case, although the thread does other things in between.
    ``unable`` (a process's): not all that its threads do can be counted.
    ``timers`` expire by this CPU time (ITIMER_PROF, ITIMER_VIRTUAL, timers on a CPU clock).
    """

    parent: CpuTime | None = None
    ns: int = 0
    children_ns: int = 0
    looks: int = 0
    asked: int = 0
    worked: int = 0
    work_ns: int | None = None
    measure_at: int = FIRST_MEASURE
    measure_again: int = 0
    places: tuple[Hashable, ...] = ()
    undecided: int = 0
    looked: int = 0
    rows: Rows = field(default_factory=Rows)
    timing: int = 0
    rest: int = 0
    watching: int = 0
    place: int = 0
    other: int = 0
    turns: int = 0
    tried: int = 0
    again: bool = False
    dull: int = NOWHERE
    dull_rows: int = 0
    rises: bool = True
    hurry: int | None = None
    unable: bool = False
    timers: Timers | None = None

    def spend(self, ns: int) -> None:
        """Add to this CPU time and to the parent's; timers that are due expire."""
        self.ns += ns
        if self.parent is not None:
            self.parent.spend(ns)
        if self.timers is not None and self.timers.first <= self.ns:
            self.timers.expire(self.ns)

    def begin_anew(self) -> None:
        """The thread has done something else than to look at clocks."""
        if self.places:
            self.undecided += 1
        whole = self.parent or self
        if whole.rest:
            whole.rest -= 1
        later = min(self.undecided // UNDECIDED, LATER)
        self.measure_at = 1 if self.rows.ended(self.looks) else FIRST_MEASURE << later
        self.looks = self.asked = self.worked = self.timing = self.tried = self.measure_again = 0
        self.turns = -1 if not whole.rises else TURNS - 1 if self.again else 0
        self.again = False
        if self.dull_rows:
            self.dull_rows -= 1
            if not self.dull_rows:
                self.dull = NOWHERE
        self.work_ns = None
        self.places = ()
        if self.hurry is not None:
            self.work_ns, self.measure_at = self.hurry, 1

    def turn(self, place: int) -> bool:
        """A look at the monotonic clock from there; whether several came from two places by turns (guest/clock.c)."""
        if self.turns < 0:
            return False
        self.turns = self.turns + 1 if self.turns >= 2 and place == self.other else 2 if self.turns else 1
        self.place, self.other = place, self.place
        return self.turns >= TURNS and self.two_places() != self.dull

    def two_places(self) -> int:
        """From where a thread has looked last and before, in any order."""
        return self.place + self.other & NEVER - 1

    def is_dull(self, rows: int) -> None:
        """Looks from where a thread has looked last do not matter for so many rows."""
        self.dull, self.dull_rows, self.turns = self.two_places(), rows, 0

    def unmeasured(self) -> None:
        """Nothing can be measured where the thread looks."""
        self.measure_at = self.rows.next = NEVER

    def timer_queue(self) -> Timers:
        """The queue of timers that expire by this CPU time."""
        if self.timers is None:
            self.timers = Timers()
        return self.timers

    def reap(self, child: CpuTime) -> int:
        """Account for a child process that has been waited for; its CPU time with its children's."""
        total = child.ns + child.children_ns
        self.children_ns += total
        return total


def user_and_system(cpu_ns: int) -> tuple[int, int]:
    """CPU time as it is shown: (user, system), in equal parts, because nothing measures the real ones."""
    return cpu_ns - cpu_ns // 2, cpu_ns // 2


def price(cpu: CpuTime) -> int:
    """What a thread's next look costs, in ns, besides the call."""
    cost, looks = LOOK_NS, cpu.looks
    if cpu.work_ns is not None:
        cost = max(cpu.work_ns, LOOK_NS)
    elif looks >= SHORT_PATIENCE:
        doublings = min((looks - SHORT_PATIENCE) // WINDOW, SHORT_DOUBLINGS)
        if looks >= LONG_PATIENCE:
            doublings += (looks - LONG_PATIENCE) // LONG_DOUBLING
        cost = LOOK_NS << min(doublings, LONG_DOUBLINGS)
    if cpu.asked >= PATIENCE:
        cost = max(cost, LOOK_NS << min((cpu.asked - PATIENCE) // DOUBLING, DOUBLINGS))
    return cost


def alike(cpu: CpuTime) -> int:
    """How many looks a thread may make without a call.

    The same look is left to a call whenever this is asked: a call uses up some of the thread's turn.
    """
    return _native.alike(cpu)


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

    def charge(self, cpu: CpuTime, *, looking: bool = False) -> None:
        """Account for one intercepted call of a thread, and expire the timers that are due by then.

        ``looking``: the call only reads a clock or yields, so that it may be part of a busy wait.
        """
        _native.charge(self, cpu, looking)

    def look(self, cpu: CpuTime | None = None) -> int:
        """Advance a little, and return the monotonic time.

        With ``cpu`` the look is the thread's, whose CPU time advances too: if it goes on looking and
        does nothing else, it is waiting for a time to come, and each look brings that nearer.
        """
        cost = LOOK_NS
        if cpu is not None:
            cost = price(cpu)
            cpu.looks += 1
            cpu.asked += 1
            cpu.looked += 1
            cpu.watching = WATCHING
            cpu.spend(cost)
        self.now += cost
        return self.now

    def work(self, cpu: CpuTime, ns: int) -> None:
        """Let ``ns`` pass that a thread has computed for."""
        cpu.spend(ns)
        self.now += ns
        if self.timers.first <= self.now:
            self.timers.expire(self.now)

    def look_at_work(self, cpu: CpuTime) -> int:
        """A thread's look at CPU time: the monotonic time."""
        cpu.worked += 1
        if (cpu.parent or cpu).unable and cpu.worked <= WORK_LOOKS:
            cost = WORK_NS << cpu.worked - 1
            cpu.spend(cost)
            self.now += cost
        return self.look(cpu)

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

    def advance(self, ns: int) -> int:
        """Let ``ns`` pass, or less if something expires before; how many."""
        deadline = self.next_deadline()
        if deadline is not None:
            ns = min(ns, max(deadline - self.now, 0))
        self.now += ns
        return ns

    def round_up(self, step: int) -> None:
        """Let the time be the next multiple of ``step`` ns after the start; timers expire at the next call."""
        self.now += -(self.now - BOOT_NS) % step

    def next_deadline(self) -> int | None:
        """When the earliest timer expires, or None."""
        return self.timers.next_deadline()

    def expire(self) -> int:
        """Expire the timers that are due; how many."""
        return self.timers.expire(self.now)


_native.know_clock(
    Clock, CpuTime, Timers, price,
    CALL_NS, LOOK_NS, SHORT_PATIENCE, PATIENCE, WINDOW, WATCHING, WORK_LOOKS, FIRST_MEASURE,
)  # fmt: skip
