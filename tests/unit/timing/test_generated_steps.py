"""How many instructions of generated code are stepped, for the sake of a timer."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.supervisor import copying
from detbox.supervisor.copying import DEARER, EXPIRED, STEP_WEIGHT, STEPS, Copying
from detbox.supervisor.task import Process, Task

INTERVAL = 500 * STEP_WEIGHT


class Stepped:
    """A thread in generated code, which is stepped from one signal of its timer to the next."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = self.signals = 0
        self.free = False
        self.task = Task(2, Process(2, None, "1"), "1")
        copies = SimpleNamespace(full=False, entry=lambda *_, **__: None)
        self.copying: Any = Copying.__new__(Copying)
        self.copying.sup = SimpleNamespace(control=os.pipe()[0])
        self.copying.original = None
        self.copying._copies = {self.task.process.mm: copies}
        self.copying._known = bytearray(500)
        self.copying._reached = self._signal
        self.copying.let_go = self._let_go
        monkeypatch.setattr(copying, "TaskMemory", lambda *_: SimpleNamespace(read=lambda *_: b"\x90\x90"))
        monkeypatch.setattr(copying._native, "get_regs", lambda tid: bytes(27 * 8))
        monkeypatch.setattr(copying._native, "step_many", self._step)

    def _step(self, *_: object) -> tuple[int, int, int]:
        self.steps += 1
        return 1, 0, 0

    def _signal(self, task: Task) -> None:
        self.signals += 1
        task.process.data[EXPIRED] = task.process.data.get(EXPIRED, 0) + 1

    def _let_go(self, task: Task) -> None:
        self.free = True

    def run(self, most: int) -> None:
        while not self.free and self.signals < most:
            self.copying._go_on(self.task, INTERVAL)


def test_a_timer_that_comes_once_has_all_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = Stepped(monkeypatch)
    stepped.copying._go_on(stepped.task, (STEPS - 1) * STEP_WEIGHT)
    assert (stepped.steps, stepped.signals, stepped.free) == (STEPS - 1, 1, False)


def test_the_first_signals_come_after_as_many_steps_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = Stepped(monkeypatch)
    stepped.run(DEARER)
    assert stepped.steps == DEARER * 500


def test_as_many_signals_come_for_a_tenth_of_the_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    stepped = Stepped(monkeypatch)
    stepped.run(10_000)
    assert stepped.free and 550 < stepped.signals <= 600 and stepped.steps < STEPS // 8
