"""What the synthetic file contents need to know about the virtual machine and its processes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TypeVar

from detbox.cpu.model import DEFAULT_MODEL, MODELS, CpuModel
from detbox.machine import constants
from detbox.machine.limits import BASE
from detbox.machine.userspaces import TOP
from detbox.records import NamedTuple


class Mount(NamedTuple):
    """One line of mountinfo; the numbers are virtual, ``major:minor`` as the guest's stat shows them."""

    mount_id: int
    parent_id: int
    major: int
    minor: int
    point: bytes
    fstype: str
    source: bytes
    options: str = "rw,noatime"
    super_options: str = "rw"
    root: bytes = b"/"
    optional: str = ""  # propagation: "shared:1", say


_View = TypeVar("_View")


class Lazily(Mapping[int, _View]):
    """Views by number; each is made when it is first asked for, because it costs system calls."""

    def __init__(self, numbers: Iterable[int], make: Callable[[int], _View]) -> None:
        """``numbers``: of all, in their order; ``make(number)`` makes the view."""
        self._made: dict[int, _View | None] = dict.fromkeys(numbers)
        self._make = make

    def __getitem__(self, number: int) -> _View:
        view = self._made[number]
        if view is None:
            self._made[number] = view = self._make(number)
        return view

    def __iter__(self) -> Iterator[int]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


class ThreadView(NamedTuple):
    """One thread.  Times are in virtual ticks of 1/100 second; ``state`` is one of the letters
    ``RSDTtZX``."""

    tid: int
    comm: bytes
    state: str = "S"
    lineage: str = ""
    utime: int = 0
    stime: int = 0
    start_ticks: int = 0
    nice: int = 0
    sig_pending: int = 0
    sig_blocked: int = 0
    tracer: int = 0
    strict: bool = False


def _as_the_machine() -> None:
    return None


def _the_containers(name: str) -> bytes:
    return TOP.text(name, TOP)


class ProcessView(NamedTuple):
    """One process.  Identities are virtual, times are in virtual ticks (1/100 second) since boot or of CPU.

    ``hidden``: the process is shown (``ps`` wants a parent for everybody) but its real files, which would be
    the supervisor's, are never read.  ``tty``: device number of the controlling terminal, or 0.
    ``auxv``: the auxiliary vector that the program was started with.  ``own_memory``: the range of addresses
    (start, end) that detbox uses itself and that maps does not show.  ``moved_down``: how far below the addresses
    in the kernel's own stat the program lies.  ``limits``: (soft, hard) by number.
    ``signals_waiting()``: of all processes.  ``loopback()``: whether the device of a network of its own is up.
    ``mounts()``: what it sees in a mount namespace of its own; None in the machine's.
    """

    pid: int
    ppid: int
    pgrp: int
    sid: int
    comm: bytes
    exe: bytes = b""
    argv: Sequence[bytes] = ()
    environ: Sequence[bytes] = ()
    cwd: bytes = b"/"
    state: str = "S"
    uids: tuple[int, ...] = (0, 0, 0, 0)  # real, effective, saved, file system
    gids: tuple[int, ...] = (0, 0, 0, 0)
    groups: Sequence[int] = ()
    cap_inheritable: int = 0
    cap_permitted: int = 0
    cap_effective: int = 0
    cap_bounding: int = 0
    cap_ambient: int = 0
    no_new_privs: int = 0
    filters: int = 0
    start_ticks: int = 0
    utime: int = 0
    stime: int = 0
    cutime: int = 0
    cstime: int = 0
    nice: int = 0
    umask: int = 0o022
    tty: int = 0
    tpgid: int = -1
    exit_signal: int = 17
    fd_size: int = 256
    sig_pending: int = 0
    sig_shared_pending: int = 0
    sig_blocked: int = 0
    sig_ignored: int = 0
    sig_caught: int = 0
    threads: Mapping[int, ThreadView] = MappingProxyType({})
    hidden: bool = False
    auxv: bytes = b""
    own_memory: tuple[int, int] = (0, 0)
    moved_down: int = 0
    limits: tuple[tuple[int, int], ...] = BASE
    mounts: Callable[[], Sequence[Mount] | None] = _as_the_machine
    id_map: Callable[[str], bytes] = _the_containers
    signals_waiting: Callable[[], int] = int
    locked_kb: Callable[[], int] = int
    loopback: Callable[[], bool | None] = _as_the_machine

    def thread(self, tid: int) -> ThreadView | None:
        """The thread of that number; the first thread exists even if ``threads`` does not name it."""
        return self.leader if tid == self.pid else self.threads.get(tid)

    @property
    def leader(self) -> ThreadView:
        """The first thread, made from the process where ``threads`` does not list it."""
        return self.threads.get(self.pid) or ThreadView(
            self.pid, self.comm, self.state, "", self.utime, self.stime, self.start_ticks, self.nice,
            self.sig_pending, self.sig_blocked,
        )  # fmt: skip

    @property
    def tids(self) -> list[int]:
        """All thread numbers, sorted."""
        return sorted({self.pid, *self.threads})


def init_process() -> ProcessView:
    """What the guest sees as PID 1: a container needs a root of its process tree, the supervisor stays
    hidden."""
    return ProcessView(1, 0, 0, 0, b"detbox-init", argv=(b"detbox-init",), hidden=True)


def _same_inode(major: int, minor: int, ino: int, path: bytes) -> tuple[int, int]:
    return (major << 8 | minor, ino)


def _no_socket(ino: int) -> tuple[int, int] | None:
    return None


def _same_uid(uid: int) -> int:
    return uid


def _zero_bytes(count: int) -> bytes:
    return bytes(count)


class MachineView(NamedTuple):
    """The virtual machine at the moment of an open.

    ``uptime_ns``: virtual monotonic time since boot.  ``boot_time_s``: virtual realtime of the boot, in
    seconds since 1970.  ``idle_ns``: virtual idle time of all CPUs together, or None for "all but the CPU
    time used".
    ``random_bytes(n)``: the next bytes of the reading process's seeded stream.
    ``virtual_inode(major, minor, ino, path) -> (dev_t, ino)``: what stat shows for a mapped file.
    ``socket(ino) -> (ino, uid)``: virtual inode and owner of a socket that the guest has open, by its real
    inode; None for others.
    ``locks()``: lines of /proc/locks without their numbers.
    ``virtual_uid(uid)``: the virtual owner for a uid that the kernel printed for the supervisor.
    ``last_pid``: the number given last, for /proc/loadavg and ns_last_pid (0: the highest one shown).
    """

    processes: Mapping[int, ProcessView]
    cpus: int = constants.CPUS
    cpu: CpuModel = MODELS[DEFAULT_MODEL]
    memory_bytes: int = constants.MEMORY_TOTAL
    memory_free_bytes: int = constants.MEMORY_FREE
    hostname: str = constants.HOSTNAME
    domainname: str = constants.DOMAINNAME
    release: str = constants.KERNEL_RELEASE
    version: str = constants.KERNEL_VERSION
    uptime_ns: int = 0
    boot_time_s: int = constants.DEFAULT_EPOCH_S
    idle_ns: int | None = None
    boot_id: str = "00000000-0000-4000-8000-000000000000"
    mounts: Sequence[Mount] = ()
    last_pid: int = 0
    random_bytes: Callable[[int], bytes] = _zero_bytes
    virtual_inode: Callable[[int, int, int, bytes], tuple[int, int]] = _same_inode
    socket: Callable[[int], tuple[int, int] | None] = _no_socket
    locks: Callable[[], Sequence[bytes]] = tuple
    virtual_uid: Callable[[int], int] = _same_uid

    def find(self, tid: int) -> tuple[ProcessView, ThreadView] | None:
        """The process and thread that /proc/TID names: threads can be looked up, but are not listed in
        /proc."""
        process = self.processes.get(tid)
        if process is not None:
            return process, process.leader
        for process in self.processes.values():
            thread = process.thread(tid)
            if thread is not None:
                return process, thread
        return None
