"""Processes: creation, execution, exit and waiting.

The kernel does the work; the supervisor orders it.  What could sleep in the
kernel (wait4, waitid) is let through only when its answer is there.
"""

from __future__ import annotations

import errno
import os
import struct
from itertools import islice
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen, Decision, Park, Wake
from detbox.handlers import cores, futex_exit, limits, paths, tracing
from detbox.handlers.futex_core import Args, signed
from detbox.handlers.stat import of_fd
from detbox.kernel import siginfo
from detbox.machine import tracees, usage
from detbox.machine.limits import TASKS_AT_MOST

if TYPE_CHECKING:
    from collections.abc import Callable

    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

CLONE_VM, CLONE_VFORK, CLONE_PIDFD, CLONE_UNTRACED = 0x100, 0x4000, 0x1000, 0x800000
CLONE_THREAD = 0x10000
#: CLONE_NEWNS and the others that clone(2) knows: not CLONE_NEWTIME, whose bit is the exit signal's there.
CLONE_NAMESPACES = 0x7E020000
WNOHANG, WUNTRACED, WEXITED, WCONTINUED = 1, 2, 4, 8
WNOWAIT, WNOTHREAD, WALL, WCLONE = 0x1000000, 0x20000000, 0x40000000, 0x80000000
P_ALL, P_PID, P_PGID, P_PIDFD = range(4)
#: Key of Process.data: with what it tells its parent of its end, if not with SIGCHLD.
EXIT_SIGNAL = "exit_signal"
_INFO = 28  # of siginfo_t, what waitid(2) writes
CLONE_ARGS = struct.Struct("<5Q")  # flags, pidfd, child_tid, parent_tid, exit_signal


def clone(m: Machine, t: Task, a: Args) -> Decision:
    """Create a thread or process; the new one is caught before its first instruction."""
    if a[0] & CLONE_UNTRACED:
        return tracing.without_flag(t, CLONE_UNTRACED)
    return _create(m, t, a[0] & ~0xFF)


def clone3(m: Machine, t: Task, a: Args) -> Decision:
    """As clone, with its arguments in memory (struct clone_args)."""
    if a[1] < CLONE_ARGS.size:
        return -errno.EINVAL
    flags, *_ = CLONE_ARGS.unpack(t.read(a[0], CLONE_ARGS.size))
    return _create(m, t, flags)


def _create(m: Machine, t: Task, flags: int) -> Decision:
    if flags & CLONE_UNTRACED:
        return -errno.EPERM  # the child would run outside the supervisor's hands
    if flags & CLONE_THREAD and len(m.tasks) >= TASKS_AT_MOST or not limits.may_make(m, t):
        return -errno.EAGAIN
    if flags & CLONE_NAMESPACES:
        import detbox.handlers.namespaces as namespaces

        namespaces.demand(m, t, flags & CLONE_NAMESPACES)
    if flags & CLONE_PIDFD:
        t.process.files.forget_all()
    return CONTINUE


def fork(m: Machine, t: Task, a: Args) -> Decision:
    """clone(SIGCHLD)."""
    return _create(m, t, 0)


def vfork(m: Machine, t: Task, a: Args) -> Decision:
    """clone(CLONE_VM | CLONE_VFORK | SIGCHLD): the parent waits in the kernel until the child executes or exits."""
    return _create(m, t, CLONE_VM | CLONE_VFORK)


def execve(m: Machine, t: Task, a: Args) -> Decision:
    """Execute a program; the new image is prepared at its ptrace stop."""
    return _execute(m, t, paths.AT_FDCWD, a[0], 0)


def execveat(m: Machine, t: Task, a: Args) -> Decision:
    """As execve, relative to a descriptor."""
    return _execute(m, t, a[0], a[1], a[4])


def _execute(m: Machine, t: Task, dirfd: int, path: int, flags: int) -> Decision:
    if t.process.creds.checked:
        name = t.cstr(path)
        if name:
            follow = not flags & paths.AT_SYMLINK_NOFOLLOW
            paths.demand(m, t, dirfd, name, paths.EXECUTE, follow=follow)
        elif flags & paths.AT_EMPTY_PATH and not paths.may(t, *of_fd(m, t, dirfd), paths.EXECUTE):
            return -errno.EACCES
    for thread in t.process.tasks.values():
        futex_exit.before_exit(m, thread)
    return CONTINUE


def exit_(m: Machine, t: Task, a: Args) -> Decision:
    """End one thread."""
    m.leaving(t, whole_process=False)
    return CONTINUE


def exit_group(m: Machine, t: Task, a: Args) -> Decision:
    """End all threads of the process."""
    m.forget_reaped(t.process)  # its parent is told of their CPU time, too
    m.leaving(t, whole_process=True)
    return CONTINUE


# -- waiting ------------------------------------------------------------------


def wait4(m: Machine, t: Task, a: Args) -> Decision:
    """Wait for a child; resource usage is the virtual one."""
    which, options, rusage = signed(a[0], 32), a[2], a[3]
    chosen = None if which == -1 or which > 0 else _in_group(-which or os.getpgid(t.tid))
    return _wait(m, t, which if which > 0 else None, chosen, options | WEXITED, rusage, 0, status=a[1])


def waitid(m: Machine, t: Task, a: Args) -> Decision:
    """Wait for a change of a child's state."""
    kind, ident, options, rusage = a[0] & 0xFFFFFFFF, signed(a[1], 32), a[3], a[4]
    pid, chosen = None, None
    if kind == P_PIDFD:
        pid = pidfd_target(m, t, ident)
    elif kind == P_PID:
        pid = ident
    elif kind == P_PGID:
        chosen = _in_group(ident or os.getpgid(t.tid))
    return _wait(m, t, pid, chosen, options, rusage, a[2])


def _in_group(group: int) -> Callable[[Process], bool]:
    return lambda child: _group_of(child) == group


def _group_of(child: Process) -> int:
    try:
        return os.getpgid(child.pid)
    except ProcessLookupError:
        return -1


def pidfd_target(m: Machine, t: Task, fd: int) -> int:
    text = os.open(f"{t.process.pid}/fdinfo/{fd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        for line in os.read(text, 4096).split(b"\n"):
            if line.startswith(b"Pid:"):
                return int(line[4:])
    finally:
        os.close(text)
    return -1


def _wait(
    m: Machine,
    t: Task,
    pid: int | None,
    chosen: Callable[[Process], bool] | None,
    options: int,
    rusage: int,
    info: int,
    status: int = 0,
) -> Decision:
    """Wait for child ``pid``, those ``chosen``, or all.

    ``rusage``, ``info``, ``status``: where these go, or 0.
    """
    process = t.process

    def traced(task: Task) -> bool:
        return pid in (None, task.tid) and (chosen is None or chosen(task.process))

    def wanted(child: Process) -> bool:
        return _of_kind(child, options) and (chosen is None or chosen(child))

    def attempt(wake: Wake | None) -> Decision:
        m.forget_reaped(process)
        found = tracees.report(process, traced, ended=bool(options & WEXITED), keep=bool(options & WNOWAIT))
        if found is not None:
            return _tell(m, t, *found, rusage, info, status)
        children = process.children
        if pid is not None:
            child = m.processes.get(pid)
            children = [child] if child is not None and child.parent is process else []
        jobs = bool(options & (WUNTRACED | WCONTINUED))
        able = (
            child for child in children
            if (jobs or child.status is not None) and _reportable(process, child, options) and wanted(child)
        )  # fmt: skip
        # There may be thousands of them, and most waits take the first.
        changed = list(able) if jobs else list(islice(able, 1))
        tracing = tracees.awaited(process, traced)
        if tracing and not changed and options & WNOHANG:
            if info:
                t.write(info, bytes(_INFO))
            return 0
        awaited = tracing or any(wanted(c) for c in children)
        if changed or options & WNOHANG or not awaited:
            return _let_through(m, t, options, rusage, info, changed, status)
        extra = {"can wait": True, "child": pid}
        return Park(attempt, events=(("child", process.pid),), why="waits for a child process", extra=extra)

    return attempt(None)


def _tell(m: Machine, t: Task, task: Task, changed: int, rusage: int, info: int, status: int) -> int:
    """Tell a tracer of a stop or an end that the kernel does not know of, or not as the guest's."""
    if status:
        t.write(status, changed.to_bytes(4, "little"))
    if rusage:
        t.write(rusage, usage.rusage(task.cpu.ns))
    number = m.nested.called(task, t)
    if not info:
        return number
    code, value = (siginfo.CLD_TRAPPED, changed >> 8) if changed & 0xFF == 0x7F else siginfo.how_it_ended(changed)
    t.write(info, siginfo.of_child(code, number, task.process.creds.ruid, value)[:_INFO])
    return 0


def _of_kind(child: Process, options: int) -> bool:
    """Whether __WCLONE and __WALL select this child (wait(2)): "clone" children signal something else."""
    if options & WALL:
        return True
    return (EXIT_SIGNAL in child.data) == bool(options & WCLONE)


def _reportable(parent: Process, child: Process, options: int) -> bool:
    if child.status is not None:
        return bool(options & WEXITED)
    if tracees.traces(parent, child.tasks.get(child.pid)):
        return False  # its stops are told of as a tracee's
    if options & WUNTRACED and child.data.get("stopped") and not child.data.get("stop_reported"):
        return True
    return bool(options & WCONTINUED and child.data.get("continued"))


def _let_through(
    m: Machine, t: Task, options: int, rusage: int, info: int, changed: list[Process], status: int
) -> Decision:  # fmt: skip
    jobs = [c for c in changed if c.status is None]
    if changed and not options & WNOWAIT:
        t.process.waits.append(changed[0])
    space = t.process.creds.space
    misread = [c for c in changed if cores.told_otherwise(m, c)]
    if info and not misread and not any(space.shown_user(c.creds.ruid) for c in changed):
        info = 0  # the kernel's is right
    if not rusage and not jobs and not info and not (status and misread):
        return CONTINUE

    def look(task: Task, result: int) -> int | None:
        # waitid answers 0; the child is the first in the order of creation, as in the kernel's list.
        child = m.processes.get(result) if result > 0 else None
        if result >= 0 and changed and (child is None or child.parent is not task.process):
            child = changed[0]  # of waitid, or numbered in another namespace
        if child is not None and not options & WNOWAIT:
            if child.status is None and child.data.get("stopped"):
                child.data["stop_reported"] = True
            child.data.pop("continued", None)
        if rusage and child is not None:
            task.write(rusage, usage.rusage(child.cpu.ns + child.cpu.children_ns))
        if info and child is not None:
            task.write(info + siginfo.UID, space.shown_user(child.creds.ruid).to_bytes(4, "little"))
        if child in misread and child is not None and child.status is not None:
            if status:
                task.write(status, child.status.to_bytes(4, "little"))
            if info:
                task.write(info + siginfo.CODE, siginfo.how_it_ended(child.status)[0].to_bytes(4, "little"))
        return None

    return ContinueThen(look)


# -- the rest -------------------------------------------------------------------


def relation(m: Machine, t: Task, a: Args) -> Decision:
    """Parent, group or session: the kernel's, whose numbers are the guest's own."""
    return CONTINUE


def pidfd_open(m: Machine, t: Task, a: Args) -> Decision:
    """A descriptor for a process of the container."""
    if signed(a[0], 32) == 1:
        return -errno.EPERM  # the supervisor
    t.process.files.forget_all()
    return CONTINUE


def pidfd_getfd(m: Machine, t: Task, a: Args) -> Decision:
    """Taking another process's descriptor is a debugger's business, refused like ptrace."""
    return -errno.EPERM
