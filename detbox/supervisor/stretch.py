"""A stretch of a thread's code that is counted, from a call (or a signal handler's entry) on (see counting.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.records import record

if TYPE_CHECKING:
    from detbox.supervisor.other_processes import Reason

#: Key of a task's data: its stretch.
STRETCH = "counting_stretch"
#: The same: how often it has given way since its last call.
GAVE_WAY = "gave_way"
#: The same: turns of counted loops since its last call, and after how many more is looked at them (longloops.py).
LOOPED = "looped"
#: How many counted instructions stand for a nanosecond: about what they take, so that a counted wait is as long in
#: real time.
PER_NS = 4
#: The same of a time limit: as many as a fast processor executes, lest the limit is over for who would be done in time
#: natively.
PER_NS_LIMIT = 12
#: Stretches with fewer instructions are too common to mean that a program waits.
SHORTEST = 20_000
NO_LIMIT = 1 << 62


@record
class Stretch:
    """All figures are instructions.

    ``total``: of the stretch, if no call comes before.  ``piece``: how many are counted before the thread is looked
    at (looks.py); ``before``: those of the pieces that are over.
    ``others``: it is counted for the sake of others of its process (giving_way.py), and not of a timer; ``ready``: they
    are ready.  ``reason``: the same for the sake of other processes (other_processes.py); ``idle``: it is counted only
    because the next one may be.  ``most``: copies of its code that there may be; with more it is not counted any more.
    ``per_ns``: how many of the instructions stand for a nanosecond.  ``whole``: at its end all that it stands for has
    passed, and not only the time up to the next deadline: where many wait, each turn would bring the last of them
    nearer by a part of what it costs.  ``far``: they wait for a time that is far away.
    """

    total: int
    piece: int
    before: int = 0
    others: bool = False
    ready: bool = False
    reason: Reason | None = None
    idle: bool = False
    most: int = NO_LIMIT
    per_ns: int = PER_NS
    whole: bool = False
    far: bool = False

    @property
    def for_other_processes(self) -> bool:
        """Whether it is counted for the sake of other processes, or would be."""
        return self.reason is not None or self.idle
