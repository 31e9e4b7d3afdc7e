"""Looks that the guest makes by itself are accounted for as those that the supervisor answers."""

from __future__ import annotations

import pytest

from detbox.guest.vdso import COST, DAY, LIMIT, NOW, PROCESS, THREAD, WORK
from detbox.machine.clock import BOOT_NS, CALL_NS, FIRST_MEASURE, LOOK_NS, WATCHING, WINDOW, WORK_LOOKS, Clock, CpuTime
from detbox.supervisor.guestclock import GuestClock

LOOK = CALL_NS + LOOK_NS


def watcher() -> CpuTime:
    """A thread's CPU time; it has just looked at a clock."""
    return CpuTime(CpuTime(), watching=WATCHING)


class Guest:
    """A clock, its page, and what a program does there."""

    def __init__(self) -> None:
        self.clock = Clock(0)
        self.shared = GuestClock(self.clock, True)
        self.page = self.shared._page

    def looks(self, wanted: int) -> int:
        """Look up to ``wanted`` times; how often that was allowed."""
        for count in range(wanted):
            if self.page[NOW] + self.page[COST] > self.page[LIMIT]:
                return count
            self.page[NOW] += self.page[COST]
        return wanted


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_a_look_is_a_look(guest: Guest) -> None:
    one, other = watcher(), watcher()
    guest.shared.grant(one, True)
    assert guest.looks(6) == 6
    guest.shared.settle()
    asked = Clock(0)
    for _ in range(6):
        asked.charge(other, looking=True)
        asked.look(other)
    assert (guest.clock.now, one.ns, one.looks) == (asked.now, other.ns, other.looks)
    assert one.parent is not None and one.parent.ns == one.ns
    assert guest.shared.looks == 6


def test_some_looks_are_calls(guest: Guest) -> None:
    cpu = watcher()
    guest.shared.grant(cpu, True)
    assert guest.looks(9999) == FIRST_MEASURE - 1
    guest.shared.grant(cpu, True)  # the same thread goes on, as after a tick
    assert guest.looks(1) == 0
    guest.clock.charge(cpu, looking=True)
    guest.clock.look(cpu)
    cpu.measure_at = 1000
    guest.shared.grant(cpu, True)
    assert guest.looks(9999) == WINDOW - 1 - FIRST_MEASURE
    guest.shared.settle()
    guest.clock.charge(cpu)
    guest.shared.grant(cpu, True)
    assert guest.looks(3) == 3
    guest.shared.grant(cpu, True)
    assert guest.looks(9999) == FIRST_MEASURE - 1 - 3


def test_cpu_time_is_shown_from_the_same_look_on(guest: Guest) -> None:
    """However often the thread has been stopped meanwhile."""
    cpu = watcher()
    cpu.measure_at = 1000
    cpu.ns = 5_000
    assert cpu.parent is not None
    cpu.parent.ns = 70_000
    guest.shared.grant(cpu, True)
    shown = []
    for look in range(30):
        if look in (11, 20, 21):
            guest.shared.grant(cpu, True)
        shown.append(guest.page[NOW] >= guest.page[WORK])
        assert guest.looks(1) == 1
        assert guest.page[NOW] + guest.page[THREAD] == 5_000 + (look + 1) * LOOK
        assert guest.page[NOW] + guest.page[PROCESS] == 70_000 + (look + 1) * LOOK
    assert shown == [look >= WORK_LOOKS for look in range(30)]


def test_looks_of_stopwatches_are_calls_for_a_while(guest: Guest) -> None:
    def shown(cpu: CpuTime) -> bool:
        guest.shared.grant(cpu, True)
        return bool(guest.page[NOW] >= guest.page[DAY])

    one, other = watcher(), watcher()
    other.parent = one.parent
    assert one.parent is not None and not shown(one)
    one.timing = FIRST_MEASURE  # so many in a row: it is a loop
    assert shown(one) and not shown(other)
    one.looks = 1
    one.begin_anew()
    assert not shown(one)
    one.parent.rest = 2  # rows of all its threads
    for cpu in (one, other):
        assert shown(cpu)
        cpu.looks = 1
        cpu.begin_anew()
    assert not shown(one)


def test_a_deadline_is_met_by_a_call(guest: Guest) -> None:
    guest.clock.timers.add(BOOT_NS + 5 * LOOK, lambda: None)
    guest.shared.grant(watcher(), True)
    assert guest.looks(1000) == 4


def test_a_cancelled_timer_does_not_matter(guest: Guest) -> None:
    timers = guest.clock.timers
    timers.cancel(timers.add(BOOT_NS + 2 * LOOK, lambda: None))
    timers.add(BOOT_NS + 6 * LOOK, lambda: None)
    guest.shared.grant(watcher(), True)
    assert guest.looks(1000) == 5


@pytest.mark.parametrize("whose", ["thread", "process"])
def test_so_is_one_by_cpu_time(guest: Guest, whose: str) -> None:
    cpu = watcher()
    owner = cpu if whose == "thread" else cpu.parent
    assert owner is not None
    cpu.spend(1_000_000)
    owner.timer_queue().add(1_000_000 + 3 * LOOK, lambda: pytest.fail("expired"))
    guest.shared.grant(cpu, True)
    assert guest.looks(1000) == 2
    guest.shared.settle()


def test_looks_belong_to_the_thread_that_made_them(guest: Guest) -> None:
    one, other = watcher(), watcher()
    guest.shared.grant(one, True)
    guest.looks(2)
    guest.shared.grant(other, True)
    guest.looks(1)
    guest.shared.settle()
    assert (one.looks, other.looks) == (2, 1)


def test_not_allowed(guest: Guest) -> None:
    guest.shared.grant(watcher(), False)
    assert guest.looks(1) == 0


def test_who_does_not_look_is_not_watched(guest: Guest) -> None:
    cpu = CpuTime(CpuTime())
    guest.shared.grant(cpu, True)
    assert guest.looks(1) == 0 and not guest.shared.open
    guest.clock.look(cpu)
    for _ in range(WATCHING - 1):
        guest.clock.charge(cpu)
    guest.shared.grant(cpu, True)
    assert guest.looks(1) == 1 and guest.shared.open
    guest.shared.settle()
    assert cpu.watching == WATCHING
    for _ in range(WATCHING):
        guest.clock.charge(cpu)
    guest.shared.grant(cpu, True)
    assert guest.looks(1) == 0


@pytest.mark.parametrize("cost", [0, -1, 1 << 62])
def test_what_a_guest_writes_into_the_page_hurts_nobody(guest: Guest, cost: int) -> None:
    cpu = watcher()
    guest.shared.grant(cpu, True)
    assert guest.looks(3) == 3
    guest.page[COST] = cost
    guest.shared.settle()
    assert (guest.shared.looks, cpu.looks, cpu.ns) == (3, 3, 3 * LOOK)
    guest.shared.grant(cpu, True)
    assert guest.page[COST] == LOOK
