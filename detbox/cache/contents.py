"""Digests of contents, so that nothing is hashed twice that has certainly not changed meanwhile."""

from __future__ import annotations

import json
import os
import time
from stat import S_ISREG
from typing import TYPE_CHECKING, Any

from detbox.cache import facts
from detbox.cache.blobs import is_digest
from detbox.cache.summary import text

if TYPE_CHECKING:
    from detbox.cache.store import Store
    from detbox.machine.inodes import InodeTable

_HINT = "files"
_MOST = 2000
_INODE = 0xFFFFFFFF


class Known:
    """Inputs of former runs, by the guest's path: the store remembers the latest ones with their signatures."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rows: dict[str, Any] | None = None
        self._new: dict[str, Any] = {}

    def content_of(self, path: bytes, place: bytes, st: os.stat_result) -> str | None:
        """What :func:`facts.content_of` says of ``place``, where the guest's ``path`` is; ``st``: its status now."""
        if self._rows is None:
            self._rows = self._read()
        row = self._rows.get(text(path))
        if isinstance(row, list) and row[:1] == [_lasting_signature(st)]:
            return str(row[1])
        digest = facts.content_of(place)
        if digest is not None and is_lasting(st):
            self.learn(path, st, digest)
        return digest

    def learn(self, path: bytes, st: os.stat_result, digest: str) -> None:
        """The digest of a file for which :func:`is_lasting` holds."""
        self._new[text(path)] = [_lasting_signature(st), digest]

    def _read(self) -> dict[str, Any]:
        try:
            found = json.loads(self._store.hint(_HINT) or b"{}")
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def save(self) -> None:
        """Let the store remember what is new."""
        if self._new:
            rows = list({**self._read(), **self._new}.items())[-_MOST:]
            self._store.set_hint(_HINT, json.dumps(dict(rows)).encode())
            self._new.clear()


def is_lasting(st: os.stat_result) -> bool:
    """Whether the signature stands for the content: what has just been changed may change again, and look the same."""
    return time.time_ns() - max(st.st_mtime_ns, st.st_ctime_ns) >= facts.RACY_NS


def _lasting_signature(st: os.stat_result) -> list[int]:
    """The same on the host and in a container: overlays mark the layer in the upper bits of inode numbers (xino)."""
    *rest, ino = facts.signature_of(st)
    return [*rest, ino & _INODE]


class Contents:
    """Of one run, seen from inside.  ``changed``: paths that the run has changed until now."""

    def __init__(self, inodes: InodeTable, changed: dict[bytes, None], known: Known) -> None:
        self._inodes = inodes
        self._changed = changed
        self._known = known
        self._hashed: dict[tuple[bytes, facts.Signature, int], str | None] = {}
        #: Of files that are in the store: by path, signature, and the guest's time of change.
        self.blobs: dict[tuple[bytes, facts.Signature, int], str] = {}

    def of(self, path: bytes, st: os.stat_result | None) -> str | None:
        """XXH3-128 of a file's content in hexadecimal digits; None if it cannot be read.  ``st``: its status now."""
        if st is None or not S_ISREG(st.st_mode):
            return None
        entry = self._inodes.known(st)
        # A file may be changed by the run twice before a file system's clock ticks; the guest's own clock tells.
        when = entry.mtime if entry is not None and entry.changed else 0
        key = path, facts.signature_of(st), when
        if key not in self._hashed:
            mine = path in self._changed
            self._hashed[key] = facts.content_of(path) if mine else self._known.content_of(path, path, st)
        return self._hashed[key]

    def written(self, path: bytes, st: os.stat_result, mtime: int, data: bytes, blob: str) -> None:
        """``path`` has been made with this content, and the guest sees it as changed at ``mtime``.

        ``blob``: what a result calls the content.
        """
        key = path, facts.signature_of(st), mtime
        self._hashed[key] = facts.digest_of(data)
        if is_digest(blob):
            self.blobs[key] = blob
