"""Birth, exec and death of guest threads, from their ptrace stops."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import time
from typing import TYPE_CHECKING

from detbox.errors import LimitExceeded
from detbox.handlers import cores, dispositions, futex_exit, identity, seccomp
from detbox.handlers.paths import AT_EMPTY_PATH
from detbox.handlers.processes import CLONE_ARGS, CLONE_NAMESPACES, EXIT_SIGNAL
from detbox.kernel import _native, siginfo
from detbox.kernel.numbers import NUMBERS
from detbox.machine import tracees
from detbox.machine.creds import STRICT
from detbox.machine.limits import TASKS_AT_MOST
from detbox.machine.rng import RandomStream
from detbox.machine.tracees import EVENT_VFORK, is_traced
from detbox.supervisor import injection, signals, tracing
from detbox.supervisor.task import EXECUTED_AS, AddressSpace, Process, State, Task, kept_name

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor

CLONE_VM, CLONE_FS, CLONE_FILES = 0x100, 0x200, 0x400
CLONE_PARENT, CLONE_THREAD, CLONE_CHILD_CLEARTID = 0x8000, 0x10000, 0x200000
CLONE_NEWUTS, CLONE_NEWUSER = 0x4000000, 0x10000000
_KILL, _EXECVEAT = NUMBERS["kill"], NUMBERS["execveat"]
_SYS_SECCOMP = 1  # si_code of a filter's SIGSYS (include/uapi/asm-generic/siginfo.h)


def clone_arguments(task: Task) -> tuple[int, int, int]:
    """(flags, child_tid address, signal at its end) of the clone-like call that a thread is in."""
    if task.nr == NUMBERS["clone"]:
        return task.args[0], task.args[3], task.args[0] & 0xFF
    if task.nr == NUMBERS["clone3"]:
        flags, _, child_tid, _, exit_signal = CLONE_ARGS.unpack(task.read(task.args[0], CLONE_ARGS.size))
        return flags, child_tid, exit_signal
    if task.nr == NUMBERS["vfork"]:
        return 0x4000 | CLONE_VM, 0, signal.SIGCHLD
    return 0, 0, signal.SIGCHLD


def on_clone(sup: Supervisor, parent: Task, event: int) -> None:
    """A thread has created another; the new one is brought to its first stop and queued."""
    if len(sup.m.tasks) >= TASKS_AT_MOST:
        what = f"the guest has {TASKS_AT_MOST} threads at the same time"
        raise LimitExceeded(what, "is it creating processes without end?")
    tid = _native.event_message(parent.tid)
    sup.numbering.created(tid)
    flags, child_tid, exit_signal = clone_arguments(parent)
    if flags & CLONE_THREAD:
        child = _new_thread(sup, parent, tid)
    else:
        child = _new_process(sup, parent, tid, flags, exit_signal)
    if flags & CLONE_CHILD_CLEARTID:
        futex_exit.set_clear_tid(sup.m, tid, child_tid)
    child.process.tasks[tid] = child
    sup.m.tasks[tid] = child
    sup.await_first_stop(tid)
    apart = child.process.namespaces or flags & CLONE_NAMESPACES
    if apart and not flags & CLONE_THREAD and tid in sup.m.tasks:
        _in_namespaces(sup, child.process, flags & CLONE_NAMESPACES)
    tracees.after_clone(parent, child)
    if event == EVENT_VFORK:
        child.process.vfork_parent = parent
    sup.m.scheduler.make_ready(child, lambda: born(sup, child))
    sup.m.scheduler.forked(parent)
    sup.counting.on_clone(parent, child)
    if not parent.data or not tracing.cloned(sup, parent, child, event):
        after_clone(sup, parent, child)


def after_clone(sup: Supervisor, parent: Task, child: Task) -> None:
    """A thread that has made another goes on; it waits for a vfork child that has not gone on already."""
    sup.cont(parent, 0)
    if child.process.vfork_parent is parent:
        sup.hold(parent)
        parent.state = State.VFORK


def born(sup: Supervisor, child: Task) -> None:
    """A new thread's turn has come."""
    if is_traced(child):
        tracing.born(sup, child)
    else:
        sup.counting.on_birth(child)


def _in_namespaces(sup: Supervisor, process: Process, flags: int) -> None:
    """A process with namespaces of the guest's own, or new ones (``flags``), was made."""
    from detbox.handlers import namespaces

    if flags & CLONE_NEWUSER:
        sup.m.user_spaces.made(process)
    sup.m.user_spaces.born(process, namespaces.kinds(flags))


def _new_thread(sup: Supervisor, parent: Task, tid: int) -> Task:
    process = parent.process
    process.threads += 1
    task = Task(tid, process, f"{process.lineage}/{process.threads}")
    task.inherit(parent)
    for hook in sup.thread_hooks:
        hook(parent, task)
    return task


def _new_process(sup: Supervisor, parent: Task, tid: int, flags: int, exit_signal: int) -> Task:
    old = parent.process
    old.forks += 1
    lineage = f"{old.lineage}.{old.forks}"
    owner = old.parent if flags & CLONE_PARENT else old
    process = Process(tid, owner, lineage)
    if owner is not None:
        owner.children.append(process)
    process.mm = old.mm if flags & CLONE_VM else AddressSpace(old.mm.dumpable)
    process.files = old.files if flags & CLONE_FILES else old.files.copy(tid)
    process.fs = old.fs if flags & CLONE_FS else old.fs.copy(tid)
    process.creds = old.creds.copy()
    process.program = old.program
    process.path = f"{old.path}.{old.forks - old.forks_before}"
    process.rng = RandomStream(sup.m.spec.seed, f"{old.program.name}/{process.path}")
    process.comm, process.exe, process.argv = old.comm, old.exe, old.argv
    process.start_ns = sup.m.clock.now
    last = old.data.get(EXIT_SIGNAL, signal.SIGCHLD) if flags & CLONE_PARENT else exit_signal
    if last != signal.SIGCHLD:
        process.data[EXIT_SIGNAL] = last
    process.namespaces, process.mounts, process.network = old.namespaces, old.mounts, old.network
    if flags & CLONE_NEWUSER:
        process.creds.enter(old.creds.new_space())
    if flags & CLONE_NAMESPACES:
        from detbox.handlers import namespaces

        namespaces.made(process, flags)
    sup.m.processes[tid] = process
    task = Task(tid, process, lineage)
    task.inherit(parent)
    for hook in sup.fork_hooks:
        hook(sup.m, old, process)
    if flags & CLONE_NEWUTS:
        identity.new_uts(sup.m, process)
    return task


def on_exec(sup: Supervisor, task: Task) -> None:
    """A process executes another program; it is stopped before its first instruction, and queued.

    What else is ready runs first: a vfork parent, say, which usually comes to wait for the child.

    The thread that called execve becomes the leader, whatever its number was.
    """
    m, process, former = sup.m, task.process, task.tid
    tid = process.pid
    for other in list(process.tasks.values()):
        if other is not task:
            m.scheduler.remove(other)
            del process.tasks[other.tid]
            m.tasks.pop(other.tid, None)
            tracees.after_death(m, other, 0 if other.tid != tid else None)
    if former != tid:
        process.tasks.pop(former, None)
        m.tasks.pop(former, None)
        task.tid = tid
        process.tasks[tid] = task
        m.tasks[tid] = task
    tracees.renamed(task, former)
    task.look = None  # for a call that fails; the interrupt that came with it ends with this stop (ptrace_stop)
    futex_exit.after_exec(m, task, former)
    process.mm = AddressSpace()
    process.execs += 1
    process.data.pop(EXIT_SIGNAL, None)  # SIGCHLD from now on (begin_new_exec)
    process.files = process.files.copy(tid)
    process.exe = os.fsencode(os.readlink(f"{tid}/exe", dir_fd=m.proc_fd))
    process.comm = kept_name(sup.m, tid)
    process.data.pop(EXECUTED_AS, None)
    if task.nr == _EXECVEAT and task.args[4] & AT_EMPTY_PATH:
        # By its descriptor: before Linux 6.14 that is the name.
        process.data[EXECUTED_AS] = process.comm, process.exe.rsplit(b"/", 1)[-1][:15]
    for hook in sup.exec_hooks:
        hook(m, task)
    release_vfork_parent(sup, process)
    m.scheduler.defer(task, lambda: begin(sup, task))


def begin(sup: Supervisor, task: Task) -> None:
    """The new program's turn has come."""
    process = task.process
    sup.numbering.program_starts()
    start = sup.image.look(task)
    process.program = process.program.start(start.words)
    process.path, process.forks_before = "1", process.forks
    process.rng = RandomStream(sup.m.spec.seed, process.program.name)
    status = sup.answer(task, start) if sup.answer is not None else None
    if status is not None:
        injection.leave(task, status)
    elif sup.image.prepare(sup.m, task, start):
        return
    if is_traced(task):
        tracing.executed(sup, task)
    else:
        sup.cont(task, 0)


def release_vfork_parent(sup: Supervisor, process: Process) -> None:
    """Catch the parent of a vfork child, which the kernel has just let go, and queue it."""
    parent, process.vfork_parent = process.vfork_parent, None
    if parent is None or parent.state is not State.VFORK:
        return
    status = sup.await_stop(parent.tid)
    if status is None:
        return
    sup.m.scheduler.make_ready(parent, lambda: vfork_done(sup, parent, process.pid))


def vfork_done(sup: Supervisor, parent: Task, child: int) -> None:
    """The parent of a vfork child is about to return from its call."""
    if not parent.data or not tracing.vfork_done(sup, parent, child):
        sup.cont(parent, 0)


def on_exit(sup: Supervisor, tid: int, status: int) -> None:
    """A thread is gone; ``status`` is its wait status."""
    m = sup.m
    task = m.tasks.get(tid)
    if task is None:
        return
    process = task.process
    if os.WIFSIGNALED(status) and _parent_ends(sup, process):
        sup.gone[tid] = status
        return
    _forget(sup, task, status)
    if (os.WIFSIGNALED(status) or process.exiting) and not tracing.lingers(process):
        _drain(sup, process)
    if not process.tasks:
        if process.data.pop("leader_gone", None):
            status = sup.await_exit(process.pid)
        _process_exit(sup, process, status)
    elif process.job_stop:
        sup.jobs.look_at(process)
    _others_gone(sup)


def _others_gone(sup: Supervisor) -> None:
    """Tell of the ends that were met before it was their turn."""
    while sup.gone:
        first = min(sup.gone)
        on_exit(sup, first, sup.gone.pop(first))


def _parent_ends(sup: Supervisor, process: Process) -> bool:
    """Whether an ancestor's running thread has ended, and its end is yet to be told of.

    By PR_SET_PDEATHSIG a process may be gone before that: the kernel sends the signal, and then wakes the tracer.
    """
    for ancestor in process.ancestors():
        for task in ancestor.tasks.values():
            if task.state is State.RUNNING:
                with contextlib.suppress(OSError):
                    return signals.is_zombie(sup.m, task)
    return False


def take_zombies(sup: Supervisor) -> None:
    """Note the ends of threads in namespaces: the first process of a PID namespace ends after all others in it.

    Of its threads the last one waits for them, whichever that is (zap_pid_ns_processes() in the kernel).
    """
    for tid, task in sorted(sup.m.tasks.items()):
        if task.process.namespaces and tid not in sup.gone and signals.is_zombie(sup.m, task):
            with contextlib.suppress(ChildProcessError):
                found, status = _native.wait_tid(tid, os.WNOHANG)
                if found:
                    sup.gone[tid] = status
    time.sleep(0.0001)


def leader_gone(sup: Supervisor, leader: Task) -> None:
    """The first thread has called exit(2) while others live on.

    The kernel reports its exit only after theirs (delay_group_leader); until then it is a zombie.
    """
    while not signals.is_zombie(sup.m, leader):
        if is_traced(leader):
            tracing.pass_exit(leader)
        time.sleep(0.0001)
    leader.process.data["leader_gone"] = True
    _forget(sup, leader, 0)


def _forget(sup: Supervisor, task: Task, status: int) -> None:
    """A thread is gone."""
    sup.hold(task)
    sup.m.scheduler.remove(task)
    task.process.tasks.pop(task.tid, None)
    sup.m.tasks.pop(task.tid, None)
    futex_exit.after_exit(sup.m, task)
    tracees.after_death(sup.m, task, status)


def killed(sup: Supervisor, process: Process) -> None:
    """A process has been sent SIGKILL: wait for its end."""
    tid = leader_last(process)[0]
    on_exit(sup, tid, sup.await_exit(tid))


def forbidden(sup: Supervisor, task: Task, info: bytes) -> bool:
    """Whether a thread is about to take SIGSYS for a call that seccomp's strict mode forbids: it dies by SIGKILL.

    The thread alone (__secure_computing_strict() in kernel/seccomp.c).  From among others it leaves by exit(2): the
    kernel knows no other end of one thread.
    """
    if siginfo.code_of(info) != _SYS_SECCOMP:
        return False
    how, alone = siginfo.errno_of(info), len(task.process.tasks) == 1
    if task.process.creds.filters and (how == seccomp.KILLS_PROCESS or how == seccomp.KILLS_THREAD and alone):
        _filtered(sup, task, info)
        return True
    if STRICT not in task.data and not (task.process.creds.filters and how == seccomp.KILLS_THREAD):
        return False
    if alone:
        os.kill(task.process.pid, signal.SIGKILL)
        killed(sup, task.process)
    else:
        injection.to_call(task, NUMBERS["exit"])
        sup.cont(task, 0)
    return True


def _filtered(sup: Supervisor, task: Task, info: bytes) -> None:
    """A filter kills the process of a thread, with SIGSYS, whatever that process does at the signal."""
    _native.set_siginfo(task.tid, siginfo.without_errno(info))
    signals.before_end(sup, task, signal.SIGSYS, surely=True)
    if signals.pending(sup.m, task).caught & signals.bit(signal.SIGSYS):
        sup.image.restore(task, signal.SIGSYS, bytes(dispositions.SIZE))
    sup.cont(task, signal.SIGSYS)


def leader_last(process: Process) -> list[int]:
    """The order in which dying threads can be waited for: the kernel reports the first one's end after the others'."""
    return sorted(process.tasks, key=lambda tid: (tid == process.pid, tid))


def _drain(sup: Supervisor, process: Process) -> None:
    """Wait until every other thread of a dying process is gone, the leader last."""
    process.exiting = True
    for tid in leader_last(process):
        if tid not in process.tasks:
            continue
        final = sup.await_exit(tid)
        _forget(sup, process.tasks[tid], final)
        if tid == process.pid:
            process.status = final


def _process_exit(sup: Supervisor, process: Process, status: int) -> None:
    m = sup.m
    process.status = cores.end(m, process, status if process.status is None else process.status)
    if process.creds.ruid:
        m.former_users[process.pid] = process.creds.ruid
    release_vfork_parent(sup, process)
    if process.path == "1":
        sup.numbering.program_ends()
    for hook in sup.exit_hooks:
        hook(m, process)
    heir = _reaper(process)
    for child in process.children:
        child.parent = heir
        if heir is not None:
            heir.children.append(child)
            if child.status is not None:
                heir.ended.append(child)
        elif child.status is not None:
            m.processes.pop(child.pid, None)
    orphans, process.children = process.children, []
    _death_signals(sup, orphans)
    if process.pid == sup.main_pid:
        sup.outcome = process.status
    m.wake(("exit", process.pid))
    parent = process.parent
    if parent is None:
        m.processes.pop(process.pid, None)
        return
    parent.ended.append(process)
    m.wake(("child", parent.pid))
    if heir is not None and heir is not parent:
        m.wake(("child", heir.pid))
    m.notice_signals(parent)


def _death_signals(sup: Supervisor, orphans: list[Process]) -> None:
    """PR_SET_PDEATHSIG: the kernel has sent them before it reported the parent's end (kernel/exit.c, exit_notify())."""
    for child in orphans:
        signo = child.data.get("death_signal", 0)
        if not signo or child.status is not None:
            continue
        if signo == signal.SIGKILL and any(signals.killed(sup.m, task) for task in child.tasks.values()):
            tid = leader_last(child)[0]
            sup.gone[tid] = sup.await_exit(tid)
        else:
            signals.notice(sup.m, child)
    _others_gone(sup)


def _reaper(process: Process) -> Process | None:
    """Who adopts the children: the nearest living subreaper, otherwise PID 1 (None)."""
    for ancestor in process.ancestors():
        if ancestor.data.get("subreaper") and ancestor.status is None:
            return ancestor
    return None


def forget_reaped(sup: Supervisor, process: Process) -> None:
    """Drop the zombie children that the process has waited for, and count what they have used.

    These are the child that a wait should have taken, or another one if that is still there, and of those that have
    ended since the last time whom the kernel has forgotten at once, since SIGCHLD is ignored.  To look at all zombies
    each time would cost who has thousands of them seconds.
    """
    ended, waits, process.ended, process.waits = process.ended, process.waits, [], []
    if not all([_forgotten(sup, process, child) for child in waits]):
        ended = [child for child in process.children if child.status is not None]
    for child in ended:
        _forgotten(sup, process, child)


def _forgotten(sup: Supervisor, process: Process, child: Process) -> bool:
    """Whether a zombie child has just been found to be gone."""
    if sup.m.processes.get(child.pid) is not child:
        return False
    # No signal is sent: only whether there is anybody.
    if _native.raw_syscall(_KILL, child.pid, 0) != -errno.ESRCH:
        return False
    process.children.remove(child)
    process.cpu.reap(child.cpu)
    sup.m.processes.pop(child.pid, None)
    return True
