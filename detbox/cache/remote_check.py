"""Whether a manifest from elsewhere is what it should be: a remote cache or an archive is not trusted.

It must have exactly the form that this program writes, and must leave nothing outside of the directories whose
changes stay; not by dots, not by a path through a link, not by a mode that is set through a link.
"""

from __future__ import annotations

import math
import os
import re
import stat
from collections.abc import Callable, Iterable
from typing import Any

from detbox.cache.blobs import is_digest
from detbox.cache.manifest import Manifest
from detbox.cache.summary import data_of

#: Of all the files of one result.
MOST_BYTES = 16 << 30
_MOST_PATH = 4096
_MOST_XATTR = 64 << 10
_MOST_NS = 1 << 63
#: XXH3-128.
HASH = re.compile(r"[0-9a-f]{32}")
_COMMON = {"path", "do", "was"}
_ATTRIBUTES = {*_COMMON, "mode", "times"}
#: What each kind of change must say, and may say.
_MUST = {
    "remove": _COMMON, "link": {*_COMMON, "to"}, "keep": _ATTRIBUTES, "directory": _ATTRIBUTES, "fifo": _ATTRIBUTES,
    "socket": _ATTRIBUTES, "symlink": {*_ATTRIBUTES, "text"}, "file": {*_ATTRIBUTES, "blob", "size"},
}  # fmt: skip
_MAY = {"times_of", "xattrs", "in_place"}

Place = Callable[[bytes], bytes | None]


def is_sound(manifest: Manifest) -> bool:
    """Whether it has the right form; nothing is said about any host."""
    try:
        return (
            _facts(manifest) and all(_change(change) for change in manifest.changes)
            and len({change["path"] for change in manifest.changes}) == len(manifest.changes)
            and _status(manifest) and sum(size for _, size in manifest.sized_blobs()) <= MOST_BYTES
        )  # fmt: skip
    except (TypeError, KeyError, ValueError, AttributeError, RecursionError):
        return False


def stays_inside(manifest: Manifest, tops: Iterable[str], place: Place) -> bool:
    """Whether all that it changes is in ``tops`` (guest paths).  ``place``: host path of a guest path."""
    return _Ways(manifest, tops, place).lead_inside()


class _Ways:
    """The ways to what a result changes."""

    def __init__(self, manifest: Manifest, tops: Iterable[str], place: Place) -> None:
        self._tops = frozenset(os.fsencode(top) for top in tops)
        self._place = place
        self._changes = {data_of(change["path"]): change for change in manifest.changes}
        self._known: dict[bytes, bool] = {}

    def lead_inside(self) -> bool:
        return all(self._inside(path, change) for path, change in self._changes.items())

    def _inside(self, path: bytes, change: dict[str, Any]) -> bool:
        if change["do"] == "keep":
            there = self._place(path)
            if there is None or _type(there) not in (stat.S_IFREG, stat.S_IFDIR):
                return False
            return path in self._tops or self._directories(path.rpartition(b"/")[0])
        if change["do"] == "remove":  # before anything is made: in directories that are there now
            return path not in self._tops and self._present(path.rpartition(b"/")[0])
        if change["do"] == "link" and not self._directories(data_of(change["to"]).rpartition(b"/")[0]):
            return False
        return path not in self._tops and self._directories(path.rpartition(b"/")[0])

    def _present(self, path: bytes) -> bool:
        """Whether directories that are there now lead from one of the tops to ``path``."""
        while path not in self._tops:
            there = self._place(path) if path else None
            if there is None or _type(there) != stat.S_IFDIR:
                return False
            path = path.rpartition(b"/")[0]
        return True

    def _directories(self, path: bytes) -> bool:
        """Whether the way from one of the tops to ``path`` leads through directories alone."""
        if path not in self._known:
            self._known[path] = path in self._tops or (
                path != b"" and self._directory(path) and self._directories(path.rpartition(b"/")[0])
            )
        return self._known[path]

    def _directory(self, path: bytes) -> bool:
        made = self._changes.get(path, {}).get("do")
        if made in (None, "keep"):
            there = self._place(path)
            return there is not None and _type(there) == stat.S_IFDIR
        return bool(made == "directory")


def _type(path: bytes) -> int:
    try:
        return stat.S_IFMT(os.lstat(path).st_mode)
    except OSError:
        return 0


def is_path(text: Any) -> bool:
    """Whether it is an absolute path without dots or empty parts."""
    if not isinstance(text, str) or len(text) > _MOST_PATH or not text.startswith("/") or "\0" in text:
        return False
    return text == "/" or all(part not in ("", ".", "..") for part in text[1:].split("/"))


def _facts(manifest: Manifest) -> bool:
    known = set(manifest.names) | set(manifest.names.values())
    return known <= set(manifest.facts) and all(is_path(path) and _row(row) for path, row in manifest.facts.items())


def _row(row: Any) -> bool:
    """Rows of ``facts.Fact``: texts and numbers."""
    if not isinstance(row, list) or len(row) > 6:
        return False
    kind, size, content, listing, xattrs, pytime = row + [None] * (6 - len(row))
    hashes = all(one is None or isinstance(one, str) and HASH.fullmatch(one) for one in (content, listing, xattrs))
    return hashes and (kind is None or isinstance(kind, str)) and all(
        one is None or type(one) is int for one in (size, pytime)
    )  # fmt: skip


def _change(change: Any) -> bool:
    must = _MUST[change["do"]]
    if not must <= change.keys() <= must | _MAY or not is_path(change["path"]) or change["path"] == "/":
        return False
    if not isinstance(change["was"], str) or len(change["was"]) > 1:
        return False
    if "mode" in must and not (type(change["mode"]) is int and 0 <= change["mode"] <= 0o7777):
        return False
    plain = _times(change.get("times")) and change.get("in_place", True) is True
    return plain and _particulars(change) and _xattrs(change.get("xattrs", {}))


def _particulars(change: dict[str, Any]) -> bool:
    kind = change["do"]
    if kind == "link" and not is_path(change["to"]) or "times_of" in change and not is_path(change["times_of"]):
        return False
    if kind == "symlink":
        text = change["text"]
        return isinstance(text, str) and 0 < len(text) < _MOST_PATH and "\0" not in text
    return kind != "file" or is_digest(change["blob"]) and type(change["size"]) is int and change["size"] >= 0


def _times(times: Any) -> bool:
    if times is None:
        return True
    if not isinstance(times, list) or len(times) != 2:
        return False
    return all(type(one) is int and abs(one) < _MOST_NS for one in times)


def _xattrs(xattrs: dict[str, str]) -> bool:
    return all(
        name.startswith("user.") and "\0" not in name and len(bytes.fromhex(value)) <= _MOST_XATTR
        for name, value in xattrs.items()
    )


def _status(manifest: Manifest) -> bool:
    turns = manifest.turns
    fit = all(len(turn) == 2 and turn[0] in (1, 2) and type(turn[1]) is int and turn[1] > 0 for turn in turns)
    output = is_digest(manifest.output) if turns else manifest.output == ""
    stdin = manifest.stdin
    return (
        fit and output and type(manifest.status) is int and 0 <= manifest.status <= 255
        and stdin.keys() == {"taken", "content", "ended"} and type(stdin["taken"]) is int and stdin["taken"] >= 0
        and type(stdin["ended"]) is bool and HASH.fullmatch(stdin["content"]) is not None
        and isinstance(manifest.interleaving, dict)
        and isinstance(manifest.seconds, (int, float)) and math.isfinite(manifest.seconds) and manifest.seconds >= 0
        and all(isinstance(word, str) for word in manifest.command)
    )  # fmt: skip
