"""Keeps a store small, and looks whether it is whole; safe while others use it.

A result goes before its blobs, and blobs that no result names are left alone for a while: somebody may be about to
publish a result with them.  Whoever loses a blob all the same has a miss, and makes it again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

from detbox.cache.store import Entry, Store

#: A blob without a result, and an unfinished file, is kept for so many seconds.
GRACE_S = 3600.0
#: A cache that has become too large is cut to this part of its limit, so that this does not happen on each run.
_PART = 0.8


def collect(
    store: Store, max_bytes: int | None = None, max_age_s: float | None = None, chosen: Iterable[int] = ()
) -> dict[str, int]:
    """Remove the results with the numbers ``chosen``, those whose last use is longer ago than ``max_age_s``, then
    what was used least recently until the rest is at most ``max_bytes``; and what belongs to no result.

    Says how much was removed.
    """
    unwanted = frozenset(chosen)
    now = time.time()
    sizes = {digest: st.st_size for digest, st in store.blobs()}
    entries = store.entries()
    kept = [entry for entry in entries if max_age_s is None or now - entry.used <= max_age_s]
    kept = [entry for entry in kept if entry.number not in unwanted]
    if max_bytes is not None:
        kept = _newest(kept, sizes, max_bytes)
    numbers = {entry.number for entry in kept}
    gone = [entry for entry in entries if entry.number not in numbers]
    # When a blob was last published: if it has been put again since then, somebody is about to use it.
    freed: dict[str, float] = {}
    for entry in gone:
        freed.update((digest, max(entry.made, freed.get(digest, 0))) for digest in entry.blobs)
    damaged = store.unproven()
    if not store.forget([*(entry.number for entry in gone), *damaged]):
        return {"results removed": 0, "blobs removed": 0, "bytes removed": 0, "bytes kept": sum(sizes.values())}
    # Asked again: others may have published meanwhile.
    entries = store.entries()
    wanted = {digest for entry in entries for digest in entry.blobs}
    removed = 0
    for digest, st in store.blobs():
        if digest not in wanted and (now - st.st_mtime > GRACE_S or st.st_mtime <= freed.get(digest, 0)):
            store.remove_blob(digest)
            sizes.pop(digest, None)
            removed += st.st_size
    for name, st in store.leftovers():
        if now - st.st_mtime > GRACE_S:
            store.remove_leftover(name)
            removed += st.st_size
    left = sum(sizes.values()) + sum(len(entry.manifest) for entry in entries)
    store.tidy()
    store.set_size(left)
    blobs = len({digest for digest, _ in store.blobs()})
    return {"results removed": len(gone) + len(damaged), "results kept": len(entries), "blobs kept": blobs,
            "bytes removed": removed, "bytes kept": left}  # fmt: skip


def _newest(entries: list[Entry], sizes: dict[str, int], most: int) -> list[Entry]:
    """Those used last that fit into ``most`` bytes, a blob of several results counted once."""
    total = 0
    seen: set[str] = set()
    kept: list[Entry] = []
    for entry in reversed(entries):
        new = set(entry.blobs) - seen
        total += len(entry.manifest) + sum(sizes.get(digest, 0) for digest in new)
        if total > most:
            break
        seen |= new
        kept.append(entry)
    return kept[::-1]


def keep_small(store: Store, max_bytes: int) -> None:
    """After a result has been published: cut a store that has grown too large."""
    if store.writable and store.counts().get("bytes", 0) > max_bytes:
        collect(store, int(max_bytes * _PART), None)


def check(store: Store) -> dict[str, Any]:
    """Read everything and compare it with its checksums; what is damaged is removed."""
    problems = store.problems()
    for number in store.unproven():
        problems.append(f"result {number}: its row is damaged; removed")
        store.forget([number])
    checked = 0
    for digest, _ in store.blobs():
        checked += 1
        if store.open_blob(digest) is None:
            problems.append(f"blob {digest}: its content is damaged; removed")
    incomplete = [entry for entry in store.entries() if not _whole(store, entry.blobs)]
    if incomplete:
        store.forget(entry.number for entry in incomplete)
        problems += [f"result {entry.key[:12]}: a blob is missing; removed" for entry in incomplete]
    if store.trouble:
        problems.append(store.trouble)
    return {"blobs checked": checked, "results checked": len(store.entries()), "problems": problems,
            "other formats": store.other_formats()}  # fmt: skip


def _whole(store: Store, blobs: Iterable[str]) -> bool:
    return all(store.has(digest) for digest in blobs)
