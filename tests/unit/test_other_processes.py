"""When a thread is counted for the sake of other processes, and for how long."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.decision import Park
from detbox.kernel.numbers import NUMBERS
from detbox.scheduler.core import FAR, NAP, Awaited
from detbox.supervisor import other_processes
from detbox.supervisor.giving_way import COPY_US, LINGER, TURN
from detbox.supervisor.looks import PIECE, SOON, SPINS
from detbox.supervisor.other_processes import (
    BACKGROUND,
    LIMITS,
    LONG_WORK,
    OWN_GROUP,
    SHORT,
    TURN_BACKGROUND,
    TURN_FIRST,
    OtherProcesses,
    Reason,
)
from detbox.supervisor.stretch import GAVE_WAY, PER_NS_LIMIT, Stretch
from detbox.supervisor.task import Process, State, Task

NOW = 1_000_000
SECOND = 1_000_000_000


class FakeCopying:
    def __init__(self) -> None:
        self.copies, self.steps, self.in_copy = 0, 0, False

    def made(self, task: Task) -> int:
        return self.copies

    def inside(self, task: Task) -> bool:
        return self.in_copy

    def stepped(self, process: Process) -> tuple[int, int, int]:
        return self.steps, 0, 0


class Scheduler:
    def __init__(self) -> None:
        self.ready: deque[Task] = deque()
        self.deferred: dict[Task, int] = {}
        self.awaited: dict[Task, Awaited] = {}
        self.heeding = True
        self.parent_waits: Callable[[Task, Park], None]

    def collect(self) -> None:
        pass

    def heed_nobody(self) -> None:
        self.heeding = False


class Host:
    """A shell with two children, of which the first is about to go on."""

    def __init__(self) -> None:
        self.scheduler, self.copying = Scheduler(), FakeCopying()
        self.clock = clock = SimpleNamespace(now=NOW, next_deadline=lambda: None)
        self.processes: dict[int, Process] = {}
        machine = SimpleNamespace(scheduler=self.scheduler, clock=clock, processes=self.processes)
        sup: Any = SimpleNamespace(m=machine, main_pid=1, fork_hooks=[], exec_hooks=[], table=[None] * 400)
        copying: Any = self.copying
        self.others = OtherProcesses(sup, copying)
        self.outer = self._process(1, None)
        self.shell = self._process(2, self.outer.process)
        self.task = self._process(3, self.shell.process)
        self.other = self._process(4, self.shell.process)
        self.task.state = State.HELD

    def _process(self, pid: int, parent: Process | None) -> Task:
        process = self.processes[pid] = Process(pid, parent, str(pid))
        task = process.tasks[pid] = Task(pid, process, str(pid))
        task.state = State.PARKED
        process.counted = True
        return task

    def awaits(
        self, task: Task, ns: int, *, sleeps: bool = True, told: bool = False, first: bool = True
    ) -> None:
        nap = ns <= NAP
        self.scheduler.awaited[task] = Awaited(NOW + ns, ns, sleeps, told, nap, first)

    def is_ready(self, task: Task) -> None:
        task.state = State.READY
        self.scheduler.ready.append(task)

    def begin(self, task: Task | None = None) -> tuple[float, Reason | None] | None:
        stretch = self.others.begin(task or self.task)
        return None if stretch is None else (stretch.total / stretch.per_ns, stretch.reason)


def test_nobody_waits() -> None:
    assert Host().begin() is None
    alone = Host()
    alone.awaits(alone.task, SECOND)
    assert alone.begin() is None


@pytest.mark.parametrize(("ns", "reason"), [(SECOND, Reason.LONG), (SHORT, Reason.SHORT), (NAP, Reason.NAP)])
def test_a_sleep_of_any_process(ns: int, reason: Reason) -> None:
    host = Host()
    host.awaits(host.other, ns)
    assert host.begin() == (ns, reason)


def test_who_naps_again_and_again_is_heeded_by_those_below_it() -> None:
    host = Host()
    host.awaits(host.other, NAP, first=False)
    assert host.begin() is None
    host.awaits(host.shell, NAP, first=False)
    assert host.begin() == (NAP, Reason.NAP)


def test_a_wait_for_descriptors_is_heeded_by_those_below_it() -> None:
    host = Host()
    host.awaits(host.other, SECOND, sleeps=False)
    assert host.begin() is None
    host.awaits(host.shell, SECOND, sleeps=False)
    # What it waits for may have come: it looks soon, and then at its time.
    assert host.begin() == (TURN_FIRST, Reason.LONG)
    host.task.data[GAVE_WAY] = 1
    assert host.begin() == (SECOND, Reason.LONG)
    host.is_ready(host.shell)
    assert host.begin() == (TURN, Reason.LONG)


def test_who_sleeps_is_no_longer_gone_through_when_the_account_is_spent() -> None:
    host = Host()
    host.awaits(host.other, SECOND)
    host.awaits(host.shell, SHORT)
    host.others.accounts[Reason.LONG].spent = LIMITS[Reason.LONG][0]
    assert host.begin() == (SHORT, Reason.SHORT)
    assert set(host.scheduler.awaited) == {host.shell}


def test_a_wait_for_another_thread_is_heeded_by_those_below_it_and_needs_no_look() -> None:
    host = Host()
    host.awaits(host.other, SECOND, sleeps=False, told=True)
    assert host.begin() is None
    host.awaits(host.shell, SECOND, sleeps=False, told=True)
    assert host.begin() == (SECOND, Reason.LONG)


def test_a_background_job_lets_the_foreground_go_on() -> None:
    host = Host()
    host.is_ready(host.other)
    assert host.begin() is None
    host.task.process.data[BACKGROUND] = host.shell.process
    assert host.begin() == (TURN_BACKGROUND, Reason.BACKGROUND)
    host.task.data[GAVE_WAY] = 2
    assert host.begin() == (TURN << 2, Reason.BACKGROUND)
    # Jobs that are all in the background are done one after the other.
    del host.task.data[GAVE_WAY]
    host.other.process.data[BACKGROUND] = host.shell.process
    assert host.begin() is None


def test_who_computes_beside_the_child_that_is_waited_for() -> None:
    host = Host()
    shell, job, other = host.shell, host.task.process, host.other.process
    shell.process.children = [job, other]
    below = host._process(5, job).process
    host.is_ready(host.other)

    def park(child: int) -> Park:
        return Park(lambda wake: 0, events=(("child", 2),), extra={"child": child})

    host.scheduler.parent_waits(shell, park(0))  # for any of them
    assert host.begin() is None
    host.scheduler.parent_waits(shell, park(other.pid))
    assert host.begin() == (TURN_BACKGROUND, Reason.BACKGROUND)
    assert host.begin(below.tasks[5]) == (TURN_BACKGROUND, Reason.BACKGROUND)
    assert host.begin(host.other) is None
    host.task.data[GAVE_WAY] = 1
    assert host.begin() == (TURN << 1, Reason.BACKGROUND)
    del host.task.data[GAVE_WAY]
    shell.state = State.READY  # it waits no more
    assert host.begin() is None


def test_who_computes_while_its_parent_reads() -> None:
    """Most likely what the last child writes."""
    host = Host()
    host.shell.process.children = [host.task.process, host.other.process]
    host.is_ready(host.other)
    park = Park(lambda wake: 0, fds=((3, 1),))
    host.shell.nr = NUMBERS["poll"]
    host.scheduler.parent_waits(host.shell, park)
    assert host.begin() is None
    host.shell.nr = NUMBERS["read"]
    host.scheduler.parent_waits(host.shell, park)
    assert host.begin() == (TURN_BACKGROUND, Reason.BACKGROUND)
    host.scheduler.ready.clear()
    assert host.begin() is None


def test_jobs_with_a_process_group_let_later_ones_go_on() -> None:
    host = Host()
    for each in (host.task, host.other):
        each.process.data[OWN_GROUP] = each.process
    host.is_ready(host.other)
    assert host.begin() == (TURN_BACKGROUND, Reason.BACKGROUND)
    assert host.begin(host.other) is None
    host.scheduler.ready.clear()
    host.is_ready(host.task)
    assert host.begin(host.other) is None
    host.is_ready(host.shell)
    assert host.begin(host.other) == (TURN_BACKGROUND, Reason.BACKGROUND)


def test_the_first_process() -> None:
    host = Host()
    host.is_ready(host.other)
    assert host.begin(host.outer) == (TURN_FIRST, Reason.FIRST)
    assert host.begin(host.shell) is None


def test_a_thread_lingers_in_its_copies() -> None:
    host = Host()
    host.awaits(host.other, SECOND)
    assert host.begin() is not None
    host.scheduler.awaited.clear()
    host.copying.in_copy = True
    stretches = [host.others.begin(host.task) for _ in range(2 * LINGER)]
    assert sum(each is not None and each.idle for each in stretches) == LINGER


def test_far_sleeps() -> None:
    host = Host()
    host.awaits(host.other, 2 * FAR)
    assert host.begin() == (2 * FAR, Reason.WATCHED)
    host.scheduler.awaited.clear()
    host.awaits(host.shell, 2 * FAR)
    stretch = host.others.begin(host.task)
    assert stretch is not None and (stretch.reason, stretch.per_ns) == (Reason.FAR, PER_NS_LIMIT)
    # What was computed up to a call is not given back, however long it was; what was waited for to its end is.
    account = host.others.accounts[Reason.FAR]
    account.spent = 100_000
    host.others.counted(host.task, stretch, LONG_WORK)
    assert account.spent > 100_000 and account.counted == LONG_WORK
    host.others.reached(host.task, stretch)
    assert account.spent == 0 and account.counted == LONG_WORK
    # Programs that have begun since are no reason for the sleep, nor the other way round.
    host.task.process.data[other_processes._SINCE] = NOW + 1
    assert host.begin() is None
    host.task.process.data[other_processes._SINCE] = NOW
    # Who has children is heeded by them when nothing is left for others.
    host.awaits(host.other, 2 * FAR)
    host.others.accounts[Reason.WATCHED].spent = LIMITS[Reason.WATCHED][0]
    host.shell.process.children.append(host.task.process)
    assert host.begin() == (2 * FAR, Reason.FAR) and list(host.scheduler.awaited) == [host.shell]
    assert host.begin(host.outer) is None and list(host.scheduler.awaited) == [host.shell]


def test_the_accounts() -> None:
    for reason, (most, counted) in LIMITS.items():
        host = Host()
        account = host.others.accounts[reason]
        assert account.open
        account.counted = counted
        assert not account.open
        account.counted, account.spent = 0, most
        assert not account.open
    host = Host()
    host.awaits(host.other, NAP)
    while (stretch := host.others.begin(host.task)) is not None:
        host.others.reached(host.task, stretch)
        assert host.task.data[GAVE_WAY]
    assert host.others.accounts[Reason.NAP].counted >= LIMITS[Reason.NAP][1]
    assert host.scheduler.heeding
    for reason in (Reason.LONG, Reason.SHORT, Reason.FAR, Reason.WATCHED):
        host.others.accounts[reason].spent = LIMITS[reason][0]
    host.others.reached(host.task, Stretch(1, 1, reason=Reason.NAP))
    assert not host.scheduler.heeding


@pytest.mark.parametrize(("ns", "reason"), [(SECOND, Reason.LONG), (SHORT, Reason.SHORT)])
def test_turns_that_others_sleep_for_are_not_dear(ns: int, reason: Reason) -> None:
    host = Host()
    host.awaits(host.other, ns)
    host.clock.next_deadline = lambda: NOW + 1  # somebody polls
    account = host.others.accounts[reason]
    first = host.others.begin(host.task)
    assert first is not None and first.total == TURN * first.per_ns and first.whole
    spent = account.spent
    for _ in range(10_000):
        stretch = host.others.begin(host.task)
        assert stretch is not None
        host.others.reached(host.task, stretch)
    assert account.spent <= spent and not account.counted
    # What is over sooner takes no time, and is.
    times = 0
    while (stretch := host.others.begin(host.task)) is not None:
        host.others.counted(host.task, stretch, 1_000_000)
        times += 1
    assert times < 10_000


def test_copies_are_paid_for() -> None:
    host = Host()
    host.awaits(host.other, SECOND)
    stretch = host.others.begin(host.task)
    assert stretch is not None and stretch.most <= LIMITS[Reason.LONG][0] // COPY_US
    host.copying.copies = 1_000
    host.others.counted(host.task, stretch, 1)
    assert host.others.accounts[Reason.LONG].spent >= 1_000 * COPY_US
    host.copying.copies = 1_000_000
    host.others.counted(host.task, stretch, 1)
    assert host.begin() is None


def test_who_spins_or_generates_code_is_left_alone() -> None:
    host = Host()
    host.awaits(host.other, SECOND)
    pieces = []
    while (stretch := host.others.begin(host.task)) is not None:
        pieces.append(stretch.piece)
        host.others.spins(host.task, stretch)
    assert pieces[:SPINS] == [PIECE] * SPINS and set(pieces[SPINS:]) == {SOON}, "they cost more and more"
    host = Host()
    host.awaits(host.other, SECOND)
    host.copying.steps = other_processes.FEW_STEPS
    assert host.begin() is None
