"""Copies of inputs that a verification has left, because it was killed together with its cleaner.

Every run looks for them, so the look costs one listing of two directories and imports nothing.
"""

from __future__ import annotations

import os
import stat

#: How the names of such directories begin.
PREFIX = "detbox-verify-"
#: Where memory can be used as a disk.
MEMORY_DIR = "/dev/shm"


def collect() -> None:
    """Remove those of this user in TMPDIR and in memory that no verification uses any more."""
    found = [path for top in (os.environ.get("TMPDIR") or "/tmp", MEMORY_DIR) for path in _own(top)]
    if found:
        from detbox.report.scratch import remove_if_unused

        for path in found:
            remove_if_unused(path)


def _own(top: str) -> list[str]:
    """Directories of this user with such a name.  Others' names are no matter: anybody may choose them."""
    found = []
    try:
        with os.scandir(top) as entries:
            for entry in entries:
                if entry.name.startswith(PREFIX):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode) and status.st_uid == os.geteuid():
                        found.append(entry.path)
    except OSError:
        pass
    return found
