"""Puts a result's files in place: everything is staged first, then renamed; what fails is undone.

Who is killed meanwhile leaves each file as it was or as it is to be, and a directory that the next run removes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from collections.abc import Callable
from typing import Any

from detbox.cache import facts
from detbox.cache.store import Store
from detbox.cache.summary import data_of

#: What is staged, and what is replaced, lies below this name in the work directory for a moment.
PREFIX = b".detbox-restore-"


class Restore:
    """The changes of one result.  ``place``: host path of a guest path."""

    def __init__(self, changes: list[dict[str, Any]], place: Callable[[bytes], bytes | None], top: str) -> None:
        self._changes = []
        for change in changes:
            path = place(data_of(change["path"]))
            if path is None:
                raise ValueError(f"{change['path']} is not in a kept directory")
            self._changes.append((path, change))
        self._place = place
        self._by_path = dict(self._changes)
        self._stage = os.path.join(os.fsencode(top), PREFIX + os.urandom(8).hex().encode())
        self._undo: list[Callable[[], None]] = []
        self._staged: dict[bytes, bytes] = {}

    def carry_out(self, store: Store) -> bool:
        """Put everything in place.  False, with nothing changed, if a blob is missing or the host refuses."""
        before = self._directory_times()
        os.mkdir(self._stage, 0o700)
        lock = _locked(self._stage)
        try:
            done = self._prepare(store) and self._commit_or_undo()
        except OSError:
            done = False
        finally:
            _clear(self._stage)
            os.close(lock)
        # A file that is written in place moves no time of its directory, but ours was renamed.
        for path, times in before.items():
            if os.path.isdir(path):
                with contextlib.suppress(PermissionError):  # others' directories that all may write in
                    os.utime(path, ns=times)
        if done:
            self._finish()
        return done

    def _commit_or_undo(self) -> bool:
        try:
            self._commit()
        except BaseException as error:
            for action in reversed(self._undo):
                action()
            if isinstance(error, OSError):
                return False
            raise
        return True

    def _find_times(self) -> None:
        """What was only moved keeps its time, which is the host's."""
        for _, change in self._changes:
            origin = change.get("times_of")
            place = self._place(data_of(origin)) if origin is not None else None
            if place is not None:
                st = os.lstat(place)
                change["times"] = [st.st_atime_ns, st.st_mtime_ns]

    def _directory_times(self) -> dict[bytes, tuple[int, int]]:
        times = {}
        renewed = [path for path, change in self._changes if change["do"] != "keep"]
        for path in {os.path.dirname(path) for path in (self._stage, *renewed)}:
            if os.path.isdir(path):
                st = os.stat(path)
                times[path] = (st.st_atime_ns, st.st_mtime_ns)
        return times

    def _prepare(self, store: Store) -> bool:
        self._find_times()
        for number, (path, change) in enumerate(self._changes):
            if change["do"] == "file":
                name = self._stage + b"/%d" % number
                with open(name, "x+b", buffering=0) as file:
                    if not store.write_blob(change["blob"], file.fileno()):
                        return False
                _attributes(name, change)
                self._staged[path] = name
        return True

    def _commit(self) -> None:
        rows = self._changes
        for path, change in sorted(rows, key=lambda row: row[0], reverse=True):
            if change["do"] == "remove" or _makes_room(change):
                self._aside(path)
        for path, change in sorted(rows, key=lambda row: row[0]):
            if change["do"] == "directory":
                os.mkdir(path, 0o700)
                self._undo.append(lambda path=path: os.rmdir(path))  # type: ignore[misc]
        for path, change in rows:
            self._make(path, change)
        for path, change in rows:
            if change["do"] == "link":
                target = self._place(data_of(change["to"]))
                assert target is not None
                self._aside(path)
                os.link(target, path, follow_symlinks=False)
                self._undo.append(lambda path=path: os.unlink(path))  # type: ignore[misc]

    def _make(self, path: bytes, change: dict[str, Any]) -> None:
        kind = change["do"]
        if kind == "file":
            if change["was"] == "f":
                _keep_unseen(path, self._staged[path], owner=change.get("in_place", False))
                if self._held(path):
                    os.rename(self._staged[path], path)
                    return
                self._aside(path)
            os.rename(self._staged[path], path)
        elif kind == "symlink":
            os.symlink(data_of(change["text"]), path)
            _attributes(path, change)
        elif kind in ("fifo", "socket"):
            os.mknod(path, (stat.S_IFIFO if kind == "fifo" else stat.S_IFSOCK) | change["mode"])
            _attributes(path, change)
        else:
            return
        self._undo.append(lambda: os.unlink(path))

    def _aside(self, path: bytes) -> None:
        """Move what is at ``path`` out of the way, so that it can come back."""
        if not os.path.lexists(path):
            return
        there = self._stage + b"/aside-" + os.urandom(8).hex().encode()
        os.rename(path, there)
        self._undo.append(lambda: os.rename(there, path))

    def _held(self, path: bytes) -> bool:
        """Give a file that is about to be replaced a second name, so that there is one at ``path`` all the time."""
        there = self._stage + b"/held-" + os.urandom(8).hex().encode()
        try:
            os.link(path, there, follow_symlinks=False)
        except OSError:
            return False  # not every file system has links, and not every file may be linked
        self._undo.append(lambda: os.replace(there, path))
        return True

    def _finish(self) -> None:
        """Modes and times of directories, and of files that stayed: last, since every change below moves them."""
        for path, change in sorted(self._changes, key=lambda row: row[0], reverse=True):
            if change["do"] in ("directory", "keep"):
                _attributes(path, change)


def remove_leftovers(top: str) -> None:
    """Remove what killed processes have left in a work directory."""
    with contextlib.suppress(OSError):
        for name in os.listdir(os.fsencode(top)):
            if name.startswith(PREFIX):
                path = os.path.join(os.fsencode(top), name)
                with contextlib.suppress(OSError):
                    os.close(_locked(path))
                    _clear(path)


def _clear(directory: bytes) -> None:
    """Remove a directory with all that is in it, as far as that is possible."""
    try:
        os.rmdir(directory)
    except OSError:
        import shutil  # takes longer than all else of a hit whose directory is empty

        shutil.rmtree(directory, ignore_errors=True)


def _locked(directory: bytes) -> int:
    """A descriptor that locks a directory until it is closed.  Raises OSError if somebody else has one."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        raise
    return fd


def _makes_room(change: dict[str, Any]) -> bool:
    """Whether something of another type is in the way."""
    letters = {"directory": "d", "file": "f", "symlink": "", "fifo": "", "socket": "", "link": "", "keep": "dfl"}
    return change["was"] not in ("", "-") and change["was"] not in letters[change["do"]]


def _keep_unseen(path: bytes, staged: bytes, *, owner: bool) -> None:
    """What a guest never sees of a file stays with it: access lists and labels.

    ``owner``: and who owns it, where the run has written into the file that was there.
    """
    for name in os.listxattr(path, follow_symlinks=False):
        if not name.startswith("user."):
            with contextlib.suppress(OSError):
                os.setxattr(staged, name, os.getxattr(path, name, follow_symlinks=False), follow_symlinks=False)
    before, st = os.lstat(path), os.lstat(staged)
    if owner and (before.st_uid, before.st_gid) != (st.st_uid, st.st_gid):
        with contextlib.suppress(OSError):
            os.chown(staged, before.st_uid, before.st_gid, follow_symlinks=False)
            os.chmod(staged, stat.S_IMODE(st.st_mode))  # a change of owner takes some bits away


def _attributes(path: bytes, change: dict[str, Any]) -> None:
    link = change["do"] == "symlink"
    wanted_attributes = change.get("xattrs", {})
    if change["do"] == "keep" and "xattrs" in change:
        for name in facts.xattrs_of(path).keys() - wanted_attributes.keys():
            os.removexattr(path, name, follow_symlinks=False)
    for name, value in wanted_attributes.items():
        os.setxattr(path, name, bytes.fromhex(value), follow_symlinks=False)
    if not link:
        wanted = change["mode"]
        if stat.S_IMODE(os.lstat(path).st_mode) != wanted:
            os.chmod(path, wanted)
    _times(path, change)


def _times(path: bytes, change: dict[str, Any]) -> None:
    if change["times"] is not None:
        os.utime(path, ns=tuple(change["times"]), follow_symlinks=False)
