"""What is done in C for each call: the handler is asked, and what it says is answered or handed on."""

from __future__ import annotations

import errno
import os
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.decision import CONTINUE, Park
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import BOOT_NS, CALL_NS, Clock, CpuTime
from detbox.supervisor.guestclock import GuestClock
from detbox.supervisor.loop import Supervisor
from detbox.supervisor.task import Process, State, Task
from tests.unit.kernel.test_events import CALLS, PTRACE_CONT, guest, in_child

GETSID, EXECVE = NUMBERS["getsid"], NUMBERS["execve"]


class Loop:
    """What kernel/calls.c looks at, around one thread that runs.  ``heard``: what was left to the loop's methods;
    ``asked``: who may be counted from the answer on."""

    def __init__(self, tid: int, listener: int, handlers: dict[int, Any]) -> None:
        self.heard: list[tuple[Any, ...]] = []
        self.asked: list[Task] = []
        self.task = Task(tid, Process(tid, None, "1"), "1")
        self.task.state, self.task.quantum = State.RUNNING, 1 << 40
        self.clock = Clock(0)
        self.sup: Any = Supervisor.__new__(Supervisor)
        scheduler = SimpleNamespace(awaited={}, stirred=False)
        self.sup.m = SimpleNamespace(
            tasks={tid: self.task}, clock=self.clock, scheduler=scheduler, listener=listener,
            failed=lambda error: -error.errno,
        )  # fmt: skip
        self.sup.guest_clock = GuestClock(self.clock, True)
        self.sup.counting = SimpleNamespace(before_return=self.asked.append)
        self.sup.table, self.sup.calls = [handlers.get(number) for number in range(500)], [0] * 500
        self.sup.looking, self.sup.observers = frozenset(), []
        self.sup.running, self.sup.notifications, self.sup.outcome = 1, 0, None
        self.sup.__dict__["perform"] = self.perform

    def perform(self, task: Task, decision: Any) -> None:
        self.heard.append((task.nr, decision))


def test_calls_are_answered_without_the_loop() -> None:
    def body() -> bool:
        pid, listener = guest()
        asked: list[int] = []

        def getsid(m: Any, task: Task, args: tuple[int, ...]) -> int:
            assert task.state is State.HELD and loop.sup.running == 0 and args is task.args
            asked.append(args[0])
            return 1000 + args[0]

        loop = Loop(pid, listener, {GETSID: getsid, EXECVE: lambda m, task, args: CONTINUE})
        ticks: list[int] = []
        while event := _native.serve(loop.sup, listener, -1, 60_000, 20):
            if isinstance(event, int):
                ticks.append(event)
            elif os.WIFSTOPPED(event[1]):
                _native.ptrace_request(PTRACE_CONT, pid, 0, 0)
            else:
                break
        # It computes after its last call: that is when the time is over, and no sooner.
        assert ticks[0] == 20
        sup, task = loop.sup, loop.task
        assert asked == list(range(CALLS)) and sup.notifications == CALLS + 1 and sup.calls[GETSID] == CALLS
        assert loop.clock.now == BOOT_NS + (CALLS + 1) * CALL_NS and task.cpu.ns == task.process.cpu.ns
        assert task.quantum == (1 << 40) - CALLS - 1 and sup.running == 1 and sup.m.scheduler.stirred
        return not loop.heard and task.notif == 0 and not task.exposed

    assert in_child(body) == 0


def decided(decision: Any, change: str = "") -> list[tuple[Any, ...]]:
    """What is left to the loop when a handler decides so."""
    loop = Loop(1, -1, {GETSID: lambda m, task, args: decision})
    loop.task.nr, loop.task.state = GETSID, State.HELD
    if change == "observed":
        loop.sup.observers.append(print)
    elif change == "awaited":
        loop.sup.m.scheduler.awaited[1] = 1
    elif change == "counted":
        loop.task.process.counted = True
    elif change == "signalled":
        loop.task.process.signalled.append(loop.task)
    elif change == "data":
        loop.task.data[1] = 1
    elif change == "leaves":
        loop.task.data["leader_leaves"] = True
    _native.decide(loop.sup, loop.task)
    assert (loop.task.state, loop.task.exposed) == ((State.HELD, True) if loop.heard else (State.RUNNING, False))
    assert loop.task.native is (decision is CONTINUE and not loop.heard)
    assert loop.asked == ([loop.task] if change in ("awaited", "counted", "data") and not loop.heard else [])
    return loop.heard


def test_what_is_left_to_the_loop() -> None:
    park = Park(lambda wake: 0)
    assert decided(park) == [(GETSID, park)]
    for simple in 0, 1 << 63, -errno.ENOENT, CONTINUE:
        assert decided(simple) == []
        for change in "observed", "signalled", "leaves":
            assert decided(simple, change) == [(GETSID, simple)]
        for change in "awaited", "counted", "data":
            assert decided(simple, change) == []


def test_who_is_measured_does_not_look_alone() -> None:
    loop = Loop(1, -1, {GETSID: lambda m, task, args: 0})
    opened = []
    for data, measured in ({"gauge": 1}, True), ({"gauge": 1}, False), ({}, True):
        loop.task.nr, loop.task.data, loop.task.cpu.watching = GETSID, data, 1 << 20
        loop.sup.counting.measures = lambda task, measured=measured: measured
        _native.decide(loop.sup, loop.task)
        opened.append(bool(loop.sup.guest_clock.open))
    assert opened == [False, True, True] and len(loop.asked) == 2


def test_a_failure_is_a_decision() -> None:
    def handler(m: Any, task: Task, args: tuple[int, ...]) -> int:
        raise OSError(errno.EBADF, "no such descriptor")

    loop = Loop(1, -1, {GETSID: handler})
    loop.task.nr, loop.task.data = GETSID, {"leader_leaves": True}
    _native.decide(loop.sup, loop.task)
    assert loop.heard == [(GETSID, -errno.EBADF)]
    loop.sup.table[GETSID] = lambda m, task, args: 1 // 0
    with pytest.raises(ZeroDivisionError):
        _native.decide(loop.sup, loop.task)


def test_others_are_no_threads() -> None:
    with pytest.raises(TypeError):
        _native.charge(Clock(0), SimpleNamespace(ns=0), False)
    with pytest.raises(TypeError):
        _native.decide(SimpleNamespace(), Task(1, Process(1, None, "1"), "1"))
    with pytest.raises(TypeError):
        _native.know_clock(Clock, CpuTime, type("Queue", (), {"first": 0}), CALL_NS)
