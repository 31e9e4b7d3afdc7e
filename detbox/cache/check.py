"""Whether the facts of a stored result still hold on this host, and the facts of a new one."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from stat import S_IROTH
from typing import Any

from detbox.cache import facts
from detbox.cache.contents import Known, is_lasting
from detbox.cache.facts import Fact
from detbox.cache.manifest import Manifest, as_stored
from detbox.cache.places import Places
from detbox.cache.store import Store
from detbox.cache.summary import data_of

_KIND, _SIZE, _CONTENT, _LISTING, _XATTRS, _PYTIME = range(6)
_SHUT = "{} cannot be read by the cache: it is shut to who runs detbox"
_NAMES = ("", "size", "content", "list of entries", "attributes", "time of its compiled file")


class Checker:
    """Looks at the host's files.  ``owner``: see :class:`~detbox.cache.execution.Ledger`."""

    def __init__(self, places: Places, store: Store, bound: Iterable[str] = ()) -> None:
        """``bound``: guest paths of the user's own directories, if an ordinary user runs detbox."""
        self._places = places
        self._store = store
        self._known = Known(store)
        self._wrong: list[bytes] = []  # facts that did not hold, as they are stored
        self._writable: dict[int, bool] = {}  # file systems
        self._bound = tuple(os.fsencode(path) for path in bound)

    # -- a stored result ----------------------------------------------------------------

    def is_known_wrong(self, data: bytes) -> bool:
        """Whether a stored result has a fact that did not hold in another one: it need not be taken apart."""
        return any(fact in data for fact in self._wrong)

    def first_change(self, manifest: Manifest) -> str | None:
        """The first fact that does not hold, for people; None if all hold."""
        path, why = self._first_change(manifest)
        if path in manifest.facts:
            self._wrong.append(as_stored({path: manifest.facts[path]})[1:-1])
        return why

    def _first_change(self, manifest: Manifest) -> tuple[str, str | None]:
        """The path of that fact, if it is that of one path, and the words."""
        name = _hint_name(manifest)
        hints = self._hints(name)
        signatures: dict[str, Any] = {}
        stale = False
        inodes: dict[str, tuple[int, int]] = {}
        for path, row in manifest.facts.items():
            place = self._place(path, row)
            if place is None:
                return path, f"{path}: is not shown any more"
            kind, st = facts.kind_of(place)
            if row and row[_KIND] is not None:
                if kind + self._owner(path, st) != row[_KIND]:
                    return path, _kind_changed(path, row[_KIND], kind)
                if st is not None and path in manifest.names:
                    inodes[path] = (st.st_dev, st.st_ino)
            wrong = self._aspects(place, row, st, hints.get(path))
            if wrong is None:
                return path, f"{path}: cannot be read"
            if wrong:
                return path, f"{path}: {wrong}"
            if st is not None and len(row) > _CONTENT and row[_CONTENT] is not None:
                signatures[path] = self._lasting(place, st)
                stale = stale or signatures[path] != hints.get(path)
        for path, first in manifest.names.items():
            if inodes.get(path) != inodes.get(first):
                return "", f"{path}: is not the same file as {first} any more"
        if len(set(inodes.values())) != len(set(manifest.names.values())):
            return "", "files have become names of one file"
        if stale:
            self._store.set_hint(name, json.dumps(signatures).encode())
        return "", None

    def _place(self, path: str, row: list[Any]) -> bytes | None:
        data = data_of(path)
        return self._places.remade.get(data) or self._places.host(data)

    def _owner(self, path: str, st: os.stat_result | None) -> str:
        if st is None or not self._bound or not facts.below(data_of(path), self._bound):
            return ""
        return facts.ownership(st, os.geteuid(), os.getegid())

    def _aspects(self, place: bytes, row: list[Any], st: os.stat_result | None, hint: Any) -> str | None:
        for aspect in range(_SIZE, len(row)):
            expected = row[aspect]
            if expected is None:
                continue
            if aspect == _SIZE:
                actual: Any = st.st_size if st is not None else None
            elif aspect == _CONTENT:
                if hint is not None and st is not None and hint == list(facts.signature_of(st)):
                    continue
                actual = facts.content_of(place)
            elif aspect == _LISTING:
                actual = _listing(place)
            elif aspect == _XATTRS:
                actual = facts.xattrs_digest(place)
            else:
                actual = facts.python_time(place, st)
            if actual != expected:
                has_content = len(row) > _CONTENT and row[_CONTENT] is not None
                return _NAMES[_CONTENT if aspect == _SIZE and has_content else aspect]
        return ""

    def _hints(self, name: str) -> dict[str, Any]:
        data = self._store.hint(name)
        try:
            found = json.loads(data) if data else {}
        except ValueError:
            return {}
        return found if isinstance(found, dict) else {}

    def _lasting(self, place: bytes, st: os.stat_result) -> Any:
        """A file's signature as a hint; None if the file is too fresh for that, or could be another one unseen.

        Read-only file systems (squashfs, erofs) are made as a whole, often with one time and with inode numbers in
        order: a file of the next one may have the same signature.
        """
        if st.st_dev not in self._writable:
            self._writable[st.st_dev] = not os.statvfs(place).f_flag & os.ST_RDONLY
        return list(facts.signature_of(st)) if self._writable[st.st_dev] and is_lasting(st) else None

    # -- a new result -----------------------------------------------------------------------

    def finish(self, raw: dict[str, list[Any]]) -> tuple[dict[str, list[Any]], dict[str, str], dict[str, Any], str]:
        """Facts as the supervisor tells them, made complete: (rows, names, hints, why they cannot be used)."""
        rows: dict[str, list[Any]] = {}
        names: dict[str, str] = {}
        firsts: dict[tuple[int, int], str] = {}
        signatures: dict[str, Any] = {}
        for path, (row, inode, signature) in raw.items():
            data = data_of(path)
            if data in self._places.remade:
                rows[path] = [None, None, facts.content_of(self._places.remade[data])]
                continue
            place = self._places.host(data)
            if place is None:
                continue
            fact = Fact.from_row(row)
            if fact.listing is not None and data in self._places.mixed:
                fact.listing = _listing(place)
            if signature is not None:
                kind, st = facts.kind_of(place)
                # The supervisor may be able to read what its user cannot: a guest's root has rights over its files.
                shut = st is not None and not st.st_mode & S_IROTH and not os.access(place, os.R_OK)
                if shut or (st is None and kind != facts.ABSENT):
                    return {}, {}, {}, _SHUT.format(path)
                if st is None or kind[:1] != "f" or list(facts.signature_of(st)[:3]) != signature[:3]:
                    return {}, {}, {}, f"{path} was changed from outside during the run"
                signatures[path] = self._lasting(place, st)
                if signatures[path] is None:
                    fact.content = facts.content_of(place)
                elif fact.content is None:
                    fact.content = self._known.content_of(data, place, st)
                else:
                    self._known.learn(data, st, fact.content)  # hashed during the run, and as it was then
                if fact.content is None:
                    return {}, {}, {}, _SHUT.format(path)
                if facts.signature_of(os.lstat(place)) != facts.signature_of(st):
                    return {}, {}, {}, f"{path} was changed from outside during the run"
            if inode is not None:
                names[path] = firsts.setdefault(tuple(inode), path)
            rows[path] = fact.row()
        return rows, names, signatures, ""

    def keep_hints(self, manifest: Manifest, signatures: dict[str, Any]) -> None:
        """Remember the signatures of a new result's files."""
        self._store.set_hint(_hint_name(manifest), json.dumps(signatures).encode())
        self._known.save()


def _hint_name(manifest: Manifest) -> str:
    import xxhash

    return xxhash.xxh3_128(json.dumps(manifest.facts).encode()).hexdigest()


def _listing(place: bytes) -> str | None:
    try:
        return facts.listing_of(facts.entries_of(place))
    except OSError:
        return None


_LETTERS = {"f": "a file", "d": "a directory", "l": "a link", "p": "a FIFO", "s": "a socket", "E": "an error"}


def _kind_changed(path: str, expected: str, actual: str) -> str:
    if expected == facts.ABSENT:
        return f"{path}: did not exist, and is now {_LETTERS.get(actual[0], 'something')}"
    if actual == facts.ABSENT:
        return f"{path}: does not exist any more"
    if expected[0] != actual[0]:
        was, now = (_LETTERS.get(kind[0], "something else") for kind in (expected, actual))
        return f"{path}: was {was}, and is now {now}"
    if expected[0] == "l":
        return f"{path}: leads elsewhere"
    return f"{path}: mode or number of names"
