"""What detbox says to people: lines on standard error that start with `detbox:`."""

from __future__ import annotations

import os

from detbox.errors import DetboxError

_STDERR = 2


def say(text: str) -> None:
    """Writes ``text``, each line with the prefix, in one write so that the guest's output cannot split it.

    A standard error that is closed or full is not detbox's failure.
    """
    lines = "".join(f"detbox: {line}\n" for line in text.splitlines())
    try:
        os.write(_STDERR, lines.encode("utf-8", "backslashreplace"))
    except OSError:
        pass


def say_error(error: DetboxError) -> None:
    """Writes an error's message and remedy."""
    say("\n".join(error.lines()))
