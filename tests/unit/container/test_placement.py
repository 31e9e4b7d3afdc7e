"""Which processor a run stays on."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from detbox.container import placement
from detbox.container.usage import processes

ALL = frozenset(range(4))
BUSY = dict.fromkeys(ALL, 0.0)


def chosen(bound: frozenset[int], idle: dict[int, float], own: float) -> set[frozenset[int]]:
    return {placement.choose(ALL, bound, idle, own) for _ in range(50)}


def test_a_run_that_nobody_disturbs_stays() -> None:
    assert chosen(frozenset((1,)), BUSY | {1: 0.1, 2: 1.0}, 0.8) == {frozenset((1,))}
    assert chosen(frozenset((1,)), BUSY | {1: 0.9, 2: 1.0}, 0.05) == {frozenset((1,))}


def test_it_leaves_a_processor_that_others_want() -> None:
    assert chosen(frozenset((1,)), BUSY | {2: 0.9, 3: 0.6}, 0.5) == {frozenset((2,)), frozenset((3,))}


def test_the_kernel_balances_when_all_are_busy() -> None:
    assert chosen(frozenset((1,)), BUSY, 0.5) == {ALL}
    assert chosen(ALL, BUSY, 0.5) == {ALL}


def test_a_free_run_takes_an_idle_processor() -> None:
    assert chosen(ALL, BUSY | {0: 0.6}, 0.4) == {frozenset((0,))}


def test_a_run_is_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    command = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"
    inner = command.format("import os, time; os.write(1, b'r'); time.sleep(99)")
    allowed = frozenset(os.sched_getaffinity(0))
    one = frozenset((min(allowed),))
    looks: list[tuple[frozenset[int], frozenset[int], dict[int, float], float]] = []
    monkeypatch.setattr(placement, "choose", lambda *facts: looks.append(facts) or one)
    with subprocess.Popen([sys.executable, "-c", command.format(inner)], stdout=subprocess.PIPE) as keeper:
        try:
            assert keeper.stdout is not None and keeper.stdout.read(1) == b"r"
            watch = placement.Placement(keeper.pid)
            while not looks and watch.left() is not None:
                time.sleep(watch.left() or 0)
                watch.look()
            for facts in looks:
                assert facts[:2] == (allowed, allowed) and set(facts[2]) >= allowed and 0 <= facts[3] < 1
            if looks:
                assert {frozenset(os.sched_getaffinity(pid)) for pid in processes(keeper.pid)} == {one}
        finally:
            for pid in [keeper.pid, *processes(keeper.pid)]:
                os.kill(pid, 9)
