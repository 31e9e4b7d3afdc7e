"""The virtual clock and its timers."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detbox.machine.clock import (
    BOOT_NS,
    CALL_NS,
    DOUBLING,
    LOOK_NS,
    NEVER,
    PATIENCE,
    ROW_LOOKS,
    ROWS,
    Clock,
    CpuTime,
    Timers,
    alike,
    price,
)


def test_clocks_agree() -> None:
    clock = Clock(5_000)
    assert clock.now == BOOT_NS and clock.realtime() == 5_000
    assert clock.monotonic(clock.realtime()) == clock.now
    before = clock.stamp()
    assert clock.realtime() == before < clock.stamp()
    assert clock.realtime(clock.look()) > before


@given(st.lists(st.sampled_from(("look", "stamp", "charge", "jump")), max_size=60))
def test_time_never_runs_backwards(actions: list[str]) -> None:
    clock, cpu = Clock(0), CpuTime()
    stamps, last = [], clock.now
    for action in actions:
        if action == "look":
            clock.look(cpu)
        elif action == "stamp":
            stamps.append(clock.stamp())
        elif action == "charge":
            clock.charge(cpu)
        else:
            clock.jump_to(last - 5)
        assert clock.now >= last
        last = clock.now
    assert stamps == sorted(set(stamps))


@pytest.mark.parametrize(
    ("seconds", "few", "many"),
    [(1, 5_000, 15_000), (10, 50_000, 100_000), (3600, 200_000, 1_040_000)],
)
def test_a_busy_wait_ends_but_measuring_is_none(seconds: int, few: int, many: int) -> None:
    clock, cpu = Clock(0), CpuTime()
    start, looks = clock.now, 0
    while clock.look(cpu) < start + seconds * 10**9:
        clock.charge(cpu, looking=True)
        looks += 1
    assert few < looks < many


@pytest.mark.parametrize("asked", [0, 100_000, PATIENCE, PATIENCE + DOUBLING])
@pytest.mark.parametrize("looks", [0, 22, 23, 24, 255, 256, 4095, 4096, 4351, 4352, 4353, 6000, 1_002_495])
def test_looks_that_are_made_without_a_call_cost_the_same(looks: int, asked: int) -> None:
    cpu = CpuTime(looks=looks, asked=asked, measure_at=24 if looks < 24 else 9_000_000)
    first, count = price(cpu), alike(cpu)
    for _ in range(count):
        assert price(cpu) == first
        cpu.looks += 1
        assert alike(cpu) == looks + count - cpu.looks  # whenever it is asked


@pytest.mark.parametrize("work_ns", [0, 500, 70_000])
def test_looks_cost_what_is_done_between_them(work_ns: int) -> None:
    assert {price(CpuTime(looks=looks, work_ns=work_ns)) for looks in (30, 5_000, 10_000_000)} == {
        max(work_ns, LOOK_NS)
    }


def test_looks_at_cpu_time_cost_nothing_extra_where_work_is_counted() -> None:
    clock, cpu = Clock(0), CpuTime()
    for _ in range(30):
        clock.look_at_work(cpu)
    assert cpu.ns == 30 * LOOK_NS


def test_work_that_is_doubled_until_it_takes_long_enough_ends() -> None:
    clock, cpu = Clock(0), CpuTime(unable=True)
    rounds, took = 0, 0
    while took < 10**9:
        clock.look_at_work(cpu)
        took = -cpu.ns
        clock.charge(cpu, looking=True)
        clock.look_at_work(cpu)
        took += cpu.ns
        rounds += 1
    assert rounds < 10
    before = clock.now
    for _ in range(1000):
        clock.look_at_work(cpu)
    assert clock.now - before < 5 * 10**9


def test_looks_at_other_clocks_do_not_make_one_at_cpu_time_dear() -> None:
    clock, cpu = Clock(0), CpuTime(unable=True)
    for _ in range(17):
        clock.look(cpu)
    clock.look_at_work(cpu)  # a collector of garbage does so, after many looks at the monotonic clock
    assert cpu.ns < 50_000


def test_looks_between_other_calls_stay_cheap() -> None:
    clock, cpu = Clock(0), CpuTime()
    start = clock.now
    for _ in range(10_000):
        clock.look(cpu)
        clock.charge(cpu)
    assert clock.now - start < 10_000 * 2 * CALL_NS


def test_cpu_time_adds_up() -> None:
    clock, process = Clock(0), CpuTime()
    threads = [CpuTime(process), CpuTime(process)]
    for index in (0, 1, 1):
        clock.charge(threads[index])
    assert (threads[0].ns, threads[1].ns, process.ns) == (CALL_NS, 2 * CALL_NS, 3 * CALL_NS)
    parent = CpuTime()
    assert parent.reap(process) == 3 * CALL_NS == parent.children_ns


def test_timers_expire_in_order() -> None:
    timers, seen = Timers(), []
    for deadline, name in ((30, "c"), (10, "a"), (10, "b"), (40, "d")):
        timers.add(deadline, lambda name=name: seen.append(name))  # type: ignore[misc]
    cancelled = timers.add(5, lambda: seen.append("never"))
    timers.cancel(cancelled)
    timers.cancel(None)
    assert timers.next_deadline() == 10
    assert timers.expire(30) == 3 and seen == ["a", "b", "c"]
    assert timers.expire(39) == 0 and timers.first == 40
    assert timers.expire(40) == 1 and timers.next_deadline() is None and timers.first == NEVER


def test_a_callback_may_add_timers() -> None:
    timers, seen = Timers(), []

    def again() -> None:
        seen.append(1)
        if len(seen) < 3:
            timers.add(10, again)

    timers.add(10, again)
    assert timers.expire(10) == 3


def test_a_call_expires_what_is_due() -> None:
    clock, cpu, seen = Clock(0), CpuTime(), []
    clock.timers.add(clock.now + CALL_NS, lambda: seen.append("wall"))
    cpu.timer_queue().add(2 * CALL_NS, lambda: seen.append("cpu"))
    clock.charge(cpu)
    assert seen == ["wall"]
    clock.charge(cpu)
    assert seen == ["wall", "cpu"]


def rows(*lengths: int) -> list[int]:
    """After which of these rows of looks, with a call between them, the next one begins with a call."""
    clock, cpu = Clock(0), CpuTime()
    seen = []
    for index, length in enumerate(lengths):
        for _ in range(length):
            clock.charge(cpu, looking=True)
            clock.look(cpu)
        clock.charge(cpu)
        if alike(cpu) == 0:
            seen.append(index)
    return seen


def test_rows_of_the_same_length_come_to_be_seen() -> None:
    assert rows(*[2] * (ROWS + 3)) == [ROWS, ROWS + 1, ROWS + 2]
    assert rows(*[2, 1] * (ROWS + 1)) == [2 * ROWS, 2 * ROWS + 1]


def test_other_rows_do_not() -> None:
    assert rows(*[1] * 50) == []
    assert rows(*[ROW_LOOKS + 1, 1] * 50) == []
    assert rows(*[2, 3] * 50) == []
    assert rows(*[2] * ROWS, 3, *[2] * ROWS) == []
