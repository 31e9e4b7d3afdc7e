"""Who lets others go first, and for how long."""

from __future__ import annotations

from detbox.decision import Park
from detbox.machine.clock import Clock
from detbox.scheduler.core import LEADS, Scheduler
from detbox.supervisor.task import Process, Task
from tests.unit.scheduler.test_timed_waits import NoDescriptors, resumed


def nothing() -> None:
    pass


class Queue:
    """A scheduler and five ready threads, 0 to 4."""

    def __init__(self) -> None:
        clock = Clock(0)
        self.scheduler = Scheduler(clock, clock.timers, NoDescriptors())
        self.tasks = [Task(number, Process(number, None, "1"), "1") for number in range(5)]
        for task in self.tasks:
            self.scheduler.make_ready(task, nothing)

    def next(self) -> Task:
        task = self.scheduler.next()
        assert task is not None
        return task

    @property
    def order(self) -> list[int]:
        return [task.tid for task in self.scheduler.ready]


def test_behind_all() -> None:
    queue = Queue()
    queue.scheduler.yield_to(queue.next(), Park(resumed, extra={"first": None}))
    assert queue.order == [1, 2, 3, 4, 0]


def test_behind_those_that_were_queued_last() -> None:
    queue = Queue()
    waker = queue.next()
    waker.quantum = 7
    queue.scheduler.yield_to(waker, Park(resumed, extra={"first": 2}))
    assert queue.order == [3, 4, 0, 1, 2]
    woken = queue.next()
    assert woken.quantum > 7
    queue.scheduler.make_ready(woken, nothing)  # its turn is over, and who has woken it stays behind it
    assert queue.order == [4, 1, 2, 3, 0]
    assert [queue.next().tid for _ in range(5)] == [4, 1, 2, 3, 0]
    assert waker.quantum == 7


def test_not_for_ever() -> None:
    queue = Queue()
    queue.scheduler.yield_to(queue.next(), Park(resumed, extra={"first": 1}))
    turns = 0
    while (task := queue.next()).tid:
        turns += task.tid == 4
        queue.scheduler.make_ready(task, nothing)
    assert turns == LEADS + 1


def test_until_they_wait() -> None:
    queue = Queue()
    queue.scheduler.yield_to(queue.next(), Park(resumed, extra={"first": 1}))
    woken = queue.next()
    queue.scheduler.park(woken, Park(resumed, events=("event",)))
    assert queue.order == [0, 1, 2, 3]
    queue.scheduler.wake("event")
    assert queue.order == [0, 1, 2, 3, 4]


def test_who_is_waited_for_may_do_the_same() -> None:
    queue = Queue()
    queue.scheduler.yield_to(queue.next(), Park(resumed, extra={"first": 1}))
    woken = queue.next()
    queue.scheduler.yield_to(woken, Park(resumed, extra={"first": 1}))
    assert sorted(queue.order) == [0, 1, 2, 3, 4] and queue.order.index(4) < queue.order.index(0)


def test_directly_behind_some() -> None:
    queue = Queue()
    task, (_, _, third, _, fifth) = queue.next(), queue.tasks
    queue.scheduler.ready.remove(fifth)
    queue.scheduler.defer(fifth, nothing)
    queue.scheduler.stand_aside(task, [third, fifth], nothing)
    assert [queue.next().tid for _ in range(5)] == [2, 4, 0, 1, 3]
    assert queue.scheduler.next() is None
