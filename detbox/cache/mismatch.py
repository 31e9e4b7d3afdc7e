"""A stored result that is not what the run gives: both are kept with the traces of their runs, and reported as a bug.

A run of somebody who verifies (``--cache-verify``) is traced.  Its trace stays with the results that it gives: as a
blob of theirs that their manifests do not name.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, Any

from detbox.cache.manifest import Manifest
from detbox.cache.summary import data_of
from detbox.errors import InternalError
from detbox.records import as_dict

if TYPE_CHECKING:
    from detbox.cache.store import Store


def chosen(percent: int) -> bool:
    """True so often: whether a hit is to be compared with a run."""
    return int.from_bytes(os.urandom(4), "little") * 100 < percent << 32


def difference(command: str, stored: dict[str, Any], rerun: dict[str, Any], names: Callable[[str], bool]) -> Any:
    """The first of ``names`` in which two results differ, with both; None if there is none."""
    stored, rerun = json.loads(json.dumps(stored)), json.loads(json.dumps(rerun))
    for name in filter(names, stored):
        if stored[name] != rerun[name]:
            return {"command": command, "field": name, "stored": stored, "rerun": rerun}
    return None


def trace_file(store: Store) -> IO[bytes]:
    """A file without a name for the trace of a run.  Raises OSError."""
    import tempfile  # here, because each hit waits for what this module imports

    return tempfile.TemporaryFile(dir=store.directory if store.writable else None)


def trace_of(store: Store, key: str, stored: dict[str, Any]) -> str:
    """The digest of the trace of the run that gave a stored result; "" if there is none."""
    from detbox.cache.record import Record

    for data, blobs in store.entered(key):
        result = Manifest.from_bytes(data) or Record.from_bytes(data)
        if result is not None and json.loads(json.dumps(as_dict(result))) == stored:
            return next((digest for digest in blobs if digest not in result.blobs()), "")
    return ""


def report(store: Store, key: str, found: dict[str, Any], trace: IO[bytes] | None) -> InternalError:
    """Keep what :func:`difference` has found beside the store, with the content of every blob; the error to raise.

    ``key``: of the stored result.  ``trace``: of the run.
    """
    import tempfile

    directory = tempfile.mkdtemp(prefix="mismatch-", dir=store.directory if store.writable else None)
    paths = []
    for name in ("stored", "rerun"):
        result = found[name]
        paths.append(os.path.join(directory, f"{name}.json"))
        with open(paths[-1], "w", encoding="utf-8") as file:
            json.dump(result, file, indent=1)
        digests = {"output": result.get("output"), "moved": result.get("moved")}
        digests.update((change["path"], change.get("blob")) for change in result["changes"])
        for path, digest in digests.items():
            data = _content(store, digest) if digest else None
            if data is not None:
                place = os.path.join(directory, name + "-" + os.path.basename(os.fsdecode(data_of(path)))[:200])
                with contextlib.suppress(OSError), open(place, "wb") as content:
                    content.write(data)
    field = found["field"]
    return InternalError(
        f"the cached result of `{found['command']}` is not what the run gave: {field} differ: "
        f"{found['stored'][field]!r:.300} is stored, {found['rerun'][field]!r:.300} is right; "
        f"both are kept, with all that was observed: {paths[0]} and {paths[1]}"
        + _keep_traces(store, directory, trace_of(store, key, found["stored"]), trace)
    )


def _content(store: Store, content: str) -> bytes | None:
    from detbox.cache.record import inlined

    data = inlined(content)
    return store.open_blob(content) if data is None else data


def _keep_traces(store: Store, directory: str, stored: str, trace: IO[bytes] | None) -> str:
    """Write both traces; what to say of them."""
    if trace is None:
        return ""
    names = [os.path.join(directory, f"{name}.trace") for name in ("stored", "rerun")]
    import shutil

    trace.seek(0)
    with open(names[1], "wb") as file:
        shutil.copyfileobj(trace, file)
    data = store.open_blob(stored) if stored else None
    if data is None:
        return f"; the trace of this run is {names[1]}; the stored result has none, for want of --cache-verify then"
    with open(names[0], "wb") as file:
        file.write(data)
    return f"; where the runs part is shown by: detbox trace diff {names[0]} {names[1]}"
