"""The places at which two runs differ, fine enough to ask of each where its difference comes from.

A place is a line of a text, the whole of what is no text (or has not the same number of lines in both runs), or one
field of a file's metadata.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

from detbox.report.differ import file_content
from detbox.report.perturb import Observed

WHOLE = -1
#: Contents larger than this are compared as a whole, and their bytes are not looked at.
MAX_BYTES = 4 << 20
Pair = tuple[bytes, bytes]


@dataclass(frozen=True, order=True)
class Spot:
    """``what``: "status", "stdout", "stderr" or "tree"; ``path`` and ``name`` (of a field) are for "tree"."""

    what: str
    path: str = ""
    name: str = "content"
    line: int = WHOLE

    def __str__(self) -> str:
        if self.name == "presence":
            return f"existence of {self.path}"
        if self.name != "content":
            return f"{_FIELDS.get(self.name, self.name)} of {self.path}"
        return (self.path or self.what) + (f" line {self.line}" if self.line != WHOLE else "")

    def within(self, found: Container[Spot] | Mapping[Spot, Pair]) -> bool:
        """Whether this place, the whole that it is a part of, or a part of it is among ``found``."""
        if self in found or Spot(self.what, self.path, self.name) in found:
            return True
        if self.name == "presence" and isinstance(found, Mapping):  # the name itself is what varies
            return any(spot.name == "presence" for spot in found)
        if self.line == WHOLE and isinstance(found, Mapping):
            key = (self.what, self.path, self.name)
            return any((spot.what, spot.path, spot.name) == key for spot in found)
        return False


_FIELDS = {"mtime_ns": "time"}


def spots(left: Observed, right: Observed) -> dict[Spot, Pair]:
    """Every place at which two runs differ, with both values."""
    found: dict[Spot, Pair] = {}
    if left.status != right.status:
        found[Spot("status")] = (str(left.status).encode(), str(right.status).encode())
    for what in ("stdout", "stderr"):
        found |= dict(_content(Spot(what), getattr(left, what), getattr(right, what)))
    for path in sorted(left.tree.keys() | right.tree.keys()):
        one, other = left.tree.get(path), right.tree.get(path)
        if one is None or other is None:
            found[Spot("tree", path, "presence")] = (b"yes" if one else b"", b"yes" if other else b"")
            continue
        for name, x, y in one.differing(other):
            if name == "sha256":
                found |= dict(_of_files(path, left, right))
            elif name not in ("size", "nlink", "links"):
                found[Spot("tree", path, name)] = (str(x).encode(), str(y).encode())
    return found


def _of_files(path: str, left: Observed, right: Observed) -> Iterator[tuple[Spot, Pair]]:
    contents = [file_content(run.work / path) or b"" if run.work else b"" for run in (left, right)]
    known = list(_content(Spot("tree", path), *contents))
    yield from known or [(Spot("tree", path), (b"", b""))]


def _content(whole: Spot, left: bytes, right: bytes) -> Iterator[tuple[Spot, Pair]]:
    if left == right:
        return
    lines, others = left.split(b"\n"), right.split(b"\n")
    long = max(len(left), len(right)) > MAX_BYTES
    if long or b"\0" in left + right or len(lines) != len(others) or sorted(lines) == sorted(others):
        yield whole, (b"", b"") if long else (left, right)
        return
    for number, (x, y) in enumerate(zip(lines, others, strict=True), 1):
        if x != y:
            yield Spot(whole.what, whole.path, whole.name, number), (x, y)
