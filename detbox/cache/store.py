"""A directory that keeps results: blobs in files named by their SHA-256, and an index of what they belong to.

Everything is reached through a descriptor of the directory and through a connection that is opened at once, so
that a store goes on working in a process whose root directory has become another one.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from detbox.cache.blobs import Blobs
from detbox.cache.index import Index, proof_of, proven
from detbox.errors import HostError
from detbox.records import NamedTuple

#: Format of the directory; a directory of another one is left alone.
FORMAT = 2
#: How many results of one key are looked through.
MOST_CANDIDATES = 16
#: How many runs are remembered for `detbox cache why`.
_MOST_RUNS = 50
#: A result's last use is noted again after so many seconds.
_USE_S = 300
#: Parameters of one statement; SQLite takes 999 at least.
_AT_ONCE = 500


class Entry(NamedTuple):
    """One result: ``used`` and ``made`` in seconds since 1970; ``blobs`` are digests."""

    number: int
    key: str
    manifest: bytes
    blobs: tuple[str, ...]
    made: float
    used: float


class Store(Blobs):
    """One cache directory.  It is made if it is missing.  Raises HostError where that is impossible."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        top = os.path.join(directory, f"v{FORMAT}")
        try:
            if not os.path.isdir(os.path.join(top, "tmp")):
                os.makedirs(os.path.join(top, "tmp"), mode=0o700, exist_ok=True)
            dir_fd = os.open(top, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            remedy = "give another --cache-dir"
            raise HostError(f"the cache {directory} cannot be used: {error.strerror}", remedy) from None
        super().__init__(dir_fd)
        self._index = Index(top, dir_fd)

    @property
    def writable(self) -> bool:
        """Whether something can be kept."""
        return self._index.writable

    @property
    def trouble(self) -> str:
        """What is wrong with the store; "" for nothing."""
        return self._index.trouble

    def close(self) -> None:
        """Release what the store holds."""
        self._index.close()
        os.close(self._dir)

    def rest(self) -> None:
        """To be called before a fork; the next use opens the index again."""
        self._index.rest()
        self.rename()

    def other_formats(self) -> list[str]:
        """Directories of other formats, which are left alone."""
        try:
            names = os.listdir(self.directory)
        except OSError:
            return []
        return sorted(name for name in names if re.fullmatch(r"v\d+", name) and name != f"v{FORMAT}")

    # -- results -----------------------------------------------------------------------

    def publish(self, key: str, manifest: bytes, blobs: Iterable[str]) -> bool:
        """Enter a result under ``key``, after its blobs; whether that was possible."""
        return self.publish_all([(key, manifest, tuple(blobs))])

    def publish_all(self, results: Iterable[tuple[str, bytes, tuple[str, ...]]]) -> bool:
        """Enter many results at once: all of them or none."""
        now = time.time()
        steps: list[tuple[str, tuple[Any, ...]]] = []
        size = 0
        for key, manifest, blobs in results:
            names = " ".join(blobs)
            # The same result again counts as a use of the older one.
            steps.append(("delete from results where key = ? and manifest = ?", (key, manifest)))
            steps.append((
                "insert into results (key, manifest, blobs, made, used, proof) values (?, ?, ?, ?, ?, ?)",
                (key, manifest, names, now, now, proof_of(key, manifest, names)),
            ))  # fmt: skip
            size += len(manifest) + sum(self._size(digest) for digest in blobs)
        return self._index.write(*steps, *(self._count("bytes", size),))

    def is_empty(self) -> bool:
        """Whether nothing has been entered yet."""
        return not self._index.read("select 1 from results limit 1")

    def candidates(self, key: str) -> list[bytes]:
        """The manifests entered under ``key``, newest first."""
        rows = self._index.read(
            "select key, manifest, blobs, proof from results where key = ? order by id desc limit ?",
            (key, MOST_CANDIDATES),
        )
        return [manifest for _, manifest, _ in proven(rows)]

    def use(self, keys: Iterable[str]) -> None:
        """Note that the results under these keys are used."""
        now = time.time()
        step = "update results set used = ? where key = ? and used < ?"
        all_keys, old = list(dict.fromkeys(keys)), []
        for start in range(0, len(all_keys), _AT_ONCE):
            some = all_keys[start : start + _AT_ONCE]
            marks = ", ".join("?" * len(some))
            query = f"select distinct key from results where used < ? and key in ({marks})"
            old += [row[0] for row in self._index.read(query, (now - _USE_S, *some))]
        if old:
            self._index.write(*((step, (now, key, now - _USE_S)) for key in old))

    def entered(self, key: str) -> list[tuple[bytes, list[str]]]:
        """The manifests entered under ``key``, each with the digests that it was entered with."""
        rows = self._index.read("select key, manifest, blobs, proof from results where key = ?", (key,))
        return [(manifest, blobs.split()) for _, manifest, blobs in proven(rows)]

    def look_up(self, key: str) -> Iterator[bytes]:
        """The same one by one, for a look-up on the host's side: a store may get them from elsewhere."""
        found = self.candidates(key)
        if found:
            self.use([key])
        yield from found

    def chosen(self, key: str, manifest: bytes) -> None:
        """The facts of this one hold: its blobs will be asked for."""

    def fetch_parts(self, family: str) -> None:
        """Executions inside of a job are about to be looked up, see ``key.family_of``: get them from elsewhere."""

    def give_parts(self, family: str, new: list[tuple[str, bytes]], used: list[tuple[str, str]]) -> None:
        """The executions inside of a job: new results by key, and digests of those that were used."""

    def report(self) -> dict[str, object]:
        """What the log of the run says about the store itself."""
        return {}

    def entries(self) -> list[Entry]:
        """Every result, the one that was used last at the end."""
        rows = self._index.read("select id, made, used, key, manifest, blobs, proof from results order by used, id")
        found = []
        for number, made, used, *row in rows:
            for key, manifest, blobs in proven([tuple(row)]):
                digests = tuple(digest for digest in blobs.split(" ") if digest)
                found.append(Entry(number, key, manifest, digests, float(made), float(used)))
        return found

    def unproven(self) -> list[int]:
        """Numbers of the results whose rows are damaged."""
        rows = self._index.read("select id, key, manifest, blobs, proof from results")
        return [row[0] for row in rows if not proven([row[1:]])]

    def problems(self) -> list[str]:
        """What is wrong with the index."""
        return self._index.problems()

    def forget(self, numbers: Iterable[int]) -> bool:
        """Remove results by their numbers (their blobs stay)."""
        return self._index.write(*(("delete from results where id = ?", (number,)) for number in numbers))

    def withdraw(self, key: str) -> bool:
        """Remove every result under ``key``: one of them is wrong."""
        return self._index.write(("delete from results where key = ?", (key,)))

    def tidy(self) -> None:
        """Give space in the index back, and forget what is known about files that are not looked at any more."""
        self._index.write((
            "delete from hints where rowid <= (select max(rowid) from hints) - 20000", ()
        ))  # fmt: skip
        self._index.tidy()

    # -- what only this machine knows ------------------------------------------------------

    def hint(self, name: str) -> bytes | None:
        """A note that was kept under ``name``."""
        rows = proven(self._index.read("select name, data, proof from hints where name = ?", (name,)))
        return rows[0][1] if rows else None

    def set_hint(self, name: str, data: bytes) -> None:
        """Keep a note: it only saves time."""
        row = (name, data, proof_of(name, data))
        self._index.write(("insert or replace into hints values (?, ?, ?)", row))

    def log_run(self, summary: dict[str, Any]) -> None:
        """Remember what a run found, for `detbox cache why` and the statistics."""
        text = json.dumps(summary)
        self._index.write(
            ("insert into runs (at, summary, proof) values (?, ?, ?)", (time.time(), text, proof_of(text))),
            ("delete from runs where id <= (select max(id) from runs) - ?", (_MOST_RUNS,)),
            self._count(f"runs: {summary['result']}", 1),
            self._count("seconds saved", summary.get("saved", 0)),
        )

    def runs(self) -> list[dict[str, Any]]:
        """The runs that are remembered, newest first."""
        found = []
        for number, at, text, proof in self._index.read("select id, at, summary, proof from runs order by id desc"):
            if proven([(text, proof)]):
                found.append({"id": number, "at": at, **json.loads(text)})
        return found

    def count(self, amounts: dict[str, float]) -> None:
        """Add to the counts that are kept across runs."""
        if amounts:
            self._index.write(*(self._count(name, value) for name, value in amounts.items()))

    def counts(self) -> dict[str, float]:
        """What has been counted; ``bytes`` is a guess of the store's size that is never too low for long."""
        return {str(name): value for name, value in self._index.read("select name, value from counts order by name")}

    def set_size(self, size: int) -> None:
        """The true size of all results, for later guesses."""
        self._index.write(("insert or replace into counts values ('bytes', ?)", (size,)))

    @staticmethod
    def _count(name: str, value: float) -> tuple[str, tuple[Any, ...]]:
        step = "insert into counts values (?, ?) on conflict (name) do update set value = value + excluded.value"
        return step, (name, value)

    def totals(self) -> dict[str, int]:
        """Sizes of the store."""
        query = "select count(*), coalesce(sum(length(manifest)), 0) from results"
        results, size = (self._index.read(query) or [(0, 0)])[0]
        sizes = [st.st_size for _, st in self.blobs()]
        return {"results": results, "manifest bytes": size, "blobs": len(sizes), "blob bytes": sum(sizes)}
