"""Which looks at a clock are left to calls, to see whether they come from a loop."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from itertools import count, cycle
from types import SimpleNamespace
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st

from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import FIRST_MEASURE, UNDECIDED, CpuTime
from detbox.supervisor.gauging import ALIKE, ALLOWED, LONG_ROW, PLACES, ROW, TOO_LITTLE, Gauging
from detbox.supervisor.task import AddressSpace


class Looker:
    """A thread that looks from the places that it is given."""

    def __init__(self, places: Iterator[Hashable]) -> None:
        self.gauging = Gauging.__new__(Gauging)
        self.cpu = CpuTime()
        self.places = places
        process = SimpleNamespace(mm=AddressSpace(), tasks={1: None})
        self.task = cast(Any, SimpleNamespace(cpu=self.cpu, nr=NUMBERS["clock_gettime"], process=process))

    def row(self, looks: int) -> tuple[int, bool]:
        """So many looks in a row; how many were calls, and whether it came to a measurement."""
        self.cpu.begin_anew()
        asked = 0
        for _ in range(looks):
            self.cpu.looks += 1
            place = next(self.places)
            if self.cpu.looks >= self.cpu.measure_at:
                asked += 1
                self.task.args = (1, place)
                if self.gauging._at_its_place(self.task):
                    return asked, True
        return asked, False


def test_a_loop_is_found_after_a_row_of_calls() -> None:
    for places, asked in ((1, ALIKE), (2, ROW)):
        assert Looker(cycle(range(places))).row(100) == (asked, True)


def test_looks_from_many_places_are_left_alone() -> None:
    looker = Looker(count())
    assert not looker.row(50)[1]
    assert sum(looker.row(50)[0] for _ in range(20)) <= 20 * 9
    looker.places = cycle(range(7))  # the same places again and again
    looker.row(50)
    assert sum(looker.row(50)[0] for _ in range(20)) <= 20 * 4


def test_a_long_row_may_come_from_more_places() -> None:
    for places in (3, 4, 5):
        looker = Looker(cycle(range(places)))
        asked, found = looker.row(1000)
        assert found and LONG_ROW << places - PLACES - 1 <= looker.cpu.looks < 4 * LONG_ROW << places - PLACES - 1
        assert asked < 2 * ROW + 10 * places
    assert not Looker(cycle(range(7))).row(1000)[1]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=200), st.integers(1, 2))
def test_a_loop_is_found_whatever_came_before(before: list[int], places: int) -> None:
    looker = Looker(iter(before))
    rows = [looker.row(min(40, len(before) - start)) for start in range(0, len(before), 40)]
    if not rows[-1][1]:
        looker.places = cycle(range(places))
        assert looker.row(4 * (FIRST_MEASURE + ROW))[1]


def test_who_may_not_be_measured_is_not_asked_for_each_look() -> None:
    looker = Looker(cycle([1]))
    program = looker.gauging._program(looker.task)
    program.spent = ALLOWED
    assert looker.row(1000) == looker.row(50) == (1, False)
    looker.cpu.looked = TOO_LITTLE - 100  # that much its looks have earned
    assert looker.row(50) == (1, False)
    looker.cpu.looked = TOO_LITTLE
    assert looker.row(50) == (ALIKE, True)


def test_rows_that_end_too_soon_are_soon_left_alone() -> None:
    looker = Looker(cycle([1, 2]))
    length = FIRST_MEASURE + ROW // 2
    assert [looker.row(length)[0] for _ in range(UNDECIDED)] == [ROW // 2 + 1] * UNDECIDED
    assert sum(looker.row(length)[0] for _ in range(100)) == 100 * (length - 2 * FIRST_MEASURE + 1)
    assert looker.row(100) == (ROW, True)


def test_a_loop_that_begins_within_a_row_is_found() -> None:
    looker = Looker(iter([*range(30), *[7] * 1000]))
    asked, found = looker.row(1000)
    assert found and looker.cpu.looks < 4 * (30 + ROW)
    assert asked < 30 + ROW
