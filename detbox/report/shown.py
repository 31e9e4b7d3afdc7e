"""Text and bytes of the guest as something that can be shown: no byte of it can steer a terminal or a page."""

from __future__ import annotations

import html
import os
import shlex
from collections.abc import Iterable


def shown(data: str | bytes) -> str:
    """One line without control characters, invisible characters and bytes that are no UTF-8: those become escapes."""
    if isinstance(data, str):
        data = data.encode("utf-8", "surrogateescape")
    text = data.decode("utf-8", "backslashreplace")
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() or char == "\t" else _escape(char) for char in text)


def _escape(char: str) -> str:
    return char.encode("unicode_escape").decode()


def markup(data: str | bytes) -> str:
    """The same as HTML, for elements and for attributes in quotes."""
    return html.escape(shown(data), quote=True)


def command_line(words: Iterable[bytes]) -> str:
    """Words as one would type them."""
    return shlex.join(os.fsdecode(word) for word in words)


def shortened(text: str, width: int) -> str:
    """At most ``width`` characters; an ellipsis says that there were more."""
    return text if len(text) <= width else text[: width - 1] + "…"
