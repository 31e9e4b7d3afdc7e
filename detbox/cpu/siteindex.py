"""Finds what is known about a file by its inode instead of its content.

To hash a library takes longer than all other work at its mapping, and the keeper has to be asked for it.  So the
keeper also notes its answers under the file's inode number, size and times, and the supervisor, which keeps
the directory open, finds them there.  A file whose inode changed a moment ago could change again within the
same tick of the file system's clock; it is not noted.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Sequence
from typing import TypeVar

from detbox.cpu import entries
from detbox.cpu.sites import SCANNER_VERSION, Site
from detbox.cpu.trampoline import PLANNER_VERSION, Displacement

_Row = TypeVar("_Row", Site, Displacement)

#: The names begin with this: what the same file gives may change with either.
_VERSION = f"v{SCANNER_VERSION}.{PLANNER_VERSION}"
#: Nanoseconds for which an inode has to have been as it is: more than any file system's clock ticks.
_SETTLED_NS = 3_000_000_000
_KINDS: dict[type[Site] | type[Displacement], str] = {Site: "sites", Displacement: "moves"}


class SiteIndex:
    """The index below a cache directory; None: an index that stays empty.

    The directory is opened at once, so that it stays in reach when the root directory changes.
    """

    def __init__(self, directory: str | os.PathLike[str] | None) -> None:
        self._dir = -1
        if directory is not None:
            with contextlib.suppress(OSError):
                place = os.path.join(directory, "inodes")
                os.makedirs(place, mode=0o700, exist_ok=True)
                self._dir = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)

    def find(self, st: os.stat_result, row: type[_Row]) -> list[_Row] | None:
        """What was noted about the file; None if nothing was, or it is damaged."""
        if self._dir < 0:
            return None
        try:
            fd = os.open(_name(st, row), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dir)
        except OSError:
            return None
        with open(fd, "rb") as file:
            return entries.decoded(file.read(), row)

    def note(self, st: os.stat_result, row: type[_Row], found: Sequence[_Row]) -> None:
        """Note what was found, unless the file has just changed."""
        if self._dir < 0 or time.time_ns() - max(st.st_ctime_ns, st.st_mtime_ns) < _SETTLED_NS:
            return
        with contextlib.suppress(OSError):
            entries.store(_name(st, row), entries.encoded(found), self._dir)


def _name(st: os.stat_result, row: type[Site] | type[Displacement]) -> str:
    # No device number: an overlay's is another one in each run.
    return f"{_VERSION}-{_KINDS[row]}-{st.st_ino:x}-{st.st_size:x}-{st.st_mtime_ns:x}-{st.st_ctime_ns:x}"
