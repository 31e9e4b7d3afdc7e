"""Says on a terminal how far a long piece of work is, and ends it cleanly when it is to end."""

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
        width = os.get_terminal_size(2).columns or 80  # some terminals do not know
        text = f"{said[-1]}, {time.monotonic() - started:.0f} s"
        os.write(2, f"\r\033[K{text[: width - 1]}".encode())

    before = signal.signal(signal.SIGALRM, show)
    mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGALRM})  # it may be inherited
    signal.setitimer(signal.ITIMER_REAL, _REFRESH_S, _REFRESH_S)
    try:
        yield said.append
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGALRM, before)
        os.write(2, b"\r\033[K")


@contextmanager
def bar(what: str, total: int) -> Iterator[Callable[[int], None]]:
    """A progress bar, if standard error is a terminal; it is told how much of ``total`` bytes is done."""
    if not os.isatty(2):
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=total or None)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """SIGTERM and SIGHUP end the work as Ctrl-C does, so that nothing half-made is left."""
    numbers = (signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, signal.default_int_handler) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
