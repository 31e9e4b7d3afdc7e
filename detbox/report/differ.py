"""Shows how two contents differ: with diffoscope where it is installed, else as lines or as bytes in hexadecimal."""

from __future__ import annotations

import difflib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from detbox.report.enter import end_with_parent
from detbox.report.perturb import Difference, Observed

#: Lines of a diff that are shown, and bytes of a content that are looked at line by line.
MAX_LINES, MAX_BYTES = 40, 1 << 20
_LOOK = 4096  # bytes that tell text from data
_ROW = 16  # bytes in a line of hexadecimal
#: Real seconds that diffoscope may take.
DIFFOSCOPE_S = 60


def explain(difference: Difference, left: Observed, right: Observed) -> list[str]:
    """Lines that show one difference; empty if the difference says it all."""
    if difference.what in ("stdout", "stderr"):
        return content(getattr(left, difference.what), getattr(right, difference.what))
    if difference.what != "tree" or left.work is None or right.work is None:
        return []
    one, other = left.work / difference.path, right.work / difference.path
    ours, theirs = file_content(one), file_content(other)
    if ours is None or theirs is None or ours == theirs:
        return []
    return _diffoscope(one, other) or content(ours, theirs)


def text_first(differences: Sequence[Difference], left: Observed, right: Observed) -> list[Difference]:
    """The same with the contents that people can read before those of other files."""

    def is_data(difference: Difference) -> bool:
        for run in (left, right) if difference.what == "tree" and difference.where.endswith(" sha256") else ():
            try:
                if run.work is not None:
                    with (run.work / difference.path).open("rb") as file:
                        if b"\0" in file.read(_LOOK):
                            return True
            except OSError:
                return True
        return False

    return sorted(differences, key=is_data)


def file_content(path: Path) -> bytes | None:
    """What is in a regular file; None for anything else, and for what is closed to the user."""
    try:
        return path.read_bytes() if path.is_file() and not path.is_symlink() else None
    except OSError:
        return None


def content(left: bytes, right: bytes) -> list[str]:
    """A unified diff of two texts, or the first differing bytes of what is no text."""
    if left == right:
        return []
    one, other = as_text(left), as_text(right)
    if one is None or other is None or max(len(left), len(right)) > MAX_BYTES:
        return list(_hexadecimal(left, right))
    found = list(difflib.unified_diff(one.splitlines(), other.splitlines(), "run 1", "run 2", lineterm="", n=2))
    if not found:
        return list(_hexadecimal(left, right))  # only line ends differ
    return _limited(found)


def as_text(data: bytes) -> str | None:
    """UTF-8 without NUL as text; None for anything else."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return None if "\0" in text else text


def _hexadecimal(left: bytes, right: bytes) -> Iterator[str]:
    """The neighbourhood of the first differing byte in both."""
    at = next((i for i, (x, y) in enumerate(zip(left, right, strict=False)) if x != y), min(len(left), len(right)))
    yield f"first difference at byte {at} ({at:#x}); lengths {len(left)} and {len(right)}"
    start = max(0, at // _ROW - 1) * _ROW
    for place in range(start, start + 4 * _ROW, _ROW):
        rows = left[place : place + _ROW], right[place : place + _ROW]
        if rows[0] == rows[1]:
            if rows[0]:
                yield _row(" ", place, rows[0])
        else:
            yield _row("-", place, rows[0])
            yield _row("+", place, rows[1])


def _row(sign: str, place: int, data: bytes) -> str:
    shown = "".join(chr(byte) if 32 <= byte < 127 else "." for byte in data)
    return f"{sign}{place:08x}  {data.hex(' '):<{3 * _ROW - 1}}  {shown}"


def _diffoscope(one: Path, other: Path) -> list[str]:
    """What diffoscope says; nothing if it is not installed, fails (status 2), takes long or sees no difference."""
    program = shutil.which("diffoscope")
    if program is None:
        return []
    command = [program, "--no-progress", "--max-text-report-size", "20000", "--", str(one), str(other)]
    try:
        child = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            start_new_session=True, preexec_fn=partial(end_with_parent, os.getpid()),
        )  # fmt: skip
    except OSError:
        return []
    try:
        said, _ = child.communicate(timeout=DIFFOSCOPE_S)
    except BaseException as late:
        os.killpg(child.pid, signal.SIGKILL)  # it starts many programs
        child.communicate()
        if not isinstance(late, subprocess.TimeoutExpired):
            raise
        return []
    text = said.decode("utf-8", "backslashreplace")
    found = text.replace(str(one), "run 1").replace(str(other), "run 2").splitlines()
    return _limited(found) if child.returncode == 1 else []


def _limited(found: list[str]) -> list[str]:
    return found[:MAX_LINES] + ([f"… {len(found) - MAX_LINES} more lines"] if len(found) > MAX_LINES else [])
