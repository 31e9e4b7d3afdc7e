"""What is known of a job before it starts: the first step of a look-up."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from typing import Any

import detbox
from detbox.cache import manifest
from detbox.cache.facts import content_of
from detbox.cache.places import Sources
from detbox.cache.summary import text
from detbox.images.place import place_of
from detbox.spec import RunSpec

#: What does not change a run's results, or is known from facts.
_LEFT_OUT = frozenset((
    "workdir", "workdir_alias", "image", "mounts", "site_cache", "stdin", "stdin_closed", "timeout_s", "stats",
    "verbose", "dry_run", "record", "record_results", "cpuid_backend", "cache", "cache_dir",
    "cache_max_bytes", "cache_remote", "cache_remote_read_only", "cache_remote_timeout_s",
    "cache_verify", "cache_base", "observe_fd", "stdin_head",
))  # fmt: skip


def parts(spec: RunSpec, sources: Sources) -> dict[str, Any]:
    """Everything that the key is made from, by name."""
    raw = json.loads(spec.to_json())
    found = {name: value for name, value in raw.items() if name not in _LEFT_OUT}
    found["mounts"] = [[m.dst, m.rw, _read_only(m.src)] for m in spec.mounts]
    found["work directory is read-only"] = _read_only(spec.workdir)
    found["work directory's path"] = text(os.fsencode(spec.workdir_alias)) if spec.workdir_alias else None
    found["root"] = list(sources.fixed)
    found["file system"] = sorted(text(os.fsencode(guest)) for guest, _ in sources.shown)
    found["ordinary user"] = os.geteuid() != 0
    found["format"] = manifest.FORMAT
    found["detbox"] = [detbox.__version__, engine()]
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


def key_of(known: dict[str, Any]) -> str:
    """The key of a job."""
    return hashlib.sha256(json.dumps(known, sort_keys=True).encode()).hexdigest()


def _read_only(path: str) -> bool:
    return bool(os.statvfs(path).f_flag & os.ST_RDONLY)


@lru_cache
def engine() -> str:
    """A digest of detbox itself: another engine may give other results."""
    import xxhash

    top = os.path.dirname(os.path.abspath(detbox.__file__))
    digest = xxhash.xxh3_128()
    for directory, directories, files in os.walk(top):
        directories[:] = sorted(name for name in directories if name != "__pycache__")
        for name in sorted(files):
            if name.endswith((".py", ".so", ".c", ".h", ".S")):
                path = os.path.join(directory, name)
                digest.update(os.path.relpath(path, top).encode() + b"\0")
                with open(path, "rb") as file:
                    digest.update(file.read())
    return digest.hexdigest()
