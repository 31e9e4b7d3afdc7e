"""The futex2 calls (waitv, wake, wait, requeue) on the same queues.

They differ from ``futex`` in their flags, in absolute timeouts only, and in
counts that are taken as they are (a wake of zero wakes nobody).
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from errno import EAGAIN, EINVAL
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTSYS, Decision
from detbox.handlers import futex_core as core
from detbox.handlers.futex_core import Args, signed
from detbox.machine.futex_keys import key_of
from detbox.machine.futexes import MATCH_ANY

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_SIZE_MASK = 3
_SIZE_U32 = 2
_PRIVATE = 128
_MAX_WAITERS = 128
_CLOCK_REALTIME, _CLOCK_MONOTONIC = 0, 1


def futex_waitv(m: Machine, t: Task, a: Args) -> Decision:
    """``futex_waitv(waiters, nr, flags, timeout, clockid)``: the index of the woken word."""
    count = a[1] & 0xFFFFFFFF
    if a[2] & 0xFFFFFFFF or not 0 < count <= _MAX_WAITERS or not a[0]:
        return -EINVAL
    deadline = _deadline(m, t, a[3], a[4])
    words = _read_words(t, a[0], count)
    keys = [(key_of(m, t, address, private), address) for _, address, private in words]
    for value, address, _ in words:
        if t.u32(address) != value:
            return -EAGAIN
    sleeper = m.futexes.sleep(t, [(key, address, MATCH_ANY) for key, address in keys])
    why = "futex_waitv on " + ", ".join(f"{address:#x}" for _, address in keys)
    return core.sleep_until(m, sleeper, deadline, interrupted=lambda: -ERESTARTSYS, why=why)


def futex_wake(m: Machine, t: Task, a: Args) -> Decision:
    """``futex_wake(uaddr, mask, nr, flags)``."""
    private = _check_flags(a[3])
    bitset = _check_word(a[1])
    if not bitset:
        return -EINVAL
    key = key_of(m, t, a[0], private)
    return core.wake_key(m, key, max(signed(a[2]), 0), bitset)


def futex_wait(m: Machine, t: Task, a: Args) -> Decision:
    """``futex_wait(uaddr, val, mask, flags, timeout, clockid)``."""
    private = _check_flags(a[3])
    value, bitset = _check_word(a[1]), _check_word(a[2])
    deadline = _deadline(m, t, a[4], a[5])
    sleeper = core.wait_on(m, t, a[0], value, bitset, private)
    why = f"futex wait at {a[0]:#x}"
    return core.sleep_until(m, sleeper, deadline, interrupted=lambda: -ERESTARTSYS, why=why)


def futex_requeue(m: Machine, t: Task, a: Args) -> Decision:
    """``futex_requeue(waiters[2], flags, nr_wake, nr_requeue)``."""
    counts = (signed(a[2]), signed(a[3]))
    if a[1] & 0xFFFFFFFF or not a[0] or min(counts) < 0:
        return -EINVAL
    (value, source, private), (_, target, target_private) = _read_words(t, a[0], 2)
    keys: list[Hashable] = [key_of(m, t, source, private), key_of(m, t, target, target_private)]
    if t.u32(source) != value:
        return -EAGAIN
    return core.requeue(m, keys[0], (keys[1], target), counts)


def _read_words(t: Task, table: int, count: int) -> list[tuple[int, int, bool]]:
    """``struct futex_waitv`` entries as (value, address, private)."""
    words = []
    for value, address, flags, reserved in struct.iter_unpack("<QQII", t.read(table, 24 * count)):
        if reserved:
            raise OSError(EINVAL, "reserved field of futex_waitv")
        words.append((_check_word(value), address, _check_flags(flags)))
    return words


def _check_flags(flags: int) -> bool:
    """Whether the futex is private; only 32-bit words exist, NUMA words do not."""
    flags &= 0xFFFFFFFF
    if flags & ~(_SIZE_MASK | _PRIVATE) or flags & _SIZE_MASK != _SIZE_U32:
        raise OSError(EINVAL, "futex flags")
    return bool(flags & _PRIVATE)


def _check_word(value: int) -> int:
    if value >> 32:
        raise OSError(EINVAL, "value wider than the futex")
    return value


def _deadline(m: Machine, t: Task, timeout: int, clock: int) -> int | None:
    if not timeout:
        return None
    clock = signed(clock)
    if clock not in (_CLOCK_REALTIME, _CLOCK_MONOTONIC):
        raise OSError(EINVAL, "clock of a futex timeout")
    return core.absolute_deadline(m, core.read_timespec(t, timeout), clock == _CLOCK_REALTIME)
