"""Who is kept waiting by a thread that computes without a call."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from detbox.decision import Park
from detbox.machine.clock import BOOT_NS, Clock
from detbox.supervisor import overdue
from detbox.supervisor.overdue import ENDLESS, ENDLESS_ALONE, SLICE, Overdue
from detbox.supervisor.task import Process, Task


def _resume(wake: object) -> int:
    return 0


@pytest.fixture
def family() -> dict[str, Task]:
    """Threads: of a process, its child, its grandchild (two) and another child."""
    first = Process(2, None, "1")
    child, other = Process(3, first, "1.1"), Process(4, first, "1.2")
    grandchild = Process(5, child, "1.1.1")
    each = {"first": first, "child": child, "other": other, "computes": grandchild, "thread": grandchild}
    return {name: Task(number, process, process.lineage) for number, (name, process) in enumerate(each.items(), 2)}


def waited_for(family: dict[str, Task], used: float, sleeper: str = "", ready: str = "") -> int | None:
    """What is to pass while the grandchild computes and others sleep for a second or are ready."""
    clock = Clock(0)
    parked = {}
    if sleeper:
        task = family[sleeper]
        task.park = Park(_resume, deadline=BOOT_NS + 10**9)
        clock.timers.add(BOOT_NS + 10**9, lambda: None)
        parked[task] = None
    scheduler = SimpleNamespace(ready=[family[ready]] if ready else [], deferred={}, parked=parked)
    sup: Any = SimpleNamespace(m=SimpleNamespace(clock=clock, scheduler=scheduler))
    return Overdue(sup)._waited_for(family["computes"], used)


@pytest.mark.parametrize("ready", ["first", "other"])
def test_who_is_ready_gets_turns(family: dict[str, Task], ready: str) -> None:
    assert waited_for(family, ENDLESS + 1, ready=ready) == SLICE


@pytest.mark.parametrize("sleeper", ["first", "child"])
def test_time_passes_for_those_above(family: dict[str, Task], sleeper: str) -> None:
    assert waited_for(family, ENDLESS + 1, sleeper) == 10**9


def test_own_threads_wait_longer(family: dict[str, Task]) -> None:
    assert waited_for(family, ENDLESS + 1, "thread") is None
    assert waited_for(family, ENDLESS_ALONE + 1, "thread") == 10**9
    assert waited_for(family, ENDLESS + 1, ready="thread") is None
    assert waited_for(family, ENDLESS_ALONE + 1, ready="thread") == SLICE


def test_nobody_else_is_waited_for(family: dict[str, Task]) -> None:
    assert waited_for(family, 1000.0, "other") is None
    assert waited_for(family, 1000.0) is None
    assert overdue.LEAST < ENDLESS
