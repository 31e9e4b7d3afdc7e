"""Says on a terminal which phase a long piece of work is in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

_REFRESH_S = 0.2


def colours() -> bool:
    """Whether standard output is a terminal that shows colours, and the user wants them (no-color.org)."""
    return os.isatty(1) and not os.environ.get("NO_COLOR") and os.environ.get("TERM", "dumb") != "dumb"


@contextmanager
def phases() -> Iterator[Callable[[str], None]]:
    """A line with the phase and the elapsed time, if standard error is a terminal."""
    if not os.isatty(2):
        yield lambda phase: None
        return
    started, said = time.monotonic(), ["starting"]

    def show(*_: object) -> None:
        width = max(20, os.get_terminal_size(2).columns)
        text = f"{said[-1]}, {time.monotonic() - started:.0f} s"
        os.write(2, f"\r\033[K{text[: width - 1]}".encode())

    before = signal.signal(signal.SIGALRM, show)
    signal.setitimer(signal.ITIMER_REAL, _REFRESH_S, _REFRESH_S)
    try:
        yield said.append
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        os.write(2, b"\r\033[K")
