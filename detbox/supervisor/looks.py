"""When a thread that is counted for others is looked at, since it may be one that spins.

A look costs some hundred steps, and what computes for long is mostly no spin: each one that has found none is followed
by the next after a longer time, also if the thread has given way in between.  Calls make that shorter again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.records import record
from detbox.supervisor.stretch import GAVE_WAY

if TYPE_CHECKING:
    from detbox.supervisor.task import Task

#: After so many instructions a thread is looked at; each time so many times more, and at most.
PIECE, LONGER, LONGEST = 40_000_000, 8, 20_480_000_000
#: How closely (see Pace in detbox.spin): at first, each time so many times more, and at most.
LIMIT, CLOSER, CLOSEST = 96, 4, 4_000
#: Where so many spins of a process have been found threads are looked at after fewer instructions.
SPINS, SOON = 8, 2_000_000


@record
class Looks:
    """Instructions: up to the ``first`` look at a thread, those that are ``left`` up to the next one, and how many lie
    between them (``period``).  ``limit``: how closely it is looked at the next time."""

    first: int
    left: int
    period: int
    limit: int = LIMIT

    def looked(self) -> int:
        """A look is due; how closely."""
        limit = self.limit
        self.left = self.period = min(LONGER * self.period, LONGEST)
        self.limit = min(CLOSER * limit, CLOSEST)
        return limit

    def eased(self) -> None:
        """The thread has made a call: what it does now may be a spin."""
        self.left = self.period = max(self.period // 2, self.first)
        self.limit = max(self.limit // 2, LIMIT)


def looks_of(task: Task, spins: int) -> Looks:
    """For a stretch that begins now; ``spins``: how many have been found in its process."""
    first = PIECE if spins < SPINS else SOON
    looks: Looks | None = task.looks
    if looks is None or looks.first != first:
        looks = task.looks = Looks(first, first, first)
    elif GAVE_WAY not in task.data:
        looks.eased()
    return looks
