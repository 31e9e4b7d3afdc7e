"""An interval timer: expires at a virtual time, and again after each interval."""

from __future__ import annotations

from collections.abc import Callable

from detbox.machine.clock import Timer, Timers


class IntervalTimer:
    """Calls ``fire(missed)`` at each expiration; ``missed``: further ones that were due by then.

    ``now()`` is the time by which ``queue`` expires (virtual monotonic time or a CPU time), in ns.
    """

    __slots__ = ("interval", "_queue", "_now", "_fire", "_deadline", "_handle")

    def __init__(self, queue: Timers, now: Callable[[], int], fire: Callable[[int], None]) -> None:
        self.interval = 0
        self._queue = queue
        self._now = now
        self._fire = fire
        self._deadline: int | None = None
        self._handle: Timer | None = None

    def arm(self, deadline: int, interval: int) -> None:
        """Expire at ``deadline`` and then every ``interval`` ns (0: never again)."""
        self.disarm()
        self.interval = interval
        self._set(deadline)

    def disarm(self) -> None:
        """Do not expire any more."""
        self._queue.cancel(self._handle)
        self._handle = self._deadline = None

    def remaining(self) -> int:
        """Nanoseconds to the next expiration, at least 1; 0 if there is none."""
        return 0 if self._deadline is None else max(self._deadline - self._now(), 1)

    def _set(self, deadline: int) -> None:
        self._deadline = deadline
        self._handle = self._queue.add(deadline, self._expire)

    def _expire(self) -> None:
        deadline, interval = self._deadline or 0, self.interval
        self._deadline = self._handle = None
        missed = 0
        if interval:
            missed = max(self._now() - deadline, 0) // interval
            self._set(deadline + (missed + 1) * interval)
        self._fire(missed)
