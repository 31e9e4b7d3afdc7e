"""Guest threads and processes as the supervisor sees them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from typing import TYPE_CHECKING, Any

from detbox.decision import Decision, Park
from detbox.kernel import _native
from detbox.kernel.numbers import NAMES
from detbox.machine.clock import CpuTime
from detbox.machine.networks import NETWORK

if TYPE_CHECKING:
    from detbox.machine.creds import Creds
    from detbox.machine.files import FileTable, FsContext
    from detbox.machine.program import Program
    from detbox.machine.rng import RandomStream
    from detbox.machine.userspaces import UserSpace
    from detbox.supervisor.machine import Machine

#: Key of ``Process.data``: the name of a program that was executed by its descriptor, to the kernel and to the guest.
EXECUTED_AS = "executed as"
#: Keys of ``Task.data`` that a new thread or process takes over.
INHERITED = ("nice", "affinity", "policy", "ioprio", "personality", "mempolicy")

Args = tuple[int, ...]


class State(Enum):
    """What a thread is doing; exactly one thread is RUNNING at a time."""

    RUNNING = "running"  # executes guest code, or a call that was let through
    HELD = "held"  # stopped in the supervisor's hands, about to be continued or queued
    READY = "ready"  # held; ``Task.action`` continues it when it is chosen
    PARKED = "parked"  # held until a condition of ``Task.park`` holds
    VFORK = "vfork"  # in the kernel until its vfork child executes or exits
    STOPPED = "stopped"  # job control stop
    TRACED = "traced"  # about to take a signal, in the hands of the guest's tracer
    DEAD = "dead"


class AddressSpace:
    """The memory of a process, or of several.  ``data``: what is known of it, as with theirs.

    ``dumpable``: whether core files may be written of it (PR_SET_DUMPABLE).
    """

    __slots__ = ("data", "dumpable")

    def __init__(self, dumpable: bool = True) -> None:
        self.data: dict[str, Any] = {}
        self.dumpable = dumpable


class Process:
    """A thread group."""

    __slots__ = (
        "pid", "parent", "children", "tasks", "lineage", "mm", "files", "fs", "creds", "rng", "comm", "exe",
        "argv", "forks", "threads", "status", "exiting", "execs", "start_ns", "vfork_parent", "cpu",
        "data", "job_stop", "namespaces", "program", "path", "forks_before", "timed", "counted", "signalled",
        "ended", "waits", "mounts", "network",
    )  # fmt: skip

    def __init__(self, pid: int, parent: Process | None, lineage: str) -> None:
        self.pid = pid
        self.parent = parent
        self.children: list[Process] = []
        #: Since it was last looked at who is reaped: children that have ended, and those that waits should have taken.
        self.ended: list[Process] = []
        self.waits: list[Process] = []
        self.tasks: dict[int, Task] = {}
        self.lineage = lineage
        self.mm = AddressSpace()
        self.files: FileTable
        self.fs: FsContext
        self.creds: Creds
        self.rng: RandomStream
        self.comm = b""
        self.exe = b""
        self.argv: tuple[bytes, ...] = ()
        self.forks = 0  # children created so far: names their lineage
        self.threads = 0  # threads created so far
        self.status: int | None = None  # wait status, once the process is a zombie
        self.exiting = False
        self.execs = 0
        self.program: Program
        self.path = "1"  # position in the fork tree of the program: "1" is the process that executed it
        self.forks_before = 0  # children created before the process executed its program
        self.start_ns = 0
        self.vfork_parent: Task | None = None
        self.cpu = CpuTime()
        self.data: dict[str, Any] = {}  # state that handlers keep per process
        self.job_stop: int = 0  # stopping signal, 0 while running
        self.namespaces = False  # has made namespaces of its own
        self.mounts: UserSpace | None = None  # whose root may mount where it is; None: nobody may
        self.network = NETWORK
        #: Threads that wait for a time to come, or for their turn after it: their deadlines, by the monotonic clock.
        self.timed: dict[Task, int] = {}
        #: Threads whose calls a signal has ended and that still wait for their turn to take it.
        self.signalled: list[Task] = []
        self.counted = False  # its instructions may be counted (supervisor/counting.py): spares others the question

    @property
    def ppid(self) -> int:
        """PID of the parent as the guest sees it; orphans belong to PID 1."""
        return self.parent.pid if self.parent is not None else 1

    def ancestors(self) -> Iterator[Process]:
        """The processes above it, its parent first."""
        ancestor = self.parent
        while ancestor is not None:
            yield ancestor
            ancestor = ancestor.parent

    def __repr__(self) -> str:
        return f"<process {self.pid} {self.comm!r} {self.lineage}>"


class Task:
    """One guest thread."""

    __slots__ = (
        "tid", "process", "lineage", "state", "action", "park", "notif", "nr", "args", "ip", "seq", "quantum", "rest",
        "leads", "forked", "turns", "look", "restart", "data", "pace", "looks", "exposed", "native", "text_at",
        "text", "cpu",
    )  # fmt: skip

    def __init__(self, tid: int, process: Process, lineage: str) -> None:
        self.tid = tid
        self.process = process
        self.lineage = lineage
        self.cpu = CpuTime(process.cpu)
        self.state = State.READY
        self.action: Callable[[], None] | None = None
        self.park: Park | None = None
        self.notif = 0  # id of the unanswered notification, 0 if none
        self.nr = -1  # number of the call in progress
        self.args: Args = (0, 0, 0, 0, 0, 0)
        self.ip = 0
        self.seq = 0  # order of parking
        self.quantum = 0
        self.rest = 0  # of its turn, which others interrupt
        self.leads: tuple[Task, int] | None = None  # who stays behind it, and for how many turns
        self.forked = False  # it has made a process in this turn, which was about to end
        self.turns = 0  # quanta used up
        self.look: Callable[[Task, int], int | None] | None = None
        #: Goes on with an interrupted wait that has a time to end at.
        self.restart: Callable[[], Decision] | None = None
        self.data: dict[str, Any] = {}
        self.pace: Any = None  # when to look for a spin next (supervisor/spinning.py)
        self.looks: Any = None  # the same while it is counted (supervisor/looks.py)
        self.native = False  # its last call was left to the kernel, which may still be at it
        # Others have run, or a signal was sent to the process, since the thread made its call: a
        # signal may be pending that has to interrupt it when it parks.
        self.exposed = True
        #: A string that has been read for the call in progress and will be read again, and its address.
        self.text_at, self.text = -1, b""

    def inherit(self, parent: Task) -> None:
        """Take over what clone copies from the creating thread."""
        self.data.update({key: value for key, value in parent.data.items() if key in INHERITED})

    # Memory access is bound to the thread that makes the call: the kernel checks
    # and faults pages exactly as it would for the thread itself.
    def read(self, addr: int, length: int) -> bytes:
        """``length`` bytes of guest memory; OSError(EFAULT)."""
        return _native.read_mem(self.tid, addr, length)

    def write(self, addr: int, data: bytes | bytearray | memoryview) -> None:
        """Write guest memory; OSError(EFAULT), also where the page is read-only."""
        _native.write_mem(self.tid, addr, data)

    def segments(self, addr: int, count: int) -> list[tuple[int, int]]:
        """A ``struct iovec[count]`` as (address, length); OSError(EINVAL or EFAULT)."""
        return _native.read_segments(self.tid, addr, count)

    def gather(self, segments: list[tuple[int, int]], skip: int, limit: int) -> bytes:
        """At most ``limit`` bytes of the segments' memory after the first ``skip``; OSError(EFAULT)."""
        return _native.gather(self.tid, segments, skip, limit)

    def scatter(self, segments: list[tuple[int, int]], skip: int, data: bytes | bytearray | memoryview) -> None:
        """Write into the segments' memory after the first ``skip`` bytes, as far as it goes; OSError(EFAULT)."""
        _native.scatter(self.tid, segments, skip, data)

    def cstr(self, addr: int) -> bytes:
        """A NUL-terminated string; OSError(EFAULT or ENAMETOOLONG from 4096 bytes on)."""
        return self.text if addr == self.text_at else _native.read_cstr(self.tid, addr)

    def u32(self, addr: int) -> int:
        """A little-endian 32-bit word."""
        return int.from_bytes(_native.read_mem(self.tid, addr, 4), "little")

    def u64(self, addr: int) -> int:
        """A little-endian 64-bit word."""
        return int.from_bytes(_native.read_mem(self.tid, addr, 8), "little")

    @property
    def rng(self) -> RandomStream:
        """The random stream of the thread's process."""
        return self.process.rng

    def __repr__(self) -> str:
        return f"<task {self.tid} of {self.process.pid} {self.process.comm!r} {self.state.value}>"


def kept_name(m: Machine, tid: int) -> bytes:
    """A thread's name (at first its program's), which the kernel keeps; empty if the thread is gone."""
    try:
        fd = os.open(f"{tid}/comm", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    except OSError:
        return b""
    try:
        return os.read(fd, 64)[:-1]
    except OSError:
        return b""
    finally:
        os.close(fd)


def waits(tasks: Iterable[Task]) -> str:
    """What each thread waits for, in a line."""
    lines = []
    for task in tasks:
        why = task.park.why if task.park is not None else task.state.value
        who = f"process {task.process.pid} ({os.fsdecode(task.process.comm)}), thread {task.tid}"
        lines.append(f"  {who}: {NAMES.get(task.nr, '?')}: {why}")
    return "\n".join(lines)
