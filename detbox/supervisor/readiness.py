"""The descriptors of parked calls, watched by one epoll set."""

from __future__ import annotations

import contextlib
import os
import select
from collections.abc import Iterable

from detbox.supervisor.task import Task


class EpollReadiness:
    """Level-triggered readiness of supervisor-owned descriptors, grouped by task."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._task_of: dict[int, Task] = {}
        self._fds_of: dict[Task, tuple[int, ...]] = {}

    def add(self, task: Task, fds: Iterable[tuple[int, int]]) -> None:
        """Watch ``(descriptor, poll mask)`` pairs for a task that parks."""
        watched = []
        for fd, mask in fds:
            watched.append(fd)
            self._task_of[fd] = task
            # Regular files cannot be in an epoll set (EPERM); they never block either.
            with contextlib.suppress(PermissionError):
                self._epoll.register(fd, mask)
        self._fds_of[task] = tuple(watched)

    def remove(self, task: Task, close: bool) -> None:
        """Stop watching for a task; ``close`` its descriptors too."""
        for fd in self._fds_of.pop(task, ()):
            del self._task_of[fd]
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)
            if close:
                os.close(fd)

    def poll(self) -> list[tuple[Task, tuple[int, ...]]]:
        """Tasks with a ready descriptor, each once with all its ready ones."""
        found: dict[Task, list[int]] = {}
        for fd, _ in self._epoll.poll(0):
            found.setdefault(self._task_of[fd], []).append(fd)
        return [(task, tuple(sorted(fds))) for task, fds in found.items()]
