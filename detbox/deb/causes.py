"""Classes of difference between two native builds, by what the unpacked packages' bytes show."""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from detbox.report.perturb import Host, Observed

_DATE = re.compile(rb"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d|\b(?:19|20)\d\d\b|\b1[5-9]\d{8}\b")
_ADDRESS = re.compile(rb"0x[0-9a-f]{6,16}\b|\b(?:7f|55|56)[0-9a-f]{10}\b")
_ELF = b"\x7fELF"
#: What only the second build machine has (see ``detbox.deb.native``), and its name for people.
_OF_OTHER = ((b"other-place", "build path"), (b"other-builder", "user's name"), (b"other-tools", "PATH"))


def of_trees(left: Observed, right: Observed, hosts: Sequence[Host]) -> list[str]:
    """The classes, without repetition, of the differences between two unpacked packages."""
    found: dict[str, None] = {}
    if left.tree.keys() != right.tree.keys():
        found["names of files"] = None
    for name in sorted(left.tree.keys() & right.tree.keys()):
        one, other = left.tree[name], right.tree[name]
        fields = {field for field, _, _ in one.differing(other)}
        if "mode" in fields:
            found["umask"] = None
        if fields == {"mtime_ns"} and one.kind != "directory":
            found["times of files"] = None
        if one.sha256 != other.sha256 and left.work and right.work and not name.endswith("DEBIAN/md5sums"):
            found |= dict.fromkeys(of_bytes(_content(left.work / name), _content(right.work / name), hosts))
    return list(found)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError):
        return data


def of_bytes(left: bytes, right: bytes, hosts: Sequence[Host]) -> Iterable[str]:
    """The classes of the difference between two contents."""
    if left == right:
        yield "times in archives"  # only the wrapping differs
        return
    split = re.compile(rb"[\0\n]")
    one, other = split.split(left), split.split(right)
    if sorted(one) == sorted(other):
        yield "order"
        return
    known, others = set(one), set(other)
    pieces = [[x for x in one if x not in others], [y for y in other if y not in known]]
    text = [b"\n".join(part) for part in pieces]
    found = [cause for cause, shown in _visible(hosts) if any(value in part for value in shown for part in text)]
    found += [cause for mark, cause in _OF_OTHER if mark in text[1]]
    if not found and _DATE.search(text[0]) and _DATE.search(text[1]):
        found.append("date")
    if not found and _ADDRESS.search(text[0]) and _ADDRESS.search(text[1]):
        found.append("address")
    if not found:
        found.append("machine code" if left.startswith(_ELF) else "other")
    yield from found


def _visible(hosts: Sequence[Host]) -> Iterable[tuple[str, list[bytes]]]:
    """Properties of hosts whose values would show as they are."""
    for row, cause in (("hostname", "host's name"), ("time zone", "time zone"), ("locale", "locale")):
        values = [host.settings[row] for host in hosts]
        yield cause, [value.encode() for value in values if isinstance(value, str) and len(value) > 3]
    yield "environment", [b"z" * 3000, b"hostile> "]
