"""Memory of other guest processes: copied by the supervisor, whom no setting of the host's (Yama) keeps from it."""

from __future__ import annotations

from collections.abc import Iterator
from errno import EFAULT, EINVAL, EPERM, ESRCH
from typing import TYPE_CHECKING

from detbox.decision import Decision
from detbox.handlers.futex_core import signed
from detbox.handlers.waiting import UIO_MAXIOV, Segments, iovec

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

_PAGE = 4096


def process_vm_readv(m: Machine, t: Task, a: Args) -> Decision:
    """``process_vm_readv(pid, local, count, remote, count, flags)``: the bytes that could be copied."""
    local, remote = _vectors(t, a)
    return _copied(debuggable(m, t, a[0]), remote, t, local) if local and remote else 0


def process_vm_writev(m: Machine, t: Task, a: Args) -> Decision:
    """``process_vm_writev(pid, local, count, remote, count, flags)``: likewise."""
    local, remote = _vectors(t, a)
    return _copied(t, local, debuggable(m, t, a[0]), remote) if local and remote else 0


def _vectors(t: Task, a: Args) -> tuple[Segments, Segments]:
    """The parts of both sides that are not empty, in the order of process_vm_rw (mm/process_vm_access.c)."""
    if a[5]:
        raise OSError(EINVAL, "flags")
    local = [part for part in iovec(t, a[1], a[2]) if part[1]]
    if not local:
        return [], []
    if a[4] > UIO_MAXIOV:  # as 64 bits, which the other count is not
        raise OSError(EINVAL, "too many segments")
    return local, [part for part in iovec(t, a[3], a[4]) if part[1]]


def debuggable(m: Machine, t: Task, number: int) -> Task:
    """The thread that is meant, if the caller may debug it; OSError."""
    pid = signed(number, 32)
    if pid == 1:
        raise OSError(EPERM, "the supervisor")
    other = m.tasks.get(pid)
    if other is None:
        raise OSError(ESRCH, "no such thread")
    if not may_debug(t, other.process):
        raise OSError(EPERM, "another user's process")
    return other


def may_debug(t: Task, other: Process) -> bool:
    """Whether a thread may debug a process."""
    return t.process is other or t.process.creds.may_debug(other.creds)


def _copied(source: Task, from_: Segments, target: Task, to: Segments) -> int:
    """Copy until one side is at its end or memory is missing; OSError(EFAULT) if that is so at once."""
    done = 0
    for start, end, length in _pieces(from_, to):
        try:
            target.write(end, source.read(start, length))
        except OSError:
            if not done:
                raise OSError(EFAULT, "no memory there") from None
            break
        done += length
    return done


def _pieces(from_: Segments, to: Segments) -> Iterator[tuple[int, int, int]]:
    """(source, target, length) of pieces that lie in one page on either side."""
    sources, targets = iter(from_), iter(to)
    (source, left), (target, room) = next(sources), next(targets)
    while True:
        length = min(left, room, _PAGE - source % _PAGE, _PAGE - target % _PAGE)
        yield source, target, length
        source, left, target, room = source + length, left - length, target + length, room - length
        try:
            if not left:
                source, left = next(sources)
            if not room:
                target, room = next(targets)
        except StopIteration:
            return
