"""Which looks at a clock may be a stopwatch's, and how long their threads are followed."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import FIRST_MEASURE, CpuTime
from detbox.supervisor.gauge import COPY_US, GAUGE, LEAST, TOO_LITTLE, Gauge
from detbox.supervisor.stopwatch import (
    ALIKE,
    ALLOWED,
    FIRST,
    LONG,
    MORE_LOOKS,
    MOST_REST,
    SHORT,
    SHOWN,
    Stopwatch,
)
from detbox.supervisor.stretch import PER_NS
from detbox.supervisor.task import AddressSpace


class Looker:
    """A thread that times pieces of work of so many ns."""

    def __init__(self) -> None:
        self.stopwatch = Stopwatch.__new__(Stopwatch)
        self.made, self.counted = 0, False
        copying = SimpleNamespace(made=lambda task: self.made)
        self.stopwatch.copying = cast(Any, copying)
        self.stopwatch._counted = lambda task: self.counted
        self.stopwatch._begin = self._begin  # type: ignore[method-assign]
        self.cpu = CpuTime(CpuTime())
        process = SimpleNamespace(mm=AddressSpace())
        self.task = cast(Any, SimpleNamespace(cpu=self.cpu, data={}, process=process, nr=0, args=(0, 7)))
        self.program = self.stopwatch._program(self.task)

    def _begin(self, task: Any, copies: int = 0, looks: int = 0, calls: int = 0) -> None:
        most = self.made + copies
        self.gauge = Gauge(LEAST, None, self.made, most, counting=True, following=True, looks=looks, calls=calls)
        task.data[GAUGE] = self.gauge

    def look(self) -> bool:
        """Whether the thread is followed behind its look."""
        self.cpu.looks += 1
        self.stopwatch._looked(self.task)
        return GAUGE in self.task.data

    def times(self, ns: int, copies: int = 0) -> bool:
        """Whether the thread is followed for one piece of work."""
        self.cpu.begin_anew()
        followed = self.look()
        if followed:
            self.gauge.total = ns * PER_NS
            self.made += copies
            self.stopwatch.end(self.task)
        return followed


def test_long_work_is_followed_but_for_the_first() -> None:
    looker = Looker()
    followed = [looker.times(LONG << piece) for piece in range(30)]
    assert followed == [False] * FIRST + [True] * (30 - FIRST)


def test_short_work_is_followed_less_and_less() -> None:
    looker = Looker()
    rows = [looker.times(100) for _ in range(20_000)]
    assert rows[FIRST:][:SHORT] == [True] * SHORT
    assert SHORT < sum(rows) < SHORT + 2 * MOST_REST.bit_length() + 20_000 // MOST_REST
    assert any(looker.times(LONG) for _ in range(MOST_REST + 1))
    assert all(looker.times(100) for _ in range(SHORT))  # from the beginning


def test_the_same_work_is_not_always_followed() -> None:
    looker = Looker()
    rows = [looker.times(LONG + piece % 3) for piece in range(1_000)]
    assert all(rows[FIRST : FIRST + ALIKE]) and 10 < sum(rows) < 40
    while looker.times(LONG):
        pass
    assert looker.cpu.work_ns in range(LONG, LONG + 3)
    followed = [looker.times(10 * LONG) for _ in range(200)]
    first = followed.index(True)
    assert followed[first : first + ALIKE] == [True] * ALIKE


def test_the_account() -> None:
    looker = Looker()
    rows = [looker.times(10, copies=1_000) for _ in range(50)]
    assert sum(rows) <= ALLOWED // (1_000 * COPY_US) + 1
    looker.cpu.looked = looker.program.spent + TOO_LITTLE
    assert any(looker.times(10) for _ in range(looker.program.spent + TOO_LITTLE))


def test_a_long_row_of_looks_is_left_alone() -> None:
    looker = Looker()
    looker.program.unable = True
    looker.cpu.begin_anew()
    for _ in range(2 * FIRST_MEASURE):
        looker.look()
    assert looker.cpu.timing >= FIRST_MEASURE


def test_who_is_counted_shows_it() -> None:
    looker = Looker()
    looker.counted = True
    for _ in range(FIRST + 1):
        assert not looker.times(0)
    data, task = looker.task.data, looker.task
    assert data[SHOWN] == MORE_LOOKS
    Stopwatch.shown(task, True, 0)
    assert data[SHOWN] == MORE_LOOKS - 1
    Stopwatch.shown(task, True, LEAST)
    assert data[SHOWN] == MORE_LOOKS
    task.nr = NUMBERS["mmap"]
    Stopwatch.shown(task, False, 0)
    assert SHOWN in data
    task.nr = NUMBERS["write"]
    Stopwatch.shown(task, False, 0)
    assert SHOWN not in data


def test_through_which_calls_a_thread_is_followed() -> None:
    looker = Looker()
    task, goes_on = looker.task, looker.stopwatch._goes_on

    def more(name: str, *, total: int = 0, instructions: int = 0, looks: int = 6, calls: int = 16) -> bool:
        task.nr = NUMBERS[name]
        gauge = Gauge(LEAST, None, 0, 0, total=total, following=True, looks=looks, calls=calls)
        return goes_on(task, gauge, name == "clock_gettime", instructions)

    assert more("clock_gettime") and not more("clock_gettime", looks=1)
    assert more("mmap") and not more("mmap", calls=1) and not more("write")
    assert more("write", total=LONG * PER_NS) and not more("write", total=LONG * PER_NS, calls=1)
    assert not more("execve", total=LONG * PER_NS)
    assert more("clock_gettime", looks=1, instructions=LEAST) and more("mmap", calls=1, instructions=LEAST)
