"""What does not belong into an image: traces of the host, of the mirror, and of the time of its making."""

from __future__ import annotations

import fnmatch
import os
import stat

from detbox.images.tree import walk

#: Files that are left out.  A pattern's * also matches /.
LEFT_OUT = (
    b"dev/*",
    b"etc/adjtime",
    b"etc/apt/apt.conf.d/99mmdebstrap",
    b"etc/apt/sources.list",
    b"etc/apt/sources.list.d/*",
    b"etc/hostname",
    b"etc/ld.so.cache~",
    b"etc/machine-id",
    b"etc/mtab",
    b"etc/resolv.conf",
    b"etc/*-",  # copies that shadow's tools make: passwd-, group-
    b"root/.cache/*",
    b"root/.wget-hsts",
    b"run/*",
    b"tmp/*",
    b"var/cache/apt/*",
    b"var/cache/debconf/*-old",
    b"var/cache/fontconfig/*",  # holds the times of directories
    b"var/cache/ldconfig/*",  # holds inode numbers
    b"var/cache/man/*",
    b"var/lib/apt/lists/*",
    b"var/lib/dbus/machine-id",
    b"var/lib/dpkg/*-old",
    b"var/lib/dpkg/lock*",
    b"var/lib/dpkg/triggers/Lock",
    b"var/lib/systemd/random-seed",
    b"var/log/*",
    b"var/tmp/*",
)
#: Directories that stay though a pattern has them: programs expect them.
_KEPT_DIRECTORIES = (b"etc/apt/*", b"var/cache/*", b"var/log/*", b"run/*", b"var/lib/apt/lists/*")


def left_out(path: bytes, directory: bool) -> bool:
    """Whether an image does not have this path (relative to the root)."""
    if not any(fnmatch.fnmatchcase(path, pattern) for pattern in LEFT_OUT):
        return False
    return not (directory and any(fnmatch.fnmatchcase(path, kept) for kept in _KEPT_DIRECTORIES))


def tidy(top: str) -> None:
    """Removes from a tree what is left out."""
    base = os.fsencode(top)
    for path, st in sorted(walk(base), reverse=True):
        directory = stat.S_ISDIR(st.st_mode)
        if left_out(path, directory):
            (os.rmdir if directory else os.unlink)(os.path.join(base, path))
