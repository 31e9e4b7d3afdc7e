"""The policy: what happens to each system call, who decides it, and why.

The seccomp filter, the dispatch, ``docs/SYSCALLS.md``, ``detbox syscalls`` and a coverage test all
derive from :data:`TABLE`.  A call that has no row gets ENOSYS through the supervisor, which counts and
names it.  To add a call: one row here, one function in ``detbox.handlers``, one test.
"""

from __future__ import annotations

from detbox.policy import files, inout, machine, processes
from detbox.policy.row import Action, Case, Handler, Op, Row, Test

__all__ = ["BY_NAME", "BY_NUMBER", "LOOKING", "TABLE", "Action", "Case", "Handler", "Op", "Row", "Test"]

#: One row for each system call of x86-64, by number.
TABLE: tuple[Row, ...] = tuple(sorted(
    files.ROWS + inout.ROWS + processes.ROWS + machine.ROWS, key=lambda row: row.number))

BY_NUMBER: dict[int, Row] = {row.number: row for row in TABLE}
BY_NAME: dict[str, Row] = {row.name: row for row in TABLE}
if len(BY_NUMBER) != len(TABLE):
    raise ValueError("two rows for one system call")

#: Calls that only look at a clock or give way: repeated, they are a busy wait (see ``Clock.charge``).
LOOKING: frozenset[int] = frozenset(BY_NAME[name].number for name in (
    "time", "gettimeofday", "clock_gettime", "times", "getrusage", "sched_yield", "getitimer",
    "timer_gettime", "timerfd_gettime"))
