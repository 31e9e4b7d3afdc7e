"""Draws what a command prints on a terminal as an SVG: terminal_svg.py FILE TITLE CMD [ARG...]

The command's standard output is a terminal, so that it uses colours; its standard error is ours.
"""

from __future__ import annotations

import html
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

_COLUMNS = 110
_WIDTH, _HEIGHT, _EDGE = 7.8, 18, 16  # pixels: of a character, of a line, around the text
_COLOURS = {"31": "#ff7b80", "32": "#5fd39b", "33": "#f0b64e"}
_SGR = re.compile(r"\033\[([\d;]*)m")


def printed(command: list[str]) -> str:
    """What the command writes to a terminal."""
    master, slave = pty.openpty()
    child = subprocess.Popen(command, stdout=slave, stdin=subprocess.DEVNULL, env={**os.environ, "TERM": "xterm"})
    os.close(slave)
    parts = []
    while True:
        try:
            part = os.read(master, 65536)
        except OSError:  # EIO: the last writer has closed it
            break
        parts.append(part)
    child.wait()
    return b"".join(parts).decode().replace("\r\n", "\n")


def folded(text: str) -> list[str]:
    """Lines of at most ``_COLUMNS`` characters; sequences for colours take no room."""
    lines = []
    for line in text.splitlines():
        current, column = "", 0
        for piece in re.split(r"(\033\[[\d;]*m)", line):
            if _SGR.fullmatch(piece):
                current += piece
                continue
            for char in piece:
                if column == _COLUMNS:
                    lines.append(current)
                    current, column = "  ", 2
                current, column = current + char, column + 1
        lines.append(current)
    return lines


def spans(line: str, style: str) -> tuple[str, str]:
    """One line as SVG text, and the style that holds at its end."""
    found = []
    for number, piece in enumerate(_SGR.split(line)):
        if number % 2:
            style = piece
        elif piece:
            codes = style.split(";")
            colour = next((f' fill="{_COLOURS[code]}"' for code in codes if code in _COLOURS), "")
            weight = ' font-weight="bold"' if "1" in codes else ""
            faint = ' opacity="0.62"' if "2" in codes else ""
            found.append(f"<tspan{colour}{weight}{faint}>{html.escape(piece)}</tspan>")
    return "".join(found), style


def drawing(title: str, text: str) -> str:
    """The whole SVG."""
    lines, style, rows = folded(text), "0", []
    for number, line in enumerate(lines):
        body, style = spans(line, style)
        rows.append(f'<text x="{_EDGE}" y="{_EDGE + 44 + number * _HEIGHT}" xml:space="preserve">{body}</text>')
    width, height = _COLUMNS * _WIDTH + 2 * _EDGE, len(lines) * _HEIGHT + 2 * _EDGE + 40
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" width="{width:g}" '
        'font-family="ui-monospace, DejaVu Sans Mono, Menlo, monospace" font-size="13" fill="#e6e8ea">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#16191b"/>\n'
        f'<text x="{_EDGE}" y="{_EDGE + 14}" xml:space="preserve"><tspan fill="#5fd39b">$</tspan> '
        f"{html.escape(title)}</text>\n" + "\n".join(rows) + "\n</svg>\n"
    )


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(drawing(sys.argv[2], printed(sys.argv[3:])), encoding="utf-8")
