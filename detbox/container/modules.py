"""Python's modules stay in reach of the supervisor after its root directory has changed.

The directories of ``sys.path`` are mounted, read-only, in a directory of the
container that the guest does not see, so that what few runs need (the disassembler
above all, 25 ms) is imported when it is needed.
"""

from __future__ import annotations

import importlib
import os
import sys

from detbox.container.operations import Bind, Directory, Step

#: Hidden from directory listings (see handlers/dirs.py).
HIDDEN = "/.detbox"


def places() -> dict[str, str]:
    """Where each directory of ``sys.path``, and the one of this package, is in the container."""
    # An editable installation may find this package through a hook of its own, without an entry in sys.path.
    own = [os.path.dirname(path) for path in sys.modules["detbox"].__path__]
    found = [os.path.abspath(path or ".") for path in [*sys.path, *own]]
    directories = [path for path in dict.fromkeys(found) if os.path.isdir(path)]
    return {path: f"{HIDDEN}/python/{index}" for index, path in enumerate(directories)}


def steps() -> list[Step]:
    """What brings them there."""
    binds: list[Step] = [Bind(path, place, read_only=True) for path, place in places().items()]
    return [Directory(HIDDEN, 0o700), *binds]


def follow(places: dict[str, str]) -> None:
    """Look for modules there from now on: called when the root has changed."""

    def moved(path: str) -> str:
        top = max((old for old in places if path == old or path.startswith(old + "/")), key=len, default=None)
        return path if top is None else places[top] + path[len(top):]

    sys.path[:] = list(places.values())
    for module in list(sys.modules.values()):
        paths = getattr(module, "__path__", None)
        if isinstance(paths, list):
            paths[:] = [moved(os.path.abspath(path)) for path in paths]
    sys.path_importer_cache.clear()
    importlib.invalidate_caches()

