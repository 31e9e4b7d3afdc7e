"""Reading from a signalfd: whether a signal waits is the reader's own affair, not the descriptor's."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Hashable
from typing import TYPE_CHECKING

from detbox.decision import ContinueThen, Decision, Park
from detbox.handlers.waiting import POLLIN, Segments, gather, nonblocking, own_fdinfo, scatter
from detbox.kernel import siginfo
from detbox.machine.files import Kind
from detbox.machine.io import SIGNALS_SEEN, io_state

if TYPE_CHECKING:
    from detbox.machine.files import OpenFile
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_SIGCHLD = 17
# A member of a set in /proc/PID/fdinfo/FD (ep_show_fdinfo() in fs/eventpoll.c).
_MEMBER = re.compile(r"tfd: *(\d+) events: *([0-9a-f]+) data: *([0-9a-f]+)")


def read_signals(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """Park until a signal of the set is pending; what is told of it is what a handler would be told."""
    borrowed = t.process.files.borrow(t, fd)
    try:
        if nonblocking(borrowed) or ready(m, t, borrowed, POLLIN):
            return ContinueThen(lambda task, result: _repair(m, task, segments, result))
    finally:
        os.close(borrowed)
    return Park(
        lambda wake: read_signals(m, t, fd, segments), events=events_of(t), why=f"read from signalfd {fd}"
    )


def _repair(m: Machine, t: Task, segments: Segments, result: int) -> None:
    if result < siginfo.RECORD:
        return
    t.process.data.pop(SIGNALS_SEEN, None)  # the same ones may come again
    data = gather(t, segments, 0, result)
    records = [data[start : start + siginfo.RECORD] for start in range(0, len(data), siginfo.RECORD)]
    scatter(t, segments, 0, b"".join(_repaired(m, t, record) for record in records))


def _repaired(m: Machine, t: Task, record: bytes) -> bytes:
    info = siginfo.of_record(record)
    signo, code = int.from_bytes(record[:4], "little"), siginfo.code_of(info)
    if code > 0 and signo != _SIGCHLD:
        return record  # a fault's, or the terminal's: the same everywhere
    return siginfo.record_of(m.repaired_siginfo(t, signo, info))


def events_of(t: Task) -> tuple[Hashable, ...]:
    """Keys to park on besides descriptors: a signal has become pending for the process."""
    return (("pending signal", t.process.pid),)


def ready(m: Machine, t: Task, fd: int, mask: int, f: OpenFile | None = None) -> int:
    """POLLIN if a signal of the set is pending for the thread.  ``f``: what is known of the descriptor.

    fs/signalfd.c looks at the signals of whoever calls poll, which would be the supervisor's here.
    """
    if not mask & POLLIN:
        return 0
    return POLLIN if _signals_of(m, fd, f) & m.pending_signals(t) else 0


def _signals_of(m: Machine, fd: int, f: OpenFile | None) -> int:
    """The set of the signal descriptor that the supervisor has as ``fd``."""
    changes = io_state(m).signal_sets
    if f is not None and f.data is not None and f.data[0] == changes:
        known: int = f.data[1]
        return known
    signals = _set_of(m, fd)
    if f is not None:
        f.data = changes, signals
    return signals


def _set_of(m: Machine, fd: int) -> int:
    for line in own_fdinfo(m, fd).splitlines():
        name, _, text = line.partition(":")
        if name == "sigmask":
            return int(text, 16)
    return 0


def members(m: Machine, t: Task, fd: int, f: OpenFile) -> list[tuple[int, int, int]]:
    """(descriptor, events, data) of the signal descriptors in an epoll set, as the kernel lists them.

    A set in the set counts as one if it has any.
    """
    changes = io_state(m).signal_watches
    if not changes:
        return []
    if f.data is None or f.data[0] != changes:
        found = []
        own = t.process.files.borrow(t, fd)
        try:
            listed = _MEMBER.findall(own_fdinfo(m, own))
        finally:
            os.close(own)
        for member, events, data in listed:
            with contextlib.suppress(OSError):
                entry = t.process.files.get(int(member))
                if entry.kind is Kind.SIGNALFD or (entry.kind is Kind.EPOLL and members(m, t, int(member), entry)):
                    found.append((int(member), int(events, 16), int(data, 16)))
        f.data = changes, sorted(found)
    return list(f.data[1])


def set_ready(m: Machine, t: Task, fd: int) -> bool:
    """Whether a signal descriptor in an epoll set has a signal."""
    found = members(m, t, fd, t.process.files.get(fd))
    return any(member_ready(m, t, member, events) for member, events, _ in found)


def member_ready(m: Machine, t: Task, fd: int, events: int) -> bool:
    """Whether one of ``members`` has a signal that its set waits for; not if it has been closed."""
    with contextlib.suppress(OSError):
        f = t.process.files.get(fd)
        if f.kind is Kind.EPOLL:
            return set_ready(m, t, fd)
        own = t.process.files.borrow(t, fd)
        try:
            return bool(ready(m, t, own, events & 0xFFFF, f))
        finally:
            os.close(own)
    return False
