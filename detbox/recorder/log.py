"""Writes a run's trace while it runs.

A record costs one ``struct.pack`` and, for a call that names a path or hands over data, one look at guest memory.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import TYPE_CHECKING, Any

from detbox.decision import CONTINUE, ContinueThen, Decision, Park
from detbox.errors import HostError
from detbox.kernel.numbers import NAMES
from detbox.recorder import calls
from detbox.recorder.format import (
    CALL,
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
_NONE = (0, 0, 0, 0, 0, 0)
_UNKNOWN = (6, -1, False)
# Plain numbers: an enumeration's members cost a look-up each.
_CALL = int(Kind.CALL)
_REPLY, _CONTINUE, _WATCH, _PARK, _INSTALL = (
    int(v) for v in (Verdict.REPLY, Verdict.CONTINUE, Verdict.WATCH, Verdict.PARK, Verdict.INSTALL)
)


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
        takes = {*calls.GIVEN, *calls.VECTORS}
        #: By call number: how many arguments, which of them is a path (-1: none), whether it hands data over.
        self._about = [(counts.get(nr, 6), paths.get(nr, -1), nr in takes) for nr in range(max(NAMES) + 1)]
        self._clock: Clock
        text = json.dumps(description, sort_keys=True).encode()
        self._write(MAGIC + HEAD.pack(VERSION, len(text)) + text)

    def bind(self, machine: Machine) -> None:
        """Connect the run's machine, whose clock gives each record's time."""
        self._clock = machine.clock

    # -- what happens ------------------------------------------------------------

    def on_call(self, task: Task, decision: Decision) -> None:
        """A call has been decided."""
        nr, result, digest = task.nr, 0, 0
        count, position, takes = self._about[nr] if 0 <= nr < len(self._about) else _UNKNOWN
        if type(decision) is int:
            verdict, result = _REPLY, decision
        elif decision is CONTINUE:
            verdict = _CONTINUE
        elif type(decision) is Park:
            verdict = _PARK
        elif type(decision) is ContinueThen:
            verdict = _WATCH
        else:
            verdict = _INSTALL
        if takes:
            digest = self._given(task, nr)
        elif self.results and verdict == _REPLY and nr in calls.LEFT:
            digest = _left(task, nr, result)
        args = task.args
        if count < 6:  # the other registers hold whatever the program left there
            args = args[:count] + _NONE[count:]
        if not self._started:  # the first execve comes from the supervisor's own memory
            args = _NONE
        thread = self._threads.get(task.lineage) or self._appear(task)
        now = self._clock.now
        path = b"" if position < 0 else self._path(task, position)
        if path:
            code = verdict | HAS_PATH
            self._buffer += CALL.pack(_CALL, thread, nr & 0xFFFF, code, now, *args, result, digest)
            self._buffer += PATH_LENGTH.pack(len(path)) + path
        else:
            self._buffer += CALL.pack(_CALL, thread, nr & 0xFFFF, verdict, now, *args, result, digest)
        self._count()

    def on_result(self, task: Task, result: int) -> None:
        """The kernel has executed a watched call."""
        thread = self._threads.get(task.lineage) or self._appear(task)
        digest = _left(task, task.nr, result) if task.nr in calls.LEFT else 0
        self._add(RESULT.pack(Kind.RESULT, thread, task.nr & 0xFFFF, result, digest))

    def on_fork(self, _machine: Machine, parent: Process, child: Process) -> None:
        """A process has been created."""
        mother = self._threads.get(parent.lineage, 0)
        self._add(FORK.pack(Kind.FORK, mother, self._name(child.lineage, child.pid, child.pid)))

    def on_exec(self, machine: Machine, task: Task) -> None:
        """A process executes a program."""
        self._started = True
        thread = self._threads.get(task.lineage) or self._appear(task)
        fd = os.open(f"{task.process.pid}/cmdline", os.O_RDONLY | os.O_CLOEXEC, dir_fd=machine.proc_fd)
        with open(fd, "rb") as file:
            words = file.read().removesuffix(b"\0")
        exe = task.process.exe
        head = EXEC.pack(Kind.EXEC, thread, machine.clock.now, len(exe), len(words))
        self._add(head + exe + words)

    def on_exit(self, machine: Machine, process: Process) -> None:
        """A process is gone."""
        thread = self._threads.get(process.lineage, 0)
        self._add(EXIT.pack(Kind.EXIT, thread, machine.clock.now, process.status or 0))

    def on_output(self, stream: int, data: bytes) -> None:
        """The guest has written to its standard output (1) or error (2)."""
        self._add(OUTPUT.pack(Kind.OUTPUT, stream, len(data), zlib.crc32(data)))

    def close(self) -> None:
        """Write what is left and the last record.  Raises HostError if the file cannot be written."""
        self._buffer += END.pack(Kind.END, self._records)
        self._write(self._compress.compress(self._buffer) + self._compress.flush())
        os.close(self._fd)

    def wrapped(self, nr: int, handler: Any) -> Any:
        """A handler that also tells the results of its call, if the call is one that leaves something."""
        if not self.results or nr not in calls.LEFT:
            return handler

        def watching(machine: Machine, task: Task, args: tuple[int, ...]) -> Decision:
            decision: Decision = handler(machine, task, args)
            return ContinueThen(self.on_result) if decision is CONTINUE else decision

        return watching

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
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._fd, view) :]
        except OSError as error:
            raise HostError(f"the trace cannot be written: {error.strerror}", "give -o FILE elsewhere") from None

    def _appear(self, task: Task) -> int:
        return self._name(task.lineage, task.process.pid, task.tid)

    def _name(self, lineage: str, pid: int, tid: int) -> int:
        number = self._threads[lineage] = len(self._threads) + 1
        name = lineage.encode()
        self._add(TASK.pack(Kind.TASK, number, pid, tid, len(name)) + name)
        return number

    @staticmethod
    def _path(task: Task, position: int) -> bytes:
        try:
            return task.cstr(task.args[position])[:_PATH_MAX]
        except OSError:  # the call itself fails as well
            return b""

    def _given(self, task: Task, nr: int) -> int:
        try:
            if nr in calls.GIVEN:
                address, length = calls.GIVEN[nr]
                return zlib.crc32(task.read(task.args[address], min(task.args[length], _DATA_MAX)))
            digest = 0
            for place in range(min(task.args[2], _VECTORS_MAX)):
                start, size = task.u64(task.args[1] + 16 * place), task.u64(task.args[1] + 16 * place + 8)
                digest = zlib.crc32(task.read(start, min(size, _DATA_MAX)), digest)
            return digest
        except OSError:
            return 0


def _left(task: Task, nr: int, result: int) -> int:
    """CRC-32 of what a call has left in guest memory; 0 for nothing."""
    address, length = calls.LEFT[nr]
    if result < 0:
        return 0
    if length == calls.RESULT:
        length = min(result, _DATA_MAX)
    if not length or not task.args[address]:
        return 0
    try:
        return zlib.crc32(task.read(task.args[address], length))
    except OSError:
        return 0
