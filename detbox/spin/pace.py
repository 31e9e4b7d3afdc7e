"""When to try a proof, and how long: rarely enough that computing stays cheap."""

from __future__ import annotations

from detbox.records import record

_FIRST_DELAY = 0.02
_LONGEST_DELAY = 2.0
_FIRST_LIMIT = 96
#: No attempt looks further.
LONGEST_LIMIT = 4000
_LONGEST_SURVEY = 1024
# How much longer than an attempt the thread may compute before the next one.
_PATIENCE = 200


@record
class Pace:
    """The schedule of one thread's attempts; it eases when the thread has made calls in between.

    A step costs 4 to 20 µs, and more if it is examined.  The attempts together take some 0.5 % of a
    long computation, whatever they cost on this machine.  Only *when* a spin is found depends on real time,
    never what is found: an endless loop is still there at the next attempt.
    """

    delay: float = _FIRST_DELAY
    limit: int = _FIRST_LIMIT

    @property
    def survey(self) -> int:
        """How many instructions a survey may take: it comes before most walks."""
        return min(self.limit * 2 // 3, _LONGEST_SURVEY)

    def failed(self, took: float) -> None:
        """The last attempt proved nothing in ``took`` seconds: wait longer, look further."""
        self.delay = max(min(self.delay * 2.5, _LONGEST_DELAY), took * _PATIENCE)
        self.limit = min(self.limit * 2, LONGEST_LIMIT)

    def eased(self) -> None:
        """The thread has made calls since the last attempt: what it does now may be a spin.

        Only halved, since a compiler that writes something every 50 ms never spins.
        """
        self.delay = max(self.delay / 2, _FIRST_DELAY)
        self.limit = max(self.limit // 2, _FIRST_LIMIT)

    def restart(self) -> None:
        """The thread was found to spin."""
        self.delay = _FIRST_DELAY
        self.limit = _FIRST_LIMIT
