"""Pipes that an execution gets open: what it takes from them is a fact and an effect, what it puts in is an effect.

Nobody else runs between an execution's start and its end, so that the content of a pipe at its start decides what
all of its reads give, and the room in a pipe whether all of its writes are done at once.  A result is used only where
that is certain: a write that has to wait for a reader could not be taken back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from fcntl import F_GETPIPE_SZ, F_SETPIPE_SZ, fcntl
from typing import TYPE_CHECKING, Any

import xxhash

from detbox.errors import InternalError
from detbox.handlers.readwrite import unread
from detbox.handlers.waiting import POLLERR, POLLHUP, POLLIN, POLLOUT, nonblocking, ready, without_blocking
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.records import field, record

if TYPE_CHECKING:
    from detbox.cache.execution import Execution
    from detbox.supervisor.task import Task

_PAGE = 4096
_MOST = 1 << 20  # bytes of one write
#: (pipe, bytes): negative for what was taken.
Move = tuple[int, int]


@record
class Pipe:
    """One pipe of one execution, as it was at its start, and what has been done with it since.

    ``number``: the first descriptor.  ``ended``: nobody has the other side open.  ``room``: capacity in bytes.
    """

    number: int
    writes: bool
    unread: int
    ended: bool
    room: int
    used: bool = False
    content: bytes = b""
    taken: int = 0
    whole: bool = False  # how much there was has been observed
    put: int = 0

    def fits(self, put: int) -> bool:
        """Whether so much can be written without waiting, whatever the pipe's pages hold.

        Two neighbouring pages hold more than one page of data: a write that fits into the last page goes there
        (fs/pipe.c, pipe_write()).  The first and the last one may hold a single byte.
        """
        return self.unread + put <= (self.room // _PAGE - 2) * _PAGE // 2

    def row(self) -> list[Any]:
        """For the stored result."""
        if self.writes:
            return [self.number, self.unread, self.room, self.put]
        size = self.unread if self.whole else self.taken
        return [self.number, size, self.whole, xxhash.xxh3_128(self.content[:size]).hexdigest()]


@record
class Moves:
    """What an execution has done with its pipes, in order, and the bytes that it has put into them."""

    steps: list[Move] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)


def look(t: Task, number: int, writes: bool) -> Pipe:
    """A pipe of a program that is about to start."""
    with borrowed(t, number) as fd:
        events = ready(fd, POLLOUT if writes else POLLIN)
        return Pipe(number, writes, unread(fd), bool(events & (POLLERR | POLLHUP)), fcntl(fd, F_GETPIPE_SZ))


def users_of(
    executions: Iterable[Execution], identity: tuple[int, int], use: str = ""
) -> list[tuple[Execution, Pipe]]:
    """Those who have got a file from outside and can note down what is done with it; the others get a reason.

    ``use``: what is done that nobody can note down ("": it can be).
    """
    found = []
    for one in executions:
        what = one.foreign.get(identity)
        if what is None:
            continue
        pipe = one.pipes.get(identity)
        if pipe is None or use:
            one.reasons.setdefault(use or f"uses {what}")
        else:
            found.append((one, pipe))
    return found


def take(t: Task, fd: int, users: list[tuple[Execution, Pipe]], wanted: int) -> str:
    """A read is about to be done; why it cannot be noted down, or ""."""
    for one, pipe in users:
        available = pipe.unread - pipe.taken
        _observe(t, fd, pipe)
        if wanted > available:
            pipe.whole = True
        if len(pipe.content) != pipe.unread:
            return "reads a pipe that cannot be looked into"
        if not available and not pipe.ended:
            return "waits for input from another program"
        _note(one, pipe, -min(wanted, available))
    return ""


def observe(t: Task, fd: int, users: list[tuple[Execution, Pipe]]) -> None:
    """How much there is to be read is asked."""
    for _, pipe in users:
        _observe(t, fd, pipe)
        pipe.whole = True


def put(t: Task, fd: int, users: list[tuple[Execution, Pipe]], data: bytes) -> str:
    """A write is about to be done; why it cannot be noted down, or ""."""
    if len(data) > _MOST:
        return "writes very much at once to a pipe"
    for one, pipe in users:
        pipe.used = True
        if pipe.ended:
            continue  # EPIPE
        pipe.put += len(data)
        if not pipe.fits(pipe.put):
            with borrowed(t, fd) as own:
                if nonblocking(own):
                    return "writes to a pipe that may be full"
        _note(one, pipe, len(data))
        one.moves.data += data
    return ""


def may_write(users: list[tuple[Execution, Pipe]]) -> str:
    """Whether a write would be done at once is asked; why it cannot be noted down, or ""."""
    for _, pipe in users:
        pipe.used = True
        if not pipe.fits(pipe.put + _PAGE):
            return "asks whether a pipe is full"
    return ""


def _note(one: Execution, pipe: Pipe, count: int) -> None:
    if count < 0:
        pipe.taken -= count
    if count:
        one.moves.steps.append((pipe.number, count))


def _observe(t: Task, fd: int, pipe: Pipe) -> None:
    if not pipe.used:
        pipe.used = True
        with borrowed(t, fd) as own:
            pipe.content = _content(own, pipe.unread)


def _content(fd: int, count: int) -> bytes:
    """What is in a pipe; it stays there."""
    if not count:
        return b""
    read, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        with contextlib.suppress(OSError):
            fcntl(write, F_SETPIPE_SZ, fcntl(fd, F_GETPIPE_SZ))
        done = _native.raw_syscall(NUMBERS["tee"], fd, write, count, 0)
        parts = []
        while done > 0 and (data := os.read(read, done)):
            parts.append(data)
            done -= len(data)
        return b"".join(parts)
    finally:
        os.close(read)
        os.close(write)


# -- a stored result -----------------------------------------------------------------------


def first_change(t: Task, mine: Execution, rows: list[list[Any]], odd: bool) -> str | None:
    """Why a result with these rows does not fit; None if it does.  ``odd``: pages may hold less than usual."""
    by_number = {pipe.number: pipe for pipe in mine.pipes.values()}
    for row in rows:
        pipe = by_number.get(row[0])
        if pipe is None:
            return f"descriptor {row[0]} is no pipe"
        if pipe.writes:
            _, before, room, total = row
            same = pipe.unread == before == 0 and pipe.room == room
            if not same and (odd or not pipe.fits(total)):
                return f"descriptor {pipe.number}: the pipe may be full"
            continue
        _, size, whole, digest = row
        _observe(t, pipe.number, pipe)
        pipe.used = False
        if len(pipe.content) != pipe.unread or pipe.unread < size or (whole and pipe.unread != size):
            return f"descriptor {pipe.number}: what comes through the pipe"
        if xxhash.xxh3_128(pipe.content[:size]).hexdigest() != digest:
            return f"descriptor {pipe.number}: what comes through the pipe"
    return None


def replay(t: Task, mine: Execution, rows: list[list[Any]], steps: list[Move], data: bytes) -> None:
    """Do what an execution has done with its pipes, and note it down for those around it."""
    identities = {pipe.number: identity for identity, pipe in mine.pipes.items()}
    outer = list(mine.parent.line()) if mine.parent is not None else []
    users = {number: users_of(outer, identities[number]) for number in {row[0] for row in rows}}
    for row in rows:
        if not mine.pipes[identities[row[0]]].writes and row[2]:
            observe(t, row[0], users[row[0]])
    view = memoryview(data)
    for number, count in steps:
        with borrowed(t, number) as fd:
            if count < 0:
                take(t, number, users[number], -count)
                done = len(_exactly(fd, -count))
            else:
                piece, view = view[:count], view[count:]
                put(t, number, users[number], bytes(piece))
                with without_blocking(fd):
                    done = os.write(fd, piece)
        if done != abs(count):
            raise InternalError(f"a pipe did not take or give {count} bytes: {done}")


def _exactly(fd: int, count: int) -> bytes:
    parts = []
    while count > 0 and (data := os.read(fd, count)):
        parts.append(data)
        count -= len(data)
    return b"".join(parts)


@contextlib.contextmanager
def borrowed(t: Task, number: int) -> Iterator[int]:
    """A descriptor of a guest's, for a moment."""
    fd = t.process.files.borrow(t, number)
    try:
        yield fd
    finally:
        os.close(fd)
