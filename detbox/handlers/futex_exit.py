"""What a dying thread does to futexes: robust lists and ``clear_child_tid``.

The kernel itself marks the words of the robust list and zeroes the
``clear_child_tid`` word when a thread exits or executes another program.  Its
wake-ups find nobody, since our waiters do not sleep in the kernel; they are
repeated here.  A thread that leaves by itself has its list read while the
memory exists (``before_exit``), and the wake-ups follow when the kernel is
through (``after_exit``, ``after_exec``).  A killed one leaves no time to look:
then the marks are looked for in the words that somebody waits for.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision
from detbox.handlers import futex_pi
from detbox.handlers.futex_core import Args, wake_key
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.machine.futex_keys import key_of
from detbox.machine.futexes import Bequest

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_HEAD_SIZE = 24
#: What a thread leaves behind while nobody waits.
_NOTHING = Bequest()
# The kernel stops walking after so many entries (ROBUST_LIST_LIMIT): lists may be circular.
_LIST_LIMIT = 2048


def set_robust_list(m: Machine, t: Task, a: Args) -> Decision:
    """The kernel keeps it.  A thread's first call: if it computes without another one, it is counted from here on."""
    return CONTINUE


def get_robust_list(m: Machine, t: Task, a: Args) -> Decision:
    """The kernel knows the answer."""
    return CONTINUE


def set_tid_address(m: Machine, t: Task, a: Args) -> Decision:
    """Remember the word that the kernel zeroes at exit."""
    set_clear_tid(m, t.tid, a[0])
    return CONTINUE


def set_clear_tid(m: Machine, tid: int, address: int) -> None:
    """Note a ``clear_child_tid`` address: also to be called after CLONE_CHILD_CLEARTID."""
    m.futexes.clear_tid[tid] = address


def before_exit(m: Machine, t: Task) -> None:
    """Collect what the thread leaves behind, when it calls exit, exit_group or execve."""
    bequest = _NOTHING
    if m.futexes:
        bequest = Bequest()
        _collect_robust(m, t, bequest)
    m.futexes.bequests[t.tid] = bequest


def after_exit(m: Machine, t: Task) -> None:
    """Wake those who waited for the thread; it has exited completely."""
    _release(m, t, t.tid)


def after_exec(m: Machine, t: Task, former_tid: int | None = None) -> None:
    """The same after a successful execve, which lets go of the old memory.

    To be called while ``t.process.mm`` still names that memory.  ``former_tid``: the
    caller's id before the call; a thread that is not the leader takes the leader's id over.
    """
    _release(m, t, t.tid if former_tid is None else former_tid)


def _release(m: Machine, t: Task, tid: int) -> None:
    table = m.futexes
    bequest, address = table.bequests.get(tid), table.clear_tid.get(tid)
    table.forget_task(tid)
    if not table:
        return
    for key in bequest.wake if bequest is not None else ():
        wake_key(m, key, 1)
    if bequest is None:
        _wake_orphans(m)
    if address:
        _wake_cleared(m, t, address)
    futex_pi.owner_died(m, tid)


def _wake_cleared(m: Machine, t: Task, address: int) -> None:
    """The kernel clears the word only while somebody else uses the memory."""
    for other in m.tasks.values():
        if other is not t and other.process.mm == t.process.mm:
            try:
                wake_key(m, key_of(m, other, address, private=False), 1)
            except OSError:
                # The kernel ignores a bad address here, too.
                pass
            return


def _wake_orphans(m: Machine) -> None:
    """Wake one waiter of each word that the kernel has marked as abandoned."""
    for waiter in m.futexes.first_waiters():
        try:
            word = waiter.sleeper.task.u32(waiter.address)
        except OSError:
            continue
        if word & futex_pi.OWNER_DIED and not word & futex_pi.TID_MASK and not waiter.pi:
            wake_key(m, waiter.key, 1)


def _collect_robust(m: Machine, t: Task, bequest: Bequest) -> None:
    head = _robust_head(t.tid)
    if not head:
        return
    try:
        first, offset, pending = struct.unpack("<QqQ", t.read(head, _HEAD_SIZE))
        entry = first
        for _ in range(_LIST_LIMIT):
            if entry & ~1 == head:
                break
            following = t.u64(entry & ~1)
            if entry & ~1 != pending & ~1:
                _collect_word(m, t, bequest, entry, offset, pending=False)
            entry = following
        if pending & ~1:
            _collect_word(m, t, bequest, pending, offset, pending=True)
    except OSError:
        # A broken list ends the kernel's walk as well.
        return


def _robust_head(tid: int) -> int:
    """Where the thread's list begins, 0 if it has none.

    Every thread registers one at its start, and hardly any exits while others wait for futexes: so the kernel is asked.
    """
    head, size = bytearray(8), bytearray(8)
    failed = _native.raw_syscall(NUMBERS["get_robust_list"], tid, head, size)
    return 0 if failed else int.from_bytes(head, "little")


def _collect_word(
    m: Machine, t: Task, bequest: Bequest, entry: int, offset: int, *, pending: bool
) -> None:
    """Note the word if the kernel would wake a waiter of it (handle_futex_death)."""
    address = (entry & ~1) + offset
    if entry & 1:
        return
    word = t.u32(address)
    # Unlocked by the dying thread, which had no time to call FUTEX_WAKE.
    abandoned = pending and word & futex_pi.TID_MASK == 0
    mine = word & futex_pi.TID_MASK == t.tid and word & futex_pi.WAITERS
    if abandoned or mine:
        bequest.wake.append(key_of(m, t, address, private=False))
