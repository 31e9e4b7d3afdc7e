"""A stored result that is not what the run gives: both are kept, and reported as a bug."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from detbox.cache.summary import data_of
from detbox.errors import InternalError

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


def report(store: Store, found: dict[str, Any]) -> InternalError:
    """Keep what :func:`difference` has found beside the store, with the content of every blob; the error to raise."""
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
            data = store.open_blob(digest) if digest else None
            if data is not None:
                place = os.path.join(directory, name + "-" + os.path.basename(os.fsdecode(data_of(path)))[:200])
                with contextlib.suppress(OSError), open(place, "wb") as content:
                    content.write(data)
    field = found["field"]
    return InternalError(
        f"the cached result of `{found['command']}` is not what the run gave: {field} differ: "
        f"{found['stored'][field]!r:.300} is stored, {found['rerun'][field]!r:.300} is right; "
        f"both are kept, with all that was observed: {paths[0]} and {paths[1]}"
    )
