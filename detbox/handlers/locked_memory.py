"""mlock(2) and its like: nothing is locked, since how much may be is the host's, but the guest's own limit holds.

What is locked is remembered as ranges of addresses.  What the guest has unmapped meanwhile is found when it matters.
"""

from __future__ import annotations

import resource
from errno import EINVAL, ENOMEM, EPERM
from typing import TYPE_CHECKING

from detbox.decision import Decision
from detbox.handlers.limits import limits_of
from detbox.kernel.mappings import mappings
from detbox.machine.constants import COPIES, HIDDEN_MAPPING_PREFIXES
from detbox.machine.creds import CAP_IPC_LOCK
from detbox.machine.limits import INFINITY
from detbox.machine.userspaces import TOP

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

_PAGE = 4096
_M64 = (1 << 64) - 1
_MLOCK_ONFAULT = 1
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
#: Key of AddressSpace.data.
_LOCKED = "locked memory"

Ranges = list[tuple[int, int]]


def mlock(m: Machine, t: Task, a: Args) -> Decision:
    """``mlock(address, length)``."""
    return _lock(m, t, a[0], a[1], populate=True)


def mlock2(m: Machine, t: Task, a: Args) -> Decision:
    """``mlock2(address, length, flags)``."""
    flags = a[2] & 0xFFFFFFFF
    return -EINVAL if flags & ~_MLOCK_ONFAULT else _lock(m, t, a[0], a[1], populate=not flags)


def munlock(m: Machine, t: Task, a: Args) -> Decision:
    """``munlock(address, length)``."""
    start, end = _range(a[0], a[1])
    found = _mapped(m, t.tid)
    _put(t, _without(_locked(t.process), (start, end)))
    return 0 if _covers(found, start, end) else -ENOMEM


def mlockall(m: Machine, t: Task, a: Args) -> Decision:
    """``mlockall(flags)``: what is mapped later counts for nothing."""
    flags = a[0] & 0xFFFFFFFF
    if not flags or flags & ~(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) or flags == _MCL_ONFAULT:
        return -EINVAL
    most = _most(t)
    if flags & _MCL_CURRENT:
        found = [(start, end) for start, end, _ in _mapped(m, t.tid)]
        if _size(found) > most:
            return -ENOMEM
        _put(t, found)
    return 0


def munlockall(m: Machine, t: Task, a: Args) -> Decision:
    """``munlockall()``."""
    _put(t, [])
    return 0


def locked_kb(m: Machine, process: Process) -> int:
    """How much a process has locked, in KiB."""
    locked = _locked(process)
    return _size(_common(locked, _mapped(m, process.pid))) >> 10 if locked else 0


def _lock(m: Machine, t: Task, address: int, length: int, *, populate: bool) -> Decision:
    """do_mlock() in mm/mlock.c."""
    most = _most(t)
    start, end = _range(address, length)
    found = _mapped(m, t.tid)
    others = _without(_common(_locked(t.process), found), (start, end))
    if _size(others) + end - start > most:
        return -ENOMEM
    new = [(low, high) for low, high in _until_hole(found, start, end) if low < high]
    _put(t, sorted(others + new))
    if not _covers(found, start, end):
        return -ENOMEM
    # Pages that nobody may touch cannot be brought in.
    if populate and any(perms.startswith(b"---") for low, high, perms in found if low < end and high > start):
        return -ENOMEM
    return 0


def _most(t: Task) -> int:
    """How many bytes the thread's process may lock; OSError(EPERM) if none."""
    soft = limits_of(t.process)[resource.RLIMIT_MEMLOCK][0]
    if t.process.creds.capable(CAP_IPC_LOCK, TOP):
        return INFINITY
    if not soft:
        raise OSError(EPERM, "RLIMIT_MEMLOCK is 0")
    return soft & -_PAGE if soft != INFINITY else soft


def _range(address: int, length: int) -> tuple[int, int]:
    """The pages that are meant; OSError(EINVAL)."""
    start = address & -_PAGE
    size = (length + address % _PAGE + _PAGE - 1 & _M64) & -_PAGE
    if start + size > _M64:
        raise OSError(EINVAL, "beyond the last address")
    return start, start + size


def _mapped(m: Machine, tid: int) -> list[tuple[int, int, bytes]]:
    """What the guest has mapped: (start, end, rights)."""
    return [
        (each.start, each.end, each.perms) for each in mappings(m.proc_fd, tid)
        if not each.name.startswith(HIDDEN_MAPPING_PREFIXES) and not COPIES[0] <= each.start < COPIES[1]
    ]  # fmt: skip


def _until_hole(found: list[tuple[int, int, bytes]], start: int, end: int) -> Ranges:
    at, ranges = start, []
    for low, high, _ in found:
        if low <= at < high and at < end:
            ranges.append((at, min(high, end)))
            at = high
    return ranges


def _covers(found: list[tuple[int, int, bytes]], start: int, end: int) -> bool:
    return _size(_until_hole(found, start, end)) == end - start


def _common(ranges: Ranges, found: list[tuple[int, int, bytes]]) -> Ranges:
    return [(max(low, start), min(high, end)) for low, high in ranges for start, end, _ in found
            if low < end and start < high]  # fmt: skip


def _without(ranges: Ranges, gone: tuple[int, int]) -> Ranges:
    start, end = gone
    cut = [part for low, high in ranges for part in ((low, min(high, start)), (max(low, end), high))]
    return [(low, high) for low, high in cut if low < high]


def _size(ranges: Ranges) -> int:
    return sum(high - low for low, high in ranges)


def _locked(process: Process) -> Ranges:
    ranges: Ranges = process.mm.data.get(_LOCKED, [])
    return ranges


def _put(t: Task, ranges: Ranges) -> None:
    t.process.mm.data[_LOCKED] = ranges
