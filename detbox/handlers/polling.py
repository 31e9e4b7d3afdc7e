"""``poll``, ``ppoll``, ``select`` and ``pselect6``: looked up with timeout zero, parked, and answered here.

The kernel's own answer would have to be corrected: it writes back how much of the timeout is left by the
host's clock.
"""

from __future__ import annotations

import os
import select as host
import struct
from collections.abc import Callable, Hashable
from errno import EBADF, EINVAL
from resource import RLIMIT_NOFILE
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTNOHAND, Decision, Park, Wake
from detbox.handlers import clocks, ptys, signalfd, timerfd
from detbox.handlers.limits import limits_of
from detbox.handlers.waiting import fd_of, ready, signed32
from detbox.machine.files import Kind
from detbox.machine.limits import NR_OPEN
from detbox.records import record

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_POLLNVAL = host.POLLNVAL
#: What makes a descriptor readable, writable, exceptional (fs/select.c: POLLIN_SET and its relatives).
_IN = host.POLLRDNORM | host.POLLRDBAND | host.POLLIN | host.POLLHUP | host.POLLERR
_OUT = host.POLLWRBAND | host.POLLWRNORM | host.POLLOUT | host.POLLERR
_EX = host.POLLPRI
_SETS = (_IN, _OUT, _EX)
#: Above so many descriptors a park watches them through an epoll set of its own.
_MANY = 16
_NS = 1_000_000_000


@record
class _Call:
    """One call: what it asks for, and how its answer is written.

    ``wanted``: (descriptor, events) in the order of the call.  ``answer(events)`` gets the events found for
    each of them and returns the result; ``leftover(ns)`` writes back the rest of the timeout.
    ``deadline``: virtual time, None for ever; ``immediate``: the timeout was zero.
    ``restarts``: after a signal without a handler the kernel goes on to the same deadline by restart_syscall(2); the
    others are made again, with the rest of the timeout.
    """

    wanted: list[tuple[int, int]]
    answer: Callable[[list[int]], int]
    leftover: Callable[[int], None] | None = None
    deadline: int | None = None
    immediate: bool = False
    sigmask: int | None = None
    name: str = ""
    restarts: bool = False


def poll(m: Machine, t: Task, a: Args) -> Decision:
    """``poll(fds, nfds, timeout_ms)``; a negative timeout is none."""
    timeout = signed32(a[2])
    call = _poll_call(m, t, a, None if timeout < 0 else timeout * 1_000_000)
    call.restarts = True
    return _run(m, t, call)


def ppoll(m: Machine, t: Task, a: Args) -> Decision:
    """``ppoll(fds, nfds, timespec, sigmask, sigsetsize)``."""
    call = _poll_call(m, t, a, read_timespec(t, a[2]))
    call.sigmask = t.u64(a[3]) if a[3] else None
    if a[2]:
        call.leftover = lambda ns: t.write(a[2], struct.pack("<qq", *divmod(ns, _NS)))
    return _run(m, t, call)


def _poll_call(m: Machine, t: Task, a: Args, timeout: int | None) -> _Call:
    count = a[1] & 0xFFFFFFFF
    if count > limits_of(t.process)[RLIMIT_NOFILE][0]:
        raise OSError(EINVAL, "too many descriptors")
    raw = t.read(a[0], 8 * count) if count else b""
    entries = list(struct.iter_unpack("<iHH", raw))

    def answer(events: list[int]) -> int:
        if count:
            t.write(a[0], b"".join(
                struct.pack("<iHH", fd, mask, found)
                for (fd, mask, _), found in zip(entries, events, strict=True)
            ))  # fmt: skip
        return sum(1 for found in events if found)

    call = _Call([(fd, mask) for fd, mask, _ in entries], answer, name="poll")
    _set_timeout(m, call, timeout)
    return call


def select(m: Machine, t: Task, a: Args) -> Decision:
    """``select(nfds, readfds, writefds, exceptfds, timeval)``."""
    timeout = None
    if a[4]:
        seconds, micro = struct.unpack("<qq", t.read(a[4], 16))
        # The kernel carries whole seconds over from the microseconds (fs/select.c, kern_select()).
        timeout = seconds * _NS + micro * 1000
        if seconds < 0 or micro < 0:
            return -EINVAL
    call = _select_call(m, t, a, timeout)
    if a[4]:
        call.leftover = lambda ns: t.write(a[4], struct.pack("<qq", ns // _NS, ns % _NS // 1000))
    return _run(m, t, call)


def pselect6(m: Machine, t: Task, a: Args) -> Decision:
    """``pselect6(nfds, readfds, writefds, exceptfds, timespec, {sigmask, size})``."""
    call = _select_call(m, t, a, read_timespec(t, a[4]))
    if a[4]:
        call.leftover = lambda ns: t.write(a[4], struct.pack("<qq", *divmod(ns, _NS)))
    if a[5]:
        address, size = struct.unpack("<QQ", t.read(a[5], 16))
        if address and size != 8:
            return -EINVAL
        call.sigmask = t.u64(address) if address else None
    return _run(m, t, call)


def _select_call(m: Machine, t: Task, a: Args, timeout: int | None) -> _Call:
    count = signed32(a[0])
    if count < 0:
        raise OSError(EINVAL, "negative nfds")
    count = min(count, NR_OPEN)
    size = (count + 63) // 64 * 8
    sets = [int.from_bytes(t.read(address, size), "little") if address and size else 0 for address in a[1:4]]
    union = (sets[0] | sets[1] | sets[2]) & ((1 << count) - 1)
    fds = [fd for fd in range(union.bit_length()) if union >> fd & 1]
    wanted = [
        (fd, sum(mask for bits, mask in zip(sets, _SETS, strict=True) if bits >> fd & 1)) for fd in fds
    ]

    def answer(events: list[int]) -> int:
        if _POLLNVAL in events:
            return -EBADF
        results, hits = [0, 0, 0], 0
        for fd, found in zip(fds, events, strict=True):
            for index in range(3):
                if found & _SETS[index] and sets[index] >> fd & 1:
                    results[index] |= 1 << fd
                    hits += 1
        for address, bits in zip(a[1:4], results, strict=True):
            if address and size:
                t.write(address, bits.to_bytes(size, "little"))
        return hits

    call = _Call(wanted, answer, name="select")
    _set_timeout(m, call, timeout)
    return call


def _set_timeout(m: Machine, call: _Call, timeout: int | None) -> None:
    call.immediate = timeout == 0
    call.deadline = None if timeout is None else m.clock.now + timeout


def read_timespec(t: Task, address: int) -> int | None:
    """The timeout in nanoseconds at ``address``, None for no pointer; OSError(EINVAL, EFAULT)."""
    if not address:
        return None
    seconds, nano = struct.unpack("<qq", t.read(address, 16))
    if seconds < 0 or not 0 <= nano < _NS:
        raise OSError(EINVAL, "bad timespec")
    return int(seconds * _NS + nano)


def _run(m: Machine, t: Task, call: _Call) -> Decision:
    """Answer if anything is ready or the time is over; otherwise park on all the descriptors."""

    def finish(result: int) -> int:
        if call.leftover is not None and call.deadline is not None and not call.immediate:
            call.leftover(max(0, call.deadline - m.clock.now))
        return result

    def step(wake: Wake | None) -> Decision:
        events, borrowed = _look(m, t, call.wanted)
        over = call.immediate or (wake is not None and wake.kind == "deadline")
        if any(events) or (over and (call.sigmask is None or wake is not None)):
            _close(borrowed)
            return finish(call.answer(events))
        return _park(m, t, call, borrowed, step, interrupted)

    def interrupted() -> int:
        if not call.restarts:
            return finish(-ERESTARTNOHAND)
        t.restart = lambda: step(None)
        return -clocks.ERESTART_RESTARTBLOCK

    return step(None)


def _look(m: Machine, t: Task, wanted: list[tuple[int, int]]) -> tuple[list[int], list[tuple[int, int]]]:
    """The events of each descriptor now, and (borrowed descriptor, mask) of those to watch."""
    timerfd.expire_due(m)
    files = t.process.files
    events: list[int] = []
    borrowed: list[tuple[int, int]] = []
    for fd, mask in wanted:
        if fd < 0:
            events.append(0)
            continue
        try:
            f = files.get(fd_of(fd))
            kind = f.kind
            own = files.borrow(t, fd)
        except OSError as error:
            if error.errno != EBADF:
                raise
            events.append(_POLLNVAL)
            continue
        if kind is Kind.TTY:
            ptys.note(m, t, fd, own)
        found = signalfd.ready(m, t, own, mask, f) if kind is Kind.SIGNALFD else ready(own, mask)
        if not found and kind is Kind.STDIN and mask & _IN:
            m.console.fill_stdin()
            found = ready(own, mask)
        if not found and kind is Kind.EPOLL and mask & _IN and signalfd.set_ready(m, t, fd):
            found = mask & host.POLLIN
        events.append(found)
        # A signalfd tells of the signals of whoever polls it: the supervisor's.  It is parked on by its events.
        if found or kind is Kind.SIGNALFD:
            os.close(own)
        else:
            borrowed.append((own, mask))
    return events, borrowed


def _close(borrowed: list[tuple[int, int]]) -> None:
    for fd, _ in borrowed:
        os.close(fd)


def _park(
    m: Machine, t: Task, call: _Call, borrowed: list[tuple[int, int]], step: Callable[[Wake], Decision],
    interrupted: Callable[[], int],
) -> Park:  # fmt: skip
    fds = tuple(borrowed)
    if len(borrowed) > _MANY:
        # The set keeps watching after the borrowed numbers are closed: the guest holds the descriptions.
        own = _epoll_of(borrowed)
        fds = ((own, host.POLLIN),)
    extra = {} if call.sigmask is None else {"sigmask": call.sigmask}
    shown = ", ".join(str(fd) for fd, _ in call.wanted[:8])
    return Park(
        step, events=_events(m, t, call), fds=fds, deadline=call.deadline, interrupted=interrupted,
        why=f"{call.name} on {shown or 'nothing'}", extra=extra,
    )  # fmt: skip


def _events(m: Machine, t: Task, call: _Call) -> tuple[Hashable, ...]:
    """Keys to park on besides the descriptors: only a signalfd has one."""
    files = t.process.files
    for fd, _ in call.wanted:
        if fd < 0:
            continue
        entry = files.get(fd)
        if entry.kind is Kind.SIGNALFD or (entry.kind is Kind.EPOLL and signalfd.members(m, t, fd, entry)):
            return signalfd.events_of(t)
    return ()


def _epoll_of(borrowed: list[tuple[int, int]]) -> int:
    watcher = host.epoll(len(borrowed))
    own = os.dup(watcher.fileno())
    for fd, mask in borrowed:
        watcher.register(fd, mask)
        os.close(fd)
    watcher.close()
    return own
