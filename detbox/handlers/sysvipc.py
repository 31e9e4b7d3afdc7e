"""System V IPC: the kernel's own objects, but nobody ever sleeps in them.

The supervisor lives in the guest's IPC namespace and can look before a call
is let through: what would block is parked and tried again after every call
that may have changed the object.  Undo values, operation order and process
numbers stay the kernel's business.  Identifiers are deterministic because the
namespace is fresh.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from errno import EAGAIN, EIDRM, EINTR, EINVAL, ENOMEM, ENOMSG, EPERM
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTNOHAND, ContinueThen, Decision, Park, Wake
from detbox.handlers import hugepages, mapping
from detbox.handlers.futex_core import Args, read_timespec, signed
from detbox.kernel import _native
from detbox.kernel.mappings import mapping_at
from detbox.machine import ipc_objects as ipc
from detbox.machine.creds import CAP_IPC_LOCK
from detbox.machine.futex_keys import shared_key
from detbox.machine.ipc_objects import IpcTable, Layout
from detbox.machine.userspaces import CAP_SYS_ADMIN, TOP

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

_SHMGET, _SEMCTL, _MSGRCV, _MSGCTL, _SHMCTL = 29, 66, 70, 71, 31
_IPC_RMID, _IPC_SET, _IPC_STAT = 0, 1, 2
_GETALL, _GETNCNT, _GETZCNT, _SETVAL, _SETALL = 13, 14, 15, 16, 17
_SHM_INFO = 14
_IPC_CREAT = 0o1000
#: kernel.shmmax, as include/uapi/linux/shm.h has it.
_SHMMAX = (1 << 64) - 1 - (1 << 24)
_STATS = {"sem": (_IPC_STAT, 18, 20), "msg": (_IPC_STAT, 11, 13), "shm": (_IPC_STAT, 13, 15)}
_NOWAIT = 0o4000
_SEM_UNDO = 0x1000
_SEMVMX = 32767
_SEMOPM = 500
_MSGMAX = 8192
_MSGMNB = 16384
_MSG_COPY, _MSG_EXCEPT = 0o40000, 0o20000
_NO_TIMEOUT = 0

Resume = Callable[[Wake], Decision]


# ---------------------------------------------------------------- creation and control


def semget(m: Machine, t: Task, a: Args) -> Decision:
    """Native; the result's virtual owner and time are noted."""
    return _creating(m, ipc.SEM)


def msgget(m: Machine, t: Task, a: Args) -> Decision:
    """Native; the result's virtual owner and time are noted."""
    return _creating(m, ipc.MSG)


def shmget(m: Machine, t: Task, a: Args) -> Decision:
    """Native; the result's virtual owner and time are noted."""
    key, flags = signed(a[0]), signed(a[2])
    if flags & hugepages.SHM and (not key or (flags & _IPC_CREAT and _native.raw_syscall(_SHMGET, key, 0, 0) < 0)):
        return -_no_huge_pages(t, a[1], flags)
    return _creating(m, ipc.SHM)


def _no_huge_pages(t: Task, size: int, flags: int) -> int:
    """The errno for a new segment of huge pages; the kernel asks who wants it before it looks for some."""
    error = hugepages.refusal(flags) if 1 <= size <= _SHMMAX else EINVAL
    creds = t.process.creds
    allowed = creds.capable(CAP_IPC_LOCK, TOP) or 0 in (creds.fsgid, *creds.groups)  # vm.hugetlb_shm_group
    return error if allowed or error != ENOMEM else EPERM


def semctl(m: Machine, t: Task, a: Args) -> Decision:
    """``semctl(id, number, command, argument)``."""
    command = a[2] & 0xFFFFFEFF
    if command in (_GETNCNT, _GETZCNT):
        return _count_waiting(m, a, command == _GETZCNT)
    if command in (_SETVAL, _SETALL):
        _table(m).stamp(ipc.SEM, signed(a[0]), ipc.SEM.change, _now(m))
        m.wake(("sem", signed(a[0])))
        return CONTINUE
    return _control(m, t, ipc.SEM, (_SEMCTL, 0), (signed(a[0]), command, a[3]))


def msgctl(m: Machine, t: Task, a: Args) -> Decision:
    """``msgctl(id, command, buffer)``."""
    return _control(m, t, ipc.MSG, (_MSGCTL,), (signed(a[0]), a[1] & 0xFFFFFEFF, a[2]))


def shmctl(m: Machine, t: Task, a: Args) -> Decision:
    """``shmctl(id, command, buffer)``."""
    if a[1] & 0xFFFFFEFF == _SHM_INFO:

        def look(task: Task, result: int) -> int | None:
            # struct shm_info: how much is resident or swapped depends on the host's memory.
            if result >= 0:
                task.write(a[2] + 16, bytes(32))
            return None

        return ContinueThen(look)
    return _control(m, t, ipc.SHM, (_SHMCTL,), (signed(a[0]), a[1] & 0xFFFFFEFF, a[2]))


def shmat(m: Machine, t: Task, a: Args) -> Decision:
    """Native; a large segment that may lie anywhere is settled like a mapping of a file."""
    _table(m).stamp(ipc.SHM, signed(a[0]), ipc.SHM_ATIME, _now(m))
    if a[1]:
        return CONTINUE

    def look(task: Task, result: int) -> int | None:
        found = None if -4096 < result < 0 else mapping_at(m.proc_fd, task.tid, result)
        if found is None or found.end - result < mapping.LARGE:
            return None
        return mapping.settle(m, task, result, found.end - result)

    return ContinueThen(look)


def shmdt(m: Machine, t: Task, a: Args) -> Decision:
    """Native; the segment is found by its mapping, whose inode number is the segment's id."""
    try:
        key = shared_key(m.proc_fd, t.tid, t.process.mm, a[0])
    except OSError:
        return CONTINUE
    if isinstance(key, tuple) and key[0] == "shared":
        _table(m).stamp(ipc.SHM, key[2], ipc.SHM_DTIME, _now(m))
    return CONTINUE


def _creating(m: Machine, layout: Layout) -> Decision:
    def look(task: Task, result: int) -> int | None:
        if result >= 0:
            creds = task.process.creds
            _table(m).create(layout, result, (creds.euid, creds.egid), _now(m))
        return None

    return ContinueThen(look)


def _control(
    m: Machine, t: Task, layout: Layout, call: tuple[int, ...], what: tuple[int, int, int]
) -> Decision:
    """IPC_RMID, IPC_SET and the commands that fill a structure in; ``what``: id, command, buffer."""
    number, command, buffer = what
    if command == _IPC_RMID:

        def removed(task: Task, result: int) -> int | None:
            if result == 0:
                _table(m).forget(layout, number)
                m.wake((layout.kind, number))
            return None

        return ContinueThen(removed)
    if command == _IPC_SET:
        return _set(m, t, layout, call, what)
    if command not in _STATS[layout.kind]:
        return CONTINUE

    def look(task: Task, result: int) -> int | None:
        if result >= 0:
            # The *_STAT commands take an index and return the id.
            found = number if command == _IPC_STAT else result
            data = task.read(buffer, layout.size)
            task.write(buffer, _table(m).virtualise(layout, found, data, task.process.creds.space))
        return None

    return ContinueThen(look)


def _set(
    m: Machine, t: Task, layout: Layout, call: tuple[int, ...], what: tuple[int, int, int]
) -> Decision:
    """IPC_SET, done for the guest: its virtual users do not exist for the kernel."""
    number, _, buffer = what
    data = bytearray(t.read(buffer, layout.size))
    known = _table(m).objects.get((layout.kind, number))
    creds = t.process.creds
    if known is not None and creds.euid not in known.owners[::2] and not creds.capable(CAP_SYS_ADMIN):
        return -EPERM
    # Raising the limit takes a privilege of the host's that not every run has.
    if layout is ipc.MSG and struct.unpack_from("<Q", data, 88)[0] > _MSGMNB:
        return -EPERM
    uid, gid = struct.unpack_from("<2I", data, 4)
    uid, gid = creds.space.user(uid), creds.space.gid(gid)
    struct.pack_into("<2I", data, 4, 0, 0)
    result = _native.raw_syscall(call[0], number, *call[1:], _IPC_SET, data)
    if result == 0:
        _table(m).give(layout, number, uid, gid)
        _table(m).stamp(layout, number, layout.change, _now(m))
        m.wake((layout.kind, number))
    return result


# ---------------------------------------------------------------- semaphores


def semop(m: Machine, t: Task, a: Args) -> Decision:
    """``semop(id, operations, count)``."""
    return semtimedop(m, t, (a[0], a[1], a[2], _NO_TIMEOUT, 0, 0))


def semtimedop(m: Machine, t: Task, a: Args) -> Decision:
    """``semtimedop(id, operations, count, relative timeout)``; never restarted after a signal."""
    number, count = signed(a[0]), a[2] & 0xFFFFFFFF
    if not 0 < count <= _SEMOPM:
        return CONTINUE
    operations = list(struct.iter_unpack("<HhH", t.read(a[1], 6 * count)))
    deadline = m.clock.look() + read_timespec(t, a[3]) if a[3] else None
    return _operate(m, t, number, operations, deadline, missing=CONTINUE)


def after_exit(m: Machine, process: Process) -> None:
    """The process has exited: the kernel has undone its SEM_UNDO operations."""
    for number in _table(m).undo.pop(process.pid, ()):
        m.wake(("sem", number))


def _operate(
    m: Machine, t: Task, number: int, operations: list[tuple[int, ...]], deadline: int | None, *,
    missing: Decision = -EIDRM,
) -> Decision:  # fmt: skip
    """Let the array through, park it, or answer ``missing`` for a set that does not exist."""
    table = _table(m)
    table.waiting.pop(t.tid, None)
    values = _semaphores(number)
    if values is None:
        return missing
    blocked = _first_blocked(values, operations)
    if blocked is None:
        table.stamp(ipc.SEM, number, ipc.SEM_OTIME, _now(m))
        if any(flags & _SEM_UNDO for _, _, flags in operations):
            table.undo.setdefault(t.process.pid, {})[number] = None
        if any(change for _, change, _ in operations):
            m.wake(("sem", number))
        return CONTINUE
    if blocked[2] & _NOWAIT:
        return CONTINUE
    table.waiting[t.tid] = (number, blocked[0], blocked[1] == 0)

    def resume(wake: Wake) -> Decision:
        if wake.kind == "deadline":
            table.waiting.pop(t.tid, None)
            return -EAGAIN
        return _operate(m, t, number, operations, deadline)

    def interrupted() -> int:
        table.waiting.pop(t.tid, None)
        return -EINTR

    return Park(
        resume,
        events=(("sem", number),),
        deadline=deadline,
        interrupted=interrupted,
        why=f"semaphore {blocked[0]} of set {number}",
    )


def _semaphores(number: int) -> list[int] | None:
    """The values of a set, or None if it does not exist."""
    about = bytearray(ipc.SEM.size)
    if _native.raw_syscall(_SEMCTL, number, 0, _IPC_STAT, about) < 0:
        return None
    count = struct.unpack_from("<Q", about, 80)[0]
    values = bytearray(2 * count)
    if _native.raw_syscall(_SEMCTL, number, 0, _GETALL, values) < 0:
        return None
    return list(struct.unpack(f"<{count}H", values))


def _first_blocked(values: list[int], operations: list[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The operation that would make the array wait; None if it succeeds or fails at once."""
    for operation in operations:
        index, change, _ = operation
        if index >= len(values):
            return None
        if change == 0 and values[index] or values[index] + change < 0:
            return operation
        values[index] += change
        if values[index] > _SEMVMX:
            return None
    return None


def _count_waiting(m: Machine, a: Args, zero: bool) -> Decision:
    """GETNCNT and GETZCNT: the kernel knows of no waiters."""
    values = _semaphores(signed(a[0]))
    if values is None or a[1] & 0xFFFFFFFF >= len(values):
        return CONTINUE
    wanted = (signed(a[0]), a[1] & 0xFFFFFFFF, zero)
    return sum(1 for parked in _table(m).waiting.values() if parked == wanted)


# ---------------------------------------------------------------- message queues


def msgsnd(m: Machine, t: Task, a: Args) -> Decision:
    """``msgsnd(id, message, size, flags)``."""
    if a[3] & _NOWAIT or a[2] > _MSGMAX:
        return _message_moved(m, a, ipc.MSG_STIME)

    def attempt(wake: Wake | None) -> Decision:
        about = bytearray(ipc.MSG.size)
        if _native.raw_syscall(_MSGCTL, signed(a[0]), _IPC_STAT, about) < 0:
            return -EIDRM if wake else CONTINUE
        used, messages, limit = struct.unpack_from("<3Q", about, 72)
        # msg_fits_inqueue (ipc/msg.c): empty messages are limited by their number.
        if a[2] + used <= limit and messages + 1 <= limit:
            return _message_moved(m, a, ipc.MSG_STIME)
        return _park_message(a, attempt)

    # The kernel looks at the message before it waits for room.
    if struct.unpack("<q", t.read(a[1], 8))[0] < 1:
        return CONTINUE
    return attempt(None)


def msgrcv(m: Machine, t: Task, a: Args) -> Decision:
    """``msgrcv(id, message, size, type, flags)``."""
    if a[4] & (_NOWAIT | _MSG_COPY) or a[2] >> 63:
        return _message_moved(m, a, ipc.MSG_RTIME)

    def attempt(wake: Wake | None) -> Decision:
        # Asked for no bytes and not allowed to cut, the kernel finds the message and leaves it
        # in the queue (E2BIG); only an empty one is taken.
        probe = bytearray(8)
        flags = _NOWAIT | a[4] & _MSG_EXCEPT
        result = _native.raw_syscall(_MSGRCV, signed(a[0]), probe, 0, a[3], flags)
        if result == -ENOMSG:
            return _park_message(a, attempt)
        if result == 0:
            t.write(a[1], probe)
            _message_moved(m, a, ipc.MSG_RTIME)
            return 0
        if result in (-EIDRM, -EINVAL) and wake:
            return -EIDRM
        return _message_moved(m, a, ipc.MSG_RTIME)

    return attempt(None)


def _message_moved(m: Machine, a: Args, time: int) -> Decision:
    _table(m).stamp(ipc.MSG, signed(a[0]), time, _now(m))
    m.wake(("msg", signed(a[0])))
    return CONTINUE


def _park_message(a: Args, attempt: Resume) -> Decision:
    number = signed(a[0])
    return Park(
        attempt, events=(("msg", number),), interrupted=ERESTARTNOHAND, why=f"message queue {number}"
    )


def _table(m: Machine) -> IpcTable:
    table: IpcTable | None = m.data.get("sysvipc")
    if table is None:
        table = m.data["sysvipc"] = IpcTable()
    return table


def _now(m: Machine) -> int:
    return int(m.clock.realtime() // 1_000_000_000)
