"""The emulated futex queues: who sleeps on which word, in which order.

The queues know nothing of tasks' memory or of the scheduler.  A *sleeper* is
one sleeping call; it owns one *waiter* for each word that it sleeps on (only
``futex_waitv`` has several).  Removing a sleeper removes all its waiters, and
a waiter can move to another word (requeue) without its sleeper noticing.

Order is first in, first out.  The kernel sorts by priority first; every guest
thread has the same virtual priority, so that this is the kernel's order, too.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

from detbox.records import field, record

if TYPE_CHECKING:
    from detbox.supervisor.task import Task

#: Bit set of a plain FUTEX_WAIT and FUTEX_WAKE.
MATCH_ANY = 0xFFFFFFFF


@record
class Sleeper:
    """One sleeping call.  ``result`` is set when it has been woken."""

    task: Task
    serial: int
    waiters: list[Waiter] = field(default_factory=list)
    result: int | None = None

    @property
    def event(self) -> Hashable:
        """The key on which the call is parked: nobody else's."""
        return ("futex", self.serial)


@record
class Waiter:
    """One word that a sleeper waits for.

    ``address`` is where the sleeper itself sees the word.  ``pi``: it waits
    for the ownership of a priority-inheritance lock.  ``target``: key and
    address of the PI lock that FUTEX_WAIT_REQUEUE_PI named.
    """

    sleeper: Sleeper
    key: Hashable
    address: int
    bitset: int = MATCH_ANY
    index: int = 0
    pi: bool = False
    target: tuple[Hashable, int] | None = None


@record
class Bequest:
    """What an exiting thread leaves behind: collected while its memory lives."""

    wake: list[Hashable] = field(default_factory=list)


class FutexTable:
    """All futex queues of a run, and the futex state of its threads."""

    def __init__(self) -> None:
        self.clear_tid: dict[int, int] = {}
        self.bequests: dict[int, Bequest] = {}
        # Thread id of the lock's owner, for each PI word that has waiters.
        self.pi_owner: dict[Hashable, int] = {}
        # Deadlines of relative waits that a signal interrupted: tid -> (arguments, deadline).
        self.restart: dict[int, tuple[tuple[int, ...], int]] = {}
        # Insertion-ordered: a queue with removal from the middle in constant time.
        self._queues: dict[Hashable, dict[Waiter, None]] = {}
        self._sleepers: dict[int, Sleeper] = {}
        self._serial = 0

    def __bool__(self) -> bool:
        return bool(self._queues)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._queues

    def sleep(self, task: Task, waiters: list[tuple[Hashable, int, int]]) -> Sleeper:
        """Queue ``task`` on each ``(key, address, bitset)``."""
        self._serial += 1
        sleeper = Sleeper(task, self._serial)
        for index, (key, address, bitset) in enumerate(waiters):
            waiter = Waiter(sleeper, key, address, bitset, index)
            sleeper.waiters.append(waiter)
            self._queues.setdefault(key, {})[waiter] = None
        self._sleepers[task.tid] = sleeper
        return sleeper

    def waiting(self, key: Hashable) -> list[Waiter]:
        """The waiters of one word, in the order in which they will be woken."""
        return list(self._queues.get(key, ()))

    def remove(self, sleeper: Sleeper) -> None:
        """Take a sleeper off every queue; it may be gone already."""
        for waiter in sleeper.waiters:
            self._unlink(waiter)
        if self._sleepers.get(sleeper.task.tid) is sleeper:
            del self._sleepers[sleeper.task.tid]

    def finish(self, waiter: Waiter, result: int) -> Sleeper:
        """Dequeue the waiter's call with its result; the caller resumes it."""
        waiter.sleeper.result = result
        self.remove(waiter.sleeper)
        return waiter.sleeper

    def wake(self, key: Hashable, count: int, bitset: int = MATCH_ANY) -> list[Sleeper]:
        """Dequeue up to ``count`` matching sleepers; EINVAL is the caller's check."""
        woken: list[Sleeper] = []
        if key not in self._queues:
            return woken
        for waiter in self.waiting(key):
            if len(woken) >= count:
                break
            # A waitv call may wait for one word twice: its second waiter went with the first.
            if waiter.bitset & bitset and waiter.sleeper.result is None:
                woken.append(self.finish(waiter, waiter.index))
        return woken

    def move(self, waiter: Waiter, key: Hashable, address: int) -> None:
        """Requeue a waiter at the end of another word's queue."""
        self._unlink(waiter)
        waiter.key = key
        waiter.address = address
        self._queues.setdefault(key, {})[waiter] = None

    def pi_waiter(self, key: Hashable) -> Waiter | None:
        """The waiter that gets a PI lock next."""
        for waiter in self._queues.get(key, ()):
            return waiter
        return None

    def first_waiters(self) -> list[Waiter]:
        """The first waiter of every word."""
        return [next(iter(queue)) for queue in self._queues.values()]

    def owned_by(self, tid: int) -> list[Hashable]:
        """PI words with waiters whose owner is ``tid``, oldest first."""
        return [key for key, owner in self.pi_owner.items() if owner == tid]

    def forget_task(self, tid: int) -> None:
        """Drop everything that is known of a thread that has gone."""
        sleeper = self._sleepers.get(tid)
        if sleeper is not None:
            self.remove(sleeper)
        self.clear_tid.pop(tid, None)
        self.bequests.pop(tid, None)
        self.restart.pop(tid, None)

    def sleepers(self) -> Iterator[Sleeper]:
        """All sleeping calls, for reports."""
        return iter(self._sleepers.values())

    def _unlink(self, waiter: Waiter) -> None:
        queue = self._queues.get(waiter.key)
        if queue is None or waiter not in queue:
            return
        del queue[waiter]
        if not queue:
            del self._queues[waiter.key]
            self.pi_owner.pop(waiter.key, None)
