"""Results as one file that can be carried to another machine: a tar archive laid out like a remote cache.

Unpacked, it is a directory that ``--cache-remote`` takes.  What is taken in is checked as strictly as what a remote
cache gives.
"""

from __future__ import annotations

import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable
from typing import IO, Any

from detbox.cache import remote_parts
from detbox.cache.blobs import is_digest
from detbox.cache.manifest import Manifest
from detbox.cache.record import Record
from detbox.cache.remote import FORMAT
from detbox.cache.remote_check import is_sound
from detbox.cache.store import Entry, Store
from detbox.errors import UserError

_MEMBER = re.compile(r"(?:\./)?(cas|ac)/([0-9a-f]{64})")
#: A larger member of an archive is refused: each is read into memory.
_MOST = 4 << 30
_MOST_LIST = 64 << 20


def export(store: Store, entries: Iterable[Entry], file: IO[bytes]) -> dict[str, int]:
    """Write results to ``file``; those whose blobs are not all there are left out."""
    written: set[str] = set()
    lists: dict[str, list[dict[str, Any]]] = {}
    count = 0
    with tarfile.open(fileobj=file, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            if _result(entry.manifest) is None or not all(store.has(digest) for digest in entry.blobs):
                continue
            for digest in dict.fromkeys(entry.blobs):
                data = store.open_blob(digest) if digest not in written else None
                if data is not None:
                    _add(archive, f"cas/{digest}", data)
                    written.add(digest)
            digest = hashlib.sha256(entry.manifest).hexdigest()
            if digest not in written:
                _add(archive, f"cas/{digest}", entry.manifest)
                written.add(digest)
            lists.setdefault(entry.key, []).insert(0, {"manifest": digest, "size": len(entry.manifest)})
            count += 1
        for key, rows in sorted(lists.items()):
            _add(archive, f"ac/{key}", json.dumps({"format": FORMAT, "candidates": rows}).encode())
    return {"results written": count, "blobs written": len(written)}


def take_in(store: Store, file: IO[bytes]) -> dict[str, int]:
    """Read an archive into the store.  Raises UserError if it is none, and OSError if the store is full."""
    lists: list[tuple[str, bytes]] = []
    refused = 0
    try:
        with tarfile.open(fileobj=file, mode="r|*") as archive:
            for member in archive:
                name = _MEMBER.fullmatch(member.name)
                if member.isdir():
                    continue
                if name is None or not member.isreg() or member.size > (_MOST if name[1] == "cas" else _MOST_LIST):
                    refused += 1
                    continue
                content = archive.extractfile(member)
                data = content.read() if content is not None else b""
                if name[1] == "ac":
                    lists.append((name[2], data))
                elif hashlib.sha256(data).hexdigest() == name[2]:
                    store.put_bytes(data)
                else:
                    refused += 1
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"not an archive of results, or a part of one: {error}") from None
    taken = [_enter(store, key, digest) for key, data in lists for digest in reversed(_digests(data))]
    return {"results taken": sum(taken), "refused": refused + len(taken) - sum(taken)}


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    member.mode = 0o644
    archive.addfile(member, io.BytesIO(data))


def _digests(data: bytes) -> list[str]:
    try:
        raw = json.loads(data)
        rows = raw["candidates"] if raw["format"] == FORMAT else []
        return [row["manifest"] for row in rows if is_digest(row["manifest"])]
    except (ValueError, TypeError, KeyError, RecursionError):
        return []


def _enter(store: Store, key: str, digest: str) -> bool:
    data = store.open_blob(digest)
    result = _result(data) if data is not None else None
    if data is None or result is None or (isinstance(result, Record) and result.key != key):
        return False
    if not all(store.has(blob) for blob in result.blobs()):
        return False
    store.remove_blob(digest)  # in a store a manifest is a row of the index
    return store.publish(key, data, result.blobs())


def _result(data: bytes) -> Manifest | Record | None:
    """What a manifest's bytes say, of a whole job or of an execution inside of one; None if they are not sound."""
    manifest = Manifest.from_bytes(data)
    if manifest is not None:
        return manifest if is_sound(manifest) else None
    record = Record.from_bytes(data)
    return record if record is not None and remote_parts.is_sound(record) else None
