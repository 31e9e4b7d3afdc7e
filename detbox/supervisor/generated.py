"""Processes that execute code which they have generated: a just-in-time compiler's.

Generated code cannot be counted, so that its thread is never made to give way; and those that it wakes do things for
it: they compile what is executed often.  HotSpot's compiler would get nowhere while a loop without a call is
interpreted: such a loop took ten times as long, or never ended if another thread was to end it.  So who wakes others
lets them go first.  Not always: where all is compiled at once there is much more to compile, since the thresholds fall
with the length of the compiler's queue (`javac` takes twice as long).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.kernel.mappings import Mapping, executable_mappings
from detbox.machine.constants import COPIES
from detbox.records import record
from detbox.supervisor.image import OWN_MEMORY

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_KEY = "generated code"  # in the data of an address space, and of a thread
#: How often those that were woken go first: at first, and of so many times once.
ALLOWED, ONE_IN = 256, 16
#: And behind that, of each thread.
EACH = 32
#: The first so many times it is looked each time whether there is such code; then after a part of the times so far.
OFTEN, SELDOM = 64, 8


@record
class _Known:
    """How often somebody has ``woken`` others, and has let them go ``first``; and whether there is memory for code that
    is in no file, for which it looks the ``next`` time."""

    woken: int = 0
    next: int = 1
    first: int = 0
    generates: bool = False


def lets_go_first(m: Machine, task: Task) -> bool:
    """Whether those that a thread has woken go first.

    To look for generated code takes as long as some calls do, so that is done less and less often.
    """
    known: _Known = task.process.mm.data.setdefault(_KEY, _Known())
    known.woken += 1
    if not known.generates and known.woken >= known.next:
        known.next = known.woken + (1 if known.woken < OFTEN else known.woken // SELDOM)
        known.generates = bool(code_without_file(m, task))
    if not known.generates:
        return False
    if known.first >= ALLOWED + known.woken // ONE_IN:
        return _for_a_new_thread(task)
    known.first += 1
    return True


def _for_a_new_thread(task: Task) -> bool:
    """Whether those that a thread has woken go first, although its process has spent all: they do the first times that
    it wakes anybody since that, because what a new thread begins with may be a loop without a call that waits."""
    times: int = task.data.get(_KEY, 0)
    task.data[_KEY] = times + 1
    return times < EACH


def code_without_file(m: Machine, task: Task) -> list[Mapping]:
    """A thread's memory for code that is in no file."""
    own = (COPIES, task.process.data.get(OWN_MEMORY, (0, 0)))
    return [
        each
        for each in executable_mappings(m.proc_fd, task.tid)
        if not each.ino and not each.name and not any(a <= each.start < b for a, b in own)
    ]
