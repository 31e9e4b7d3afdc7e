"""Classes of difference between two native builds, by what the unpacked packages' bytes show."""

from __future__ import annotations

import gzip
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from detbox.deb import sections
from detbox.report.perturb import Host, Observed

_MONTH = rb"(?:Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)[a-z]*"
_DATE = re.compile(
    rb"\d{4}-\d\d-\d\d|\d\d:\d\d:\d\d|\b(?:19|20)\d\d\b|\b1[5-9]\d{8}\b"
    rb"|\b%b +\d{1,2}\b|\b\d{1,2} +%b\b" % (_MONTH, _MONTH)
)
_ADDRESS = re.compile(rb"0x[0-9a-f]{6,16}\b|\b(?:7f|55|56)[0-9a-f]{10}\b")
_WORD = re.compile(rb"\w+")
#: What only the second build machine has (see ``detbox.deb.native``), and its name for people.
_OF_OTHER = ((b"other-place", "build path"), (b"other-builder", "user's name"), (b"other-tools", "PATH"))
#: Debugging files are named by what the programs contain; what names them follows from it.
_DEBUG = "usr/lib/debug/.build-id/"
_FOLLOWING = ("DEBIAN/md5sums", "DEBIAN/control")


def of_trees(left: Observed, right: Observed, hosts: Sequence[Host]) -> list[str]:
    """The classes, without repetition, of the differences between two unpacked packages."""
    found: dict[str, None] = {}
    names = [{name for name in tree if name != "." and _DEBUG not in f"{name}/"} for tree in (left.tree, right.tree)]
    if names[0] != names[1]:
        found["names of files"] = None
    for name in sorted(names[0] & names[1]):
        one, other = left.tree[name], right.tree[name]
        fields = {field for field, _, _ in one.differing(other)}
        if "mode" in fields:
            found["umask"] = None
        if fields == {"mtime_ns"} and one.kind != "directory":
            found["times of files"] = None
        if one.sha256 != other.sha256 and left.work and right.work and not name.endswith(_FOLLOWING):
            found |= dict.fromkeys(of_bytes(_content(left.work / name), _content(right.work / name), hosts))
    debug = [_debugging(tree) for tree in (left, right)]
    if debug[0] != debug[1]:
        told = of_bytes(debug[0], debug[1], hosts)
        found |= dict.fromkeys(cause for cause in told if cause not in ("other", "order"))
    return list(found)


def _content(path: Path) -> bytes:
    data = path.read_bytes()
    try:
        return gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError):
        return data


def _debugging(tree: Observed) -> bytes:
    """What the detached debugging files of a package say."""
    assert tree.work is not None  # it was unpacked there
    names = [name for name, entry in tree.tree.items() if _DEBUG in name and entry.kind == "file"]
    return b"\0".join(sorted(sections.contents((tree.work / name).read_bytes()) for name in names))


def of_bytes(left: bytes, right: bytes, hosts: Sequence[Host]) -> Iterable[str]:
    """The classes of the difference between two contents."""
    if left == right:
        yield "times in archives"  # only the wrapping differs
        return
    elf = left.startswith(sections.MAGIC)
    split = re.compile(rb"[\0\n]")
    one, other = (split.split(sections.contents(data) if elf else data) for data in (left, right))
    if sorted(one) == sorted(other):
        yield "order"
        return
    known, others = set(one), set(other)
    text = [b"\n".join(x for x in one if x not in others), b"\n".join(x for x in other if x not in known)]
    found = [cause for cause, shown in _visible(hosts) if any(value in part for value in shown for part in text)]
    found += [cause for mark, cause in _OF_OTHER if mark in text[1]]
    if elf and not found:
        found += sections.causes(left, right)
    found = found or list(_guesses(text)) or ["machine code" if elf else "other"]
    yield from (cause for cause in found if cause != "what was stripped")  # the debugging files tell


def _guesses(text: Sequence[bytes]) -> Iterator[str]:
    """What the differing parts of two texts look like, if they show nothing of the hosts."""
    dates = [set(_DATE.findall(part)) for part in text]
    if dates[0] != dates[1] and all(dates):
        yield "date"
    elif all(_ADDRESS.search(part) for part in text):
        yield "address"
    elif all(text) and sorted(_WORD.findall(text[0])) == sorted(_WORD.findall(text[1])):
        yield "order"


def _visible(hosts: Sequence[Host]) -> Iterable[tuple[str, list[bytes]]]:
    """Properties of hosts whose values would show as they are."""
    for row, cause in (("hostname", "host's name"), ("time zone", "time zone"), ("locale", "locale")):
        values = [host.settings[row] for host in hosts]
        long = [value for value in values if isinstance(value, str) and len(value) > 3]
        yield cause, [value.removesuffix(".example").encode() for value in long]
    yield "environment", [b"z" * 3000, b"hostile> "]
    yield "kernel", [os.uname().release.encode()]
