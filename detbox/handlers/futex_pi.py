"""Priority-inheritance futexes: the lock word holds its owner's thread id.

All guest threads have one virtual priority, so inheritance itself has nothing
to do: what is left is the ownership protocol, first come first served.  The
rules are those of kernel/futex/pi.c and requeue.c.
"""

from __future__ import annotations

import struct
from collections.abc import Hashable
from errno import EAGAIN, EDEADLK, EINVAL, EPERM, ESRCH
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTNOINTR, Decision
from detbox.handlers import futex_core as core
from detbox.handlers.futex_core import Args, signed
from detbox.machine.futex_keys import key_of
from detbox.machine.futexes import MATCH_ANY, Waiter

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

WAITERS = 0x80000000
OWNER_DIED = 0x40000000
TID_MASK = 0x3FFFFFFF


def lock(m: Machine, t: Task, a: Args) -> Decision:
    """FUTEX_LOCK_PI and FUTEX_LOCK_PI2; a signal restarts them after its handler."""
    deadline = core.deadline_of(m, t, a)
    key = key_of(m, t, a[0], bool(a[1] & core.PRIVATE_FLAG))
    if _acquire(m, t, key, a[0], t.tid, set_waiters=False):
        return 0
    sleeper = m.futexes.sleep(t, [(key, a[0], MATCH_ANY)])
    sleeper.waiters[0].pi = True
    why = f"priority-inheritance lock at {a[0]:#x}"
    return core.sleep_until(m, sleeper, deadline, interrupted=lambda: -ERESTARTNOINTR, why=why)


def trylock(m: Machine, t: Task, a: Args) -> Decision:
    """FUTEX_TRYLOCK_PI."""
    key = key_of(m, t, a[0], bool(a[1] & core.PRIVATE_FLAG))
    return 0 if _acquire(m, t, key, a[0], t.tid, set_waiters=False) else -EAGAIN


def unlock(m: Machine, t: Task, a: Args) -> Decision:
    """FUTEX_UNLOCK_PI: the first waiter becomes the owner."""
    key = key_of(m, t, a[0], bool(a[1] & core.PRIVATE_FLAG))
    if t.u32(a[0]) & TID_MASK != t.tid:
        return -EPERM
    heir = m.futexes.pi_waiter(key)
    if heir is None:
        _store(t, a[0], 0)
    elif not heir.pi:
        return -EINVAL
    else:
        _store(t, a[0], WAITERS | heir.sleeper.task.tid)
        _inherit(m, key, heir)
    return 0


def wait_requeue(m: Machine, t: Task, a: Args) -> Decision:
    """FUTEX_WAIT_REQUEUE_PI: wait on one word, to be moved to a PI lock."""
    deadline = core.deadline_of(m, t, a)
    private = bool(a[1] & core.PRIVATE_FLAG)
    target = key_of(m, t, a[4], private)
    if key_of(m, t, a[0], private) == target:
        return -EINVAL
    sleeper = core.wait_on(m, t, a[0], a[2] & 0xFFFFFFFF, MATCH_ANY, private)
    waiter = sleeper.waiters[0]
    waiter.target = (target, a[4])

    def interrupted() -> int:
        # Once moved, the word has changed: the kernel spares itself the restart.
        return -EAGAIN if waiter.pi else -ERESTARTNOINTR

    why = f"condition variable at {a[0]:#x}"
    return core.sleep_until(m, sleeper, deadline, interrupted=interrupted, why=why)


def requeue(m: Machine, t: Task, a: Args) -> Decision:
    """FUTEX_CMP_REQUEUE_PI: hand the lock to the first waiter, queue the others for it."""
    counts = (signed(a[2]), signed(a[3]))
    if counts[0] != 1 or counts[1] < 0:
        return -EINVAL
    private = bool(a[1] & core.PRIVATE_FLAG)
    source = key_of(m, t, a[0], private)
    target = key_of(m, t, a[4], private)
    if source == target:
        return -EINVAL
    if t.u32(a[0]) != a[5] & 0xFFFFFFFF:
        return -EAGAIN
    return _requeue_all(m, t, source, (target, a[4]), counts)


def owner_died(m: Machine, tid: int) -> None:
    """Give every contended PI lock of a dead thread to its first waiter."""
    for key in m.futexes.owned_by(tid):
        heir = m.futexes.pi_waiter(key)
        if heir is None or not heir.pi:
            continue
        task = heir.sleeper.task
        try:
            _store(task, heir.address, WAITERS | OWNER_DIED | task.tid)
        except OSError:
            # The heir's memory is going, too: its own exit passes the lock on.
            pass
        _inherit(m, key, heir)


def _acquire(
    m: Machine, t: Task, key: Hashable, address: int, taker: int, *, set_waiters: bool
) -> bool:
    """Take the free lock for thread ``taker``, or note that somebody waits for it.

    Raises OSError(EDEADLK) for the owner itself, ESRCH for an owner that does not exist.
    """
    word = t.u32(address)
    owner = word & TID_MASK
    if owner == taker:
        raise OSError(EDEADLK, "the caller owns the lock")
    first = m.futexes.pi_waiter(key)
    if first is not None and not first.pi:
        raise OSError(EINVAL, "plain waiters on a priority-inheritance lock")
    if not owner:
        waiters = WAITERS if set_waiters or first is not None else 0
        _store(t, address, word & OWNER_DIED | waiters | taker)
        m.futexes.pi_owner.pop(key, None)
        if first is not None:
            m.futexes.pi_owner[key] = taker
        return True
    _store(t, address, word | WAITERS)
    if owner not in m.tasks:
        raise OSError(ESRCH, "the owner does not exist")
    m.futexes.pi_owner[key] = owner
    return False


def _inherit(m: Machine, key: Hashable, heir: Waiter) -> None:
    m.futexes.pi_owner[key] = heir.sleeper.task.tid
    core.resume_all(m, [m.futexes.finish(heir, 0)])


def _requeue_all(
    m: Machine, t: Task, source: Hashable, target: tuple[Hashable, int], counts: tuple[int, int]
) -> int:
    done = 0
    for waiter in m.futexes.waiting(source):
        if done >= sum(counts):
            break
        if waiter.target is None or waiter.target[0] != target[0]:
            return done or -EINVAL
        taker = waiter.sleeper.task.tid
        if done == 0 and _acquire(m, t, target[0], target[1], taker, set_waiters=counts[1] > 0):
            core.resume_all(m, [m.futexes.finish(waiter, 0)])
        else:
            if t.u32(target[1]) & TID_MASK == taker:
                return done or -EDEADLK
            m.futexes.move(waiter, target[0], waiter.target[1])
            waiter.pi = True
            m.futexes.pi_owner[target[0]] = t.u32(target[1]) & TID_MASK
        done += 1
    return done


def _store(t: Task, address: int, word: int) -> None:
    t.write(address, struct.pack("<I", word))
