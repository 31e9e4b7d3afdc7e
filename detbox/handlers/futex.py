"""``futex``: every wait and wake is emulated, nothing sleeps in the kernel.

The queues are in ``detbox.machine.futexes``, what the calls share in
``futex_core``, priority inheritance in ``futex_pi``, the futex2 calls in
``futex2``, and the death of threads in ``futex_exit``.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EAGAIN, EINVAL, ENOSYS
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTNOHAND, ERESTARTSYS, Decision, Park
from detbox.handlers import futex_core as core
from detbox.handlers import futex_pi
from detbox.handlers.futex2 import futex_requeue, futex_wait, futex_waitv, futex_wake
from detbox.handlers.futex_core import Args, signed
from detbox.handlers.futex_exit import get_robust_list, set_tid_address
from detbox.machine.futex_keys import key_of
from detbox.machine.futexes import MATCH_ANY

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task


def futex(m: Machine, t: Task, a: Args) -> Decision:
    """``futex(uaddr, op, val, timeout | val2, uaddr2, val3)``."""
    command = a[1] & 0xFFFFFFFF & ~(core.PRIVATE_FLAG | core.CLOCK_REALTIME_FLAG)
    if command in (core.WAKE, core.WAKE_BITSET):
        bitset = MATCH_ANY if command == core.WAKE else a[5] & 0xFFFFFFFF
        woken = core.wake(m, t, a[0], signed(a[2]), bitset, private=bool(a[1] & core.PRIVATE_FLAG))
        if woken > 0 and len(t.process.tasks) > 1 and m.lets_go_first(t):
            return Park(lambda wake: woken, extra={"first": woken}, why="lets those go first that it has woken")
        return woken
    if a[1] & core.CLOCK_REALTIME_FLAG and command not in core.WITH_REALTIME:
        return -ENOSYS
    operation = _OPERATIONS.get(command)
    if operation is None:
        return -ENOSYS
    return operation(m, t, a)


def _wait(m: Machine, t: Task, a: Args) -> Decision:
    deadline = core.deadline_of(m, t, a)
    relative = a[1] & 0xF == core.WAIT
    bitset = MATCH_ANY if relative else a[5] & 0xFFFFFFFF
    sleeper = core.wait_on(m, t, a[0], a[2] & 0xFFFFFFFF, bitset, bool(a[1] & core.PRIVATE_FLAG))

    def interrupted() -> int:
        if deadline is None:
            return -ERESTARTSYS
        # The kernel says ERESTART_RESTARTBLOCK: EINTR after a handler, else it
        # goes on with the deadline that it had.  ERESTARTNOHAND is the same,
        # with the call's own arguments, whose relative timeout must not begin anew.
        if relative:
            m.futexes.restart[t.tid] = (a, deadline)
        return -ERESTARTNOHAND

    return core.sleep_until(m, sleeper, deadline, interrupted=interrupted, why=f"futex wait at {a[0]:#x}")


def _requeue(m: Machine, t: Task, a: Args) -> Decision:
    counts = (signed(a[2]), signed(a[3]))
    if min(counts) < 0:
        return -EINVAL
    private = bool(a[1] & core.PRIVATE_FLAG)
    source = key_of(m, t, a[0], private)
    target = key_of(m, t, a[4], private)
    if a[1] & 0xF == core.CMP_REQUEUE and t.u32(a[0]) != a[5] & 0xFFFFFFFF:
        return -EAGAIN
    return core.requeue(m, source, (target, a[4]), counts)


# ---------------------------------------------------------------- FUTEX_WAKE_OP


def _wake_op(m: Machine, t: Task, a: Args) -> Decision:
    private = bool(a[1] & core.PRIVATE_FLAG)
    first = key_of(m, t, a[0], private)
    second = key_of(m, t, a[4], private)
    also_second = _operate(t, a[4], a[5] & 0xFFFFFFFF)
    woken = core.wake_key(m, first, max(signed(a[2]), 1))
    if woken >= 0 and also_second:
        more = core.wake_key(m, second, max(signed(a[3]), 1))
        return more if more < 0 else woken + more
    return woken


def _operate(t: Task, address: int, encoded: int) -> bool:
    """Change the word as FUTEX_OP() says; whether its old value compares true."""
    operand = signed(encoded >> 12 & 0xFFF, 12)
    if encoded >> 28 & 8:
        operand = 1 << (operand & 31)
    old = t.u32(address)
    new = {
        0: operand,
        1: old + operand,
        2: old | operand,
        3: old & ~operand,
        4: old ^ operand,
    }.get(encoded >> 28 & 7)
    if new is None:
        raise OSError(ENOSYS, "unknown FUTEX_OP")
    t.write(address, struct.pack("<I", new & 0xFFFFFFFF))
    signed_old = signed(old)
    comparand = signed(encoded & 0xFFF, 12)
    holds = {
        0: signed_old == comparand,
        1: signed_old != comparand,
        2: signed_old < comparand,
        3: signed_old <= comparand,
        4: signed_old > comparand,
        5: signed_old >= comparand,
    }.get(encoded >> 24 & 0xF)
    if holds is None:
        raise OSError(ENOSYS, "unknown FUTEX_OP_CMP")
    return holds


_OPERATIONS: dict[int, Callable[[Machine, Task, Args], Decision]] = {
    core.WAIT: _wait,
    core.WAIT_BITSET: _wait,
    core.REQUEUE: _requeue,
    core.CMP_REQUEUE: _requeue,
    core.WAKE_OP: _wake_op,
    core.LOCK_PI: futex_pi.lock,
    core.LOCK_PI2: futex_pi.lock,
    core.TRYLOCK_PI: futex_pi.trylock,
    core.UNLOCK_PI: futex_pi.unlock,
    core.WAIT_REQUEUE_PI: futex_pi.wait_requeue,
    core.CMP_REQUEUE_PI: futex_pi.requeue,
}

__all__ = [
    "futex",
    "futex_requeue",
    "futex_wait",
    "futex_waitv",
    "futex_wake",
    "get_robust_list",
    "set_tid_address",
]
