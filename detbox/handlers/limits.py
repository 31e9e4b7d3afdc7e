"""Resource limits and the size of the machine."""

from __future__ import annotations

import resource
import signal
import struct
from errno import EFBIG, EINVAL, EPERM, ESRCH
from typing import TYPE_CHECKING, NoReturn

from detbox.decision import Decision
from detbox.kernel.timespec import NS
from detbox.machine import constants
from detbox.machine.limits import BASE, COUNT, ENFORCED, INFINITY, NR_OPEN
from detbox.machine.userspaces import CAP_SYS_ADMIN, CAP_SYS_RESOURCE, TOP

if TYPE_CHECKING:
    from detbox.machine.clock import Timer
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

_LIMITS = "limits"
_CPU_TIMER = "cpu limit"
_RLIMIT = struct.Struct("<QQ")
SI_KERNEL, SI_USER = 0x80, 0
_INIT = 1
_LARGEST = (1 << 63) - 1
#: A larger stack moves everything that is mapped (mmap_base: the gap is 128 MiB at least, with 1 MiB of guard).
_LAYOUT = 127 << 20


def limits_of(process: Process) -> tuple[tuple[int, int], ...]:
    """The (soft, hard) limits of a process as the guest sees them."""
    limits: tuple[tuple[int, int], ...] = process.data.get(_LIMITS, BASE)
    return limits


def may_refuse_mappings(process: Process) -> bool:
    """Whether a filter or a limit of its own could refuse what is mapped for a process at exec."""
    return bool(process.creds.filters) or limits_of(process)[resource.RLIMIT_AS][0] != INFINITY


def after_fork(m: Machine, parent: Process, child: Process) -> None:
    """A child has its parent's limits; its CPU time starts at zero."""
    if _LIMITS in parent.data:
        child.data[_LIMITS] = parent.data[_LIMITS]
        _watch_cpu(m, child)


def getrlimit(m: Machine, t: Task, a: Args) -> Decision:
    """``getrlimit(resource, limit)``."""
    t.write(a[1], _RLIMIT.pack(*limits_of(t.process)[_which(a[0])]))
    return 0


def setrlimit(m: Machine, t: Task, a: Args) -> Decision:
    """``setrlimit(resource, limit)``."""
    soft, hard = _RLIMIT.unpack(t.read(a[1], _RLIMIT.size))
    _set(m, t, t.process, _which(a[0]), soft, hard)
    return 0


def prlimit64(m: Machine, t: Task, a: Args) -> Decision:
    """``prlimit64(pid, resource, new, old)``."""
    which = _which(a[1])
    new = _RLIMIT.unpack(t.read(a[2], _RLIMIT.size)) if a[2] else None
    if a[0] & 0xFFFFFFFF == _INIT:
        mine = t.process.creds
        if new is not None or {mine.ruid, mine.rgid} != {0} and not mine.capable(CAP_SYS_RESOURCE, TOP):
            return -EPERM
        old = BASE[which]
    else:
        process = _target(m, t, a[0] & 0xFFFFFFFF)
        old = limits_of(process)[which]
        if new is not None:
            _set(m, t, process, which, *new)
    if a[3]:
        t.write(a[3], _RLIMIT.pack(*old))
    return 0


def _which(register: int) -> int:
    which = register & 0xFFFFFFFF
    if which >= COUNT:
        raise OSError(EINVAL, "no such limit")
    return which


def _target(m: Machine, t: Task, pid: int) -> Process:
    """The process whose limits are meant: another one must have the same owner."""
    if pid == 0:
        return t.process
    task = m.tasks.get(pid)
    if task is None:
        raise OSError(ESRCH, "no such process")
    mine, its = t.process.creds, task.process.creds
    same = ({its.ruid, its.euid, its.suid}, {its.rgid, its.egid, its.sgid}) == ({mine.ruid}, {mine.rgid})
    if task.process is not t.process and not same and not mine.capable(CAP_SYS_RESOURCE, its.space):
        raise OSError(EPERM, "limits of another user's process")
    return task.process


def _set(m: Machine, t: Task, process: Process, which: int, soft: int, hard: int) -> None:
    if soft > hard:
        raise OSError(EINVAL, "soft limit above the hard one")
    limits = limits_of(process)
    if hard > limits[which][1] and not t.process.creds.capable(CAP_SYS_RESOURCE, TOP):
        raise OSError(EPERM, "raises a hard limit")
    if which == resource.RLIMIT_NOFILE and hard > NR_OPEN:
        raise OSError(EPERM, "above fs.nr_open")
    process.data[_LIMITS] = limits[:which] + ((soft, hard),) + limits[which + 1:]
    if which in ENFORCED:
        if not _enforce(process, which, soft) and which == resource.RLIMIT_STACK and soft > _LAYOUT:
            m.doubt(t, "a stack of more than 127 MiB was asked for, which the host's hard limit does not allow: "
                       "addresses differ from other hosts")  # fmt: skip
    elif which == resource.RLIMIT_CPU:
        _watch_cpu(m, process)


def _enforce(process: Process, which: int, soft: int) -> bool:
    """Let the kernel apply the soft limit; the real hard limit stays, so that it can be raised again.

    False: the host does not allow as much.
    """
    real_hard = resource.prlimit(process.pid, which)[1]
    wanted = resource.RLIM_INFINITY if soft > _LARGEST else soft  # nothing reaches what Python cannot express
    fits = real_hard == resource.RLIM_INFINITY or (wanted != resource.RLIM_INFINITY and wanted <= real_hard)
    resource.prlimit(process.pid, which, (wanted if fits else real_hard, real_hard))
    # Where the host allows less than was asked for, only a program that really opens so many files could tell.
    return fits


def descriptors_ran_out(m: Machine, t: Task) -> None:
    """The kernel had no descriptor left for a process: a doubt if the guest's own limit would have allowed more."""
    real, shown = resource.prlimit(t.tid, resource.RLIMIT_NOFILE)[0], limits_of(t.process)[resource.RLIMIT_NOFILE][0]
    if real < shown:
        m.doubt(t, f"{real} files are open, which is the host's hard limit (RLIMIT_NOFILE): {shown} were promised")


def may_make(m: Machine, t: Task) -> bool:
    """Whether a thread may make another one, or a process (``copy_process()`` in kernel/fork.c)."""
    most, creds = limits_of(t.process)[resource.RLIMIT_NPROC][0], t.process.creds
    if most >= BASE[resource.RLIMIT_NPROC][0] or not creds.ruid:
        return True
    if creds.capable(CAP_SYS_RESOURCE, TOP) or creds.capable(CAP_SYS_ADMIN, TOP):
        return True
    mine = [process for process in m.processes.values() if process.creds.ruid == creds.ruid]
    return sum(max(len(process.tasks), 1) for process in mine) < most


def room_in_file(m: Machine, t: Task, position: int, count: int) -> int:
    """How many of ``count`` bytes at ``position`` the limit of a file's size lets a thread write; OSError if none.

    For what the supervisor writes for the guest, see generic_write_check_limits() (fs/read_write.c).
    """
    limit = limits_of(t.process)[resource.RLIMIT_FSIZE][0]
    if position >= limit and count:
        _too_large(m, t)
    return min(count, limit - position)


def check_size(m: Machine, t: Task, before: int, after: int) -> None:
    """OSError if a file must not become as large as ``after``, see inode_newsize_ok() (fs/attr.c)."""
    if before < after and after > limits_of(t.process)[resource.RLIMIT_FSIZE][0]:
        _too_large(m, t)


def _too_large(m: Machine, t: Task) -> NoReturn:
    m.signal(t, signal.SIGXFSZ, code=SI_USER)
    raise OSError(EFBIG, "larger than the limit of a file's size")


def _watch_cpu(m: Machine, process: Process) -> None:
    """SIGXCPU at the soft limit of CPU time and every second after it, SIGKILL at the hard one."""
    soft, hard = limits_of(process)[resource.RLIMIT_CPU]
    queue = process.cpu.timer_queue()
    former: Timer | None = process.data.pop(_CPU_TIMER, None)
    queue.cancel(former)
    due = max(soft * NS, process.cpu.ns)
    if soft == INFINITY and hard == INFINITY:
        return

    def expired() -> None:
        nonlocal due
        if process.cpu.ns >= hard * NS:
            m.signal(process, signal.SIGKILL, code=SI_KERNEL)
            return
        m.signal(process, signal.SIGXCPU, code=SI_KERNEL)
        due += NS
        process.data[_CPU_TIMER] = queue.add(min(due, hard * NS), expired)

    process.data[_CPU_TIMER] = queue.add(min(due, hard * NS), expired)


def next_signal(process: Process) -> tuple[int, int, Process] | None:
    """(ns of CPU time left, signal, receiver) if the process has a limit of CPU time."""
    timer: Timer | None = process.data.get(_CPU_TIMER)
    if timer is None or timer.callback is None:
        return None
    hard = limits_of(process)[resource.RLIMIT_CPU][1]
    signo = signal.SIGKILL if timer.deadline >= hard * NS else signal.SIGXCPU
    return max(timer.deadline - process.cpu.ns, 1), int(signo), process


#: struct sysinfo: uptime, loads, RAM (total, free, shared, buffers), swap (total, free), processes, high
#: memory (total, free), unit.
_SYSINFO = struct.Struct("<q3Q6QH6xQQI4x")
#: meminfo's Buffers on the machine of the default size.
_BUFFERS = 64 << 20


def sysinfo(m: Machine, t: Task, a: Args) -> Decision:
    """``sysinfo(struct sysinfo *)``: an idle machine of the configured size."""
    now = m.clock.look(t.cpu)
    total = m.spec.memory_bytes or constants.MEMORY_TOTAL
    free = min(constants.MEMORY_FREE, total)
    buffers = min(_BUFFERS, (total - free) // 32)
    t.write(a[0], _SYSINFO.pack(
        -(-now // NS), 0, 0, 0, total, free, 0, buffers, 0, 0, min(len(m.tasks) + 1, 65535), 0, 0, 1))
    return 0
