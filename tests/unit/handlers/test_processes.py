"""How many threads a run has."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.decision import CONTINUE
from detbox.handlers import processes
from detbox.machine.creds import Creds
from detbox.machine.limits import TASKS_AT_MOST

SIGCHLD = 17


@pytest.mark.parametrize(
    ("threads", "flags", "result"),
    [
        (TASKS_AT_MOST - 1, processes.CLONE_VM | processes.CLONE_THREAD, CONTINUE),
        (TASKS_AT_MOST, processes.CLONE_VM | processes.CLONE_THREAD, -errno.EAGAIN),
        (TASKS_AT_MOST, SIGCHLD, CONTINUE),  # a process more ends the run
    ],
)
def test_who_makes_too_many_threads_is_told(threads: int, flags: int, result: object) -> None:
    machine: Any = SimpleNamespace(tasks=dict.fromkeys(range(threads)))
    task: Any = SimpleNamespace(data={}, process=SimpleNamespace(files=None, data={}, creds=Creds.of(0, 0)))
    assert processes.clone(machine, task, (flags, 0, 0, 0, 0, 0)) == result
