"""Notices which calls have armed a timer or a limit, for those who then look for loops that wait for its signal."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from detbox.kernel.numbers import NUMBERS

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.loop import Handler, Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

#: Calls that arm a timer whose expiration is a signal.
TIMERS = ("setitimer", "alarm", "timer_settime")
#: Calls that set limits; that of processor time ends in a signal too.
LIMITS = ("setrlimit", "prlimit64")


def watch(sup: Supervisor, names: Iterable[str], then: Callable[[Task], None]) -> None:
    """Have ``then(task)`` called after each of the named calls that succeeds."""
    for name in names:
        handler = sup.table[NUMBERS[name]]
        if handler is not None:
            sup.table[NUMBERS[name]] = _followed(handler, then)


def _followed(handler: Handler, then: Callable[[Task], None]) -> Handler:
    def call(m: Machine, task: Task, arguments: tuple[int, ...]) -> Decision:
        decision = handler(m, task, arguments)
        if isinstance(decision, int) and decision >= 0:
            then(task)
        return decision

    return call
