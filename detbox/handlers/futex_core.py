"""What all futex calls share: queueing, deadlines, waking, requeueing.

Only one guest thread runs at a time, so "read the word, compare, queue" is
atomic here without any lock.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Hashable
from errno import EAGAIN, EINVAL, ETIMEDOUT
from typing import TYPE_CHECKING

from detbox.decision import Decision, Park, Wake
from detbox.machine.futex_keys import key_of
from detbox.machine.futexes import MATCH_ANY, Sleeper

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

Args = tuple[int, ...]

WAIT, WAKE, FD, REQUEUE, CMP_REQUEUE, WAKE_OP, LOCK_PI, UNLOCK_PI, TRYLOCK_PI = range(9)
WAIT_BITSET, WAKE_BITSET, WAIT_REQUEUE_PI, CMP_REQUEUE_PI, LOCK_PI2 = range(9, 14)
PRIVATE_FLAG = 128
CLOCK_REALTIME_FLAG = 256

_WITH_TIMEOUT = frozenset((WAIT, LOCK_PI, LOCK_PI2, WAIT_BITSET, WAIT_REQUEUE_PI))
WITH_REALTIME = frozenset((WAIT_BITSET, WAIT_REQUEUE_PI, LOCK_PI2))
# Nanoseconds at which the kernel's timers saturate: such a timeout never comes.
_NEVER = (1 << 63) - 1


def signed(value: int, bits: int = 32) -> int:
    """The two's complement reading of the low ``bits`` of a register."""
    value &= (1 << bits) - 1
    return value - (1 << bits) if value >> (bits - 1) else value


# ---------------------------------------------------------------- waiting


def read_timespec(t: Task, address: int) -> int:
    """A ``struct timespec`` in nanoseconds; raises OSError(EFAULT, EINVAL)."""
    seconds, nanoseconds = struct.unpack("<qq", t.read(address, 16))
    if seconds < 0 or not 0 <= nanoseconds < 1_000_000_000:
        raise OSError(EINVAL, "bad timeout")
    return int(seconds * 1_000_000_000 + nanoseconds)


def absolute_deadline(m: Machine, when: int, realtime: bool) -> int | None:
    """The virtual monotonic time of an absolute timeout, both in nanoseconds."""
    if when >= _NEVER:
        return None
    now: int = m.clock.now
    return when - (m.clock.realtime(now) - now) if realtime else when


def deadline_of(m: Machine, t: Task, a: Args) -> int | None:
    """The deadline that the arguments of FUTEX_WAIT… and FUTEX_LOCK_PI… give."""
    command = a[1] & 0xFFFFFFFF & ~(PRIVATE_FLAG | CLOCK_REALTIME_FLAG)
    if not a[3] or command not in _WITH_TIMEOUT:
        return None
    when = read_timespec(t, a[3])
    if command != WAIT:
        # FUTEX_LOCK_PI measures CLOCK_REALTIME without saying so.
        return absolute_deadline(m, when, command == LOCK_PI or bool(a[1] & CLOCK_REALTIME_FLAG))
    interrupted = m.futexes.restart.pop(t.tid, None)
    if interrupted is not None and interrupted[0] == a:
        return int(interrupted[1])
    return None if when >= _NEVER else int(m.clock.look() + when)


def sleep_until(
    m: Machine,
    sleeper: Sleeper,
    deadline: int | None,
    *,
    interrupted: Callable[[], int],
    why: str,
) -> Decision:
    """Park a queued sleeper; its result is what the waker set, or ETIMEDOUT."""

    def dequeue() -> int:
        # Woken and interrupted at once: like the kernel, the wake-up is not lost.
        if sleeper.result is None:
            m.futexes.remove(sleeper)
            return interrupted()
        return sleeper.result

    def resume(wake: Wake) -> Decision:
        if sleeper.result is None:
            m.futexes.remove(sleeper)
            return -ETIMEDOUT
        return sleeper.result

    # Also until a time that has come: who waits like that again and again lets the others run.
    return Park(resume, events=(sleeper.event,), deadline=deadline, interrupted=dequeue, why=why)


def wait_on(
    m: Machine, t: Task, address: int, value: int, bitset: int, private: bool
) -> Sleeper:
    """Queue ``t`` if the word still has ``value``; raises OSError(EAGAIN, …)."""
    if not bitset:
        raise OSError(EINVAL, "empty bit set")
    key = key_of(m, t, address, private)
    if t.u32(address) != value:
        raise OSError(EAGAIN, "the futex word has changed")
    sleeper: Sleeper = m.futexes.sleep(t, [(key, address, bitset)])
    return sleeper


# ---------------------------------------------------------------- waking


def resume_all(m: Machine, sleepers: list[Sleeper]) -> None:
    """Make dequeued sleepers runnable, in their order."""
    for sleeper in sleepers:
        m.wake(sleeper.event, 1)


def wake(m: Machine, t: Task, address: int, count: int, bitset: int, *, private: bool) -> int:
    """Wake up to ``count`` waiters (at least one, as the kernel's loop does)."""
    if not bitset:
        return -EINVAL
    if not m.futexes and not address & 3:
        # Nobody sleeps anywhere: only a shared word has to be mapped.
        if not private:
            t.u32(address)
        return 0
    return wake_key(m, key_of(m, t, address, private), max(count, 1), bitset)


def wake_key(m: Machine, key: Hashable, count: int, bitset: int = MATCH_ANY) -> int:
    """Wake up to ``count`` waiters of one futex; how many, or -EINVAL for PI waiters."""
    if key not in m.futexes:
        return 0
    if any((w.pi or w.target) and w.bitset & bitset for w in m.futexes.waiting(key)[:count]):
        return -EINVAL
    woken = m.futexes.wake(key, count, bitset)
    resume_all(m, woken)
    return len(woken)


def requeue(m: Machine, source: Hashable, target: tuple[Hashable, int], counts: tuple[int, int]) -> int:
    """Wake ``counts[0]`` waiters of ``source``, move ``counts[1]`` more to ``target``."""
    woken = 0
    moved = 0
    for waiter in m.futexes.waiting(source):
        if waiter.pi or waiter.target:
            return -EINVAL if not woken + moved else woken + moved
        if woken < counts[0]:
            resume_all(m, [m.futexes.finish(waiter, waiter.index)])
            woken += 1
        elif moved < counts[1]:
            if source != target[0]:
                m.futexes.move(waiter, *target)
            moved += 1
        else:
            break
    return woken + moved
