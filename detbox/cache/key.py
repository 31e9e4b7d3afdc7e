"""What is known of a job before it starts: the first step of a look-up."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import detbox
from detbox.cache import manifest
from detbox.cache.facts import RACY_NS, content_of
from detbox.cache.places import Sources
from detbox.cache.summary import text
from detbox.digests import sha256
from detbox.images.place import place_of
from detbox.kernel import userns
from detbox.spec import RunSpec

if TYPE_CHECKING:
    from detbox.cache.store import Store

#: What does not change a run's results, or is known from facts.
_LEFT_OUT = frozenset((
    "workdir", "workdir_alias", "image", "mounts", "site_cache", "stdin", "stdin_closed", "timeout_s", "stats",
    "verbose", "dry_run", "record", "record_results", "cpuid_backend", "cache", "cache_dir",
    "cache_max_bytes", "cache_remote", "cache_remote_read_only", "cache_remote_timeout_s",
    "cache_verify", "cache_base", "observe_fd", "stdin_head",
))  # fmt: skip


def parts(spec: RunSpec, sources: Sources, store: Store) -> dict[str, Any]:
    """Everything that the key is made from, by name.  ``store``: see :func:`engine`."""
    raw = json.loads(spec.to_json())
    found = {name: value for name, value in raw.items() if name not in _LEFT_OUT}
    found["mounts"] = [[m.dst, m.rw, _read_only(m.src)] for m in spec.mounts]
    found["work directory is read-only"] = _read_only(spec.workdir)
    found["work directory's path"] = text(os.fsencode(spec.workdir_alias)) if spec.workdir_alias else None
    found["root"] = list(sources.fixed)
    found["file system"] = sorted(text(os.fsencode(guest)) for guest, _ in sources.shown)
    found["ordinary user"] = os.geteuid() != 0 or userns.limited()
    found["format"] = manifest.FORMAT
    found["detbox"] = [detbox.__version__, engine(store)]
    if spec.image is not None and os.path.isfile(spec.image):
        found["image"] = content_of(os.fsencode(spec.image))
    elif spec.image is not None and (place := place_of(spec.image)):
        found["owners"] = content_of(os.fsencode(f"{place}/owners"))  # the files themselves show one owner
    return found


#: What is in the keys of executions inside of a run; their own arguments and files are known otherwise.
_INSIDE = (
    "guest_workdir", "epoch_ns", "seed", "cpus", "cpu_model", "user", "network", "hostname", "memory_bytes", "leak",
    "ordinary user", "detbox",
)  # fmt: skip


def base_of(known: dict[str, Any]) -> str:
    """What a job's configuration adds to the keys of the executions inside."""
    return key_of({name: known[name] for name in _INSIDE})


def family_of(known: dict[str, Any], base: str) -> str:
    """What the executions inside of a job have in common by their names: its command and environment."""
    return key_of({"parts": base, "command": known["command"], "env": known["env"]})


def key_of(known: dict[str, Any]) -> str:
    """The key of a job."""
    return sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


def engine(store: Store) -> str:
    """A digest of detbox itself: another engine may give other results.  ``store`` remembers it by the files' times."""
    import xxhash

    top = os.path.dirname(os.path.abspath(detbox.__file__))
    files = sorted(_sources(top, ""))
    name = "engine " + xxhash.xxh3_128(repr((top, files)).encode()).hexdigest()
    known = store.hint(name)
    if known is not None:
        return known.decode("ascii")
    digest = xxhash.xxh3_128()
    for path, *_ in files:
        digest.update(path.encode() + b"\0")
        with open(os.path.join(top, path), "rb") as file:
            digest.update(file.read())
    newest = max(max(mtime, ctime) for _, _, mtime, ctime, _ in files)
    if time.time_ns() - newest > RACY_NS:
        store.set_hint(name, digest.hexdigest().encode())
    return digest.hexdigest()


def _sources(top: str, below: str) -> Iterator[tuple[str, int, int, int, int]]:
    """Path, size, times and inode of each file that the engine is made of."""
    with os.scandir(os.path.join(top, below)) as entries:
        for entry in entries:
            if entry.name.endswith((".py", ".so", ".c", ".h", ".S")):
                st = entry.stat()
                yield below + entry.name, st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino
            elif entry.name != "__pycache__" and entry.is_dir():
                yield from _sources(top, f"{below}{entry.name}/")
