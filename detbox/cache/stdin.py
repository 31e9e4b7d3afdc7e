"""Standard input as a fact: what the guest was given of it."""

from __future__ import annotations

import os
import stat
from typing import TYPE_CHECKING, Any

import xxhash

if TYPE_CHECKING:
    from detbox.spec import RunSpec

_CHUNK = 65536  # as the console takes it


class Input:
    """The standard input that a run would have.

    A file is looked at where it stands.  Of a pipe only so much is taken as the stored result says that a run
    takes; if there is no hit after all, the run gets it back (``RunSpec.stdin_head``).
    """

    def __init__(self, spec: RunSpec) -> None:
        self._closed = spec.stdin is None and spec.stdin_closed
        self._fd = -1 if self._closed else os.open(spec.stdin, os.O_RDONLY | os.O_CLOEXEC) if spec.stdin else 0
        self._own = spec.stdin is not None
        self._file = not self._closed and stat.S_ISREG(os.fstat(self._fd).st_mode)
        self._terminal = not self._closed and os.isatty(self._fd)
        self._head = b""  # taken from a pipe
        self._ended = False

    def first_change(self, noted: dict[str, Any]) -> str | None:
        """``noted``: ``taken`` bytes with the digest ``content``, and whether the end was met."""
        taken, at_end = noted["taken"], noted["ended"]
        if not taken and not at_end:
            return None
        if self._terminal:
            return "standard input is a terminal"
        data, ended = self._look(taken, at_end)
        if len(data) != taken or xxhash.xxh3_128(data).hexdigest() != noted["content"] or (at_end and not ended):
            return "standard input: content"
        return None

    def _look(self, wanted: int, to_end: bool) -> tuple[bytes, bool]:
        """The first ``wanted`` bytes, and whether the input ends there."""
        if self._closed:
            return b"", True
        if self._file:
            start = 0 if self._own else os.lseek(self._fd, 0, os.SEEK_CUR)
            data = _pread(self._fd, wanted + 1, start)
            return data[:wanted], len(data) <= wanted
        while not self._ended and (len(self._head) < wanted or (to_end and len(self._head) == wanted)):
            piece = os.read(self._fd, max(1, min(_CHUNK, wanted - len(self._head))))
            self._ended = not piece
            self._head += piece
        return self._head[:wanted], self._ended and len(self._head) <= wanted

    def consume(self, noted: dict[str, Any]) -> None:
        """A hit leaves detbox's own standard input where the run would have left it."""
        if self._file and not self._own:
            os.lseek(self._fd, noted["taken"], os.SEEK_CUR)

    def handed_on(self, spec: RunSpec) -> RunSpec:
        """The run gets back what was looked at."""
        return spec.with_changes(stdin_head=self._head) if self._head else spec

    def reasons(self, noted: dict[str, Any]) -> list[str]:
        """Why a run that took this much cannot be cached."""
        if self._terminal and (noted["taken"] or noted["ended"]):
            return ["reads a terminal"]
        return []


def _pread(fd: int, count: int, offset: int) -> bytes:
    parts = []
    while count > 0 and (data := os.pread(fd, min(count, 1 << 20), offset)):
        parts.append(data)
        count -= len(data)
        offset += len(data)
    return b"".join(parts)
