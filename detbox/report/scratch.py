"""Directories for the runs' copies that vanish with the process that made them, however it ends.

A process that is killed cannot clean up.  So another one, in a session of its own, waits for the end of a pipe that
only its maker holds, and removes what is left.  If that one is killed as well, the directories have at least lost their
lock, and the next run of any detbox removes them.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import signal
import tempfile
import time
from pathlib import Path

from detbox.report.leftovers import MEMORY_DIR, PREFIX

#: Real seconds in which processes that still write to a directory are waited for.
_PATIENCE_S = 30.0
#: What must be free for an image: the largest ones have half of it.
_ROOM_BYTES = 6 << 30


class Scratch:
    """A context: ``disk`` and ``memory`` are new directories that everybody may search.

    ``memory`` is on the disk too where no memory can be used.  Raises OSError if they cannot be made.
    """

    def __init__(self) -> None:
        name = f"{PREFIX}{secrets.token_hex(6)}"
        self.disk = Path(temporary_directory()).resolve() / name
        usable = os.access(MEMORY_DIR, os.W_OK | os.X_OK)
        self.memory = Path(MEMORY_DIR, name) if usable else self.disk / "memory"
        self._life = self._keeper = -1
        self._locks: list[int] = []

    def __enter__(self) -> Scratch:
        end, self._life = os.pipe2(os.O_CLOEXEC)
        self._keeper = os.fork()
        if self._keeper == 0:
            _keep(end, (self.disk, self.memory))
        os.close(end)
        for place in (self.disk, self.memory):
            self._locks.append(_locked(place))
        return self

    def __exit__(self, *exc: object) -> None:
        for lock in (self._life, *self._locks):
            os.close(lock)
        os.waitpid(self._keeper, 0)

    def directory(self, memory: bool = False) -> Path:
        """A new directory that everybody may search."""
        made = Path(tempfile.mkdtemp(dir=self.memory if memory else self.disk))
        made.chmod(0o755)
        return made


    def roomy(self) -> bool:
        """Whether there is room in memory for an image, which is much faster than on a disk."""
        status = os.statvfs(self.memory)
        return status.f_bavail * status.f_frsize > _ROOM_BYTES < _free_memory_bytes()


def temporary_directory() -> str:
    """As tempfile chooses it, which tries directories by writing a file: who is killed then leaves it behind."""
    if tempfile.tempdir is None:
        named = [os.environ.get(name) for name in ("TMPDIR", "TEMP", "TMP")]
        for place in (*named, "/tmp", "/var/tmp"):
            if place and os.path.isdir(place) and os.access(place, os.W_OK | os.X_OK):
                tempfile.tempdir = os.path.abspath(place)
                break
    return tempfile.gettempdir()


def _free_memory_bytes() -> int:
    with open("/proc/meminfo", encoding="ascii") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith("MemAvailable:"))


def _locked(place: Path) -> int:
    """Make a directory; a descriptor that holds a lock on it, which no child inherits."""
    while True:
        place.mkdir()
        with contextlib.suppress(FileNotFoundError):  # it was taken for one that nobody uses
            place.chmod(0o755)
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            fcntl.flock(lock, fcntl.LOCK_EX)
            if place.exists():
                return lock
            os.close(lock)


def remove_if_unused(place: str) -> None:
    """Remove a directory that nobody has locked, as far as that is possible."""
    try:
        lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            remove_tree(Path(place))
        finally:
            os.close(lock)
    except OSError:  # it is in use, or its cleaner is at work
        pass


def _keep(end: int, places: tuple[Path, ...]) -> None:
    """The other process: wait, remove, exit.  It holds nothing that somebody could wait for."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, signal.SIG_IGN)
    os.dup2(end, 0)
    os.closerange(1, os.sysconf("SC_OPEN_MAX") if os.sysconf("SC_OPEN_MAX") > 0 else 1024)
    os.chdir("/")
    os.read(0, 1)
    late = time.monotonic() + _PATIENCE_S
    while any(map(os.path.lexists, places)) and time.monotonic() < late:
        for place in places:
            try:
                remove_tree(place)
            except OSError:
                time.sleep(0.05)
    os._exit(0)


def remove_tree(base: Path) -> None:
    """Remove a tree whose directories may have lost their permissions; one that is gone is no error."""
    if not os.path.lexists(base):
        return
    os.chmod(base, 0o700)
    for directory, below, _ in os.walk(base):
        for name in below:  # before the walk goes down to them
            path = os.path.join(directory, name)
            if not os.path.islink(path):
                os.chmod(path, 0o700)
    shutil.rmtree(base)
