"""Writes a run's trace while it runs.

A record costs one ``struct.pack`` and, for a call that names a path or hands over data, one look at guest memory.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from detbox.decision import CONTINUE, ContinueThen, Decision, InstallFd, Park
from detbox.kernel.numbers import NAMES, NUMBERS
from detbox.recorder import calls
from detbox.recorder.format import (
    CALL,
    CREATED,
    END,
    EXEC,
    EXIT,
    FORK,
    HAS_PATH,
    HEAD,
    MAGIC,
    OUTPUT,
    PATH_LENGTH,
    RESULT,
    TASK,
    VERSION,
    Kind,
    Verdict,
)  # fmt: skip

if TYPE_CHECKING:
    from detbox.machine.clock import Clock
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

_FLUSH = 1 << 18  # bytes of records that are compressed at a time
_LEVEL = 1  # of zlib: ten times faster than the default, files half as large again
_PATH_MAX, _DATA_MAX, _VECTORS_MAX = 4096, 1 << 20, 64
_SEGMENT = struct.Struct("<QQ")  # struct iovec
_MSGHDR_VECTOR, _MSGHDR_VECTOR_AT = struct.Struct("<QQ"), 16  # msg_iov and msg_iovlen in struct msghdr
_NONE = (0, 0, 0, 0, 0, 0)
_ROBUST_HEAD = 24  # sizeof(struct robust_list_head)
_UNKNOWN: tuple[int, tuple[int, ...], bool, bool] = (6, (), False, False)
_DEVICES = frozenset(("CHAR", "TTY"))  # names of machine.files.Kind
# Plain numbers: an enumeration's members cost a look-up each.
_CALL = int(Kind.CALL)
_REPLY, _CONTINUE, _WATCH, _PARK, _INSTALL = (
    int(v) for v in (Verdict.REPLY, Verdict.CONTINUE, Verdict.WATCH, Verdict.PARK, Verdict.INSTALL)
)


#: Calls that the kernel executes, and whose result is certain: each program makes them, and a stop costs much.
#: (kernel/fork.c, set_tid_address; kernel/futex/syscalls.c, set_robust_list)
_FORESEEN: dict[int, Callable[[Task], int]] = {
    NUMBERS["set_tid_address"]: lambda task: task.tid,
    NUMBERS["set_robust_list"]: lambda task: 0 if task.args[1] == _ROBUST_HEAD else -errno.EINVAL,
}


def _of_a_device(task: Task) -> bool:
    """Whether a call reads or writes a character device, which might do less if its end were looked at."""
    if task.nr not in calls.UNWATCHED_DEVICES:
        return False
    file = task.process.files.known(task.args[0])
    return file is not None and file.kind.name in _DEVICES


class Recorder:
    """Appends records to the descriptor ``fd``, which it owns.

    ``results``: also know the results of calls that the kernel executes, and what calls leave in memory.
    """

    def __init__(self, fd: int, description: dict[str, Any], results: bool) -> None:
        self.results = results
        self._fd = fd
        self._threads: dict[str, int] = {}
        self._records = 0
        self._buffer = bytearray()
        self._started = False
        self._compress = zlib.compressobj(_LEVEL)
        paths, counts = calls.path_arguments(), calls.counts()
        takes = {*calls.GIVEN, *calls.VECTORS_GIVEN, *calls.MESSAGES_GIVEN}
        leaves = {*calls.LEFT, *calls.NUMBERS_LEFT, *calls.VECTORS_LEFT, *calls.MESSAGES_LEFT} if results else set()
        #: By call number: how many arguments, which of them are paths, whether it hands data over or leaves some.
        self._about = [
            (counts.get(nr, 6), paths.get(nr, ()), nr in takes, nr in leaves) for nr in range(max(NAMES) + 1)
        ]
        self._clock: Clock
        self._begin = 0
        self._trouble = ""  # why the file cannot be written any more
        text = json.dumps(description, sort_keys=True).encode()
        self._write(MAGIC + HEAD.pack(VERSION, len(text)) + text)

    def bind(self, machine: Machine) -> None:
        """Connect the run's machine; its clock gives each record's time, counted from here."""
        self._clock = machine.clock
        self._begin = machine.clock.now

    # -- what happens ------------------------------------------------------------

    def on_call(self, task: Task, decision: Decision) -> Decision:
        """A call has been decided.  Returns the decision, with what it takes to know the call's end."""
        nr, result, digest = task.nr, 0, 0
        count, paths, takes, leaves = self._about[nr] if 0 <= nr < len(self._about) else _UNKNOWN
        if type(decision) is int:
            verdict, result = _REPLY, decision
            if leaves and result >= 0:
                digest = _left(task, nr, result)
        elif decision is CONTINUE:
            verdict = _CONTINUE
            if nr in _FORESEEN and not task.process.namespaces:
                verdict, result = _REPLY, _FORESEEN[nr](task)
            elif self.results and nr not in calls.UNWATCHED and not _of_a_device(task):
                verdict, decision = _WATCH, ContinueThen(self._on_result)
        elif type(decision) is Park:
            verdict = _PARK
        elif type(decision) is ContinueThen:
            verdict = _WATCH
            if self.results:
                decision = ContinueThen(self._after(decision.look), decision.instead)
        else:
            verdict = _INSTALL
            if self.results and type(decision) is InstallFd:
                verdict |= self._watch_installation(task, decision)
        if takes:
            digest = _given(task, nr)
        args = task.args
        if count < 6:  # the other registers hold whatever the program left there
            args = args[:count] + _NONE[count:]
        if not self._started:  # the first execve comes from the supervisor's own memory
            args = _NONE
        thread = self._threads.get(task.lineage) or self._appear(task)
        now = self._clock.now - self._begin
        if paths:
            path = b"\0".join([_path(task, position) for position in paths])
            self._buffer += CALL.pack(_CALL, thread, nr & 0xFFFF, verdict | HAS_PATH, now, *args, result, digest)
            self._buffer += PATH_LENGTH.pack(len(path)) + path
        else:
            self._buffer += CALL.pack(_CALL, thread, nr & 0xFFFF, verdict, now, *args, result, digest)
        self._count()
        return decision

    def _watch_installation(self, task: Task, decision: InstallFd) -> int:
        """Have the descriptor's number told once it is known.  Returns CREATED if the call has made its file."""
        before, nr = decision.then, task.nr

        def installed(number: int) -> None:
            if before is not None:
                before(number)
            self._result(task, nr, number, 0)

        decision.then = installed
        vnode = getattr(decision.info, "vnode", None)
        # What a call makes gets a time of birth that is no earlier than the call itself.
        if nr in calls.OPENING and vnode is not None and vnode.btime >= self._clock.realtime(self._clock.now):
            return CREATED
        return 0

    def _after(self, look: Callable[[Task, int], int | None]) -> Callable[[Task, int], int | None]:
        def looking(task: Task, result: int) -> int | None:
            replaced = look(task, result)
            self._on_result(task, result if replaced is None else replaced)
            return replaced

        return looking

    def _on_result(self, task: Task, result: int) -> None:
        """The kernel has executed a watched call."""
        leaves = 0 <= task.nr < len(self._about) and self._about[task.nr][3]
        self._result(task, task.nr, result, _left(task, task.nr, result) if leaves and result >= 0 else 0)

    def _result(self, task: Task, nr: int, result: int, digest: int) -> None:
        thread = self._threads.get(task.lineage) or self._appear(task)
        self._add(RESULT.pack(Kind.RESULT, thread, nr & 0xFFFF, result, digest))

    def on_fork(self, _machine: Machine, parent: Process, child: Process) -> None:
        """A process has been created."""
        mother = self._threads.get(parent.lineage, 0)
        self._add(FORK.pack(Kind.FORK, mother, self._name(child.lineage, child.pid, child.pid)))

    def on_thread(self, parent: Task, child: Task) -> None:
        """A thread has been created."""
        mother = self._threads.get(parent.lineage) or self._appear(parent)
        self._add(FORK.pack(Kind.FORK, mother, self._appear(child)))

    def on_exec(self, machine: Machine, task: Task) -> None:
        """A process executes a program."""
        self._started = True
        thread = self._threads.get(task.lineage) or self._appear(task)
        fd = os.open(f"{task.process.pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC, dir_fd=machine.proc_fd)
        with open(fd, "rb") as file:
            words = file.read().removesuffix(b"\0")
        exe = task.process.exe
        head = EXEC.pack(Kind.EXEC, thread, machine.clock.now - self._begin, len(exe), len(words))
        self._add(head + exe + words)

    def on_exit(self, machine: Machine, process: Process) -> None:
        """A process is gone."""
        thread = self._threads.get(process.lineage, 0)
        self._add(EXIT.pack(Kind.EXIT, thread, machine.clock.now - self._begin, process.status or 0))

    def on_output(self, stream: int, data: bytes) -> None:
        """The guest has written to its standard output (1) or error (2)."""
        self._add(OUTPUT.pack(Kind.OUTPUT, stream, len(data), zlib.crc32(data)))

    def close(self, ended: bool) -> str:
        """Write what is left, and the last record if the run has ended.  Returns why that failed, "" if it did not."""
        if ended:
            self._buffer += END.pack(Kind.END, self._records)
        self._write(self._compress.compress(self._buffer) + self._compress.flush())
        os.close(self._fd)
        return self._trouble

    # -- parts ---------------------------------------------------------------------

    def _add(self, record: bytes) -> None:
        self._buffer += record
        self._count()

    def _count(self) -> None:
        self._records += 1
        if len(self._buffer) >= _FLUSH:
            self._write(self._compress.compress(self._buffer))
            self._buffer.clear()

    def _write(self, data: bytes) -> None:
        """Append to the file; a failure ends the recording, not the run."""
        view = memoryview(data)
        try:
            while view and not self._trouble:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            self._trouble = f"the trace cannot be written: {error.strerror}"

    def _appear(self, task: Task) -> int:
        return self._name(task.lineage, task.process.pid, task.tid)

    def _name(self, lineage: str, pid: int, tid: int) -> int:
        number = self._threads[lineage] = len(self._threads) + 1
        name = lineage.encode()
        self._add(TASK.pack(Kind.TASK, number, pid, tid, len(name)) + name)
        return number


def _path(task: Task, position: int) -> bytes:
    try:
        return task.cstr(task.args[position])[:_PATH_MAX]
    except OSError:  # the call itself fails as well
        return b""


def _given(task: Task, nr: int) -> int:
    """CRC-32 of the data that a call hands over; 0 for none."""
    try:
        if nr in calls.GIVEN:
            address, length = calls.GIVEN[nr]
            return zlib.crc32(task.read(task.args[address], min(task.args[length], _DATA_MAX)))
        return _gathered(task, nr in calls.MESSAGES_GIVEN, _DATA_MAX)
    except OSError:
        return 0


def _left(task: Task, nr: int, result: int) -> int:
    """CRC-32 of what a successful call has left in guest memory (or the numbers themselves); 0 for nothing."""
    try:
        if nr in calls.NUMBERS_LEFT:
            argument, count = calls.NUMBERS_LEFT[nr]
            if not task.args[argument]:
                return 0
            numbers = struct.unpack(f"<{count}I", task.read(task.args[argument], 4 * count))
            return sum((number & 0xFFFF) << 16 * place for place, number in enumerate(numbers))
        if nr not in calls.LEFT:
            return _gathered(task, nr in calls.MESSAGES_LEFT, min(result, _DATA_MAX))
        address, length = calls.LEFT[nr]
        if length == calls.RESULT:
            length = min(result, _DATA_MAX)
        if not length or not task.args[address]:
            return 0
        return zlib.crc32(task.read(task.args[address], length))
    except OSError:
        return 0


def _gathered(task: Task, message: bool, limit: int) -> int:
    """CRC-32 of ``limit`` bytes at most in the buffers of a vector (or of a struct msghdr's vector)."""
    start, count = task.args[1], task.args[2]
    if message:
        start, count = _MSGHDR_VECTOR.unpack(task.read(start + _MSGHDR_VECTOR_AT, _MSGHDR_VECTOR.size))
    vector = task.read(start, _SEGMENT.size * min(count, _VECTORS_MAX))
    digest = 0
    for address, size in _SEGMENT.iter_unpack(vector):
        size = min(size, limit)
        digest = zlib.crc32(task.read(address, size), digest)
        limit -= size
    return digest
