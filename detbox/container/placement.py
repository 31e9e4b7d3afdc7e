"""Keeps a run's supervisor and guest on one processor, as long as nobody else wants it.

They take turns: the one sleeps while the other runs, so a second processor gains nothing.  It costs: the kernel may
move whoever has been woken to another processor, whose interruption takes longer than the call that is waited for (on a
virtual machine 118 µs instead of 15 for open, read and close, and ten times the processor time).
Once bound to a processor, the run has lost the kernel's balancing, so the process that waits for the run's end looks
at it: another processor is taken if this one is wanted by others, and the kernel chooses again if all are busy.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Mapping

from detbox.container.usage import processes
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.records import NamedTuple

# The time between two looks doubles as long as nothing has to be changed: a look takes 1 to 2 ms.
_FIRST_S, _PAUSE_S, _LONGEST_S = 0.1, 0.25, 1.0
_SHARE = 50  # a look may take one of so many parts of the time until the next
_TICKS = os.sysconf("SC_CLK_TCK")
#: Shares of a processor's time: what others may use of a run's own, and what makes another one worth taking.
_BEARABLE, _IDLE = 0.25, 0.5


def stay_here() -> None:
    """This process, and all that it starts, stay on the processor on which the kernel has put it."""
    cpu = bytearray(4)
    _native.raw_syscall(NUMBERS["getcpu"], cpu, 0, 0)
    with contextlib.suppress(OSError):
        os.sched_setaffinity(0, {int.from_bytes(cpu, "little")})


def choose(allowed: frozenset[int], bound: frozenset[int], idle: Mapping[int, float], own: float) -> frozenset[int]:
    """The processors for the next time: one, or all that are ``allowed``.

    ``bound``: those of the time before; ``idle``: each one's share of time without work; ``own``: how much of a
    processor's time the run has used.
    """
    if len(bound) == 1 and 1 - idle.get(min(bound), 0) - own < _BEARABLE:
        return bound
    free = [cpu for cpu in sorted(allowed - bound or allowed) if idle.get(cpu, 0) >= _IDLE]
    return frozenset((free[_any(len(free))],)) if free else allowed


def _any(count: int) -> int:
    return int.from_bytes(os.urandom(2), "little") % count


class _Sample(NamedTuple):
    """Sums since the start: seconds."""

    at: float
    own: float
    idle: Mapping[int, float]


class Placement:
    """Looks at one run.  ``keeper``: the supervisor's parent."""

    def __init__(self, keeper: int) -> None:
        self._keeper = keeper
        self._allowed = frozenset(os.sched_getaffinity(0))
        self._due = time.monotonic() + _FIRST_S
        self._pause = _PAUSE_S
        self._last = _Sample(time.monotonic(), 0, _idle()) if len(self._allowed) > 1 else None

    def left(self) -> float | None:
        """Seconds until the next look; None if there is nothing to choose."""
        return max(0.0, self._due - time.monotonic()) if len(self._allowed) > 1 else None

    def look(self) -> None:
        """Look if it is time to, and move the run."""
        begin = time.monotonic()
        if len(self._allowed) < 2 or begin < self._due:
            return
        self._pause = min(2 * self._pause, _LONGEST_S)
        with contextlib.suppress(OSError, ValueError, IndexError):  # processes end meanwhile
            self._move(processes(self._keeper))
        end = time.monotonic()
        # Runs that share a processor do not look at the same time, lest they leave it together.
        self._due = end + max(self._pause * (0.7 + _any(7) / 10), (end - begin) * _SHARE)

    def _move(self, pids: list[int]) -> None:
        if len(pids) < 2:
            return
        now = _Sample(time.monotonic(), sum(map(_used, pids)), _idle())
        before, self._last = self._last, now
        assert before is not None
        elapsed = now.at - before.at
        idle = {cpu: (now.idle[cpu] - before.idle.get(cpu, 0)) / elapsed for cpu in now.idle}
        bound = frozenset(os.sched_getaffinity(pids[0]))
        chosen = choose(self._allowed, bound, idle, (now.own - before.own) / elapsed)
        if chosen == bound:
            return
        self._pause = _PAUSE_S
        for pid in pids:
            for task in os.listdir(f"/proc/{pid}/task"):
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(int(task), chosen)


def _used(pid: int) -> float:
    """Seconds of processor time of a process and of the children that it has waited for."""
    with open(f"/proc/{pid}/stat", "rb") as file:
        fields = file.read().rpartition(b")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS


def _idle() -> dict[int, float]:
    """Seconds that each processor has had nothing to do (proc_stat(5))."""
    found = {}
    with open("/proc/stat", encoding="utf-8") as file:
        for line in file:
            name, *fields = line.split()
            if not name.startswith("cpu"):
                break
            if name != "cpu":
                found[int(name[3:])] = (int(fields[3]) + int(fields[4])) / _TICKS
    return found
