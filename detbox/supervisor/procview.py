"""Connects the synthetic /proc to the run: views of the processes, and descriptors with the contents."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.handlers import locked_memory, networks, signal_room
from detbox.handlers.identity import uts_names
from detbox.handlers.limits import limits_of
from detbox.handlers.other_memory import may_debug
from detbox.machine import constants, tracees
from detbox.machine import inodes as inodes_module
from detbox.machine.clock import CpuTime, user_and_system
from detbox.machine.constants import USER_HZ
from detbox.machine.creds import STRICT
from detbox.machine.userspaces import LIMIT, shown_all
from detbox.supervisor import signals
from detbox.supervisor.image import AUXV, OWN_MEMORY
from detbox.supervisor.lockview import locks
from detbox.supervisor.netview import Sockets
from detbox.supervisor.placing import MOVED_DOWN
from detbox.supervisor.stretch import GAVE_WAY
from detbox.supervisor.task import EXECUTED_AS, Process, State, Task, kept_name
from detbox.synth import proc
from detbox.synth.proc import Refused, Synthetic
from detbox.synth.view import Lazily, MachineView, Mount, ProcessView, ThreadView, init_process

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine

_TICK_NS = 10**9 // USER_HZ
#: Shown for a mapped file that has no virtual inode.
_NO_INODE = 1
#: The container's mounts: point, type, source, virtual device.
_POINTS = (
    (b"/", "overlay", b"detbox", inodes_module.ROOT_DEV),
    (b"/proc", "proc", b"proc", inodes_module.PROC_DEV),
    (b"/sys", "sysfs", b"sysfs", inodes_module.SYS_DEV),
    (b"/sys/fs/cgroup", "cgroup2", b"cgroup2", inodes_module.SYS_DEV),
    (b"/dev", "tmpfs", b"tmpfs", inodes_module.DEV_DEV),
    (b"/dev/pts", "devpts", b"devpts", inodes_module.PTS_DEV),
    (b"/dev/shm", "tmpfs", b"tmpfs", inodes_module.SHM_DEV),
    (b"/dev/mqueue", "mqueue", b"mqueue", inodes_module.MQUEUE_DEV),
    (b"/tmp", "tmpfs", b"tmpfs", inodes_module.TMP_DEV),
)
MOUNTS = tuple(
    Mount(20 + index, 1 if index == 0 else 20, os.major(dev), os.minor(dev), point, kind, source)
    for index, (point, kind, source, dev) in enumerate(_POINTS)
)


def ticks(ns: int) -> int:
    """Nanoseconds as clock ticks."""
    return ns // _TICK_NS


def _cpu_ticks(cpu: CpuTime) -> tuple[int, int]:
    user, system = user_and_system(cpu.ns)
    return ticks(user), ticks(system)


def machine_view(m: Machine, caller: Task | None = None) -> MachineView:
    """The virtual machine at this moment; ``caller`` runs, every other thread sleeps."""
    processes = Lazily(
        [1, *m.processes], lambda pid: _process_view(m, m.processes[pid], caller) if pid != 1 else init_process()
    )
    rng = caller.rng if caller is not None else None
    return MachineView(
        processes=processes,
        cpus=m.spec.cpus,
        cpu=m.cpu_model,
        memory_bytes=m.spec.memory_bytes or constants.MEMORY_TOTAL,
        hostname=os.fsdecode(uts_names(m, caller.process)[0]) if caller is not None else m.spec.hostname,
        uptime_ns=m.clock.now,
        boot_time_s=m.clock.realtime(0) // 10**9,
        boot_id=constants.boot_id(str(m.spec.seed).encode()),
        mounts=MOUNTS,
        last_pid=max(processes),
        random_bytes=rng.bytes if rng is not None else bytes,
        virtual_inode=lambda major, minor, ino, path: _virtual_inode(m, major, minor, ino, path),
        socket=Sockets(m, caller).get,
        locks=lambda: locks(m),
        virtual_uid=lambda uid: 0,
    )


def _virtual_inode(m: Machine, major: int, minor: int, ino: int, path: bytes) -> tuple[int, int]:
    """What stat shows for a mapped file.

    An overlay's mappings have the device and inode of the file below it, so that the path has to tell.  A
    file without a name any more has no number that would not be the host's.
    """
    inodes = m.inodes
    known = inodes.table.get((os.makedev(major, minor), ino))
    if known is None:
        try:
            known = inodes.of(os.stat(path))
        except OSError:
            return inodes.devices.get(os.makedev(major, minor), inodes_module.ROOT_DEV), _NO_INODE
    return known.dev, known.ino


def _state_letter(task: Task, caller: Task | None) -> str:
    if task is caller or task.state in (State.RUNNING, State.HELD):
        return "R"
    if task.state in (State.STOPPED, State.TRACED):
        return "T" if task.state is State.STOPPED else "t"
    if GAVE_WAY in task.data or (task.park is not None and "spin" in task.park.extra):
        return "R"
    return "S"


def _process_view(m: Machine, process: Process, caller: Task | None) -> ProcessView:
    creds, reader = process.creds, (process if caller is None else caller.process).creds.space

    def thread_view(tid: int) -> ThreadView:
        task = process.tasks[tid]
        return ThreadView(
            tid, _name(m, process, tid), _state_letter(task, caller), task.lineage,
            *_cpu_ticks(task.cpu), ticks(process.start_ns),
            task.data.get("nice", 0), tracer=tracees.tracer(task), strict=STRICT in task.data,
        )  # fmt: skip

    threads = Lazily(sorted(process.tasks), thread_view)
    leader = process.tasks.get(process.pid)
    state = "Z" if process.status is not None else _state_letter(leader, caller) if leader else "S"
    pgrp, sid = _groups(process.pid)
    sets = _signals(m, process)
    children = user_and_system(process.cpu.children_ns)
    return ProcessView(
        process.pid, process.ppid, pgrp, sid, _name(m, process, process.pid), process.exe, process.argv, (), b"/",
        state,
        uids=tuple(map(reader.shown_user, (creds.ruid, creds.euid, creds.suid, creds.fsuid))),
        gids=tuple(map(reader.shown_group, (creds.rgid, creds.egid, creds.sgid, creds.fsgid))),
        groups=shown_all(reader, creds.groups), cap_inheritable=creds.inheritable, cap_permitted=creds.permitted,
        cap_effective=creds.effective, cap_bounding=creds.bounding, cap_ambient=creds.ambient,
        no_new_privs=int(creds.no_new_privs), filters=creds.filters, start_ticks=ticks(process.start_ns),
        utime=_cpu_ticks(process.cpu)[0], stime=_cpu_ticks(process.cpu)[1],
        cutime=ticks(children[0]), cstime=ticks(children[1]),
        nice=leader.data.get("nice", 0) if leader else 0,
        umask=process.fs.umask, threads=threads,
        sig_pending=sets.private, sig_shared_pending=sets.shared, sig_blocked=sets.blocked,
        sig_ignored=sets.ignored, sig_caught=sets.caught,
        auxv=process.data.get(AUXV, b""), own_memory=process.data.get(OWN_MEMORY, (0, 0)),
        moved_down=process.data.get(MOVED_DOWN, 0), limits=limits_of(process),
        mounts=lambda: m.mounting.shown(process) if process.namespaces else None,
        id_map=lambda name: creds.space.text(name, reader),
        signals_waiting=lambda: signal_room.waiting(m, process),
        locked_kb=lambda: locked_memory.locked_kb(m, process), loopback=lambda: networks.is_up(m, process),
    )  # fmt: skip


def _name(m: Machine, process: Process, tid: int) -> bytes:
    name = kept_name(m, tid)
    real, shown = process.data.get(EXECUTED_AS, (b"", b""))
    return shown if shown and name == real else name or process.comm


def _groups(pid: int) -> tuple[int, int]:
    try:
        return os.getpgid(pid), os.getsid(pid)
    except ProcessLookupError:
        return 0, 0


def _signals(m: Machine, process: Process) -> signals.Pending:
    leader = process.tasks.get(process.pid)
    if leader is not None:
        try:
            return signals.pending(m, leader)
        except (OSError, ValueError):
            pass
    return signals.Pending(0, 0, 0, 0, 0)


def synth_open(m: Machine, task: Task, path: bytes, fd: int, flags: int) -> int:
    """What an open of a procfs or sysfs file gives: ``fd`` itself, or a descriptor with synthetic contents.

    Raises OSError where the file is refused.
    """
    if not path.startswith(b"/proc"):
        if flags & os.O_ACCMODE != os.O_RDONLY:
            raise OSError(errno.EACCES, "sysfs is read-only")
        return fd
    write = flags & os.O_ACCMODE != os.O_RDONLY
    space = task.process.creds.space
    if path == LIMIT and space.parent is not None:
        return _memory_file(m, path, b"%d\n" % space.most, write)
    dev = os.fstat(fd).st_dev
    view, outer_path = _view_in(m, task, dev)
    answer = proc.render(path, view, lambda name: _real_bytes(m, outer_path(name)), write=write,
                         memory=lambda: _may_debug(m, task, outer_path(path)))  # fmt: skip
    if isinstance(answer, Synthetic):
        return _memory_file(m, path, answer.data, write)
    if isinstance(answer, Refused):
        if answer.unknown:
            m.doubt(task, f"{os.fsdecode(path)} is not known and was hidden")
        raise OSError(answer.errno, os.strerror(answer.errno))
    return fd


def synth_again(m: Machine, task: Task, path: bytes, fd: int) -> int:
    """Have ``fd``, which stands for a file of the container's procfs, show what there is now; an error, or 0."""
    if path == LIMIT or fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY:
        return 0
    try:
        os.stat(path[len(b"/proc/"):], dir_fd=m.proc_fd)
    except FileNotFoundError:
        return -errno.ESRCH  # proc_single_show() in fs/proc/base.c
    answer = proc.render(path, machine_view(m, task), lambda name: _real_bytes(m, name))
    if not isinstance(answer, Synthetic):
        return 0
    again = os.open(f"self/fd/{fd}", os.O_WRONLY | os.O_TRUNC | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        _fill(again, answer.data)
    finally:
        os.close(again)
    return 0


def _may_debug(m: Machine, task: Task, path: bytes) -> bool:
    """Whether a thread may read the memory of the process that a path of the container's procfs is about."""
    process = m.process_of(int(path.split(b"/")[2]))
    return process is not None and may_debug(task, process)


def _view_in(m: Machine, task: Task, dev: int) -> tuple[MachineView, Callable[[bytes], bytes]]:
    """What the procfs with st_dev ``dev`` shows, and how its paths read in the container's own."""
    view = machine_view(m, task)
    space = m.nested.mounted.get(dev)
    return m.nested.view(view, space) if space is not None else (view, lambda path: path)


def synth_mode(m: Machine, task: Task, path: bytes, dev: int) -> int | None:
    """st_mode of a procfs path, None where the guest sees nothing."""
    return proc.mode(path, _view_in(m, task, dev)[0])


def synth_listing(m: Machine, task: Task, path: bytes, names: list[bytes], dev: int) -> list[bytes]:
    """The names that the guest may see in a directory of procfs or sysfs."""
    return proc.listing(path, names, _view_in(m, task, dev)[0]) if path.startswith(b"/proc") else names


def _real_bytes(m: Machine, path: bytes) -> bytes:
    fd = os.open(path[len(b"/proc/"):], os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        parts = []
        while data := os.read(fd, 65536):
            parts.append(data)
        return b"".join(parts)
    finally:
        os.close(fd)


def _fill(fd: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(fd, view):]


def _memory_file(m: Machine, path: bytes, content: bytes, write: bool) -> int:
    fd = os.memfd_create(proc.memfd_name(path), os.MFD_CLOEXEC)
    _fill(fd, content)
    os.lseek(fd, 0, os.SEEK_SET)
    if write:
        return fd
    # A second description without write access, as procfs would give.
    read_only = os.open(f"self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    os.close(fd)
    return read_only
