"""When a thread is counted for the sake of others of its process, and for how long."""

from __future__ import annotations

from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.decision import Park
from detbox.supervisor import giving_way
from detbox.supervisor.giving_way import FAR, FAR_MOST, GLANCE, LINGER, TURN, TURNS, GivingWay
from detbox.supervisor.looks import PIECE, SOON, SPINS
from detbox.supervisor.stretch import GAVE_WAY, PER_NS, PER_NS_LIMIT, Stretch
from detbox.supervisor.task import Process, State, Task

NOW = 1_000


class FakeCopying:
    def __init__(self) -> None:
        self.copies, self.steps, self.in_copy = 0, (0, 0, 0), False

    def made(self, task: Task) -> int:
        return self.copies

    def inside(self, task: Task) -> bool:
        return self.in_copy

    def stepped(self, process: Process) -> tuple[int, int, int]:
        return self.steps


class Host:
    """A process with some threads, all of them parked; the first is about to go on."""

    def __init__(self, threads: int = 2) -> None:
        self.copying = FakeCopying()
        scheduler, clock = SimpleNamespace(ready=deque()), SimpleNamespace(now=NOW, next_deadline=lambda: self.deadline)
        self.deadline: int | None = None
        machine = SimpleNamespace(scheduler=scheduler, clock=clock)
        sup: Any = SimpleNamespace(m=machine, exec_hooks=[], thread_hooks=[])
        copying: Any = self.copying
        self.way, self.ready = GivingWay(sup, copying), scheduler.ready
        self.process = Process(2, None, "1")
        self.tasks = [Task(2 + number, self.process, "1") for number in range(threads)]
        for task in self.tasks:
            task.state = State.PARKED
            self.process.tasks[task.tid] = task
        self.task = self.tasks[0]
        self.task.state = State.HELD

    def waits(self, ns: int, which: int = 1) -> None:
        self.process.timed[self.tasks[which]] = NOW + ns

    def is_ready(self, which: int = 1) -> None:
        self.tasks[which].state = State.READY
        self.ready.append(self.tasks[which])

    def calls(self, times: int = giving_way.RARE) -> None:
        """The same call comes so often that it is no rare one."""
        for _ in range(times):
            self.way.begin(self.task)

    def ns(self) -> float | None:
        stretch = self.way.begin(self.task)
        assert (stretch is not None) == self.way.waits(self.task) or self.copying.in_copy
        return stretch.total / stretch.per_ns if stretch is not None else None


def test_nobody_waits() -> None:
    assert Host().ns() is None
    alone = Host(1)
    alone.waits(5, which=0)
    assert alone.ns() is None


@pytest.mark.parametrize(
    ("wait", "ns"),
    [
        (5 * TURN, 5 * TURN), (1, TURN), (-1, GLANCE), (FAR - 1, FAR - 1), (FAR, FAR), (FAR_MOST, FAR_MOST),
        (FAR_MOST + 1, None),
    ],
)
def test_a_time_that_another_waits_for(wait: int, ns: int | None) -> None:
    host = Host()
    host.waits(wait)
    assert host.ns() == ns


def test_a_time_that_is_far_away() -> None:
    host = Host(3)
    host.waits(2 * FAR)
    stretch = host.way.begin(host.task)
    assert stretch is not None and stretch.far and stretch.per_ns == PER_NS_LIMIT and stretch.whole
    assert stretch.most == (giving_way.FAR_ALLOWED - giving_way.BEGIN_US) // giving_way.COPY_US
    # Calls spend what there is, and then it is for rare ones, with less.
    for _ in range(giving_way.FAR_ALLOWED // giving_way.CALL_US):
        host.way.counted(host.task, stretch, 1)
    rare = host.way.begin(host.task)
    assert rare is not None and rare.most == giving_way.FAR_LEAST // giving_way.COPY_US
    host.calls()
    assert host.ns() is None and host.process.data[giving_way._ACCOUNT].spent == 0, "the other account is spared"
    host.waits(FAR - 1, which=2)
    assert host.ns() == FAR - 1
    # What was waited for to its end is given back.
    del host.process.timed[host.tasks[2]]
    host.way.reached(host.task, stretch)
    assert host.ns() == 2 * FAR
    long = giving_way.FAR_ALLOWED * giving_way.FAR_INSTRUCTIONS
    host.way.counted(host.task, stretch, long)
    host.calls()
    assert host.ns() is None
    # Others that are ready have late turns meanwhile, when nothing is left for them.
    host = Host(3)
    host.waits(2 * FAR)
    host.is_ready(2)
    assert host.ns() == TURN
    host.tasks[2].nr = 0
    host.process.data[giving_way._ACCOUNT].for_ready = 2 * giving_way.FOR_READY
    assert host.ns() == giving_way.LATE
    host.process.data["own_runtime"] = True
    assert host.ns() is None


def test_who_is_ready_has_its_turn() -> None:
    host = Host(3)
    host.is_ready()
    host.waits(5 * TURN, which=2)
    assert host.ns() == TURN
    # It has had the chance, but this one may wait for it all the same; so may both for each other.
    host.tasks[1].data[GAVE_WAY] = 1
    assert host.ns() == TURN
    host.task.data[GAVE_WAY] = TURNS - 1
    assert host.ns() == TURN
    # They have waited for long: longer turns, up to the deadline.
    host.task.data[GAVE_WAY] = 2 * TURNS
    assert host.ns() == 4 * TURN
    host.task.data[GAVE_WAY] = 3 * TURNS
    assert host.ns() == 5 * TURN
    del host.tasks[1].data[GAVE_WAY]
    assert host.ns() == GLANCE


def test_a_runtime_with_threads_of_its_own_kind() -> None:
    host = Host()
    host.is_ready()
    host.process.data["own_runtime"] = True
    assert host.ns() is None
    host.waits(TURN // 2)
    assert host.ns() == TURN


def test_a_runtime_whose_thread_has_computed_for_long() -> None:
    host, ready = Host(3), giving_way.TURN_OF_RUNTIME
    host.process.data["own_runtime"] = True
    assert not host.way.long_loop(host.task, 1_000) and host.ns() is None
    # Its monitor naps, which nobody heeds else.
    monitor = host.tasks[1]
    monitor.park = Park(lambda wake: wake, deadline=NOW + 5 * TURN, extra={"nap": True})
    assert host.ns() is None
    assert host.way.long_loop(host.task, 1_000) and host.ns() == 5 * TURN
    monitor.park.deadline = NOW + FAR
    host.is_ready(2)
    assert host.ns() == ready
    host.task.data[GAVE_WAY] = 2
    assert host.ns() == 4 * ready


def test_the_budget_of_a_long_loop() -> None:
    def turns(long: bool) -> int:
        """How many pieces of work of 100 copies it takes until the budget is over."""
        host, times = Host(), 0
        host.waits(TURN)
        assert host.way.begin(host.task) is not None
        assert not long or host.way.long_loop(host.task, 10 * 100 * giving_way.COPY_US)
        while (stretch := host.way.begin(host.task)) is not None:
            host.copying.copies += 100
            host.way.counted(host.task, stretch, 1)
            times += 1
        return times

    assert 8 <= turns(long=True) <= 10 < turns(long=False)
    host = Host()
    host.waits(TURN)
    assert host.way.long_loop(host.task, 1_000)
    left = host.way.left_of_long_loops(host.process)
    for _ in range(100):
        stretch = host.way.begin(host.task)
        assert stretch is not None
        host.copying.in_copy = True
        host.way.reached(host.task, stretch)
    earned = 100 * TURN * PER_NS // giving_way.EARNED_BY_TURNS
    assert host.way.left_of_long_loops(host.process) == left - giving_way.BEGIN_US + earned + 100 * giving_way.EARNED
    assert host.way.left_of_long_loops(Host().process) == 0


def test_a_thread_lingers_in_its_copies() -> None:
    host = Host()
    host.waits(TURN)
    assert host.ns() == TURN
    host.process.timed.clear()
    host.copying.in_copy = True
    assert sum(host.way.begin(host.task) is not None for _ in range(2 * LINGER)) == LINGER


def test_the_budgets() -> None:
    def spent(spend: Any) -> bool:
        """Whether the process has no budget any more."""
        host = Host()
        host.waits(TURN)
        stretch = host.way.begin(host.task)
        assert stretch is not None
        spend(host, stretch)
        host.calls()
        return host.ns() is None

    def copies(number: int) -> Any:
        def spend(host: Host, stretch: Stretch) -> None:
            host.copying.copies = number
            host.way.counted(host.task, stretch, 1)

        return spend

    most = giving_way.ALLOWED + giving_way.RESERVE
    assert not spent(copies(100)) and spent(copies(most))
    assert not spent(lambda host, stretch: host.way.counted(host.task, stretch, giving_way.COUNTED))
    long = Stretch(giving_way.COUNTED, 1, others=True)
    assert not spent(lambda host, stretch: [host.way.reached(host.task, long) for _ in range(8)])

    def long_loop(spend: Any) -> Any:
        return lambda host, stretch: (host.way.long_loop(host.task, 1_000_000), spend(host, stretch))

    assert not spent(long_loop(lambda host, stretch: host.way.reached(host.task, long)))
    assert not spent(long_loop(lambda host, stretch: [host.way.reached(host.task, long) for _ in range(8)]))
    assert spent(
        long_loop(
            lambda host, stretch: (
                host.process.timed.clear(),
                setattr(host.tasks[1], "park", Park(lambda wake: wake, deadline=NOW + TURN, extra={"nap": True})),
                [host.way.reached(host.task, long) for _ in range(8)],
            )
        )
    )
    spins = SPINS + most // giving_way.SPIN_US
    assert not spent(lambda host, stretch: [host.way.spins(host.task, stretch) for _ in range(spins - 1)])
    assert spent(lambda host, stretch: [host.way.spins(host.task, stretch) for _ in range(spins + 1)])
    assert spent(lambda host, stretch: setattr(host.copying, "steps", (1_000, 0, 0)))

    def steps(calls: int, signals: int) -> Any:
        def spend(host: Host, stretch: Stretch) -> None:
            host.copying.steps = 0, calls, signals
            host.way.counted(host.task, stretch, 1)

        return spend

    calls = most // giving_way.STEP_US
    assert not spent(steps(calls // 2, 0)) and spent(steps(calls, 0))
    assert not spent(steps(calls, calls)) and not spent(steps(0, calls))


def test_turns_that_others_wait_for_are_not_dear() -> None:
    host = Host()
    host.waits(TURN)
    for _ in range(10 * (giving_way.ALLOWED + giving_way.RESERVE) // giving_way.BEGIN_US):
        stretch = host.way.begin(host.task)
        assert stretch is not None
        host.way.reached(host.task, stretch)
    account = host.process.data[giving_way._ACCOUNT]
    assert account.left <= giving_way.ALLOWED + giving_way.RESERVE
    # What there was at first is given back, and no more: to begin for calls that come sooner costs what it did.
    times = 0
    while (stretch := host.way.begin(host.task)) is not None:
        host.way.counted(host.task, stretch, 1)
        times += 1
    assert times < 2 * (giving_way.ALLOWED + giving_way.RESERVE) // giving_way.BEGIN_US


def test_no_turn_is_much_longer_than_up_to_anybodys_time() -> None:
    host = Host()
    host.waits(8 * TURN)
    host.deadline = NOW + 3 * TURN
    assert host.ns() == 3 * TURN
    host.deadline = NOW + 1
    assert host.ns() == TURN


def test_rare_calls_are_counted_when_all_is_spent() -> None:
    host = Host()
    host.waits(TURN)
    stretch = host.way.begin(host.task)
    assert stretch is not None
    host.copying.copies = 1_000_000
    host.way.counted(host.task, stretch, 1)
    for kind in range(2):
        host.task.nr = kind
        assert [host.way.begin(host.task) is not None for _ in range(3)] == [True, True, False]
    host.task.args = (8, 0, 0, 0, 0, 0)
    assert host.way.begin(host.task) is not None
    host.process.timed.clear()
    assert host.way.begin(host.task) is None
    host.waits(TURN)
    assert host.way.begin(host.task) is not None and host.way.begin(host.task) is None
    for kind in range(giving_way.RARE_CALLS):
        host.task.nr = 100 + kind
        assert (host.way.begin(host.task) is not None) == (kind < giving_way.RARE_CALLS - 6)
    # Another thread's first ones are counted all the same.
    host.tasks[1].state = State.HELD
    host.waits(TURN, which=0)
    counted = []
    for kind in range(2 * giving_way.RARE_OF_THREAD):
        host.tasks[1].nr = kind
        counted.append(host.way.begin(host.tasks[1]) is not None)
    assert sum(counted) == giving_way.RARE_OF_THREAD and all(counted[: giving_way.RARE_OF_THREAD])


def test_when_all_is_spent_some_is_earned_before_the_next_call_is_counted() -> None:
    host = Host()
    host.waits(TURN)
    stretch = host.way.begin(host.task)
    assert stretch is not None
    host.copying.copies = (giving_way.ALLOWED + giving_way.RESERVE) // giving_way.COPY_US + 1
    host.way.counted(host.task, stretch, 1)
    host.calls()
    host.copying.in_copy = True
    many = giving_way.REGAINED // giving_way.EARNED
    counted = [host.way.begin(host.task) is not None for _ in range(2 * many)]
    first = counted.index(True)
    assert many <= first < many + 200 and all(counted[first:])


def test_the_last_of_the_budget_is_for_who_waits_for_a_time_or_is_new() -> None:
    host = Host(3)
    host.is_ready()
    host.tasks[1].nr = 0
    stretch = host.way.begin(host.task)
    assert stretch is not None
    host.copying.copies = giving_way.ALLOWED // giving_way.COPY_US + 1
    host.way.counted(host.task, stretch, 1)
    assert host.ns() is None
    host.waits(5 * TURN, which=2)
    assert host.ns() == 5 * TURN
    host.tasks[1].nr = -1  # it has made no call
    assert host.ns() == TURN


def test_turns_for_those_that_are_ready_have_a_budget_of_their_own() -> None:
    host = Host()
    host.is_ready()

    def turns() -> int:
        count = 0
        while (stretch := host.way.begin(host.task)) is not None:
            assert stretch.ready
            host.way.counted(host.task, stretch, stretch.total)
            count += 1
        return count

    host.tasks[1].nr = 0
    assert turns() == giving_way.FOR_READY // (TURN * PER_NS) + 1
    host.tasks[1].nr = -1  # it has made no call
    assert giving_way.FOR_READY // (TURN * PER_NS) - 1 <= turns() <= giving_way.FOR_READY // (TURN * PER_NS) + 1
    host.waits(2 * TURN)
    assert host.ns() == TURN


def test_long_work_while_others_wait_for_a_time_earns_copies() -> None:
    most = giving_way.ALLOWED + giving_way.RESERVE

    def goes_on(instructions: int, copies_us: int, ready: bool = False) -> bool:
        host = Host()
        if ready:
            host.is_ready()
            host.waits(TURN + 1)
        else:
            host.waits(FAR - 1)
        stretch = host.way.begin(host.task)
        assert stretch is not None and stretch.ready == ready
        host.copying.copies = copies_us // giving_way.COPY_US
        host.way.counted(host.task, stretch, instructions)
        host.ready.clear()
        host.calls()
        return host.ns() is not None

    long = giving_way.LONG
    earned = long // giving_way.EARNING
    assert not goes_on(long - 1, most + 100) and goes_on(long, most + 100)
    assert not goes_on(long, most + 100, ready=True)
    assert goes_on(long, most + earned - 1_000) and not goes_on(long, most + earned)
    assert not goes_on(giving_way.COUNTED - 1, most + giving_way.MOST_EARNED)


def test_who_is_ready_has_a_late_turn_when_nothing_is_left_for_it_but_somebody_waits() -> None:
    host = Host(3)
    host.is_ready()
    host.waits(2 * giving_way.LATE, which=2)
    assert host.ns() == TURN
    host.tasks[1].nr = 0
    host.process.data[giving_way._ACCOUNT].spent = giving_way.ALLOWED + giving_way.RESERVE // 2
    assert host.ns() == giving_way.LATE
    host.waits(FAR_MOST + 1, which=2)
    assert host.ns() is None


def test_who_has_often_spun_is_looked_at_soon() -> None:
    host = Host()
    host.waits(FAR - 1)
    for piece in (PIECE, SOON):
        stretch = host.way.begin(host.task)
        assert stretch is not None and stretch.piece == piece
        for _ in range(SPINS):
            host.way.spins(host.task, stretch)
    assert host.process.data[giving_way._ACCOUNT].spent >= SPINS * giving_way.SPIN_US


def test_those_that_a_new_thread_wakes_go_first_when_nothing_is_left_for_ready_ones() -> None:
    host = Host()
    new = host.process.data[giving_way._NEW] = {host.task.tid: giving_way.NEW}
    assert not host.way.lets_go_first(host.task), "the process has no account"
    host.is_ready()
    assert host.ns() == TURN and not host.way.lets_go_first(host.task), "it is counted for them"
    account = host.process.data[giving_way._ACCOUNT]
    account.for_ready = giving_way.FOR_READY
    firsts = [host.way.lets_go_first(host.task) for _ in range(2 * giving_way.NEW)]
    assert sum(firsts) == giving_way.NEW - 2 and not new, "it is not new any more"
    assert not host.way.lets_go_first(host.tasks[1]), "it is not new"
    new[host.task.tid] = giving_way.NEW
    account.spent += giving_way.ALLOWED + giving_way.RESERVE
    assert not host.way.lets_go_first(host.task), "it is not counted at all"
    account.over = True
    assert host.way.lets_go_first(host.task), "it is, for some calls"
    account.rare = giving_way.RARE_CALLS
    account.of_threads[host.task.tid] = giving_way.RARE_OF_THREAD
    assert not host.way.lets_go_first(host.task)
