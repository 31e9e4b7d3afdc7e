"""A fresh copy of a directory: content, modes, attributes and hard links; only owner and times are chosen."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

from detbox.errors import UserError


class Copies:
    """Copies the tree ``source`` (None: an empty one) into the existing directory ``target``, in three steps.

    Making it makes the directories; ``make`` makes one of the ``others``, in any order; ``settle`` gives owner,
    modes and times.  Raises UserError for an input that cannot be read.
    """

    def __init__(self, source: Path | None, target: Path) -> None:
        self.source = source
        self.target = target
        self.directories: list[str] = []
        self.others: list[str] = []
        self._copied: dict[tuple[int, int], str] = {}
        if source is not None:
            self._list(source)
        for name in self.directories:
            (target / name).mkdir()

    def _list(self, source: Path) -> None:
        def fail(error: OSError) -> None:
            raise UserError(f"{error.filename}: {error.strerror}", "every input is copied and must be readable")

        for directory, below, files in os.walk(source, onerror=fail):
            below.sort()
            place = os.path.relpath(directory, source)
            for name in sorted([*below, *files]):
                path = os.path.normpath(os.path.join(place, name))
                real = name in below and not os.path.islink(os.path.join(directory, name))
                (self.directories if real else self.others).append(path)

    def make(self, name: str) -> None:
        """Copy one entry that is no directory."""
        assert self.source is not None
        source, target = self.source / name, self.target / name
        status = source.lstat()
        identity = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and identity in self._copied:
            os.link(self.target / self._copied[identity], target, follow_symlinks=False)
            return
        self._copied[identity] = name
        try:
            if stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode):
                shutil.copy2(source, target, follow_symlinks=False)
            else:
                os.mknod(target, status.st_mode, status.st_rdev)
        except OSError as error:
            reason = error.strerror or str(error)
            raise UserError(f"{source}: {reason}", "every input is copied and must be readable") from None

    def settle(self, owner: tuple[int, int], later_ns: int) -> None:
        """Give every entry its ``(uid, gid)``, its mode, and its source's time moved by ``later_ns``.

        The mode comes after the owner: chown takes set-user-id bits away (fs/open.c, chown_common).
        """
        if self.source is None:
            os.chown(self.target, *owner)
            return
        for name in [*self.others, *reversed(self.directories), "."]:
            source, target = self.source / name, self.target / name
            status = source.lstat()
            os.chown(target, *owner, follow_symlinks=False)
            if not stat.S_ISLNK(status.st_mode):
                target.chmod(stat.S_IMODE(status.st_mode))
            moved = status.st_mtime_ns + later_ns
            os.utime(target, ns=(moved, moved), follow_symlinks=False)


def copy_file(source: str, target: str) -> None:
    """For shutil.copytree: sockets and FIFOs are made anew, since there is nothing to read in them."""
    status = os.lstat(source)
    if stat.S_ISSOCK(status.st_mode) or stat.S_ISFIFO(status.st_mode):
        os.mknod(target, status.st_mode)
        shutil.copystat(source, target)
    else:
        shutil.copy2(source, target)
