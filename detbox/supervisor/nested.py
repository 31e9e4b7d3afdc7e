"""PID namespaces of the guest's own: their procfs, and process numbers that mean something else in them.

The supervisor, its views and the handlers know threads by their numbers in the container's namespace.  A
thread in a nested namespace is told other numbers by the kernel: arguments that name a process are
translated before a handler sees them, and a procfs of that namespace shows its own numbers.

The guest cannot mount such a procfs itself: the kernel allows it only where an existing one is seen in full
(mount_too_revealing() in fs/namespace.c), and the guest's has the supervisor's directory covered.  So it is
made by a child of the supervisor, in whose namespace the cover is not locked, and moved into the guest's.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.decision import Decision
from detbox.handlers.futex_core import signed
from detbox.kernel.invoke import call
from detbox.kernel.numbers import NUMBERS
from detbox.records import NamedTuple
from detbox.supervisor.children import leave, with_guest
from detbox.supervisor.task import Process, Task
from detbox.synth.view import Lazily, MachineView, ProcessView

if TYPE_CHECKING:
    from detbox.supervisor.loop import Handler, Supervisor
    from detbox.supervisor.machine import Machine

_NS_GET_PARENT = 0xB702  # include/uapi/linux/nsfs.h
_CLONE_NEWNS, _CLONE_NEWPID = 0x20000, 0x20000000
_FSCONFIG_SET_STRING, _FSCONFIG_CREATE = 1, 6
_EMPTY_PATHS = 0x4 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH
_AT_FDCWD = -100
_CALLED = "number in a namespace"  # in a thread's data
#: No thread has this number (PID_MAX_LIMIT is 2^22).
NOBODY = 0x7FFFFFFF
#: Calls of which handlers want to know whom they are about, and the arguments that name a process or thread.
_ABOUT = {
    "kill": (0,), "tkill": (0,), "tgkill": (0, 1), "rt_sigqueueinfo": (0,), "rt_tgsigqueueinfo": (0, 1),
    "wait4": (0,), "waitid": (1,), "prlimit64": (0,), "pidfd_open": (0,), "getpriority": (1,),
    "setpriority": (1,), "sched_setaffinity": (0,), "sched_getaffinity": (0,), "sched_getscheduler": (0,),
    "sched_setscheduler": (0,), "sched_getparam": (0,), "sched_setparam": (0,), "sched_getattr": (0,),
    "sched_setattr": (0,), "sched_rr_get_interval": (0,), "get_robust_list": (0,),
    "process_vm_readv": (0,), "process_vm_writev": (0,), "ptrace": (1,),
}  # fmt: skip


class PidSpace(NamedTuple):
    """A PID namespace below the container's: the inodes of the namespaces on the way to it."""

    chain: tuple[int, ...]

    @property
    def depth(self) -> int:
        """Index of its numbers in the NSpid line of /proc/PID/status."""
        return len(self.chain)


class Nested:
    """The nested PID namespaces of one run."""

    def __init__(self, sup: Supervisor) -> None:
        self.m: Machine = sup.m
        #: Real st_dev of a procfs that the guest has mounted, and what it shows.
        self.mounted: dict[int, PidSpace] = {}
        self._top = 0
        for name, positions in _ABOUT.items():
            sup.table[NUMBERS[name]] = self._translating(sup.table[NUMBERS[name]], positions)

    # -- numbers --------------------------------------------------------------------

    def space(self, tid: int) -> PidSpace:
        """The PID namespace of a thread; OSError if it is gone."""
        fd = os.open(f"{tid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.m.proc_fd)
        self._top = self._top or os.stat("1/ns/pid", dir_fd=self.m.proc_fd).st_ino
        chain: list[int] = []
        while True:
            inode = os.fstat(fd).st_ino
            if inode == self._top:
                os.close(fd)
                return PidSpace(tuple(reversed(chain)))
            chain.append(inode)
            parent = fcntl.ioctl(fd, _NS_GET_PARENT)
            os.close(fd)
            fd = parent

    def numbers(self, tid: int, space: PidSpace) -> tuple[int, int, int] | None:
        """(thread, process group, session) as they are called in ``space``; None if it does not see the thread.

        A group or session from outside is 0.
        """
        try:
            if self.space(tid).chain[: space.depth] != space.chain:
                return None
            fd = os.open(f"{tid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.m.proc_fd)
        except OSError:
            return None
        with open(fd, "rb") as stream:
            lines = dict(line.split(b":", 1) for line in stream.read().splitlines() if line[:2] == b"NS")
        found = []
        for name in (b"NSpid", b"NSpgid", b"NSsid"):
            values = lines[name].split()
            found.append(int(values[space.depth]) if len(values) > space.depth else 0)
        return found[0], found[1], found[2]

    def called(self, other: Task, viewer: Task) -> int:
        """The number of a thread for another one; of one that has ended, the last that was asked for."""
        if viewer.process.namespaces and (space := self.space(viewer.tid)).depth:
            found = self.numbers(other.tid, space)
            other.data[_CALLED] = found[0] if found is not None else other.data.get(_CALLED, 0)
            return int(other.data[_CALLED])
        return other.tid

    def outer(self, number: int, space: PidSpace) -> int:
        """The container's number of the thread that is called ``number`` in a namespace, or NOBODY."""
        for tid in self.m.tasks:
            called = self.numbers(tid, space)
            if called is not None and called[0] == number:
                return tid
        for pid, process in self.m.processes.items():
            called = self.numbers(pid, space) if process.status is not None else None
            if called is not None and called[0] == number:
                return pid
        return NOBODY

    def outer_at(self, number: int, dev: int) -> int:
        """The container's number of the thread that is called ``number`` in the procfs with st_dev ``dev``."""
        space = self.mounted.get(dev)
        return number if space is None else self.outer(number, space)

    def _translating(self, handler: Handler | None, positions: tuple[int, ...]) -> Handler | None:
        if handler is None:
            return None

        def translated(m: Machine, task: Task, arguments: tuple[int, ...]) -> Decision:
            if task.process.namespaces:
                space = self.space(task.tid)
                if space.depth:
                    new = list(arguments)
                    for at in positions:
                        number = signed(arguments[at], 32)
                        if number not in (0, -1):
                            there = self.outer(abs(number), space)
                            new[at] = (there if number > 0 else -there) & 0xFFFFFFFFFFFFFFFF
                    arguments = tuple(new)
            return handler(m, task, arguments)

        return translated

    # -- what a procfs of such a namespace shows ----------------------------------------

    def own_numbers(self, task: Task, dev: int) -> tuple[int, int]:
        """(process, thread) numbers of a thread in the procfs with this st_dev."""
        space = self.mounted.get(dev)
        if space is None:
            return task.process.pid, task.tid
        process, thread = (self.numbers(number, space) for number in (task.process.pid, task.tid))
        return (process or (0,))[0], (thread or (0,))[0]

    def view(self, whole: MachineView, space: PidSpace) -> tuple[MachineView, Callable[[bytes], bytes]]:
        """The machine as the namespace sees it, and the translation of its procfs paths to the container's."""
        called = {tid: self.numbers(tid, space) for tid in (*self.m.processes, *self.m.tasks)}
        seen = {tid: numbers for tid, numbers in called.items() if numbers is not None}
        processes = {}
        for pid, process in self.m.processes.items():
            if pid in seen:
                shown = _renumbered(whole.processes[pid], process, seen)
                processes[shown.pid] = shown
        back = {b"%d" % numbers[0]: b"%d" % tid for tid, numbers in seen.items()}

        def outer_path(path: bytes) -> bytes:
            parts = path.split(b"/")
            for at in (2, 4):
                if len(parts) > at and (at == 2 or parts[3] == b"task"):
                    parts[at] = back.get(parts[at], parts[at])
            return b"/".join(parts)

        return whole._replace(processes=processes, last_pid=max(processes, default=1)), outer_path

    # -- mounting it ------------------------------------------------------------------

    def mount(self, task: Task, target: int, source: bytes, attributes: int) -> None:
        """Mount the procfs of the thread's own PID namespace on the directory ``target`` (O_PATH); OSError."""
        with_guest(task.process.pid, lambda guest: _in_namespace(guest, target, source, attributes))

    def learn(self, task: Task, fd: int) -> None:
        """Remember what the procfs whose root is ``fd`` (O_PATH) shows.

        The descriptor stays open: when a procfs is gone the kernel gives its st_dev to the next file system.
        """
        dev = os.fstat(fd).st_dev
        self.mounted[dev] = self.space(task.tid)
        self.m.inodes.another_proc(dev)


def _renumbered(view: ProcessView, process: Process, seen: dict[int, tuple[int, int, int]]) -> ProcessView:
    pid, group, session = seen[process.pid]
    numbers = {seen[tid][0]: tid for tid in view.threads if tid in seen}
    threads = Lazily(numbers, lambda number: view.threads[numbers[number]]._replace(tid=number))
    parent = seen[process.ppid][0] if process.ppid in seen else 0
    return view._replace(pid=pid, ppid=parent, pgrp=group, sid=session, threads=threads)


def _in_namespace(guest: int, target: int, source: bytes, attributes: int) -> None:
    """In a child: who makes a procfs must be in the PID namespace itself, which only its children are."""
    call("setns", guest, _CLONE_NEWPID)
    child = os.fork()
    if child == 0:
        leave(lambda: _make(guest, target, source, attributes))
    _, status = os.waitpid(child, 0)
    os._exit(max(os.waitstatus_to_exitcode(status), 0))


def _make(guest: int, target: int, source: bytes, attributes: int) -> None:
    context = call("fsopen", b"proc\0", 0)
    call("fsconfig", context, _FSCONFIG_SET_STRING, b"source\0", source + b"\0", 0)
    call("fsconfig", context, _FSCONFIG_CREATE, 0, 0, 0)
    mount = call("fsmount", context, 0, attributes)
    call("setns", guest, _CLONE_NEWNS)
    call("move_mount", mount, b"\0", target, b"\0", _EMPTY_PATHS)
