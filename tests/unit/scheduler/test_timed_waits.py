"""Which threads of a process wait for a time: others of it give way when that has come."""

from __future__ import annotations

from collections.abc import Iterable

from detbox.decision import Decision, Park, Wake
from detbox.machine.clock import Clock
from detbox.scheduler.core import AFTER_FORK, FAR, FAR_MOST, NAP, Scheduler
from detbox.supervisor.task import Process, Task


class NoDescriptors:
    def add(self, task: Task, fds: Iterable[tuple[int, int]]) -> None:
        raise AssertionError("no call waits for a descriptor here")

    def remove(self, task: Task, close: bool) -> None:
        raise AssertionError("no call waits for a descriptor here")

    def poll(self) -> list[tuple[Task, tuple[int, ...]]]:
        return []


def resumed(wake: Wake) -> Decision:
    return 0


def waiting(**park: object) -> tuple[Scheduler, Clock, Task]:
    clock = Clock(0)
    scheduler = Scheduler(clock, clock.timers, NoDescriptors())
    task = Task(2, Process(2, None, "1"), "1")
    scheduler.park(task, Park(resumed, **park))  # type: ignore[arg-type]
    return scheduler, clock, task


def test_a_deadline_counts_until_the_thread_has_its_turn() -> None:
    deadline = Clock(0).now + 5
    scheduler, clock, task = waiting(deadline=deadline)
    assert task.process.timed == {task: deadline}
    clock.jump_to(deadline)
    scheduler.collect()
    assert list(scheduler.ready) == [task] and task.process.timed == {task: deadline}
    assert scheduler.next() is task and not task.process.timed


def test_an_event_ends_the_wait() -> None:
    scheduler, clock, task = waiting(deadline=Clock(0).now + 5, events=("key",))
    assert scheduler.wake("key") == 1
    assert not task.process.timed and list(scheduler.ready) == [task]


def test_naps_and_waits_without_a_deadline_do_not_count() -> None:
    assert not waiting(events=("key",))[2].process.timed
    scheduler, clock, task = waiting(deadline=Clock(0).now + 5, extra={"nap": True})
    assert not task.process.timed
    assert scheduler.next() is task and clock.now == Clock(0).now + 5 and not task.process.timed


def test_a_thread_that_is_gone_waits_for_nothing() -> None:
    scheduler, clock, task = waiting(deadline=Clock(0).now + 5)
    clock.jump_to(clock.now + 5)
    scheduler.collect()
    scheduler.remove(task)
    assert not task.process.timed and not scheduler.ready


def test_sleeps_are_heeded_until_the_thread_has_its_turn() -> None:
    scheduler, clock, task = waiting(deadline=Clock(0).now + 5)
    awaited = scheduler.awaited[task]
    assert (awaited.deadline, awaited.length, awaited.sleeps, awaited.nap) == (clock.now + 5, 5, True, False)
    clock.jump_to(clock.now + 5)
    scheduler.collect()
    assert task in scheduler.awaited
    assert scheduler.next() is task and not scheduler.awaited
    scheduler.park(task, Park(resumed, deadline=clock.now + 5))
    assert scheduler.awaited[task].nap
    scheduler.heed_nobody()
    assert not scheduler.awaited


def test_which_waits_other_processes_do_not_heed() -> None:
    assert waiting(deadline=Clock(0).now + FAR_MOST)[0].awaited
    assert not waiting(deadline=Clock(0).now + FAR_MOST + 1)[0].awaited
    assert not waiting(deadline=Clock(0).now + 5, events=("key",))[0].awaited


def test_a_long_wait_for_an_event_is_heeded_if_the_process_has_children() -> None:
    scheduler, clock, task = waiting(deadline=Clock(0).now + FAR)
    task.process.children.append(Process(2, task.process, "1.1"))
    for ns, heeded in ((NAP, False), (NAP + 1, True), (FAR, False)):
        scheduler.withdraw(task)
        scheduler.park(task, Park(resumed, events=("key",), deadline=clock.now + ns))
        assert (task in scheduler.awaited) is heeded


def test_a_sleep_that_nobody_heeds_leaves_a_rest_all_the_same() -> None:
    scheduler, clock, task = waiting(deadline=Clock(0).now + 5)
    scheduler.next()
    scheduler.park(task, Park(resumed, deadline=clock.now + 2 * NAP))
    del scheduler.awaited[task]
    assert scheduler.next() is task
    scheduler.park(task, Park(resumed, deadline=clock.now + 5))
    assert not scheduler.awaited[task].nap


def test_a_wait_for_an_event_is_none_that_leaves_a_rest() -> None:
    scheduler, clock, task = waiting(deadline=Clock(0).now + 5)
    task.process.children.append(Process(2, task.process, "1.1"))
    scheduler.next()
    scheduler.park(task, Park(resumed, events=("key",), deadline=clock.now + 2 * NAP))
    assert scheduler.awaited[task].told and not scheduler.awaited[task].sleeps
    assert scheduler.next() is task
    scheduler.park(task, Park(resumed, deadline=clock.now + 5))
    assert scheduler.awaited[task].nap


def test_who_has_forked_goes_on_for_a_while_once_in_a_turn() -> None:
    task = waiting()[2]
    task.quantum = 3
    Scheduler.forked(task)
    assert task.quantum == AFTER_FORK
    task.quantum = 3
    Scheduler.forked(task)
    assert task.quantum == 3


def test_who_waits_for_longer_and_longer_takes_no_naps() -> None:
    scheduler, clock, task = waiting(deadline=Clock(0).now + NAP // 20)
    naps = []
    for ns in (NAP // 10, NAP // 5, NAP // 5, NAP, 2 * NAP):
        scheduler.next()
        scheduler.park(task, Park(resumed, deadline=clock.now + ns))
        naps.append(scheduler.awaited[task].nap)
    assert naps == [False, False, True, True, False]


def test_what_a_long_wait_has_left_is_no_nap() -> None:
    """Go's runtime waits for its timers once more, for a millisecond; its monitor sleeps meanwhile."""
    scheduler, clock, task = waiting(deadline=Clock(0).now + 20 * NAP)
    naps = []
    for ns, extra in ((NAP // 500, {"nap": True}), (NAP // 10, {}), (NAP // 10, {})):
        scheduler.next()
        scheduler.park(task, Park(resumed, deadline=clock.now + ns, extra=extra))
        naps.append(scheduler.awaited[task].nap)
    assert naps == [True, False, True]
