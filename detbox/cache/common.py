"""The facts of stored results: one line of text each; what many results have in common is kept once, as a blob.

Of what a compiler looks at, say, all but its source is the same for each call of it.  So the lines about what the run
does not change go into a blob of their own, which is read, taken apart and compared with the guest's files once.
"""

from __future__ import annotations

import json
import zlib
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import xxhash

from detbox.cache.facts import PYTIME
from detbox.cache.remote_check import is_path
from detbox.cache.summary import data_of, text
from detbox.cache.world import made
from detbox.records import record

if TYPE_CHECKING:
    from detbox.cache.store import Store
    from detbox.machine.inodes import VInode

#: Fewer lines than this stay with the result.
_WORTH = 8
_MOST = 64 << 20  # bytes of one block; more is refused
_ASPECTS = 0xFF
_ROW = (str, int, str, str, str, int, list, list, str)


_decode = json.JSONDecoder().raw_decode


@lru_cache(1 << 16)
def parsed(line: str) -> tuple[bytes, int, list[Any]]:
    """Canonical path, observed aspects, and row of a fact.  Raises ValueError, TypeError."""
    (path, aspects, row), end = _decode(line)
    if end != len(line):
        raise ValueError(line)
    return data_of(path), aspects, row


def is_fact(line: str) -> bool:
    """Whether a line has the form that this program writes.  Raises ValueError, TypeError."""
    path, aspects, row = parsed(line)
    if not is_path(text(path)) or made(path) or type(aspects) is not int or not 0 <= aspects <= _ASPECTS:
        return False
    return len(row) <= len(_ROW) and all(
        value is None or type(value) is wanted for value, wanted in zip(row, _ROW, strict=False)
    )


@record
class Held:
    """What a fact that holds depends on: a path, and the inode and times that the guest sees there, if they count."""

    path: bytes
    place: tuple[int, int] | None
    entry: VInode | None
    times: bytes

    def is_other(self, table: dict[tuple[int, int], VInode]) -> bool:
        """Whether the guest sees something else by now."""
        if self.place is None:
            return False
        entry = table.get(self.place)
        return entry is not self.entry or (entry is not None and entry.times is not self.times)


class Block:
    """Facts that results have in common."""

    def __init__(self, lines: list[str]) -> None:
        self.lines = lines
        #: Path and aspects of each.
        self.asked = [parsed(line)[:2] for line in lines]
        #: Sources of Python whose compiled files have been looked for.
        self.sources = [path for path, aspects in self.asked if aspects & PYTIME]
        self._paths = frozenset(path for path, _ in self.asked)
        self._held: list[tuple[tuple[int, int], VInode | None, bytes]] | None = None
        self._loose: list[str] = []

    def hold(self, held: dict[str, Held]) -> None:
        """All lines hold by now.  ``held``: those that go on holding until something changes."""
        self._loose = [line for line in self.lines if line not in held]
        found = (held[line] for line in self.lines if line in held)
        self._held = [(one.place, one.entry, one.times) for one in found if one.place is not None]

    def to_look_at(self, changed: dict[bytes, None], table: dict[tuple[int, int], VInode]) -> list[str]:
        """The lines that have to be looked at.  ``changed``: paths that the run has changed until now."""
        if self._held is None or not changed.keys().isdisjoint(self._paths):
            return self.lines
        for place, entry, times in self._held:
            now = table.get(place)
            if now is not entry or (now is not None and now.times is not times):  # as Held.is_other(): 100 at a time
                return self.lines
        return self._loose


class Common:
    """The blocks of one run."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[int, tuple[str, int]] = {}
        self._blocks: dict[str, Block | None] = {}

    def keep(self, lines: list[str]) -> tuple[str, int] | None:
        """Digest and size of the blob that has these lines; None if it is not worth a blob.  Raises OSError."""
        if len(lines) < _WORTH:
            return None
        packed = "\n".join(lines).encode()
        name = xxhash.xxh3_128_intdigest(packed)
        known = self._kept.get(name)
        if known is None:
            data = zlib.compress(packed, 1)
            known = self._kept[name] = self._store.put_bytes(data), len(data)
        return known

    def block(self, digest: str) -> Block | None:
        """The lines of a blob; None if it is missing, or is not what this program writes."""
        if digest not in self._blocks:
            self._blocks[digest] = self._open(digest)
        return self._blocks[digest]

    def _open(self, digest: str) -> Block | None:
        data = self._store.open_blob(digest)
        try:
            lines = zlib.decompressobj().decompress(data or b"", _MOST).decode().split("\n")
            return Block(lines) if all(map(is_fact, lines)) else None
        except (zlib.error, ValueError, TypeError, RecursionError):
            return None
