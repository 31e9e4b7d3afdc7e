"""What is done when the running thread has made no call for a while, and how long until that is done again."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.supervisor.task import State

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor

#: Real milliseconds without an event before the loop asks what the running thread is doing; and the longest wait then.
TICK_MS, LONGEST_TICK_MS = 20, 60_000


def tick(sup: Supervisor, waited: int) -> int:
    """The running thread has made no call for ``waited`` milliseconds; how many to wait for the next tick.

    What the looks below depend on changes with events alone, so each of them can tell when its next one is due.
    """
    task = next((each for each in sup.m.tasks.values() if each.state is State.RUNNING), None)
    if task is None:
        return TICK_MS
    if sup.counting.copying.inside(task):
        return LONGEST_TICK_MS
    due = sup.spinning.on_tick(task, waited / 1000)
    if task.state is State.RUNNING:
        due = min(due, sup.overdue.on_tick(task, waited / 1000))
    if task.state is not State.RUNNING:
        return TICK_MS
    return max(TICK_MS, min(int(due * 1000) + 1, LONGEST_TICK_MS))
