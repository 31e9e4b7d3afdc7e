"""What the supervisor tells the host's side about a finished run: facts, changes, and why it cannot be cached."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from detbox.cache import facts
from detbox.cache.execution import OWN
from detbox.cache.facts import ABSENT, CONTENT, LIST, XATTR, Fact

if TYPE_CHECKING:
    from detbox.cache.execution import Execution
    from detbox.cache.tracker import Tracker

#: Bytes that must be free at the end: with less, the guest may have met a full disk.
_ROOM = 16 << 20

DISK_FULL = "the disk was nearly full"


def describe(tracker: Tracker, tops: Iterable[str]) -> dict[str, Any]:
    """All about the run as a whole; called when the files have got their final times.

    ``tops``: guest paths of the directories whose changes stay.
    """
    execution = tracker.root
    kept = [os.fsencode(top) for top in tops]
    for top in (*kept, b"/tmp"):
        room = os.statvfs(top)
        if room.f_bavail * room.f_frsize < _ROOM:
            execution.reasons.setdefault(DISK_FULL)
    # The host's directories do not hold what is shown empty.
    emptied = tuple(top + b"/" for top in tracker.m.layers.emptied)
    return {
        "facts": {text(path): _fact(fact) for path, fact in execution.facts.items() if not path.startswith(emptied)},
        "changes": list(_changes(tracker, execution, kept)),
        "reasons": list(execution.reasons),
    }


def text(data: bytes) -> str:
    """Bytes as JSON can hold them."""
    return data.decode("utf-8", "surrogateescape")


def data_of(content: str) -> bytes:
    """The inverse of :func:`text`."""
    return content.encode("utf-8", "surrogateescape")


def dump(value: Any) -> bytes:
    """JSON of a description; lone surrogates survive as escapes."""
    return json.dumps(value, separators=(",", ":")).encode()


def _fact(fact: Fact) -> list[Any]:
    return [fact.row(), fact.inode, fact.signature]


def _changes(tracker: Tracker, execution: Execution, kept: list[bytes]) -> Iterable[dict[str, Any]]:
    names: dict[tuple[int, int], str] = {}
    shared = execution.marks_of_links()
    for path in dict.fromkeys((*kept, *execution.changed)):
        if not facts.below(path, kept):
            continue
        fact = execution.facts.get(path)
        before = (fact.kind if fact is not None else None) or ""
        change = _change(tracker, path, before, shared.get(path, execution.have.get(path, 0)))
        if change is None:
            continue
        if path in kept and change["times"] is None:
            # A kept directory always gets a time; see InodeTable.finish.
            st = os.lstat(path)
            change["times"] = [st.st_mtime_ns] * 2
        inode = change.pop("inode", None)
        if inode is not None:
            if inode in names:
                change = {"path": change["path"], "do": "link", "to": names[inode], "was": before[:1]}
            else:
                names[inode] = change["path"]
        yield change


def _change(tracker: Tracker, path: bytes, before: str, have: int) -> dict[str, Any] | None:
    """``have``: which aspects of the path are known or changed, see Execution."""
    kind, st = facts.kind_of(path)
    change: dict[str, Any] = {"path": text(path), "was": before[:1]}
    if st is None:
        return None if before == ABSENT else {**change, "do": "remove"}
    change["mode"] = stat.S_IMODE(st.st_mode)
    change["times"] = tracker.times_of(st)
    if change["times"] is None and tracker.origin.get(path, path) != path:
        change["times_of"] = text(tracker.origin[path])
    xattrs = facts.xattrs_of(path)
    if xattrs or (have | have >> OWN) & XATTR:
        change["xattrs"] = {name: value.hex() for name, value in xattrs.items()}
    letter = kind[0]
    if letter != "d" and st.st_nlink > 1:
        change["inode"] = (st.st_dev, st.st_ino)
    never_written = change["times"] is None and tracker.origin.get(path, path) == path
    stays = letter == before[:1] == "f" and (not have >> OWN & CONTENT or never_written)
    if stays or (letter == "d" and before[:1] in ("d", "")):
        if not (have | have >> OWN) & XATTR:
            change.pop("xattrs", None)  # nobody has looked at them: others will do
        return {**change, "do": "keep"}
    change["do"] = {"f": "file", "d": "directory", "l": "symlink", "p": "fifo", "s": "socket"}[letter]
    if letter == "l":
        change["text"] = text(os.readlink(path))
    if letter == "f":
        change["size"] = st.st_size
        if before[:1] == "f" and not have >> OWN & LIST:
            change["in_place"] = True
    return change
