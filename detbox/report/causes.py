"""Guesses, for people, at what makes a command's native runs differ.

A class is named if the differing bytes look like it, or if a native host that differs in nothing else brings the
difference about; the calls that the command makes under detbox decide between classes that look alike.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from detbox.report.differ import file_content
from detbox.report.perturb import Host, Observed


@dataclass(frozen=True)
class Cause:
    """A class of cause, and what speaks for it."""

    name: str
    evidence: str

    def __str__(self) -> str:
        return f"{self.name} ({self.evidence})"


# Rows of the table of perturbations whose values show as they are.
_VISIBLE = {
    "hostname": "host's name", "user": "user", "locale": "locale", "time zone": "time zone", "path": "host path",
}  # fmt: skip
_DATE = re.compile(rb"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d|\b(?:19|20)\d\d\b")
_SECONDS = re.compile(rb"\b1[5-9]\d{8}(?:\d{3}){0,3}\b")  # since 1970, also in ms, µs, ns
_ADDRESS = re.compile(rb"0x[0-9a-f]{6,16}\b|\b(?:7f|55|56)[0-9a-f]{10}\b")
_NUMBER = re.compile(rb"(?<![\w.])[1-9]\d{1,6}\b")  # not a part of a fraction
_CLOCK_CALLS = {"clock_gettime", "gettimeofday", "time", "times"}
_NEAR = 10_000  # process numbers of two runs, one soon after the other, are no farther apart


def guess(left: Observed, right: Observed, hosts: Sequence[Host], calls: Iterable[str]) -> list[Cause]:
    """Causes of the differences between two native runs on ``hosts``; ``calls``: what the command calls."""
    called = set(calls)
    found: dict[str, str] = {}
    for label, one, other in _pairs(left, right):
        binary = b"\0" in one
        for name, evidence in _of_pair(one.split(b"\n"), other.split(b"\n"), hosts, called):
            if not binary:
                found.setdefault(name, f"{evidence} in {label}")
            elif name in _VISIBLE.values():  # other guesses at bytes that are no text would be idle
                found.setdefault(name, f"in {label}")
    for path in sorted(left.tree.keys() & right.tree.keys()):
        fields = {name for name, _, _ in left.tree[path].differing(right.tree[path])}
        if "mtime_ns" in fields:
            found.setdefault("clock", f"time of {path}")
        if "mode" in fields:
            found.setdefault("umask", f"mode of {path}")
        if "owner" in fields:
            found.setdefault("user", f"owner of {path}")
    return [Cause(name, evidence) for name, evidence in found.items()]


def _pairs(left: Observed, right: Observed) -> Iterable[tuple[str, bytes, bytes]]:
    """Contents that differ, and what they are of."""
    contents = [("stdout", left.stdout, right.stdout), ("stderr", left.stderr, right.stderr)]
    for path in sorted(left.tree.keys() & right.tree.keys()):
        if left.tree[path].sha256 != right.tree[path].sha256 and left.work and right.work:
            one, other = file_content(left.work / path), file_content(right.work / path)
            contents.append((path, one or b"", other or b""))
    yield from (item for item in contents if item[1] != item[2])


def _of_pair(
    one: list[bytes], other: list[bytes], hosts: Sequence[Host], called: set[str]
) -> Iterable[tuple[str, str]]:
    if one != other and sorted(one) == sorted(other):
        yield ("order of directory entries" if called & {"getdents64", "getdents"} else "order"), "same lines"
        return
    for x, y in zip(one, other, strict=False):
        if x != y:
            yield _of_line(x, y, hosts, called)


def _of_line(x: bytes, y: bytes, hosts: Sequence[Host], called: set[str]) -> tuple[str, str]:
    shown = repr(x[:40])
    for row, cause in _VISIBLE.items():
        values = [host.settings[row] for host in hosts]
        for value, line in ((values[0], x), (values[-1], y)):
            if value and isinstance(value, str) and len(value) > 1 and value.encode() in line:
                return cause, shown
    if sorted(x.split()) == sorted(y.split()):
        return ("order of directory entries" if called & {"getdents64", "getdents"} else "order"), shown
    if _ADDRESS.search(x) and _ADDRESS.search(y):
        return "address", shown
    dated = _DATE.search(x) and _DATE.search(y) or _SECONDS.search(x) and _SECONDS.search(y)
    if dated and (_CLOCK_CALLS & called or not called):
        return "clock", shown
    if _near_numbers(x, y):
        return "process number", shown
    if "getrandom" in called:
        return "random", shown
    return ("clock" if _CLOCK_CALLS & called else "unknown"), shown


def _near_numbers(x: bytes, y: bytes) -> bool:
    """Whether two lines differ in nothing but numbers that are close to each other."""
    if _NUMBER.sub(b"", x) != _NUMBER.sub(b"", y):
        return False
    pairs = zip(_NUMBER.findall(x), _NUMBER.findall(y), strict=False)
    return all(abs(int(one) - int(other)) < _NEAR for one, other in pairs)
