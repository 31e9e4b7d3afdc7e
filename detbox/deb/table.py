"""The live table of a survey: on a terminal it is redrawn, elsewhere each result is one line."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator

_SHOWN = 12


@contextlib.contextmanager
def live(total: int) -> Iterator[Callable[[str, str], None]]:
    """A function that takes (package, status).  ``total``: how many packages there are to be."""
    states: dict[str, str] = {}
    lock, started = threading.Lock(), time.monotonic()
    terminal = os.isatty(2)
    height = 0

    def notice(name: str, status: str) -> None:
        nonlocal height
        with lock:
            states[name] = status
            if not terminal:
                if status != "running":
                    sys.stderr.write(f"{name}: {status}\n")
                    sys.stderr.flush()
                return
            text = draw(states, total, time.monotonic() - started, shutil.get_terminal_size().columns)
            sys.stderr.write((f"\033[{height}A" if height else "") + "".join(f"\r\033[K{line}\n" for line in text))
            sys.stderr.flush()
            height = len(text)

    yield notice


def draw(states: dict[str, str], total: int, elapsed_s: float, columns: int) -> list[str]:
    """The table as lines of at most ``columns`` characters."""
    done = {name: status for name, status in states.items() if status != "running"}
    served = sum(status != "not served" for status in done.values())
    width = max(10, columns - 30)
    filled = min(width, width * served // max(1, total))
    counts = ", ".join(f"{count} {status}" for status, count in sorted(Counter(done.values()).items()))
    lines = [f"[{'#' * filled}{'.' * (width - filled)}] {served}/{total}  {elapsed_s:.0f} s", counts or "nothing yet"]
    recent = list(states.items())[-_SHOWN:]
    rows = [f"  {name:<36} {status}" for name, status in recent]
    return [line[: columns - 1] for line in lines + rows + [""] * (_SHOWN - len(rows))]
