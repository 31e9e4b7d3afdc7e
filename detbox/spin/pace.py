"""When to try a proof, and how long: rarely enough that computing stays cheap."""

from __future__ import annotations

from dataclasses import dataclass

_FIRST_DELAY = 0.02
_LONGEST_DELAY = 2.0
_FIRST_LIMIT = 48
_LONGEST_LIMIT = 4000


@dataclass(slots=True)
class Pace:
    """The schedule of one thread's attempts; it eases when the thread has made calls in between.

    A step costs some 15 µs, so the attempts together take about 3 % of a long
    computation.  Only *when* a spin is found depends on real time, never what
    is found: an endless loop is still there at the next attempt.
    """

    delay: float = _FIRST_DELAY
    limit: int = _FIRST_LIMIT

    def failed(self) -> None:
        """The last attempt proved nothing: wait longer, look further."""
        self.delay = min(self.delay * 2.5, _LONGEST_DELAY)
        self.limit = min(self.limit * 2, _LONGEST_LIMIT)

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
