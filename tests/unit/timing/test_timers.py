"""Handlers of alarms, interval timers and POSIX timers."""

from __future__ import annotations

import signal
from types import SimpleNamespace as NS

import pytest

from detbox.handlers import timers
from detbox.machine.clock import CALL_NS

AT, OLD = 0x100, 0x200
SECOND = 10**9


def signals(m: NS) -> list[int]:
    return [signo for signo, _ in m.sent]


def test_alarm(m: NS, t: NS) -> None:
    assert m.call(t, timers.alarm, 10) == 0
    m.pass_time(4 * SECOND)
    assert m.call(t, timers.alarm, 5) == 6
    m.pass_time(6 * SECOND)
    assert signals(m) == [signal.SIGALRM]
    assert m.call(t, timers.alarm, 0) == 0


def test_interval_timer(m: NS, t: NS) -> None:
    t.put(AT, "<4q", 1, 500_000, 2, 0)
    assert m.call(t, timers.setitimer, 0, AT, 0) == 0
    m.pass_time(2 * SECOND - 1)
    assert not m.sent
    m.pass_time(2 * SECOND)
    assert signals(m) == [signal.SIGALRM] * 2
    assert m.sent[0][1]["code"] == timers.SI_KERNEL
    assert m.call(t, timers.getitimer, 0, AT) == 0
    assert t.get(AT, "<3q") == (1, 500_000, 0)
    t.put(AT, "<4q", 0, 0, 0, 0)
    assert m.call(t, timers.setitimer, 0, AT, OLD) == 0
    assert t.get(OLD, "<2q") == (1, 500_000)
    m.pass_time(9 * SECOND)
    assert len(m.sent) == 2
    assert m.call(t, timers.setitimer, 3, AT, 0) == -22
    assert m.call(t, timers.setitimer, 0, t.put(AT, "<4q", 0, 0, 0, 10**6), 0) == -22


def test_timers_on_cpu_time(m: NS, t: NS) -> None:
    t.put(AT, "<4q", 0, 0, 0, 100)
    assert m.call(t, timers.setitimer, 2, AT, 0) == 0
    m.pass_time(9 * SECOND)
    assert not m.sent
    for _ in range(100_000 // CALL_NS):
        m.clock.charge(t.cpu)
    assert signals(m) == [signal.SIGPROF]


def create(m: NS, t: NS, clock: int = 1, notify: int = 0, signo: int = 40, tid: int = 0) -> int:
    t.put(AT, "<Qiii", 77, signo, notify, tid)
    result: int = m.call(t, timers.timer_create, clock, AT, OLD)
    return result or t.get(OLD, "<i")[0]


def settime(m: NS, t: NS, ident: int, value: int, interval: int = 0, flags: int = 0) -> int:
    t.put(AT, "<4q", *divmod(interval, SECOND), *divmod(value, SECOND))
    result: int = m.call(t, timers.timer_settime, ident, flags, AT, OLD)
    return result


def test_posix_timer(m: NS, t: NS, monkeypatch: pytest.MonkeyPatch) -> None:
    pending = True
    monkeypatch.setattr(timers, "_is_pending", lambda m, posix: pending and len(m.sent) == 1)
    assert [create(m, t), create(m, t)] == [0, 1]
    assert settime(m, t, 1, 3 * SECOND, SECOND) == 0
    m.pass_time(3 * SECOND - 1)
    assert not m.sent
    m.pass_time(2 * SECOND + 1000)
    assert m.sent == [(40, {"code": -2, "timerid": 1, "overrun": 0, "value": 77})]
    assert m.call(t, timers.timer_getoverrun, 1) == 0
    pending = False
    assert m.call(t, timers.timer_getoverrun, 1) == 2
    assert m.call(t, timers.timer_gettime, 1, AT) == 0
    assert t.get(AT, "<3q") == (1, 0, 0)
    assert m.call(t, timers.timer_delete, 1) == 0
    assert m.call(t, timers.timer_gettime, 1, AT) == -22
    m.pass_time(9 * SECOND)
    assert len(m.sent) == 1


def test_absolute_times(m: NS, t: NS, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timers, "_is_pending", lambda m, posix: False)
    wall, past = create(m, t, clock=0), create(m, t, clock=1)
    settime(m, t, wall, 1_600_000_007 * SECOND, flags=1)
    settime(m, t, past, 999 * SECOND, SECOND, flags=1)
    m.clock.charge(t.cpu)
    assert m.sent[0][1] == {"code": -2, "timerid": past, "overrun": 1, "value": 77}
    m.pass_time(7 * SECOND)
    assert m.clock.realtime() - 1_600_000_007 * SECOND < SECOND
    assert sum(details["timerid"] == wall for _, details in m.sent) == 1


def test_what_cannot_be_created(m: NS, t: NS) -> None:
    assert create(m, t, clock=4) == -95
    assert create(m, t, clock=12) == -22
    assert create(m, t, signo=65) == -22
    assert create(m, t, notify=3) == -22
    assert create(m, t, notify=4, tid=9) == -22
    assert create(m, t, notify=4, tid=t.tid) == 0
    assert settime(m, t, 5, SECOND) == -22


def test_exec_ends_posix_timers_but_no_alarm(m: NS, t: NS) -> None:
    settime(m, t, create(m, t), SECOND)
    m.call(t, timers.alarm, 2)
    timers.after_exec(m, t)  # type: ignore[arg-type]
    m.pass_time(3 * SECOND)
    assert signals(m) == [signal.SIGALRM]
    assert create(m, t) == 1


def test_exit_ends_all(m: NS, t: NS) -> None:
    settime(m, t, create(m, t), SECOND)
    m.call(t, timers.alarm, 2)
    timers.after_exit(m, t.process)  # type: ignore[arg-type]
    m.pass_time(3 * SECOND)
    assert not m.sent
