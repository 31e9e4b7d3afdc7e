"""The index of a store in SQLite: every row carries a checksum, and a damaged index is set aside for a new one.

An index is a file ``index-N.sqlite``.  One that turns out to be damaged gets a mark beside it, ``index-N.bad``, and
whoever opens the store next goes on with number N + 1.  Nothing is renamed or removed while others may have it open:
SQLite would find its log by the old name.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import xxhash

#: Of the tables; an index of another one is set aside.
FORMAT = 2
_SCHEMA = """
create table if not exists results (
  id integer primary key, key text not null, manifest blob not null, blobs text not null,
  made real not null, used real not null, proof text not null);
create index if not exists results_by_key on results (key, id);
create index if not exists results_by_use on results (used);
create table if not exists hints (name text primary key, data blob not null, proof text not null);
create table if not exists runs (id integer primary key, at real not null, summary text not null, proof text not null);
create table if not exists counts (name text primary key, value real not null);
"""
# What SQLite says of a file that is not what it wrote: ERROR (a table is missing), CORRUPT, SCHEMA, FORMAT, NOTADB,
# and a file that ends too early (https://www.sqlite.org/rescode.html).
_DAMAGE = frozenset((sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_SCHEMA, 24, sqlite3.SQLITE_NOTADB))
_SHORT_READ = 522
_WAIT_S = 20
_MOST_INDEXES = 1000


class Damaged(Exception):
    """The index is not what was written."""


class Index:
    """The newest index of a directory.

    It is opened at once, and stays in reach when the root directory has become another one.  What cannot be read is
    not there; what cannot be written is not kept, and ``trouble`` says why.
    """

    def __init__(self, directory: str, dir_fd: int) -> None:
        self._directory = directory
        self._dir = dir_fd
        self._number = 0
        self._data: sqlite3.Connection | None = None
        self._resting = False
        self.writable = True
        self.trouble = ""
        self._open()

    def close(self) -> None:
        """Let go of the file."""
        self._resting = False
        if self._data is not None:
            with contextlib.suppress(sqlite3.Error):
                self._data.close()
            self._data = None

    def rest(self) -> None:
        """Let go of the file until the next use: a connection must not be carried through a fork."""
        self.close()
        self._resting = True

    # -- opening -----------------------------------------------------------------------

    def _open(self) -> None:
        for number in range(self._number, _MOST_INDEXES):
            if self._exists(f"index-{number}.bad"):
                continue
            self._number = number
            try:
                self._data = self._connect(number)
                return
            except sqlite3.Error as error:
                if not _is_damage(error):
                    self.trouble = f"the index cannot be used: {error}"
                    return
            except Damaged:
                pass
            if not self._set_aside():
                return
        self.trouble = "every index is damaged"

    def _connect(self, number: int) -> sqlite3.Connection:
        path = os.path.join(self._directory, f"index-{number}.sqlite")
        self.writable = os.access(self._directory, os.W_OK) and (not os.path.exists(path) or os.access(path, os.W_OK))
        if not self.writable:
            # Nothing may be made beside it, as WAL mode would; rows prove themselves if somebody else writes.
            return sqlite3.connect(f"file:{_quoted(path)}?immutable=1", uri=True, isolation_level=None)
        data = sqlite3.connect(path, timeout=_WAIT_S, isolation_level=None)
        try:
            data.text_factory = _text
            found = data.execute("pragma user_version").fetchone()[0]
            if found not in (0, FORMAT):
                raise Damaged
            data.execute("pragma journal_mode = wal")
            data.execute("pragma synchronous = normal")
            if found == 0:
                data.executescript(f"begin immediate; {_SCHEMA} pragma user_version = {FORMAT}; commit;")
        except BaseException:
            data.close()
            raise
        return data

    def _exists(self, name: str) -> bool:
        try:
            os.stat(name, dir_fd=self._dir)
        except OSError:
            return False
        return True

    def _set_aside(self) -> bool:
        self.trouble = f"index-{self._number}.sqlite is damaged, and was set aside"
        try:
            os.close(os.open(f"index-{self._number}.bad", os.O_CREAT | os.O_WRONLY, 0o600, dir_fd=self._dir))
        except OSError:
            return False
        return True

    # -- use ---------------------------------------------------------------------------

    def read(self, statement: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """The rows of a query."""
        data = self._connection()
        if data is None:
            return []
        try:
            return data.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            self._failed(error)
            return []

    def write(self, *steps: tuple[str, Sequence[Any]]) -> bool:
        """Carry out all of ``steps`` or none; whether it was done."""
        data = self._connection()
        if data is None or not self.writable:
            return False
        try:
            data.execute("begin immediate")
            try:
                for statement, values in steps:
                    data.execute(statement, values)
                data.execute("commit")
            except BaseException:
                if data.in_transaction:
                    data.execute("rollback")
                raise
        except sqlite3.Error as error:
            self._failed(error)
            return False
        return True

    def problems(self) -> list[str]:
        """What SQLite itself finds wrong."""
        try:
            if self._data is None:
                return [self.trouble]
            rows = self._data.execute("pragma integrity_check").fetchall()
        except sqlite3.Error as error:
            self._failed(error)
            return [f"index: {error}"]
        return [f"index: {row[0]}" for row in rows if row[0] != "ok"]

    def tidy(self) -> None:
        """Remove indexes that have been set aside, and give unused space back."""
        for number in range(self._number):
            for name in (f"index-{number}.sqlite", f"index-{number}.sqlite-wal", f"index-{number}.sqlite-shm"):
                with contextlib.suppress(OSError):
                    os.unlink(name, dir_fd=self._dir)
        if self._data is not None and self.writable:
            with contextlib.suppress(sqlite3.Error):
                self._data.execute("vacuum")

    def _connection(self) -> sqlite3.Connection | None:
        if self._data is None and self._resting:
            self._resting = False
            self._open()
        return self._data

    def _failed(self, error: sqlite3.Error) -> None:
        if _is_damage(error):
            self._set_aside()
            self.close()  # the root directory may be another one by now: whoever opens the store next goes on
        else:
            self.trouble = f"the index cannot be used: {error}"


def proof_of(*parts: bytes | str) -> str:
    """A checksum over what a row says."""
    digest = xxhash.xxh3_128()
    for part in parts:
        data = part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()


def proven(rows: Iterable[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Those rows whose last column is the checksum of the columns before, without it."""
    found = []
    for *parts, proof in rows:
        if all(isinstance(part, (str, bytes)) for part in parts) and proof_of(*parts) == proof:
            found.append(tuple(parts))
    return found


def _is_damage(error: sqlite3.Error) -> bool:
    code = getattr(error, "sqlite_errorcode", None)
    if code is None:  # what Python itself finds: text that is none, for example
        return isinstance(error, sqlite3.DatabaseError)
    return code == _SHORT_READ or code & 0xFF in _DAMAGE


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _quoted(path: str) -> str:
    from urllib.parse import quote

    return quote(os.path.abspath(path))
