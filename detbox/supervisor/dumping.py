"""Writes the core file of a process that a signal is about to end, as fs/coredump.c does for the kernel.

The thread that takes the signal is in its delivery stop.  The others are held, most of them in calls: they come out of
these into a stop, as they would on the way to their end, without executing an instruction of their own.  The file is
made by the handlers of unlink(2) and open(2), as if the thread made these calls.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from collections.abc import Iterator
from functools import partial
from resource import RLIMIT_FSIZE
from typing import TYPE_CHECKING

from detbox.cpu.auxv import AT_SYSINFO_EHDR
from detbox.decision import ERESTARTSYS, Decision, InstallFd
from detbox.handlers import cores
from detbox.handlers.limits import limits_of
from detbox.handlers.tracing_registers import fpregs, xstate
from detbox.kernel import _native, registers
from detbox.kernel.numbers import NUMBERS
from detbox.machine.clock import CpuTime, user_and_system
from detbox.machine.constants import PAGE_SIZE
from detbox.spin import PtraceStepper
from detbox.supervisor import procview, signals
from detbox.supervisor.task import State, Task
from detbox.synth import elfcore, maps
from detbox.synth.elfcore import Dying, Segment, Thread
from detbox.synth.table import Query

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine

_NAME = b"core"
_FLAGS, _MODE = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW, 0o600
#: What a file may not have been given otherwise: the owner's rights, and those of others.
_RIGHTS = 0o677
#: Where the name is said to be in the thread's memory.
_ADDRESS = 1


def dump(sup: Supervisor, task: Task, signo: int) -> None:
    """Write the core file of a thread's process, which dies of the signal when the thread goes on."""
    m, process = sup.m, task.process
    if _is_first(sup, task):
        return
    others = [other for tid, other in sorted(process.tasks.items()) if other is not task and _stop(sup, other)]
    file = _open(sup, task)
    if file is None:
        return
    process.data[cores.LEFT] = True
    loops = sup.spinning.loops
    if loops.armed(process.mm):
        loops.disarm(process.mm, PtraceStepper(task.tid))
    with open(file, "wb", buffering=0, closefd=True):
        end, _ = limits_of(process)[RLIMIT_FSIZE]
        _write(m, Output(file, cores.limit(process), end), (task, *others), signo)


def _is_first(sup: Supervisor, task: Task) -> bool:
    """Whether a thread's process is the first one of a PID namespace, which no signal ends (SIGNAL_UNKILLABLE)."""
    if not task.process.namespaces:
        return False
    numbers = sup.m.nested.numbers(task.process.pid, sup.m.nested.space(task.tid))
    return numbers is not None and numbers[0] == 1


def _stop(sup: Supervisor, task: Task) -> bool:
    """Bring a thread of the process to a ptrace stop; False if it has no registers to show.

    It has nothing to do any more but to end.  Who waits for a vfork child cannot be stopped.
    """
    m, state = sup.m, task.state
    if state in (State.VFORK, State.DEAD):
        return False
    if task.notif:
        park = m.scheduler.withdraw(task)
        result = -ERESTARTSYS
        if park is not None:
            result = park.interrupted() if callable(park.interrupted) else -park.interrupted
        task.look = None
        _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)
        _native.reply(m.listener, task.notif, max(result, 0), min(result, 0), 0)
        task.notif = 0
    elif state is State.STOPPED:
        _native.ptrace_request(signals.PTRACE_INTERRUPT, task.tid, 0, 0)
    else:
        m.scheduler.remove(task)
        return _take_out(sup, task)
    m.scheduler.remove(task)
    return sup.await_stop(task.tid) is not None and _take_out(sup, task)


def _take_out(sup: Supervisor, task: Task) -> bool:
    """Have a stopped thread stand in its own code."""
    sup.counting.copying.come_out(task)
    with contextlib.suppress(ProcessLookupError):
        sup.counting.long_loops.before_signal(task)
        return True
    return False


# -- the file --------------------------------------------------------------------------------


def _open(sup: Supervisor, task: Task) -> int | None:
    """A descriptor of the new file; None if the process cannot make it."""
    with contextlib.suppress(OSError):
        _call(sup, task, "unlink")
    try:
        made = _call(sup, task, "open", _FLAGS, _MODE)
    except OSError:
        return None
    if not isinstance(made, InstallFd):
        return None
    if os.fstat(made.fd).st_mode & _RIGHTS != _MODE:  # its umask
        os.close(made.fd)
        return None
    return made.fd


def _call(sup: Supervisor, task: Task, name: str, *rest: int) -> Decision:
    """What the handler of a call says that begins with the file's name; whoever follows calls hears of it, too."""
    handler = sup.table[NUMBERS[name]]
    assert handler is not None
    task.text_at, task.text = _ADDRESS, _NAME
    try:
        return handler(sup.m, task, (_ADDRESS, *rest, *(0,) * (5 - len(rest))))
    finally:
        task.text_at = -1


class Output:
    """The file as it is written: holes are left out of it and of what it may have at most (dump_emit(), dump_skip()).

    ``most``: bytes that may be written.  ``end``: where no file may go on.
    """

    def __init__(self, fd: int, most: int, end: int) -> None:
        self._fd = fd
        self._most = most
        self._end = end
        self._at = 0
        self._size = 0

    def put(self, data: bytes) -> bool:
        """Write a piece, as far as it may go; False if that is not all of it."""
        if len(data) > self._most:
            return False
        rest = memoryview(data)[: max(self._end - self._at, 0)]
        whole = len(rest) == len(data)
        while rest:
            try:
                done = os.pwrite(self._fd, rest, self._at)
            except OSError:
                return False
            self._at += done
            self._most -= done
            self._size, rest = self._at, rest[done:]
        return whole

    def pages(self, data: bytes) -> bool:
        """The same with pages, of which each counts by itself."""
        fits = min(len(data), self._most // PAGE_SIZE * PAGE_SIZE)
        return self.put(data[:fits]) and fits == len(data)

    def skip_to(self, at: int) -> None:
        """Go on there, behind a hole."""
        self._at = at

    def finish(self) -> None:
        """Have the file end where it has got to, also if that is a hole."""
        if self._at > self._size:
            self._at -= 1
            self.put(b"\0")


def _write(m: Machine, out: Output, tasks: tuple[Task, ...], signo: int) -> None:
    memory = _Memory(m, tasks[0])
    try:
        pieces = list(elfcore.head(memory.process(tasks), signo, memory.segments))
        if not all(out.put(piece) for piece in pieces):
            return
        at = elfcore.page_above(sum(map(len, pieces)))
        out.skip_to(at)
        for segment in memory.segments:
            for distance, data in memory.pieces(segment):
                out.skip_to(at + distance)
                if not out.pages(data):
                    return
            at += segment.size
            out.skip_to(at)
        out.finish()
    finally:
        memory.close()


# -- what is written -------------------------------------------------------------------------


class _Memory:
    """The memory of a process, and what else /proc tells of it."""

    def __init__(self, m: Machine, task: Task) -> None:
        self._m = m
        self._task = task
        self._mem = self._open("mem")
        self._pagemap = self._open("pagemap")
        self._view = procview.machine_view(m, task)
        query = Query(b"", self._view, self._listing, self._view.processes[task.process.pid])
        kinds = int(self._content("coredump_filter"), 16)
        details = maps.details(query)
        self.segments = []
        for mapping in maps.mappings(query):
            is_elf = partial(self._is_elf, mapping)
            size = elfcore.dumped(mapping, details.get(mapping.start, maps.PLAIN), kinds, is_elf)
            self.segments.append(Segment(mapping, size))
        self._add_vdso(self._view.processes[task.process.pid].auxv)

    def _add_vdso(self, auxv: bytes) -> None:
        """Its code is always there, as natively: debuggers find its name in it.  (Of ours, /proc does not tell.)"""
        start = next((value for key, value in struct.iter_unpack("<2Q", auxv) if key == AT_SYSINFO_EHDR), 0)
        vdso = maps.Mapping(start, start + PAGE_SIZE, b"r-xp", 0, 0, 0, b"[vdso]")
        if start and self._is_elf(vdso):
            self.segments.append(Segment(vdso, PAGE_SIZE))
            self.segments.sort(key=lambda segment: segment.mapping.start)

    def close(self) -> None:
        """It is not looked at any more."""
        os.close(self._mem)
        os.close(self._pagemap)

    def _open(self, name: str) -> int:
        return os.open(f"{self._task.tid}/{name}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._m.proc_fd)

    def _content(self, name: str) -> bytes:
        with open(self._open(name), "rb") as file:
            return file.read()

    def _listing(self, path: bytes) -> bytes:
        """By the thread: a first thread that is gone has none."""
        return self._content(os.fsdecode(path.rpartition(b"/")[2]))

    def _is_elf(self, mapping: maps.Mapping) -> bool:
        with contextlib.suppress(OSError):
            return self._read(mapping.start, len(elfcore.MAGIC)) == elfcore.MAGIC
        return False

    def _read(self, address: int, length: int) -> bytes:
        data = os.pread(self._mem, length, address)
        if len(data) != length:
            raise OSError(errno.EIO, "no memory there")
        return data

    def _entries(self, address: int, length: int) -> bytes:
        return os.pread(self._pagemap, length, address // PAGE_SIZE * elfcore.ENTRY)

    def pieces(self, segment: Segment) -> Iterator[tuple[int, bytes]]:
        """What is in the memory of a segment, but zeros."""
        mapping = segment.mapping
        entries = None if mapping.is_file else self._entries
        return elfcore.pieces(mapping.start, mapping.start + segment.size, self._read, entries)

    def process(self, tasks: tuple[Task, ...]) -> Dying:
        """The process, with these threads."""
        m, first = self._m, tasks[0]
        process = first.process
        shown = self._view.processes[process.pid]
        threads = [self._thread(task) for task in tasks]
        if process.namespaces and (space := m.nested.space(first.tid)).depth:
            own, _ = m.nested.view(self._view, space)
            called = m.nested.numbers(process.pid, space)
            shown = own.processes[called[0]] if called is not None else shown
        return Dying(
            shown.pid, shown.ppid, shown.pgrp, shown.sid, shown.uids[0], shown.gids[0], shown.nice, shown.comm,
            self._content("cmdline"), _times(process.cpu.children_ns), _native.get_siginfo(first.tid), shown.auxv,
            threads,
        )  # fmt: skip

    def _thread(self, task: Task) -> Thread:
        sets = signals.pending(self._m, task)
        # A process's first thread has the times of all.
        used: CpuTime = task.process.cpu if task.tid == task.process.pid else task.cpu
        features = self._m.cpu_model.xcr0
        return Thread(
            self._m.nested.called(task, self._task), sets.private, sets.blocked, _times(used.ns),
            bytes(registers.get(task.tid).words), fpregs(task), xstate(task, features) if features else b"",
        )


def _times(ns: int) -> tuple[int, int]:
    user, system = user_and_system(ns)
    return user // 1000, system // 1000
