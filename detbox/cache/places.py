"""Where the guest's paths are on the host."""

from __future__ import annotations

import os

from detbox.records import NamedTuple


class Sources(NamedTuple):
    """What a container's file system is made from.

    ``shown``: (guest path, host path) of directories and files of the host; where two overlap the longer
    guest path counts.  ``fresh``: guest paths of empty file systems.  ``made``: files and links that the
    container makes itself, with what they hold.  ``remade``: files that are made from one of the host's, and
    that one.
    ``fixed``: whatever else of the host shows in the file system, as text.
    """

    shown: tuple[tuple[str, str], ...]
    fresh: tuple[str, ...] = ()
    made: frozenset[str] = frozenset()
    remade: tuple[tuple[str, str], ...] = ()
    fixed: tuple[str, ...] = ()


class Places:
    """Translates canonical guest paths."""

    def __init__(self, sources: Sources) -> None:
        shown: list[tuple[bytes, bytes | None]] = [
            (os.fsencode(guest), os.fsencode(host)) for guest, host in sources.shown
        ]
        fresh = [(os.fsencode(guest), None) for guest in sources.fresh]
        self.sources = sources
        self._known: dict[bytes, bytes | None] = {}  # of directories
        self._tops = sorted([*shown, *fresh], key=lambda top: -len(top[0]))
        self.remade = {os.fsencode(path): os.fsencode(origin) for path, origin in sources.remade}
        self._made = frozenset((*map(os.fsencode, sources.made), *self.remade))
        #: Directories of the host in which the container has entries of its own.
        self.mixed = frozenset(path.rpartition(b"/")[0] for path in (*self._made, *(guest for guest, _ in self._tops)))

    def host(self, path: bytes) -> bytes | None:
        """The host's path; None for what the container makes itself."""
        if path in self._made:
            return None
        for guest, host in self._tops:
            if path == guest:
                return host
        directory, _, name = path.rpartition(b"/")
        if directory not in self._known:
            self._known[directory] = self._directory(directory)
        there = self._known[directory]
        return None if there is None else there + b"/" + name

    def _directory(self, path: bytes) -> bytes | None:
        for guest, host in self._tops:
            top = guest.rstrip(b"/")
            if path == top or path.startswith(top + b"/"):
                return None if host is None else (host + path[len(top) :]).rstrip(b"/")
        return None
