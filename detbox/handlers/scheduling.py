"""Scheduling parameters and CPUs: kept and shown, without effect on the schedule."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterable
from errno import E2BIG, EACCES, EINVAL, EPERM, ESRCH
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from detbox.decision import Decision, Park, Wake
from detbox.handlers.limits import limits_of
from detbox.kernel.timespec import pack_timespec
from detbox.machine.creds import CAP_SYS_NICE, Creds
from detbox.machine.limits import RLIMIT_NICE, RLIMIT_RTPRIO
from detbox.machine.userspaces import CAP_SYS_ADMIN, TOP

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_U32 = 0xFFFFFFFF
SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE, SCHED_DEADLINE = 0, 1, 2, 3, 5, 6
_REALTIME = (SCHED_FIFO, SCHED_RR)
_POLICIES = (SCHED_OTHER, SCHED_FIFO, SCHED_RR, SCHED_BATCH, SCHED_IDLE)
_RESET_ON_FORK = 0x40000000
#: A fair thread's slice; SCHED_RR's is 100 ms (kernel/sched/rt.c).
_FAIR_SLICE_NS, _RR_SLICE_NS = 4_000_000, 100_000_000
#: What is kept in ``Task.data``; new threads and processes take it over.
NICE, AFFINITY, POLICY, IOPRIO = "nice", "affinity", "policy", "ioprio"


def _signed(register: int) -> int:
    value = register & _U32
    return value - (1 << 32) if value >> 31 else value


def _thread(m: Machine, t: Task, pid: int, negative: int = EINVAL) -> Task:
    """The thread that a ``pid`` argument means (0: the caller); OSError(ESRCH), ``negative`` for such a number."""
    if pid < 0:
        raise OSError(negative, "negative thread number")
    if pid == 1:
        return _first()
    found = t if pid == 0 else m.tasks.get(pid)
    if found is None:
        raise OSError(ESRCH, "no such thread")
    return found


def _first() -> Any:
    """What stands for the supervisor, as the guest sees it: root's, with nothing set, and nothing stays set."""
    return SimpleNamespace(data={}, process=SimpleNamespace(creds=Creds.of(0, 0), data={}))


def _may_change(t: Task, other: Task, errno: int = EPERM) -> None:
    mine, its = t.process.creds, other.process.creds
    if mine.euid not in (its.ruid, its.euid) and not mine.capable(CAP_SYS_NICE, its.space):
        raise OSError(errno, "another user's thread")


def sched_yield(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_yield()``: go to the end of the run queue."""
    m.clock.look(t.cpu)
    return Park(_done, extra={"first": None}, why="yield")


def _done(wake: Wake) -> Decision:
    return 0


# ------------------------------------------------------------------------------------------------- CPUs

def getcpu(m: Machine, t: Task, a: Args) -> Decision:
    """``getcpu(cpu *, node *, unused)``: the first CPU of the thread's mask, node 0."""
    mask = _affinity(m, t)
    for address, number in zip(a, ((mask & -mask).bit_length() - 1, 0), strict=False):
        if address:
            t.write(address, struct.pack("<I", number))
    return 0


def _affinity(m: Machine, t: Task) -> int:
    return int(t.data.get(AFFINITY, (1 << m.spec.cpus) - 1))


def sched_getaffinity(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_getaffinity(pid, length, mask)``: the number of bytes written."""
    length = a[1] & _U32
    if length * 8 < m.spec.cpus or length % 8:
        return -EINVAL
    mask = _affinity(m, _thread(m, t, _signed(a[0]), ESRCH))
    size = min(length, -(-m.spec.cpus // 64) * 8)
    t.write(a[2], mask.to_bytes(size, "little"))
    return size


def sched_setaffinity(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_setaffinity(pid, length, mask)``; CPUs that do not exist are left out."""
    wanted = int.from_bytes(t.read(a[2], min(a[1] & _U32, 1024)), "little")
    other = _thread(m, t, _signed(a[0]), ESRCH)
    _may_change(t, other)
    mask = wanted & (1 << m.spec.cpus) - 1
    if not mask:
        return -EINVAL
    other.data[AFFINITY] = mask
    return 0


# --------------------------------------------------------------------------------------------- policies

def _policy(t: Task) -> tuple[int, int, int]:
    """(policy, real-time priority, SCHED_RESET_ON_FORK or 0)."""
    policy: tuple[int, int, int] = t.data.get(POLICY, (SCHED_OTHER, 0, 0))
    return policy


def _set_policy(t: Task, other: Task, policy: int, priority: int, reset: int) -> None:
    if policy not in _POLICIES or not (1 <= priority <= 99 if policy in _REALTIME else priority == 0):
        raise OSError(EINVAL, "no such scheduling policy or priority")
    _may_change(t, other)
    former, former_priority, _ = _policy(other)
    most = limits_of(other.process)[RLIMIT_RTPRIO][0]
    refused = policy != former and not most or priority > max(former_priority, most)
    if policy in _REALTIME and refused and not t.process.creds.capable(CAP_SYS_NICE, TOP):
        raise OSError(EPERM, "above RLIMIT_RTPRIO")
    other.data[POLICY] = (policy, priority, reset)


def sched_setscheduler(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_setscheduler(pid, policy, param)``."""
    policy = a[1] & _U32
    if policy >> 31 or not a[2]:
        return -EINVAL
    priority = _signed(t.u32(a[2]))
    _set_policy(t, _thread(m, t, _signed(a[0])), policy & ~_RESET_ON_FORK, priority, policy & _RESET_ON_FORK)
    return 0


def sched_getscheduler(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_getscheduler(pid)``."""
    policy, _, reset = _policy(_thread(m, t, _signed(a[0])))
    return policy | reset


def sched_setparam(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_setparam(pid, param)``."""
    if not a[1]:
        return -EINVAL
    priority = _signed(t.u32(a[1]))
    other = _thread(m, t, _signed(a[0]))
    policy, _, reset = _policy(other)
    _set_policy(t, other, policy, priority, reset)
    return 0


def sched_getparam(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_getparam(pid, param)``."""
    if not a[1]:
        return -EINVAL
    t.write(a[1], struct.pack("<i", _policy(_thread(m, t, _signed(a[0])))[1]))
    return 0


#: struct sched_attr, first version: size, policy, flags, nice, priority, runtime, deadline, period
_SCHED_ATTR = struct.Struct("<IIQiIQQQ")
_SCHED_ATTR_MAX = 56  # with util_min and util_max
_KEEP_POLICY, _KEEP_PARAMS = 0x08, 0x10


def sched_setattr(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_setattr(pid, attr, flags)``."""
    if not a[1] or a[2] & _U32:
        return -EINVAL
    size = t.u32(a[1]) or _SCHED_ATTR.size
    if not _SCHED_ATTR.size <= size <= 4096 or any(t.read(a[1], size)[_SCHED_ATTR_MAX:]):
        t.write(a[1], struct.pack("<I", _SCHED_ATTR_MAX))
        return -E2BIG
    _, policy, flags, nice, priority, *_ = _SCHED_ATTR.unpack(t.read(a[1], _SCHED_ATTR.size))
    other = _thread(m, t, _signed(a[0]))
    former = _policy(other)
    if flags & _KEEP_POLICY:
        policy = former[0]
    if flags & _KEEP_PARAMS:
        priority, nice = former[1], int(other.data.get(NICE, 0))
    if policy == SCHED_DEADLINE:
        return -EPERM
    _set_policy(t, other, policy, priority, _RESET_ON_FORK if flags & 1 else 0)
    if policy in (SCHED_OTHER, SCHED_BATCH):
        _set_nice(t, other, nice)
    return 0


def sched_getattr(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_getattr(pid, attr, size, flags)``."""
    size = a[2] & _U32
    if not a[1] or not _SCHED_ATTR.size <= size <= 4096 or a[3] & _U32:
        return -EINVAL
    other = _thread(m, t, _signed(a[0]))
    policy, priority, reset = _policy(other)
    nice = 0 if policy in _REALTIME else int(other.data.get(NICE, 0))
    shown = min(size, _SCHED_ATTR_MAX)
    attr = _SCHED_ATTR.pack(shown, policy, 1 if reset else 0, nice, priority, 0, 0, 0)
    if shown == _SCHED_ATTR_MAX:
        attr += struct.pack("<II", 0, 1024)  # util_min, util_max: no clamp
    t.write(a[1], attr[:shown])
    return 0


def sched_get_priority_max(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_get_priority_max(policy)``."""
    return _priority_bound(_signed(a[0]), 99)


def sched_get_priority_min(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_get_priority_min(policy)``."""
    return _priority_bound(_signed(a[0]), 1)


def _priority_bound(policy: int, realtime: int) -> int:
    if policy in _REALTIME:
        return realtime
    return 0 if policy in (*_POLICIES, SCHED_DEADLINE) else -EINVAL


def sched_rr_get_interval(m: Machine, t: Task, a: Args) -> Decision:
    """``sched_rr_get_interval(pid, timespec)``."""
    policy = _policy(_thread(m, t, _signed(a[0])))[0]
    slices = {SCHED_RR: _RR_SLICE_NS, SCHED_FIFO: 0}
    t.write(a[1], pack_timespec(slices.get(policy, _FAIR_SLICE_NS)))
    return 0


# ----------------------------------------------------------------------------------- nice and ioprio

_WHICH_THREAD, _WHICH_GROUP, _WHICH_USER = range(3)
_IOPRIO_NONE, _IOPRIO_RT, _IOPRIO_BE, _IOPRIO_IDLE = range(4)


def _chosen(m: Machine, t: Task, which: int, who: int, first: int) -> list[Task]:
    """The threads that setpriority's and ioprio_set's arguments mean; ``first``: the value for a thread."""
    kind = which - first
    if kind == _WHICH_THREAD:
        return [_thread(m, t, who, ESRCH)]
    if kind == _WHICH_GROUP:
        return [task for task in m.tasks.values() if _in_group(m, t, task, who)]
    if kind == _WHICH_USER:
        creds = t.process.creds
        try:
            uid = creds.space.user(who & _U32) if who else creds.ruid
        except OSError:
            return []
        return [task for task in m.tasks.values() if task.process.creds.ruid == uid]
    raise OSError(EINVAL, "neither thread, group nor user")


def _in_group(m: Machine, t: Task, task: Task, group: int) -> bool:
    try:
        return os.getpgid(task.process.pid) == (group or os.getpgid(t.process.pid))
    except ProcessLookupError:
        return False


def _set_nice(t: Task, other: Task, nice: int) -> None:
    nice = max(-20, min(nice, 19))
    lowest = 20 - limits_of(other.process)[RLIMIT_NICE][0]
    if nice < min(int(other.data.get(NICE, 0)), lowest) and not t.process.creds.capable(CAP_SYS_NICE, TOP):
        raise OSError(EACCES, "below RLIMIT_NICE")
    other.data[NICE] = nice


def _each(tasks: Iterable[Task], change: Callable[[Task], None]) -> int:
    """Change all; the last error counts, as in the kernel; ESRCH if there are none."""
    result = -ESRCH
    for task in tasks:
        try:
            change(task)
            if result == -ESRCH:
                result = 0
        except OSError as error:
            result = -(error.errno or EPERM)
    return result


def setpriority(m: Machine, t: Task, a: Args) -> Decision:
    """``setpriority(which, who, nice)``."""
    def change(task: Task) -> None:
        _may_change(t, task)
        _set_nice(t, task, _signed(a[2]))

    return _each(_chosen(m, t, _signed(a[0]), _signed(a[1]), 0), change)


def getpriority(m: Machine, t: Task, a: Args) -> Decision:
    """``getpriority(which, who)``: 20 - nice, so that it is never negative."""
    tasks = _chosen(m, t, _signed(a[0]), _signed(a[1]), 0)
    return max((20 - int(task.data.get(NICE, 0)) for task in tasks), default=-ESRCH)


def ioprio_set(m: Machine, t: Task, a: Args) -> Decision:
    """``ioprio_set(which, who, ioprio)``."""
    ioprio = a[2] & _U32
    kind, level = ioprio >> 13, ioprio & 7
    if kind > _IOPRIO_IDLE or (kind == _IOPRIO_NONE and level):
        return -EINVAL
    creds = t.process.creds
    if kind == _IOPRIO_RT and not (creds.capable(CAP_SYS_NICE, TOP) or creds.capable(CAP_SYS_ADMIN, TOP)):
        return -EPERM

    def change(task: Task) -> None:
        _may_change(t, task)
        task.data[IOPRIO] = ioprio

    return _each(_chosen(m, t, _signed(a[0]), _signed(a[1]), 1), change)


def ioprio_get(m: Machine, t: Task, a: Args) -> Decision:
    """``ioprio_get(which, who)``: what a thread has been given; of several threads the best that one has."""
    tasks = _chosen(m, t, _signed(a[0]), _signed(a[1]), 1)
    if _signed(a[0]) - 1 == _WHICH_THREAD:
        return int(tasks[0].data.get(IOPRIO, 0))
    return min(map(_effective_ioprio, tasks), default=-ESRCH)


def _effective_ioprio(task: Task) -> int:
    """Who has been given none has one by its niceness (``get_task_ioprio``)."""
    given = int(task.data.get(IOPRIO, 0))
    return given if given >> 13 else _IOPRIO_BE << 13 | (int(task.data.get(NICE, 0)) + 20) // 5
