"""Trees on disk: made entry by entry, read back, copied, checked and removed.

In a store every file of a tree belongs to the user who runs detbox, because an ordinary user can give files to
nobody else; the true owners are in the manifest.  While programs run inside a tree it has its true owners,
as a user namespace shows them (see :mod:`detbox.images.inside`); :func:`seal` makes it flat again.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import IO

from detbox.errors import HostError, UserError
from detbox.images.manifest import TOP, Entry

#: The newest modification time that an image keeps: 2026-01-01, when a run begins.  What is newer was made by
#: the build itself, at a time that says nothing about the image.
NEWEST = 1_767_225_600
_CHUNK = 1 << 20
_TYPES = {stat.S_IFDIR: "d", stat.S_IFREG: "f", stat.S_IFLNK: "l", stat.S_IFIFO: "p"}
_XATTRS_KEPT = (b"security.capability", b"user.")


class Builder:
    """Makes a tree out of entries that somebody else chose: nothing that they say can lead out of it.

    ``top``: an empty directory that only this process writes to.  The directory's files get the caller as
    owner, their modes and times when :meth:`finish` is called.
    """

    def __init__(self, top: str) -> None:
        self.top = os.fsencode(top)
        self.entries: dict[bytes, Entry] = {TOP: Entry(TOP, "d", 0o755)}

    def directory(self, entry: Entry) -> None:
        """A directory, new or with other metadata."""
        known = self.entries.get(entry.path)
        if known is None or known.kind != "d":
            os.mkdir(self._place(entry.path), 0o700)
        self.entries[entry.path] = entry

    def file(self, entry: Entry, content: IO[bytes]) -> Entry:
        """A regular file; size and digest come from ``content``."""
        place, digest, size = self._place(entry.path), hashlib.sha256(), 0
        with open(place, "xb") as file:
            while chunk := content.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                size += len(chunk)
        made = replace(entry, kind="f", size=size, detail=digest.hexdigest().encode())
        self.entries[entry.path] = made
        return made

    def symlink(self, entry: Entry) -> None:
        """A symbolic link; where it leads does not matter, since nothing here follows it."""
        os.symlink(entry.detail, self._place(entry.path))
        self.entries[entry.path] = replace(entry, mode=0o777)

    def hard_link(self, path: bytes, target: bytes) -> None:
        """Another name of a file that the tree has.  Raises UserError."""
        known = self.entries.get(target)
        if known is not None and known.kind == "h":
            target = known.detail
            known = self.entries.get(target)
        if known is None or known.kind != "f":
            raise UserError(f"{_shown(path)} is a hard link to {_shown(target)}, which is no file of the archive")
        if path != target:
            os.link(os.path.join(self.top, target), self._place(path))
            self.entries[path] = replace(known, path=path, kind="h", detail=target, size=0)

    def fifo(self, entry: Entry) -> None:
        """A FIFO."""
        os.mkfifo(self._place(entry.path), 0o600)
        self.entries[entry.path] = entry

    def remove(self, path: bytes) -> None:
        """A path and what is below it, if there is one."""
        below = [known for known in self.entries if known == path or known.startswith(path + b"/")]
        if path == TOP:
            below = [known for known in self.entries if known != TOP]
        gone = set(below)
        for known in sorted(self.entries):
            if self.entries[known].kind == "h" and self.entries[known].detail in gone and known not in gone:
                self._promote(known)
        for known in sorted(below, reverse=True):
            place = os.path.join(self.top, known)
            (os.rmdir if self.entries.pop(known).kind == "d" else os.unlink)(place)

    def _promote(self, path: bytes) -> None:
        """Another name becomes the file's first: the one that it named goes away."""
        former = self.entries[path].detail
        if self.entries[former].kind == "f":
            self.entries[path] = replace(self.entries[former], path=path)
            for other, entry in list(self.entries.items()):
                if entry.kind == "h" and entry.detail == former and other != path:
                    self.entries[other] = replace(entry, detail=path)

    def _place(self, path: bytes) -> bytes:
        """Where to make ``path``: its parents are directories of the tree, and the name is free."""
        parent = TOP
        for name in path.split(b"/")[:-1]:
            parent = name if parent == TOP else parent + b"/" + name
            known = self.entries.get(parent)
            if known is None:
                os.mkdir(os.path.join(self.top, parent), 0o700)
                self.entries[parent] = Entry(parent, "d", 0o755)
            elif known.kind != "d":
                raise UserError(f"{_shown(path)} is below {_shown(parent)}, which is not a directory of the archive")
        if path in self.entries:
            self.remove(path)
        return os.path.join(self.top, path)

    def finish(self) -> list[Entry]:
        """Gives everything its mode and time; the entries, with each file's first name as the file."""
        entries = canonical(
            replace(entry, mtime=max(0, min(entry.mtime, NEWEST))) for entry in self.entries.values()
        )
        for entry in sorted(entries, key=lambda entry: entry.path, reverse=True):
            _set_mode_and_time(os.path.join(self.top, entry.path), entry)
        return entries


def _set_mode_and_time(place: bytes, entry: Entry) -> None:
    if entry.kind in "dfp":
        os.chmod(place, entry.mode)
    os.utime(place, (entry.mtime, entry.mtime), follow_symlinks=False)


def canonical(entries: Iterable[Entry]) -> list[Entry]:
    """The entries by path, where a file with several names is told in full at the first of them."""
    ordered = sorted(entries, key=lambda entry: entry.path)
    files = {entry.path: entry for entry in ordered if entry.kind == "f"}
    first: dict[bytes, bytes] = {}
    for entry in ordered:
        if entry.kind == "h":
            first[entry.detail] = min(first.get(entry.detail, entry.detail), entry.path)
    result = []
    for entry in ordered:
        file = entry.detail if entry.kind == "h" else entry.path
        if entry.kind in "fh" and file in first:
            if entry.path == first[file]:
                entry = replace(files[file], path=entry.path)
            else:
                entry = replace(files[file], path=entry.path, kind="h", size=0, detail=first[file])
        result.append(entry)
    return result


def walk(top: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """(relative path, lstat) of a directory and everything below it, by path."""
    yield TOP, os.lstat(top)
    pending = [(b"", top)]
    while pending:
        prefix, place = pending.pop()
        below = []
        with os.scandir(place) as listing:
            for found in sorted(listing, key=lambda found: found.name):
                yield prefix + found.name, found.stat(follow_symlinks=False)
                if found.is_dir(follow_symlinks=False):
                    below.append((prefix + found.name + b"/", found.path))
        pending += reversed(below)


def read(top: str, known: Callable[[os.stat_result], bytes | None] = lambda st: None) -> list[Entry]:
    """The entries of a tree, with the owners that this process sees.

    ``known``: the digest of a file's content if it is known without reading it.  Sockets and device nodes are
    left out: an image has none.
    """
    base = os.fsencode(top)
    names: dict[tuple[int, int], bytes] = {}
    entries = []
    for path, st in walk(base):
        kind = _TYPES.get(stat.S_IFMT(st.st_mode))
        if kind is None:
            continue
        place = os.path.join(base, path)
        mtime = max(0, min(int(st.st_mtime), NEWEST))
        entry = Entry(path, kind, stat.S_IMODE(st.st_mode), st.st_uid, st.st_gid, mtime, xattrs=_xattrs(place, kind))
        if kind == "f":
            first = names.setdefault((st.st_dev, st.st_ino), path)
            if first != path:
                entry = replace(entry, kind="h", detail=first)
            else:
                entry = replace(entry, size=st.st_size, detail=known(st) or hash_file(place))
        elif kind == "l":
            entry = replace(entry, detail=os.readlink(place))
        entries.append(entry)
    return canonical(entries)


def _xattrs(place: bytes, kind: str) -> tuple[tuple[bytes, bytes], ...]:
    if kind == "l":
        return ()
    try:
        names = [os.fsencode(name) for name in os.listxattr(place, follow_symlinks=False)]
    except OSError:
        return ()
    kept = [name for name in names if name.startswith(_XATTRS_KEPT)]
    return tuple((name, os.getxattr(place, name, follow_symlinks=False)) for name in sorted(kept))


def hash_file(place: bytes) -> bytes:
    """SHA-256 of a file's content, in hex."""
    with open(place, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest().encode()


def flatten(top: str, entries: Iterable[Entry]) -> None:
    """Gives everything to the caller (as this process sees it: root), with the manifest's modes and times."""
    base = os.fsencode(top)
    for entry in sorted(entries, key=lambda entry: entry.path, reverse=True):
        place = os.path.join(base, entry.path)
        if entry.uid or entry.gid:
            os.lchown(place, 0, 0)
        _set_mode_and_time(place, entry)


def copy(source: str, target: str, owners: dict[bytes, tuple[int, int]]) -> dict[tuple[int, int, int], bytes]:
    """Copies a flat tree and gives the files their owners.

    Returns the source's path of each regular file by (device, inode, ctime in ns) of its copy: as long as these
    stay, the content has not been changed.
    """
    base, top = os.fsencode(source), os.fsencode(target)
    names: dict[tuple[int, int], bytes] = {}
    made: dict[tuple[int, int, int], bytes] = {}
    late: list[tuple[bytes, os.stat_result]] = []
    for path, st in list(walk(base)):
        place, kind = os.path.join(top, path), stat.S_IFMT(st.st_mode)
        first = names.get((st.st_dev, st.st_ino))
        if kind == stat.S_IFDIR:
            os.makedirs(place, 0o700, exist_ok=True)
            late.append((place, st))
        elif kind == stat.S_IFLNK:
            os.symlink(os.readlink(os.path.join(base, path)), place)
            os.utime(place, ns=(st.st_mtime_ns, st.st_mtime_ns), follow_symlinks=False)
        elif first is not None:
            os.link(first, place)
        elif kind == stat.S_IFIFO:
            os.mkfifo(place, 0o600)
            late.append((place, st))
        else:
            if st.st_nlink > 1:
                names[st.st_dev, st.st_ino] = place
            made.update(_copy_file(os.path.join(base, path), place, st, path, owners.get(path)))
        if path in owners and kind != stat.S_IFREG:
            os.lchown(place, *owners[path])
    for place, st in reversed(late):
        os.chmod(place, stat.S_IMODE(st.st_mode))
        os.utime(place, ns=(st.st_mtime_ns, st.st_mtime_ns))
    return made


def _copy_file(
    source: bytes, place: bytes, st: os.stat_result, path: bytes, owner: tuple[int, int] | None
) -> dict[tuple[int, int, int], bytes]:
    fd = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    try:
        to = os.open(place, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            left = st.st_size
            while left > 0:
                done = _copy_some(fd, to, left)
                if not done:
                    raise HostError(f"{os.fsdecode(source)} became shorter while it was copied")
                left -= done
            if owner is not None:
                os.fchown(to, *owner)
            os.fchmod(to, stat.S_IMODE(st.st_mode))
            os.utime(to, ns=(st.st_mtime_ns, st.st_mtime_ns))
            now = os.fstat(to)
            return {(now.st_dev, now.st_ino, now.st_ctime_ns): path}
        finally:
            os.close(to)
    finally:
        os.close(fd)


def _copy_some(fd: int, to: int, count: int) -> int:
    """Copies at most ``count`` bytes; blocks are shared where the file system can (copy_file_range(2))."""
    try:
        return os.copy_file_range(fd, to, count)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EOPNOTSUPP):
            raise
        return os.sendfile(to, fd, None, count)


def remove(top: str) -> None:
    """Removes a tree whatever its modes are; what is gone already is no error."""
    base = os.fsencode(top)
    with contextlib.suppress(FileNotFoundError):
        for directory, below, files, at in os.fwalk(base, topdown=False, onerror=None, follow_symlinks=False):
            del directory
            for name in files:
                os.unlink(name, dir_fd=at)
            for name in below:
                try:
                    os.rmdir(name, dir_fd=at)
                except NotADirectoryError:
                    os.unlink(name, dir_fd=at)
        os.rmdir(base)


def _shown(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")
