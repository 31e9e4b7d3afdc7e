"""The manifest of an image: every file with its metadata, as text whose SHA-256 is the image's digest.

One line per file, sorted by path, with fields separated by tabs::

    KIND  MODE  UID  GID  MTIME  DETAIL  XATTRS  PATH

KIND is ``d`` (directory), ``f`` (file), ``l`` (symbolic link), ``h`` (another name of a file) or ``p`` (FIFO).
DETAIL is ``SIZE:SHA256`` of a file, the target of a link, and ``-`` otherwise.  XATTRS is ``-`` or
``NAME=VALUE`` pairs joined by ``;``.  Bytes that would be ambiguous are written as ``%XX``.  A manifest
describes the image and not its place in a store, where all files have one owner.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from urllib.parse import unquote_to_bytes

from detbox.errors import HostError

HEADER = b"detbox image 1\n"
#: The root directory's own path.
TOP = b"."
_ESCAPED = re.compile(rb"[^!-$&-:<>-~]")  # everything but visible ASCII without % ; and =


@dataclass(frozen=True, slots=True)
class Entry:
    """One file.  ``path`` is relative to the root; ``mtime`` is in seconds since 1970."""

    path: bytes
    kind: str
    mode: int  # permissions, with set-id and sticky bits
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    size: int = 0  # of kind "f", in bytes
    detail: bytes = b""  # "f": SHA-256 in hex; "l": the target; "h": the path of the file
    xattrs: tuple[tuple[bytes, bytes], ...] = ()

    def line(self) -> bytes:
        """The entry as a line of the manifest."""
        if self.kind == "f":
            detail = b"%d:%s" % (self.size, self.detail)
        else:
            detail = _escape(self.detail) or b"-"
        pairs = b";".join(_escape(name) + b"=" + _escape(value) for name, value in sorted(self.xattrs))
        fields = (self.kind.encode(), b"%04o" % self.mode, b"%d" % self.uid, b"%d" % self.gid, b"%d" % self.mtime,
                  detail, pairs or b"-", _escape(self.path))  # fmt: skip
        return b"\t".join(fields) + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Entry:
        """The inverse of :meth:`line`; ValueError for anything else."""
        kind, mode, uid, gid, mtime, detail, pairs, path = line.rstrip(b"\n").split(b"\t")
        entry = cls(_plain(path), kind.decode(), int(mode, 8), int(uid), int(gid), int(mtime))
        if pairs != b"-":
            split = (pair.split(b"=") for pair in pairs.split(b";"))
            entry = replace(entry, xattrs=tuple((_plain(name), _plain(value)) for name, value in split))
        if entry.kind == "f":
            size, colon, digest = detail.partition(b":")
            return replace(entry, size=int(size), detail=digest)
        return entry if detail == b"-" else replace(entry, detail=_plain(detail))


def _escape(raw: bytes) -> bytes:
    return _ESCAPED.sub(lambda found: b"%%%02X" % found[0][0], raw)


def _plain(text: bytes) -> bytes:
    return unquote_to_bytes(text)


def render(entries: Iterable[Entry]) -> bytes:
    """The whole manifest."""
    return HEADER + b"".join(entry.line() for entry in sorted(entries, key=lambda entry: entry.path))


def digest_of(text: bytes) -> str:
    """The digest of an image with this manifest: SHA-256 in hex."""
    return hashlib.sha256(text).hexdigest()


def parse(text: bytes, where: str) -> list[Entry]:
    """The entries of a manifest, by path.  ``where``: the file's name, for the message of HostError."""
    if not text.startswith(HEADER):
        found = text[:40].split(b"\n")[0].decode(errors="replace")
        raise HostError(
            f"{where} begins with {found!r}, expected {HEADER.decode().strip()!r}",
            "another version of detbox made this store: give another one with --store",
        )
    try:
        return [Entry.parse(line) for line in text[len(HEADER) :].splitlines()]
    except ValueError:
        raise HostError(f"{where} is damaged", "run: detbox image check") from None


def foreign_owners(entries: Iterable[Entry]) -> dict[bytes, tuple[int, int]]:
    """(uid, gid) of each path that does not belong to root; other names of a file are not repeated."""
    return {
        entry.path: (entry.uid, entry.gid) for entry in entries if (entry.uid or entry.gid) and entry.kind != "h"
    }


def differences(a: Iterable[Entry], b: Iterable[Entry]) -> Iterator[str]:
    """How image ``b`` differs from ``a``, one line per path, for people."""
    old, new = {entry.path: entry for entry in a}, {entry.path: entry for entry in b}
    for path in sorted(old.keys() | new.keys()):
        shown = "/" + path.decode("utf-8", "backslashreplace") if path != TOP else "/"
        if path not in new:
            yield f"- {shown}"
        elif path not in old:
            yield f"+ {shown}"
        elif old[path] != new[path]:
            yield f"! {shown}: {', '.join(_changes(old[path], new[path]))}"


def _changes(a: Entry, b: Entry) -> Iterator[str]:
    if a.kind != b.kind:
        yield f"{KINDS[a.kind]} became {KINDS[b.kind]}"
        return
    if a.detail != b.detail:
        yield f"content ({a.size} and {b.size} bytes)" if a.kind == "f" else f"target {a.detail!r} became {b.detail!r}"
    if a.mode != b.mode:
        yield f"mode {a.mode:04o} became {b.mode:04o}"
    if (a.uid, a.gid) != (b.uid, b.gid):
        yield f"owner {a.uid}:{a.gid} became {b.uid}:{b.gid}"
    if a.mtime != b.mtime:
        yield f"time {a.mtime} became {b.mtime}"
    if a.xattrs != b.xattrs:
        yield "extended attributes"


#: What the letters of KIND mean.
KINDS = {"d": "directory", "f": "file", "l": "symbolic link", "h": "hard link", "p": "FIFO"}
