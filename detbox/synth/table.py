"""The vocabulary of the procfs table: rows, what a renderer is given, and what an open gives."""

from __future__ import annotations

import errno
from collections.abc import Callable
from enum import Enum

from detbox.records import Alike, NamedTuple
from detbox.synth.view import MachineView, ProcessView, ThreadView

#: Reads the real bytes of a procfs path for a renderer; raises OSError.
Reader = Callable[[bytes], bytes]


class Synthetic(NamedTuple):
    """The guest gets these bytes.  ``sink``: it may write too, and what it writes has no effect."""

    data: bytes
    sink: bool = False


class RealFile(Alike):
    """The guest gets the kernel's own file (it is deterministic inside the container)."""

    __slots__ = ()


class Refused(NamedTuple):
    """The open fails.  ``unknown``: the table has no row for the path, which the run reports at its end."""

    errno: int
    unknown: bool = False


Answer = Synthetic | RealFile | Refused


class Access(Enum):
    """What opening for writing does."""

    NO = "EACCES"  # as for a mode of 0444
    REAL = "the kernel's file"
    SINK = "accepted, no effect"


class Query(NamedTuple):
    """What a renderer is given; ``process`` and ``thread`` only below /proc/PID."""

    path: bytes
    view: MachineView
    reader: Reader
    process_or_none: ProcessView | None = None
    thread_or_none: ThreadView | None = None

    @property
    def process(self) -> ProcessView:
        assert self.process_or_none is not None
        return self.process_or_none

    @property
    def thread(self) -> ThreadView:
        assert self.thread_or_none is not None
        return self.thread_or_none

    @property
    def is_task(self) -> bool:
        """Whether the path names a thread (/proc/PID/task/TID/…) and not the whole process."""
        return b"/task/" in self.path

    @property
    def of_thread(self) -> bool:
        """Whether it names a thread, in the one way or the other (/proc/TID/…)."""
        return self.is_task or (
            self.thread_or_none is not None and self.thread_or_none.tid != self.process.pid
        )


Renderer = Callable[[Query], bytes]


class Row(NamedTuple):
    """One file (or ``*`` below a directory).  Exactly one of ``render``, ``real`` and ``refuse`` is set.

    ``name``: path relative to /proc, to /proc/PID or to /proc/net.  ``only``: "process" or "thread" where the
    file exists at just one of the two levels.
    """

    name: str
    why: str
    render: Renderer | None = None
    real: bool = False
    refuse: int = 0
    write: Access = Access.NO
    mode: int = 0o100444
    only: str = ""


def synth(
    name: str, why: str, render: Renderer, write: Access = Access.NO, mode: int = 0o100444, only: str = ""
) -> Row:
    """A row whose content is made here."""
    return Row(name, why, render=render, write=write, mode=mode, only=only)


def real(name: str, why: str, write: Access = Access.NO, mode: int = 0o100444, only: str = "") -> Row:
    """A row whose content is the kernel's."""
    return Row(name, why, real=True, write=write, mode=mode, only=only)


def refused(name: str, why: str, code: int = errno.ENOENT, mode: int = 0o100400, only: str = "") -> Row:
    """A row that no guest may open; it is left out of listings."""
    return Row(name, why, refuse=code, mode=mode, only=only)


def fixed(text: str) -> Renderer:
    """A renderer of constant text."""
    data = text.encode()
    return lambda query: data
