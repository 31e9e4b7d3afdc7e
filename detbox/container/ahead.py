"""The tree of the host's directories (see ``skeleton``), looked at while the other processes of the run start.

To look at 30,000 directories takes 60 ms, and so does what Python does before the container's file system is put
together: a process of its own does the one on another processor.  It begins before the command line is read, and
whoever needs no tree has lost nothing by it.
"""

from __future__ import annotations

import contextlib
import fcntl
import marshal
import os
import signal
from collections.abc import Mapping
from typing import TYPE_CHECKING

from detbox.container import hostroot
from detbox.values import cache_place

if TYPE_CHECKING:
    from detbox.container import skeleton

PR_SET_PDEATHSIG = 1
_NAME = "directories"  # of the place in detbox's cache


class Ahead:
    """The process, and what it says.

    ``place``: where the tree is kept.  ``lock``: its descriptor, which all processes of the run hold open.
    """

    def __init__(self, place: str, lock: int) -> None:
        self.place = place
        self.lock = lock
        self._answer, answer = os.pipe2(os.O_CLOEXEC)
        parent = os.getpid()
        self._pid = os.fork()
        if self._pid == 0:
            try:
                self._look(answer, parent)
            finally:
                os._exit(0)
        os.close(answer)

    def _look(self, answer: int, parent: int) -> None:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        from detbox.container import skeleton
        from detbox.kernel import _native

        _native.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
        os.umask(0)
        root = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        tops = [name for name in hostroot.names() if hostroot.shown(name)]
        kept = skeleton.renew(self.place, self.lock, tops, root)
        if kept is not None:
            with open(answer, "wb") as file:
                marshal.dump((kept.hidden, [tuple(change) for change in kept.above]), file)

    def kept(self) -> skeleton.Kept | None:
        """What there is of the tree; None: it cannot be used.

        Waits for the process.  For one process of the run, which has inherited this object.
        """
        from detbox.container import skeleton

        with open(self._answer, "rb", closefd=False) as file:
            said = file.read()
        try:
            hidden, above = marshal.loads(said)
        except (EOFError, ValueError):
            return None
        return skeleton.Kept(hidden, [skeleton.Change(*change) for change in above])

    def end(self) -> None:
        """End the process, once the run has ended: if it is still at work, nobody wanted its answer."""
        os.close(self._answer)
        os.close(self.lock)
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(self._pid, signal.SIGKILL)
            os.waitpid(self._pid, 0)


_begun: Ahead | None = None


def begin(host_env: Mapping[bytes, bytes]) -> None:
    """Start the process, for a run of an ordinary user: root's has no use for it."""
    global _begun
    directory = cache_place(host_env)
    if directory is not None and _begun is None:
        place = os.path.join(directory, _NAME)
        lock = _take(place)
        if lock >= 0:
            _begun = Ahead(place, lock)


def begun() -> Ahead | None:
    """What :func:`begin` has started."""
    return _begun


def _take(place: str) -> int:
    """A descriptor that holds a shared lock on the directory ``place``, which is made if need be.

    -1 if there is no tree to be had: another run is changing it, the place is somebody else's, or it is new.  Who runs
    only once, say in a machine that is thrown away, does not pay for a tree.
    """
    lock = -1
    try:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        try:
            os.mkdir(place, 0o700)
            return -1
        except FileExistsError:
            lock = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        if os.fstat(lock).st_uid == os.geteuid():
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
            return lock
    except OSError:
        pass
    if lock >= 0:
        os.close(lock)
    return -1
