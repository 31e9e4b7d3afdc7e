"""A directory tree as values: every byte and all metadata that belong to the run, and nothing of the host's.

Left out are inode and device numbers, atime and ctime (the host's kernel sets them, no program can), and the
size and link count of directories, which are the file system's business (ext4 says 4096, tmpfs 40, btrfs
counts no links).
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from itertools import chain
from pathlib import Path

_KINDS = {
    stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
    stat.S_IFSOCK: "socket", stat.S_IFCHR: "character device", stat.S_IFBLK: "block device",
}
# The other attributes belong to the host (SELinux's labels, overlayfs's marks).
_OURS = ("user.", "security.capability", "system.posix_acl")


@dataclass(frozen=True)
class Entry:
    """One name in a tree.

    ``owner`` is "self:self" for the user and group who made the run, because an unprivileged user's files
    cannot belong to anybody else on the host.  ``mtime_ns`` is None for an input that was not touched: its
    time is the host's.  ``links``: the other names in the tree of the same file.
    """

    kind: str
    mode: int
    owner: str
    nlink: int | None
    size: int | None
    mtime_ns: int | None
    target: str | None
    rdev: int | None
    xattrs: tuple[tuple[str, bytes], ...]
    sha256: str | None
    links: tuple[str, ...] = ()

    def untouched(self) -> Entry:
        """The same entry as an input whose time says nothing about the run."""
        return replace(self, mtime_ns=None)

    def differing(self, other: Entry) -> Iterator[tuple[str, object, object]]:
        """Name and both values of each field that differs."""
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if mine != theirs:
                yield item.name, mine, theirs


def snapshot(root: Path, me: tuple[int, int]) -> dict[str, Entry]:
    """All entries below ``root`` and "." for itself, by relative path.

    ``me``: uid and gid that count as "self".  Raises OSError for what cannot be read.
    """
    found: dict[str, Entry] = {}
    same: dict[tuple[int, int], list[str]] = {}
    for path in chain((str(root),), _walk(root)):
        name = os.path.relpath(path, root)
        status = os.lstat(path)
        found[name] = _entry(path, status, me)
        if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
            same.setdefault((status.st_dev, status.st_ino), []).append(name)
    for names in same.values():
        for name in names:
            found[name] = replace(found[name], links=tuple(sorted(set(names) - {name})))
    return found


def _walk(root: Path) -> Iterator[str]:
    """All paths below ``root``.  A directory that is closed to its owner is opened while it is looked at."""
    opened: list[tuple[str, int]] = []
    try:
        for directory, subdirectories, files in os.walk(root):
            for name in sorted(subdirectories + files):
                yield os.path.join(directory, name)
            for path in (os.path.join(directory, name) for name in subdirectories):
                if not os.path.islink(path) and not os.access(path, os.R_OK | os.X_OK):
                    opened.append((path, stat.S_IMODE(os.lstat(path).st_mode)))
                    os.chmod(path, 0o700)
    finally:
        for path, mode in reversed(opened):
            os.chmod(path, mode)


def _entry(path: str, status: os.stat_result, me: tuple[int, int]) -> Entry:
    kind = stat.S_IFMT(status.st_mode)
    directory, device = kind == stat.S_IFDIR, kind in (stat.S_IFCHR, stat.S_IFBLK)
    owner = "self" if status.st_uid == me[0] else str(status.st_uid)
    group = "self" if status.st_gid == me[1] else str(status.st_gid)
    return Entry(
        kind=_KINDS[kind],
        mode=stat.S_IMODE(status.st_mode),
        owner=f"{owner}:{group}",
        nlink=None if directory else status.st_nlink,
        size=None if directory else status.st_size,
        mtime_ns=status.st_mtime_ns,
        target=os.readlink(path) if kind == stat.S_IFLNK else None,
        rdev=status.st_rdev if device else None,
        xattrs=_attributes(path),
        sha256=_digest(path) if kind == stat.S_IFREG else None,
    )


def _attributes(path: str) -> tuple[tuple[str, bytes], ...]:
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:  # a file system without attributes
        return ()
    ours = sorted(name for name in names if name.startswith(_OURS))
    return tuple((name, os.getxattr(path, name, follow_symlinks=False)) for name in ours)


def _digest(path: str) -> str:
    try:
        stream = open(path, "rb")
    except PermissionError:  # closed to its owner: opened for a moment
        mode = stat.S_IMODE(os.lstat(path).st_mode)
        os.chmod(path, 0o600)
        stream = open(path, "rb")
        os.chmod(path, mode)
    with stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
