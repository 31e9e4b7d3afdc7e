"""A store with a remote cache behind it: what is not here may be there, and what is new here is given there."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator

from detbox.cache.facts import below
from detbox.cache.manifest import Manifest
from detbox.cache.record import Record
from detbox.cache.remote import Access, Remote, connect
from detbox.cache.remote_check import is_sound
from detbox.cache.remote_parts import pack, unpack
from detbox.cache.store import Store
from detbox.cache.summary import data_of
from detbox.spec import RunSpec

#: Directories that each container has empty and to itself.
_OWN = ("/tmp", "/run")


class SharedStore(Store):
    """One cache directory and one remote cache."""

    def __init__(self, directory: str, remote: Remote, url: str, tops: Iterable[str] = ()) -> None:
        """``tops``: guest paths below which results of programs inside may change something."""
        super().__init__(directory)
        self._tops = [os.fsencode(top) for top in (*tops, *_OWN)]
        self._url = url
        self.remote = remote
        self._held: dict[str, bytes] = {}  # what this store cannot keep
        self._sizes: dict[str, int] = {}
        self._foreign: set[bytes] = set()

    def look_up(self, key: str) -> Iterator[bytes]:
        """The manifests of this store, then those of the remote cache."""
        known = set()
        for data in super().look_up(key):
            known.add(data)
            manifest = Manifest.from_bytes(data)
            if manifest is not None:
                self._sizes.update(manifest.sized_blobs())
            yield data
        for candidate in self.remote.candidates(key):
            data = self.remote.blob(candidate.digest, candidate.size) or b""
            manifest = Manifest.from_bytes(data)
            if manifest is None or data in known or not is_sound(manifest):
                continue
            self._foreign.add(data)
            self._sizes.update(manifest.sized_blobs())
            yield data

    def chosen(self, key: str, manifest: bytes) -> None:
        """A result from elsewhere that fits becomes one of this store."""
        found = Manifest.from_bytes(manifest)
        if found is None:
            return
        self._fetch(found.sized_blobs())
        if manifest in self._foreign and all(self.has(digest) for digest in found.blobs()):
            super().publish(key, manifest, found.blobs())

    def _fetch(self, blobs: Iterable[tuple[str, int]]) -> None:
        """Get what is missing, several at a time."""
        missing = [(digest, size) for digest, size in dict(blobs).items() if not self.has(digest)]
        for digest, data in self.remote.blobs(missing) if missing else ():
            if data is not None:
                self._take(digest, data)

    def _take(self, digest: str, data: bytes) -> None:
        try:
            self.put_bytes(data)
        except OSError:
            self._held[digest] = data

    def open_blob(self, digest: str) -> bytes | None:
        """See :meth:`Store.open_blob`; a damaged one is fetched again."""
        data = super().open_blob(digest) or self._held.get(digest)
        if data is None and digest in self._sizes:
            data = self.remote.blob(digest, self._sizes[digest])
            if data is not None:
                self._take(digest, data)
        return data

    def publish(self, key: str, manifest: bytes, blobs: Iterable[str]) -> bool:
        """Here and there."""
        kept = super().publish(key, manifest, blobs)
        new = Manifest.from_bytes(manifest)
        if new is not None:
            self.remote.push(key, manifest, new.sized_blobs(), super().open_blob)
        return kept

    # -- executions inside of a job --------------------------------------------------------

    def fetch_parts(self, family: str) -> None:
        """Those of the last run of the same command become this store's, as far as their blobs are to be had."""
        for candidate in self.remote.candidates(family)[:1]:
            data = self.remote.blob(candidate.digest, candidate.size) or b""
            found = [row for row in unpack(data) if self._is_new(row[0], row[1]) and self._stays_inside(row[2])]
            self._fetch(blob for _, _, record in found for blob in record.sized_blobs())
            complete = [row for row in found if all(self.has(digest) for digest in row[2].blobs())]
            super().publish_all((key, packed, tuple(record.blobs())) for key, packed, record in complete)

    def _is_new(self, key: str, packed: bytes) -> bool:
        return packed not in super().candidates(key)

    def _stays_inside(self, record: Record) -> bool:
        return all(below(data_of(path), self._tops) for path in record.changed_paths())

    def give_parts(self, family: str, new: list[tuple[str, bytes]], used: list[tuple[str, str]]) -> None:
        """All of a run's go there as one bundle."""
        results = dict(new)
        for key, digest in used if self.remote.writable else ():
            for data in super().candidates(key):
                if hashlib.sha256(data).hexdigest() == digest:
                    results.setdefault(key, data)
        blobs: dict[str, int] = {}
        for data in results.values():
            record = Record.from_bytes(data)
            blobs.update(record.sized_blobs() if record is not None else ())
        self.remote.push(family, pack(results.items()), blobs.items(), super().open_blob)

    @property
    def trouble(self) -> str:
        """What is wrong here or there."""
        there = f"{self._url}: {self.remote.trouble}" if self.remote.trouble else ""
        return "; ".join(filter(None, (super().trouble, there)))

    def report(self) -> dict[str, object]:
        """What the remote cache did in this run."""
        amounts = {"remote bytes received": self.remote.received, "remote bytes sent": self.remote.sent}
        self.count({name: value for name, value in amounts.items() if value})
        return {**amounts, "remote trouble": self.remote.trouble}


def open_store(spec: RunSpec, access: Access) -> SharedStore:
    """The store of a run with a remote cache.  Raises DetboxError."""
    assert spec.cache_dir is not None and spec.cache_remote is not None
    transport = connect(spec.cache_remote, spec.cache_remote_timeout_s, access)
    writable = not spec.cache_remote_read_only
    remote = Remote(transport, spec.cache_remote_timeout_s, writable=writable, signature=access.signature)
    tops = (spec.guest_workdir, *(mount.dst for mount in spec.mounts if mount.rw))
    return SharedStore(spec.cache_dir, remote, spec.cache_remote, tops)
