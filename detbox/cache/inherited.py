"""Files that an execution gets open: their content is a fact, and what it writes and where it stops are effects."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from detbox.cache.facts import CONTENT, IDENTITY, KIND, PYTIME, SIZE, TIMES, XATTR

if TYPE_CHECKING:
    from detbox.cache.execution import Execution
    from detbox.cache.tracker import Tracker
    from detbox.supervisor.task import Task


class InheritedFiles:
    """Of the executions of one run."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker

    def begins(self, t: Task, mine: Execution, files: dict[int, bytes]) -> None:
        """An execution starts; its descriptions are kept, to be asked for their positions at its end."""
        for number, path in files.items():
            self._tracker.ledger.touch(mine, path, KIND | SIZE | CONTENT | XATTR | IDENTITY | TIMES)
            self._tracker.ledger.settle(path)
            mine.files[number] = (path, t.process.files.borrow(t, number), self._times(path))

    def ended(self, mine: Execution) -> None:
        """An execution is over."""
        for number, (path, fd, times) in mine.files.items():
            mine.positions.append((number, os.lseek(fd, 0, os.SEEK_CUR)))
            os.close(fd)
            if self._times(path) != times:
                self._tracker.ledger.mark(mine, path, SIZE | CONTENT | PYTIME | TIMES)
        mine.files.clear()

    def _times(self, path: bytes) -> bytes:
        st = self._tracker.status(path)
        entry = self._tracker.m.inodes.known(st) if st is not None else None
        return entry.times if entry is not None else b""

    def move(self, t: Task, positions: list[tuple[int, int]]) -> None:
        """Set the positions that an execution would have left."""
        for number, position in positions:
            fd = t.process.files.borrow(t, number)
            try:
                os.lseek(fd, position, os.SEEK_SET)
            finally:
                os.close(fd)
