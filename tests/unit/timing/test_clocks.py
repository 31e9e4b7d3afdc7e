"""Handlers of clocks and sleeps."""

from __future__ import annotations

from types import SimpleNamespace as NS

import pytest

from detbox.decision import Park
from detbox.handlers import clocks

AT = 0x100
SECOND = 10**9


def seconds(m: NS, t: NS, clock: int) -> float:
    assert m.call(t, clocks.clock_gettime, clock, AT) == 0
    whole, rest = t.get(AT, "<qq")
    return float(whole) + rest / SECOND


def test_all_clocks_agree(m: NS, t: NS) -> None:
    wall = [seconds(m, t, clock) for clock in (0, 5, 8, 11)]
    assert all(0 <= value - 1_600_000_000 < 0.001 for value in wall) and wall == sorted(wall)
    boot = [seconds(m, t, clock) for clock in (1, 4, 6, 7, 9)]
    assert all(0 <= value - 1000 < 0.001 for value in boot) and boot == sorted(boot)
    assert m.call(t, clocks.time, AT) == 1_600_000_000 == t.get(AT, "<q")[0]
    assert m.call(t, clocks.gettimeofday, AT, AT + 16) == 0
    assert t.get(AT, "<qq")[0] == 1_600_000_000 and t.get(AT + 16, "<ii") == (0, 0)
    assert m.call(t, clocks.times, AT) == 1000 * 100


def test_cpu_clocks(m: NS, t: NS) -> None:
    other = m.process(3)
    assert 0 < seconds(m, t, 3) <= seconds(m, t, 2) < 0.001
    assert seconds(m, t, ~3 << 3 | 2) == 0
    assert seconds(m, t, ~0 << 3 | 6) > 0
    assert m.call(other, clocks.clock_gettime, ~2 << 3 | 6, AT) == -22
    assert m.call(t, clocks.clock_gettime, ~9 << 3 | 2, AT) == -22
    assert m.call(t, clocks.clock_gettime, 10, AT) == -22
    assert m.call(t, clocks.clock_gettime, 0, 0) == -14


def test_resolution(m: NS, t: NS) -> None:
    for clock in (0, 1, 2, 3, 5, 7, 11, ~0 << 3 | 2):
        assert m.call(t, clocks.clock_getres, clock, AT) == 0 and t.get(AT, "<qq") == (0, 1)
    assert m.call(t, clocks.clock_getres, 12, 0) == -22


def test_rusage(m: NS, t: NS) -> None:
    for who in (0, -1, 1):
        assert m.call(t, clocks.getrusage, who, AT) == 0
    user, user_us, system, system_us, rss = t.get(AT, "<5q")
    assert (user, system) == (0, 0) and user_us + system_us > 0 and rss == 8192
    assert m.call(t, clocks.getrusage, 2, AT) == -22


def test_a_look_at_childrens_time_in_a_row_costs_nothing_extra(m: NS, t: NS) -> None:
    (t.cpu.parent or t.cpu).unable = True
    t.cpu.worked, before = 12, m.clock.now
    for others in (clocks.RUSAGE_CHILDREN, clocks.RUSAGE_THREAD):
        assert clocks.getrusage(m, t, (others & 0xFFFFFFFF, AT)) == 0 and m.clock.now - before < 100_000
    assert clocks.getrusage(m, t, (0, AT)) == 0 and m.clock.now - before > 10_000_000


@pytest.mark.parametrize("duration", [0, 1, 123_456_789, 3600 * SECOND])
def test_a_sleep_takes_exactly_as_long_as_asked(m: NS, t: NS, duration: int) -> None:
    request = t.put(AT, "<qq", *divmod(duration, SECOND))
    start = m.clock.now
    assert m.call(t, clocks.nanosleep, request, 0) == 0
    assert 0 <= m.clock.now - start - duration < 100_000


def test_absolute_sleep(m: NS, t: NS) -> None:
    request = t.put(AT, "<qq", 1_600_000_100, 0)
    assert m.call(t, clocks.clock_nanosleep, 0, 1, request, 0) == 0
    assert m.clock.realtime() == 1_600_000_100 * SECOND
    assert m.call(t, clocks.clock_nanosleep, 0, 1, request, 0) == 0


def test_a_sleep_until_a_time_that_has_passed_lets_others_run(m: NS, t: NS) -> None:
    park = clocks.clock_nanosleep(m, t, (1, 1, t.put(AT, "<qq", 0, 1), 0, 0, 0))  # type: ignore[arg-type]
    assert isinstance(park, Park) and park.deadline == 1


def test_impossible_sleeps(m: NS, t: NS) -> None:
    assert m.call(t, clocks.nanosleep, t.put(AT, "<qq", 0, SECOND), 0) == -22
    assert m.call(t, clocks.nanosleep, t.put(AT, "<qq", -1, 0), 0) == -22
    assert m.call(t, clocks.nanosleep, 0, 0) == -14
    assert m.call(t, clocks.clock_nanosleep, 3, 0, t.put(AT, "<qq", 0, 0), 0) == -95
    assert m.call(t, clocks.clock_nanosleep, 4, 0, AT, 0) == -95


def test_an_interrupted_sleep_tells_what_remains_and_goes_on(m: NS, t: NS) -> None:
    request = t.put(AT, "<qq", 10, 0)
    park = clocks.nanosleep(m, t, (request, 0x200, 0, 0, 0, 0))  # type: ignore[arg-type]
    assert isinstance(park, Park) and callable(park.interrupted)
    deadline = park.deadline
    m.clock.jump_to(m.clock.now + 4 * SECOND)
    assert park.interrupted() == -clocks.ERESTART_RESTARTBLOCK
    assert t.get(0x200, "<qq") == (6, 0)
    again = clocks.restart_syscall(m, t, (0,) * 6)  # type: ignore[arg-type]
    assert isinstance(again, Park) and again.deadline == deadline
    assert clocks.restart_syscall(m, t, (0,) * 6) == -4  # type: ignore[arg-type]


def test_a_sleep_on_a_cpu_clock(m: NS, t: NS) -> None:
    other = m.process(3)
    park = clocks.clock_nanosleep(m, t, (~3 << 3 & 2**64 - 1 | 2, 0, t.put(AT, "<qq", 0, 15_000), 0, 0, 0))  # type: ignore[arg-type]
    assert isinstance(park, Park) and park.deadline is None
    m.clock.charge(other.cpu)
    assert not m.woken
    m.clock.charge(other.cpu)
    assert m.woken == list(park.events)


def test_nobody_disciplines_the_clock(m: NS, t: NS) -> None:
    t.put(AT, "<I", 0)
    assert m.call(t, clocks.adjtimex, AT) == 5
    assert t.get(AT + 72, "<q")[0] == 1_600_000_000
    t.put(AT, "<I", 0)
    assert m.call(t, clocks.clock_adjtime, 0, AT) == 5
    t.put(AT, "<I", 1)
    assert m.call(t, clocks.adjtimex, AT) == -1
    assert m.call(t, clocks.clock_adjtime, 1, AT) == -95
