"""A directory that keeps results: blobs in files named by their SHA-256, and an index in SQLite.

Everything is reached through a descriptor of the directory and through a connection that is opened at once, so
that a store goes on working in a process whose root directory has become another one.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sqlite3
import time
from collections.abc import Iterable

from detbox.errors import HostError

#: Format of the directory; a directory of another one is left alone.
FORMAT = 1
_CHUNK = 1 << 20
_SCHEMA = """
create table if not exists results (
  id integer primary key, key text not null, manifest blob not null, blobs text not null,
  made real not null, used real not null);
create index if not exists results_by_key on results (key, id);
create table if not exists hints (name text primary key, data blob not null);
create table if not exists runs (id integer primary key, at real not null, summary text not null);
"""
#: How many results of one key are looked through.
_MOST_CANDIDATES = 16
#: How many runs are remembered for `detbox cache why`.
_MOST_RUNS = 50


class Store:
    """One cache directory.  It is made if it is missing.  Raises HostError where that is impossible."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        try:
            os.makedirs(os.path.join(directory, f"v{FORMAT}", "tmp"), mode=0o700, exist_ok=True)
            self._dir = os.open(os.path.join(directory, f"v{FORMAT}"), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            self._index = sqlite3.connect(
                os.path.join(directory, f"v{FORMAT}", "index.sqlite"), timeout=20, isolation_level=None
            )
            self._index.execute("pragma journal_mode = wal")
            self._index.execute("pragma synchronous = normal")
            self._index.executescript(_SCHEMA)
        except (OSError, sqlite3.Error) as error:
            raise HostError(f"the cache {directory} cannot be used: {error}", "give another --cache-dir") from None

    def close(self) -> None:
        """Release what the store holds."""
        self._index.close()
        os.close(self._dir)

    # -- blobs -------------------------------------------------------------------------

    def put_bytes(self, data: bytes) -> str:
        """Keep ``data``; its SHA-256 in hexadecimal digits."""
        digest = hashlib.sha256(data).hexdigest()
        if not self._has(digest):
            with self._temporary() as (fd, name):
                _write(fd, data)
                self._keep(name, digest)
        return digest

    def put_file(self, path: str | bytes, dir_fd: int | None = None) -> str:
        """Keep the content of a file; its SHA-256 in hexadecimal digits.  Raises OSError."""
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            digest = hashlib.sha256()
            with self._temporary() as (fd, name):
                while data := os.read(source, _CHUNK):
                    digest.update(data)
                    _write(fd, data)
                found = digest.hexdigest()
                if not self._has(found):
                    self._keep(name, found)
                return found
        finally:
            os.close(source)

    def open_blob(self, digest: str) -> bytes | None:
        """The content of a blob, verified; None if it is missing or damaged (then it is removed)."""
        try:
            fd = os.open(_place(digest), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dir)
        except OSError:
            return None
        with open(fd, "rb") as file:
            data = file.read()
        if hashlib.sha256(data).hexdigest() == digest:
            return data
        with contextlib.suppress(OSError):
            os.unlink(_place(digest), dir_fd=self._dir)
        return None

    def _has(self, digest: str) -> bool:
        try:
            os.stat(_place(digest), dir_fd=self._dir)
        except OSError:
            return False
        return True

    @contextlib.contextmanager
    def _temporary(self):  # type: ignore[no-untyped-def]
        """A new file (descriptor, name) that is gone afterwards unless it was kept."""
        name = f"tmp/{os.getpid()}-{secrets.token_hex(8)}"
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600, dir_fd=self._dir)
        try:
            yield fd, name
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._dir)

    def _keep(self, name: str, digest: str) -> None:
        # No fsync: a blob that a power cut has torn fails its verification, and is then made again.
        with contextlib.suppress(FileExistsError):
            os.mkdir(digest[:2], 0o700, dir_fd=self._dir)
        os.rename(name, _place(digest), src_dir_fd=self._dir, dst_dir_fd=self._dir)

    # -- results -----------------------------------------------------------------------

    def publish(self, key: str, manifest: bytes, blobs: Iterable[str]) -> None:
        """Enter a result under ``key``, after its blobs."""
        self.publish_all([(key, manifest, tuple(blobs))])

    def publish_all(self, results: Iterable[tuple[str, bytes, tuple[str, ...]]]) -> None:
        """Enter many results at once: all of them or none."""
        now = time.time()
        rows = [(key, manifest, " ".join(blobs), now, now) for key, manifest, blobs in results]
        self._index.execute("begin immediate")
        try:
            for row in rows:
                # The same result again counts as a use of the older one.
                self._index.execute("delete from results where key = ? and manifest = ?", row[:2])
                self._index.execute(
                    "insert into results (key, manifest, blobs, made, used) values (?, ?, ?, ?, ?)", row
                )
            self._index.execute("commit")
        except BaseException:
            self._index.execute("rollback")
            raise

    def candidates(self, key: str) -> list[bytes]:
        """The manifests entered under ``key``, newest first."""
        rows = self._index.execute(
            "select manifest from results where key = ? order by id desc limit ?", (key, _MOST_CANDIDATES)
        )
        return [bytes(row[0]) for row in rows]

    # -- what only this machine knows ------------------------------------------------------

    def hint(self, name: str) -> bytes | None:
        """A note that was kept under ``name``."""
        row = self._index.execute("select data from hints where name = ?", (name,)).fetchone()
        return None if row is None else bytes(row[0])

    def set_hint(self, name: str, data: bytes) -> None:
        """Keep a note: it only saves time."""
        self._index.execute("insert or replace into hints values (?, ?)", (name, data))

    def log_run(self, summary: dict[str, object]) -> None:
        """Remember what a run found, for `detbox cache why` and the statistics."""
        self._index.execute("insert into runs (at, summary) values (?, ?)", (time.time(), json.dumps(summary)))
        self._index.execute("delete from runs where id <= (select max(id) from runs) - ?", (_MOST_RUNS,))

    def runs(self) -> list[dict[str, object]]:
        """The runs that are remembered, newest first."""
        rows = self._index.execute("select id, at, summary from runs order by id desc")
        return [{"id": row[0], "at": row[1], **json.loads(row[2])} for row in rows]

    def totals(self) -> dict[str, int]:
        """Sizes of the store."""
        sizes = "select count(*), coalesce(sum(length(manifest)), 0) from results"
        results, size = self._index.execute(sizes).fetchone()
        blobs = bytes_kept = 0
        top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._dir)
        try:
            for _, _, files, at in os.fwalk(".", dir_fd=top):
                for name in files:
                    if len(name) == 62:
                        blobs += 1
                        bytes_kept += os.stat(name, dir_fd=at).st_size
        finally:
            os.close(top)
        return {"results": results, "manifest bytes": size, "blobs": blobs, "blob bytes": bytes_kept}


def _place(digest: str) -> str:
    return f"{digest[:2]}/{digest[2:]}"


def _write(fd: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
