"""The directories of the host's system once more, kept on disk for the containers of an ordinary user.

Nothing can be created in a directory whose owner the user namespace does not map.  So all directories of the system
must exist a second time as the user's own, above the host's in the overlay (see ``overlay.Overlay``).  A large
installation has 30,000 of them: made in memory for each run they are the greater part of its start.  Here they are
kept in the user's cache, as a layer between the host's files and the layer in memory that takes all changes.

A list says what each directory of the host was like.  Whatever is made, removed or renamed in a directory changes its
ctime, and so does a change of its mode (inode(7)); so the tree is right as long as each directory has the
inode number and the ctime of the list, one fstatat(2) for each.  A directory that had changed within the last moments
when it was noted counts as changed the next time: the clock of a file system has its ticks.

A host that is in use changes: its programs write to some directories of /var all the time.  A few changes are not
written down; each run looks at the same directories again, and lays what differs above the tree, in its own layer in
memory.  So it does if another run is using the tree: runs hold a shared lock (flock(2)) on the place, since a layer
must not change under a mounted overlay, and who changes the tree wants an exclusive one.  The list is removed before
the tree is changed, and written anew afterwards, so that whatever ends a run halfway leaves no wrong tree behind.
Nothing depends on the tree but how soon a run starts: where there is none, the directories are made in memory.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import struct
import time
import zlib
from collections.abc import Iterable, Sequence
from stat import S_IFCHR, S_IMODE, S_ISDIR

from detbox.container.hostroot import FOR_ALL
from detbox.errors import HostError
from detbox.kernel import _native
from detbox.records import NamedTuple

_RECORD = struct.Struct("<QqIHH")  # struct directory_record of kernel/directories.c
_PLAIN, _HIDDEN, _MOUNTED = 0, 1, 2  # kinds: shown, shown empty, the root of another file system
_TOP = 4  # is written besides the kind of a directory in the root itself
_SEARCHED = 0o555
_MAGIC = b"detbox directories 1\n"
_CHECKSUM = struct.Struct("<I")
_UNKEPT = b"not kept\n"  # instead of records
_UNKEPT_S = 7 * 86400  # seconds until it is tried again
_FEW = 64  # directories that have changed: as fast as if none had
_MOST = 100_000  # directories: 400 MB on a file system that gives each a block of its own
_FRESH_NS = 2_000_000_000  # the coarsest clock of a file system in use (FAT's) ticks every two seconds
_NEVER = -1  # no directory's time of change


class Directory(NamedTuple):
    """What the list says of one: inode number, ctime in nanoseconds, mode, and which of the kinds it is."""

    inode: int
    changed: int
    mode: int
    kind: int


class Change(NamedTuple):
    """What is to be done in the tree: "make", "remove" or "mode"; the last two fields say what it becomes."""

    what: str
    path: bytes
    mode: int = 0
    kind: int = _PLAIN


class Kept(NamedTuple):
    """What a run has of the tree: paths relative to the root.

    ``hidden``: the directories that are shown empty.  ``above``: what is to be made above the tree, in order.
    """

    hidden: list[bytes]
    above: list[Change] = []


def tree(place: str) -> str:
    """The path of the tree; each of the system's top-level directories lies in it under its own name."""
    return f"{place}/tree"


def renew(place: str, lock: int, tops: Sequence[str], root: int) -> Kept | None:
    """Bring the tree up to date, or say in what it differs; None: the tree cannot be used now.

    ``lock``: a descriptor of ``place`` with a shared lock.  ``tops``: names of the directories that are kept with all
    below them.  ``root``: a descriptor of the directory that they lie in.
    """
    listing = f"{place}/list"
    try:
        records = found = _read(listing)
        if found == _UNKEPT:
            return None
        if not all(os.path.isdir(f"{tree(place)}/{top}") for top in tops):
            records = None
        changed, flagged = _native.check_directories(
            root, records or b"", _HIDDEN | _TOP, len(os.sched_getaffinity(0)), True
        )
        changed += {os.fsencode(top) for top in tops}.difference(flagged)
        hidden = [path for path in flagged if b"/" in path]
        if not changed:
            return Kept(hidden)
        if records and len(changed) <= _FEW:
            few = Listing(root, _parsed(_native.related_directories(records, changed)))
            kept = _kept(root, hidden, few.look(changed))
            if kept is not None:
                return kept
        news = Listing(root, _parsed(records or b""))
        changes = news.look(changed)
        enough = len(news.directories) <= _MOST
        if changes or records is None:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return _kept(root, news.hidden(), changes) if records and enough else None
            if _read(listing) != found:
                return None  # somebody else has changed it between the two locks
            _apply(place, lock, changes if enough else [], anew=records is None or not enough)
        records = _packed(news.directories) if enough else _UNKEPT
        _write(lock, records)
        if changes:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            if _read(listing) != records:
                return None  # likewise
        return Kept(news.hidden()) if enough else None
    except (OSError, ValueError):
        return None


def _kept(root: int, hidden: list[bytes], changes: list[Change]) -> Kept | None:
    """The tree as it is, with ``changes`` above it; None if these cannot be made there.

    A layer above can hide what is in the tree, but not show what the tree hides.
    """
    made = {change.path for change in changes if change.what == "make"}
    gone = [change.path for change in changes if change.what == "remove"]
    if any(change.kind == _HIDDEN for change in changes) or not made.isdisjoint(gone):
        return None
    for path in gone:
        if b"/" not in path or _is_there(path, root):  # now it is something else
            return None
    below = tuple(path + b"/" for path in gone)
    return Kept([path for path in hidden if path not in gone and not path.startswith(below)], changes)


def _is_there(path: bytes, root: int) -> bool:
    try:
        os.stat(path, dir_fd=root, follow_symlinks=False)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def lay(upper: str, source: int, changes: Iterable[Change]) -> None:
    """Make what differs from the tree in the layer above it.  Raises OSError.

    ``upper``: the directory of that layer.  ``source``: a descriptor of the host's directory, which the paths are
    relative to.
    """
    top = os.fsencode(upper)
    for what, path, _, _ in changes:
        names = path.split(b"/")
        for end in range(1, len(names) + (what != "remove")):
            part = b"/".join(names[:end])
            target = top + b"/" + part
            with contextlib.suppress(FileExistsError, FileNotFoundError):  # the latter: just now it has been removed
                mode = S_IMODE(os.stat(part, dir_fd=source, follow_symlinks=False).st_mode)
                os.mkdir(target)
                os.chmod(target, mode)
        if what == "remove":
            # A whiteout (Documentation/filesystems/overlayfs.rst), which everybody may make (mknod(2)).
            os.mknod(top + b"/" + path, S_IFCHR)


class Wholeness:
    """Whether the tree still has all that the list says; ``lock``: a descriptor of its place.

    No run looks for that when it starts.  Where somebody has removed directories, a guest lacks the right to create.
    """

    def __init__(self, lock: int) -> None:
        self._lock = lock
        self._checked = False

    def demand(self) -> None:
        """Raises HostError if directories are missing; looks once only."""
        if self._checked:
            return
        self._checked = True
        gone = self._gone()
        if gone:
            with contextlib.suppress(FileNotFoundError):
                os.unlink("list", dir_fd=self._lock)
            what = f"{len(gone)} directories are gone from detbox's cache, such as {os.fsdecode(gone[0])}"
            raise HostError(what, "run the command again: all of them are made anew")

    def _gone(self) -> list[bytes]:
        records = _read("list", dir_fd=self._lock)
        try:
            top = os.open("tree", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._lock)
        except FileNotFoundError:
            records = None
        if records is None:  # somebody removes all of it just now: runs of detbox may not
            return [b"all"]
        try:
            return _native.check_directories(top, records, 0, 1, False)[0]
        finally:
            os.close(top)


class Listing:
    """The list while it is brought up to date.

    ``directories``: what is known of them, by path relative to ``root``.
    """

    def __init__(self, root: int, directories: dict[bytes, Directory]) -> None:
        self.directories = directories
        self._root = root
        self._changes: list[Change] = []
        self._devices: dict[bytes, int] = {}  # those of the top-level directories
        self._below: dict[bytes, set[bytes]] = {}  # a directory's subdirectories
        for path in directories:
            self._below.setdefault(os.path.dirname(path), set()).add(path)

    def hidden(self) -> list[bytes]:
        """The paths of the directories that are shown empty."""
        return [path for path, directory in self.directories.items() if directory.kind == _HIDDEN]

    def look(self, paths: Iterable[bytes]) -> list[Change]:
        """Look at the directories ``paths`` and at what is new in them; what follows for the tree, in order."""
        self._changes = []
        left = sorted(paths, reverse=True)
        while left and len(self.directories) <= _MOST:
            path = left.pop()
            parent = os.path.dirname(path)
            if not parent or parent in self.directories:  # else it has gone together with its parent
                left += self._look(path)
        return self._changes

    def _look(self, path: bytes) -> list[bytes]:
        """One directory; the paths of the new ones in it."""
        try:
            # Before its names are read: what changes meanwhile is found the next time.
            st = os.stat(path, dir_fd=self._root, follow_symlinks=False)
        except OSError:
            st = None
        if st is None or not S_ISDIR(st.st_mode):
            self._remove(path)
            return []
        kind, names = self._content(path, st)
        mode = S_IMODE(st.st_mode)
        old = self.directories.get(path)
        if old is not None and old.kind != kind:
            self._remove(path)
            old = None
        if old is None:
            self._changes.append(Change("make", path, mode, kind))
            self._below.setdefault(os.path.dirname(path), set()).add(path)
        elif old.mode != mode:
            self._changes.append(Change("mode", path, mode))
        fresh = abs(time.time_ns() - st.st_ctime_ns) < _FRESH_NS
        self.directories[path] = Directory(st.st_ino, _NEVER if fresh else st.st_ctime_ns, mode, kind)
        known, now = self._below.get(path, set()), {path + b"/" + name for name in names}
        for gone in known - now:
            self._remove(gone)
        return sorted(now - known, reverse=True)

    def _content(self, path: bytes, st: os.stat_result) -> tuple[int, list[bytes]]:
        """The directory's kind, and the names of the directories in it that the tree needs."""
        if st.st_mode & FOR_ALL != FOR_ALL:
            return _HIDDEN, []
        if st.st_dev != self._device(path.split(b"/", 1)[0], st):
            return _MOUNTED, []
        # Two links are its own name and its ".".  File systems that do not count subdirectories say 1.
        if st.st_nlink == 2 and st.st_mode & _SEARCHED == _SEARCHED:
            return _PLAIN, []
        fd = -1
        try:
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._root)
            with os.scandir(fd) as entries:
                return _PLAIN, [os.fsencode(entry.name) for entry in entries if entry.is_dir(follow_symlinks=False)]
        except (FileNotFoundError, NotADirectoryError):  # it has just been removed, which the next look finds out
            return _PLAIN, []
        except PermissionError:
            return _HIDDEN, []
        finally:
            if fd >= 0:
                os.close(fd)

    def _device(self, top: bytes, st: os.stat_result) -> int:
        if top not in self._devices:
            self._devices[top] = os.stat(top, dir_fd=self._root, follow_symlinks=False).st_dev
        return self._devices[top]

    def _remove(self, path: bytes) -> None:
        """A directory is no longer, or no longer of its kind."""
        if path in self.directories:
            self._changes.append(Change("remove", path))
        self._below.get(os.path.dirname(path), set()).discard(path)
        left = [path]
        while left:
            gone = left.pop()
            self.directories.pop(gone, None)
            left += self._below.pop(gone, ())


def _read(path: str, dir_fd: int | None = None) -> bytes | None:
    """The records of a list, or what stands instead; None for a list that is missing, damaged or out of date."""
    try:
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=dir_fd), "rb") as file:
            if file.read(len(_MAGIC)) != _MAGIC:
                return None
            sum_, records = file.read(_CHECKSUM.size), file.read()
            if sum_ != _CHECKSUM.pack(zlib.crc32(records)):
                return None
            late = records == _UNKEPT and time.time() - os.fstat(file.fileno()).st_mtime > _UNKEPT_S
            return None if late else records
    except FileNotFoundError:
        return None


def _write(directory: int, records: bytes) -> None:
    """Write the list in the place that the descriptor means, whole or not at all."""
    from detbox.cpu import entries  # most runs write nothing

    entries.store("list", _MAGIC + _CHECKSUM.pack(zlib.crc32(records)) + records, directory)


def _packed(directories: dict[bytes, Directory]) -> bytes:
    parts = []
    for path, (inode, changed, mode, kind) in directories.items():
        flags = kind if b"/" in path else kind | _TOP
        parts.append(_RECORD.pack(inode, changed, mode, flags, len(path)) + path)
        parts.append(bytes(8 - (_RECORD.size + len(path)) % 8))  # at least one 0
    return b"".join(parts)


def _parsed(records: bytes) -> dict[bytes, Directory]:
    directories, at = {}, 0
    while at < len(records):
        inode, changed, mode, flags, length = _RECORD.unpack_from(records, at)
        at += _RECORD.size
        directories[records[at : at + length]] = Directory(inode, changed, mode, flags & ~_TOP)
        at += length + 8 - (_RECORD.size + length) % 8
    return directories


def _apply(place: str, lock: int, changes: Iterable[Change], *, anew: bool) -> None:
    """Change the tree; without a list, which the caller writes, it counts for nothing.  ``anew``: from nothing."""
    top = os.fsencode(tree(place))
    for name in os.listdir(place):
        if name != os.path.basename(tree(place)):  # the list, and what a killed process has left of one
            os.unlink(f"{place}/{name}")
    if anew:
        clear(top)
        os.mkdir(top, 0o755)
    modes: dict[bytes, int] = {}
    try:
        for what, path, mode, kind in changes:
            target = top + b"/" + path
            _unlock(os.path.dirname(target), modes)
            if what == "remove":
                clear(target)
                continue
            if what == "mode":
                os.chmod(target, 0o700)
            else:
                os.mkdir(target, 0o700)
                if kind == _HIDDEN:
                    os.setxattr(target, "user.overlay.opaque", b"y")
            modes[target] = mode
        for target, mode in modes.items():
            with contextlib.suppress(FileNotFoundError):  # it was removed after all
                os.chmod(target, mode)
    except OSError:
        clear(top)
        _write(lock, _UNKEPT)
        raise


def _unlock(directory: bytes, modes: dict[bytes, int]) -> None:
    """Let its owner change a directory, whose mode is noted to be given back."""
    if directory not in modes:
        modes[directory] = S_IMODE(os.stat(directory).st_mode)
        os.chmod(directory, 0o700)


def clear(top: bytes) -> None:
    """Remove a directory and all below it, some of which their owner may not change."""
    import shutil

    for directory, _, _ in os.walk(top):
        os.chmod(directory, 0o700)
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(top)
