"""One measurement of how much a thread computes between its looks at a clock (see gauging.py)."""

from __future__ import annotations

from detbox.records import record

#: Key of a task's data: its measurement.
GAUGE = "gauge"
#: What an instruction counts that is stepped over: a call that the filter decides alone.
GAUGE_WEIGHT = 2_000
#: Instructions that cannot be copied, in one measurement; generated code has nothing else.
STEPS = 100
#: Instructions of a stretch that are counted; so many times more if they were not enough.
LEAST, MOST, GROWTH = 1_000_000, 16_000_000_000, 8
#: Copies that one measurement may make at most.
MOST_AT_ONCE = 1_280
#: What a measurement takes, in us: for each copy, for a stretch that begins with a stop, and for a step; and how many
#: instructions must have been counted for one of them to be earned again.  With less than that none is begun.
COPY_US, STRETCH_US, STEP_US, PER_US = 14, 150, 20, 16_000
TOO_LITTLE = 2_000
#: Who executes so many instructions for each copy is in a loop: copies of it are worth making.
FAMILIAR = 1_000


@record
class Rise:
    """What is known of a row of looks whose work may grow (rising.py).

    ``last``: instructions of the last four stretches; ``long``: whether one has been long; ``alike``: how often they
    were the same by turns; ``counted``: instructions before this measurement.
    """

    last: tuple[int, ...] = ()
    long: bool = False
    alike: int = 0
    counted: int = 0


@record
class Gauge:
    """A measurement that is under way.

    ``budget``: instructions that are counted of one stretch.  ``counting``: whether the thread is in a stretch now.
    ``first``: copies that its program had at the beginning; ``made``: that it may have at the end; ``steps``: that it
    may still make.  ``former``: what was known before.  ``row``: looks of the row that is measured as a whole, or 0.
    ``following``: each stretch is counted, and the thread stays in its copies (following.py), up to so many more
    ``looks`` and ``calls`` (stopwatch.py); ``last``: the total at the last call.  ``rise``: it is followed
    because its work may grow.
    """

    budget: int
    former: int | None
    first: int
    made: int
    steps: int = STEPS
    counting: bool = False
    stretches: int = 0
    total: int = 0
    row: int = 0
    following: bool = False
    looks: int = 0
    calls: int = 0
    last: int = 0
    rise: Rise | None = None

    def may_go_on(self, made: int, left: int) -> bool:
        """Whether the measurement is still worth it, with so many copies made, and so much of its budget left."""
        return self.steps > 0 and made <= self.made + (self.budget - left) // FAMILIAR

    def extend(self, made: int) -> None:
        """A stretch is longer than what was to be counted of it, ``made`` copies having been made: more is."""
        self.budget = min(GROWTH * self.budget, MOST)
        self.made, self.steps = made + MOST_AT_ONCE, STEPS

    def spent(self, made: int) -> int:
        """What the measurement took, in us, if so many copies have been made."""
        return COPY_US * (made - self.first) + STRETCH_US * self.stretches + STEP_US * (STEPS - self.steps)
