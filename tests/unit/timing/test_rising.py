"""Which looks at the monotonic clock are taken for those of a benchmark, and how long their threads are followed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detbox.guest.vdso import DULL, ENOUGH, LIMIT, NOW, OTHER, PLACE, TURNED
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import NEVER, NOWHERE, TURNS, WATCHING, Clock, CpuTime
from detbox.supervisor import rising
from detbox.supervisor.gauge import GAUGE, LEAST, STEPS, Gauge
from detbox.supervisor.guestclock import GuestClock
from detbox.supervisor.rising import (
    ALLOWED,
    EARLY,
    FIRST_REST,
    FORESEEN,
    HURRIES,
    HURRY,
    HURRY_LOOKS,
    LONG,
    MORE_LATER,
    MORE_LOOKS,
    MOST_FORESEEN,
    SURE,
    TRIES,
    Rising,
)
from detbox.supervisor.stopwatch import MORE_CALLS, SHOWN
from detbox.supervisor.stretch import PER_NS
from detbox.supervisor.task import AddressSpace

STACK = 0x7FFFFFFFD000
SHORT = 100


class Looker:
    """A thread that looks from certain places, and computes so many instructions behind each look."""

    def __init__(self) -> None:
        self.rising = Rising.__new__(Rising)
        self.made, self.counted, self.generated = 0, False, False
        self.rising.copying = cast(Any, SimpleNamespace(made=lambda task: self.made))
        self.rising._counted = lambda task: self.counted
        self.rising._generated = lambda task: self.generated  # type: ignore[method-assign]
        self.rising._begin = self._begin  # type: ignore[method-assign]
        self.cpu = CpuTime(CpuTime())
        process = SimpleNamespace(mm=AddressSpace())
        self.task = cast(Any, SimpleNamespace(cpu=self.cpu, data={}, process=process, nr=NUMBERS["clock_gettime"]))
        self.program = self.rising._program(self.task)
        self.followed: list[int] = []  # how many stretches, each time
        self.costs: list[int | None] = []  # of all looks, in ns

    def _begin(self, task: Any, copies: int, looks: int, calls: int) -> None:
        task.data[GAUGE] = Gauge(
            LEAST, None, self.made, self.made + copies, counting=True, following=True, looks=looks, calls=calls
        )
        task.cpu.work_ns, task.cpu.measure_at = 0, NEVER
        self.followed.append(0)

    @property
    def gauge(self) -> Gauge | None:
        return self.task.data.get(GAUGE)

    def look(self, place: int, instructions: int = SHORT, able: bool = True) -> None:
        """Compute, if that can be counted, and look from there."""
        cpu = self.cpu
        if self.gauge is not None:
            self.followed[-1] += 1
            self.gauge.total += instructions
            if not able:
                self.gauge.steps, self.gauge.looks = 0, rising._GAVE_UP
                self.rising._unable(self.task)
                self.rising.end(self.task)
            elif not self.rising._goes_on(self.task, self.gauge, True, instructions):
                self.gauge.last = self.gauge.total
                self.rising.end(self.task)
            else:
                self.gauge.last = self.gauge.total
        self.costs.append(cpu.work_ns)
        cpu.looks += 1
        cpu.looked += 1
        if cpu.turn(STACK + place):
            self.rising._rises(self.task)
        elif FORESEEN in self.task.data and cpu.looks >= cpu.measure_at:
            self.rising.after_look(self.task)

    def else_(self, call: str = "write") -> None:
        """Do something else."""
        self.task.nr = NUMBERS[call]
        if FORESEEN in self.task.data:
            self.rising.on_other_call(self.task)
        if self.gauge is not None:
            self.rising.end(self.task)
        self.cpu.begin_anew()
        self.task.nr = NUMBERS["clock_gettime"]

    def row(self, *places: int) -> bool:
        """A row of looks; whether the thread was followed."""
        before = len(self.followed)
        for place in places:
            self.look(place)
        self.else_()
        return len(self.followed) > before


def test_five_looks_from_one_place_or_from_two_by_turns() -> None:
    assert TURNS == 5
    assert Looker().row(*[16] * 5)
    assert Looker().row(16, 48, 16, 48, 16)
    assert Looker().row(160, 16, 160, 80, 16, 48, 16, 48, 16)
    assert not Looker().row(16, 16, 16, 16)
    assert not Looker().row(16, 48, 16, 16, 16, 48, 16, 16, 16, 48, 16, 16), "as Python's locks do it"
    assert not Looker().row(*[16, 48, 80] * 10)


def test_looks_of_several_rows_are_none() -> None:
    looker = Looker()
    assert not any(looker.row(16, 16, 16) for _ in range(5))


def test_where_work_is_short_rows_are_left_alone() -> None:
    looker = Looker()
    rows = [looker.row(*[16] * (TURNS + 1)) for _ in range(1000)]
    assert rows[: FIRST_REST + 1] == [True] + [False] * (FIRST_REST - 1) + [True]
    assert 4 <= sum(rows) <= 7
    assert looker.row(*[48] * 5), "another place"


def test_as_long_as_work_grows() -> None:
    looker = Looker()
    for power in range(4, 12):
        looker.look(16, 10**power)
        looker.look(16, 3 * 10**power)
    assert looker.followed == [2 * 8 - TURNS]
    for power in range(3, 9):
        looker.look(16, 10**power)
        looker.look(16)
    assert len(looker.followed) == 1, "another one in the same row"


def test_no_longer_if_it_does_not() -> None:
    looker = Looker()
    for _ in range(100):
        looker.look(16)
    assert looker.followed == [MORE_LOOKS]
    assert looker.cpu.work_ns is None


def test_what_is_the_same_by_turns_is_foreseen() -> None:
    looker = Looker()
    for _ in range(2 * SURE // LONG):
        looker.look(16, LONG)
        looker.look(16)
    sure = 2 * SURE // LONG + TURNS
    costs = looker.costs[sure:]
    assert looker.followed[0] <= sure and not any(looker.costs[:sure]), "something else may come at first"
    assert set(costs) == {0, LONG // PER_NS, SHORT // PER_NS}
    assert sum(looker.followed[1:]) < len(costs) * 4 // MOST_FORESEEN
    # A look behind long work costs what that was, or it has been counted.
    assert all(cost != LONG // PER_NS for cost in looker.costs[1::2])
    assert all(cost != SHORT // PER_NS for cost in looker.costs[0::2])
    rise = len(looker.followed)
    for power in range(3, 3 + MOST_FORESEEN):
        looker.look(16, LONG << power)
        looker.look(16)
    assert len(looker.followed) == rise + 1 and looker.followed[-1] > MORE_LATER


def test_long_work_that_is_not_the_same_is_followed() -> None:
    looker = Looker()
    for turn in range(1000):
        looker.look(16, LONG << turn % 5)
    assert looker.followed == [1000 - TURNS]


def test_what_cannot_be_counted_costs_a_second_once() -> None:
    looker = Looker()
    for _ in range(50):
        looker.look(16, able=False)
    assert looker.followed == [1] and [cost for cost in looker.costs if cost] == list(HURRY)
    looker.else_()
    assert not any(looker.row(*[16] * 20) for _ in range(1000))
    times = looker.costs.count(HURRY[0])
    assert 4 <= times <= 7
    assert looker.cpu.parent is not None and looker.cpu.parent.rises


def test_who_has_measured_long_work_is_followed_at_once_in_the_next_row() -> None:
    looker = Looker()
    for _ in range(TURNS + 2):
        looker.look(16, LONG)
    looker.else_()
    assert len(looker.followed) == 1
    looker.look(16)
    looker.look(16)
    assert len(looker.followed) == 2, "behind the first look"
    looker.else_()
    looker.look(16)
    looker.look(16)
    assert len(looker.followed) == 2, "the work was short"


def test_generated_code_is_not_followed() -> None:
    looker = Looker()
    looker.generated = True
    assert not looker.row(*[16] * 50) and [cost for cost in looker.costs if cost] == list(HURRY)
    looker = Looker()
    looker.cpu.unmeasured()
    assert not looker.row(*[16] * 50) and not looker.row(*[48] * 50), "not where nothing can be measured"
    assert not any(looker.costs)
    looker.generated = True
    assert not looker.row(*[80] * 50) and any(looker.costs)


@pytest.mark.parametrize(("call", "costs"), [("futex", list(HURRY)), ("madvise", list(HURRY)), ("write", [HURRY[0]])])
def test_what_a_runtime_does_for_its_code_changes_nothing(call: str, costs: list[int]) -> None:
    looker = Looker()
    looker.generated = True
    for _ in range(TURNS + 1):
        looker.look(16)
    looker.else_(call)
    for _ in range(TURNS - 1):
        looker.look(48)
    assert [cost for cost in looker.costs if cost] == costs


def test_only_from_there() -> None:
    looker = Looker()
    for _ in range(TURNS + 1):
        looker.look(16, able=False)
    looker.else_()
    assert looker.row(*[48] * TURNS)
    assert looker.costs[-1] is None


def test_a_program_that_looks_from_many_such_places_does_not_hurry_for_ever() -> None:
    looker = Looker()
    for place in [16, 48, 80, 112] * 1000:
        for _ in range(3 * TURNS):
            looker.look(place, able=False)
        looker.else_()
    times = looker.costs.count(HURRY[0])
    assert HURRIES < times <= HURRIES + looker.cpu.looked // HURRY_LOOKS


@pytest.mark.parametrize(("before", "tries"), [(0, TRIES), (EARLY, 1)])
def test_it_is_tried_again_with_more_copies(before: int, tries: int) -> None:
    looker = Looker()
    looker.cpu.looks = before
    for _ in range(3 * TURNS):
        looker.look(16)
        if looker.gauge is not None:
            looker.gauge.looks = rising._GAVE_UP
            looker.rising.end(looker.task)
    assert len(looker.followed) == tries


def test_the_account() -> None:
    looker = Looker()
    looker.program.spent = ALLOWED
    assert not looker.row(*[16] * 9)
    looker.program.spent = 0
    looker.program.counted = Rising.most
    assert not looker.row(*[16] * 9)
    assert looker.cpu.turns == -1, "it is not asked any more"


def test_who_is_counted_anyway_is_shown_that() -> None:
    looker = Looker()
    looker.counted = True
    assert not looker.row(*[16] * 5)
    assert SHOWN in looker.task.data


def test_calls_for_memory_belong_to_the_work() -> None:
    looker = Looker()
    for _ in range(TURNS):
        looker.look(16)
    gauge = looker.gauge
    assert gauge is not None
    looker.task.nr = NUMBERS["mmap"]
    more = [looker.rising._goes_on(looker.task, gauge, False, 0) for _ in range(MORE_CALLS)]
    assert more == [True] * (MORE_CALLS - 1) + [False]
    gauge.calls, looker.task.nr = MORE_CALLS, NUMBERS["write"]
    assert not looker.rising._goes_on(looker.task, gauge, False, 0)
    assert gauge.steps == STEPS


@given(st.lists(st.tuples(st.sampled_from([16, 48, 80]), st.booleans(), st.booleans()), max_size=60))
def test_looks_by_calls_and_others_are_the_same(looks: list[tuple[int, bool, bool]]) -> None:
    shared = GuestClock(Clock(0), True)
    page, cpu, asked = shared._page, CpuTime(CpuTime(), watching=WATCHING), CpuTime(CpuTime())
    for place, by_call, anew in looks:
        if anew:
            cpu.begin_anew()
            asked.begin_anew()
        shared.grant(cpu, True)
        assert page[ENOUGH] == TURNS and page[DULL] == NOWHERE
        # As guest/clock.c does it.
        turns = page[TURNED] + 1 if page[TURNED] >= 2 and STACK + place == page[OTHER] else 2 if page[TURNED] else 1
        rises = turns >= page[ENOUGH] and STACK + place + page[PLACE] != page[DULL]
        if rises or by_call or page[NOW] + 1 > page[LIMIT]:
            shared.settle()
            assert cpu.turn(STACK + place) == rises
        else:
            page[OTHER], page[PLACE], page[TURNED] = page[PLACE], STACK + place, turns
            shared.settle()
        assert asked.turn(STACK + place) == rises
        assert (cpu.place, cpu.other, cpu.turns) == (asked.place, asked.other, asked.turns)


def test_what_a_call_changes_is_not_taken_back() -> None:
    shared = GuestClock(Clock(0), True)
    cpu, other = CpuTime(CpuTime(), watching=WATCHING), CpuTime(CpuTime(), watching=WATCHING)
    shared.grant(cpu, True)
    shared._page[PLACE], shared._page[TURNED] = STACK, 3
    shared.settle()
    assert (cpu.place, cpu.turns) == (STACK, 3)
    cpu.begin_anew()
    shared.settle()  # another thread has stopped
    assert cpu.turns == 0
    shared.grant(other, True)
    assert shared._page[TURNED] == 0
    shared.grant(cpu, False)
    shared._page[TURNED] = 4
    shared.settle()
    assert cpu.turns == 0, "it may not look"
