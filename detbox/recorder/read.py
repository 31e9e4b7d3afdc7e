"""Reads traces: records one by one, and the threads and processes they speak of."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from detbox.errors import UserError
from detbox.recorder.calls import CREATING, EXECUTING
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
    Event,
    Kind,
    Verdict,
    decode,
)  # fmt: skip

_CHUNK = 1 << 16
_HEADS: dict[int, struct.Struct] = {
    Kind.TASK: TASK, Kind.FORK: FORK, Kind.EXEC: EXEC, Kind.EXIT: EXIT, Kind.OUTPUT: OUTPUT, Kind.CALL: CALL,
    Kind.RESULT: RESULT, Kind.END: END,
}  # fmt: skip
_VERDICT_AT = 7  # of the verdict's byte in a CALL


class Trace:
    """An open trace.  Raises UserError for what is no trace, or one of another version.

    ``complete`` is known when ``records`` has come to its end: whether the run closed the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.complete = False
        try:
            self._file = path.open("rb")
        except OSError as error:
            raise UserError(f"{path}: {error.strerror}") from None
        magic = self._file.read(len(MAGIC))
        head = self._file.read(HEAD.size)
        if magic != MAGIC or len(head) < HEAD.size:
            raise UserError(f"{path} is not a trace", "detbox trace -o FILE -- CMD makes one")
        version, length = HEAD.unpack(head)
        if version != VERSION:
            raise UserError(
                f"{path} is a trace of version {version}, and this detbox reads version {VERSION}",
                "record it again: the same run gives the same events",
            )
        text = self._file.read(length)
        if len(text) < length:
            raise UserError(f"{path} is cut off within its first line", "record it again")
        self.description: dict[str, Any] = json.loads(text)

    def records(self) -> Iterator[bytes]:
        """Raw records in order.  One that is cut off is left out.  Raises UserError for damaged data."""
        unpack, rest = zlib.decompressobj(), b""
        while not self.complete:
            packed = self._file.read(_CHUNK)
            try:
                rest += unpack.decompress(packed) if packed else unpack.flush()
            except zlib.error as error:
                raise UserError(f"{self.path} is damaged: {error}", "record it again") from None
            at = 0
            while (end := _end(rest, at, self.path)) is not None:
                if rest[at] == Kind.END:
                    self.complete = True
                    break
                yield rest[at:end]
                at = end
            rest = rest[at:]
            if not packed:
                break
        self._file.close()


def _end(data: bytes, at: int, path: Path) -> int | None:
    """Where the record at ``at`` ends; None if it is not all there."""
    if at >= len(data):
        return None
    head = _HEADS.get(data[at])
    if head is None:
        raise UserError(f"{path} is damaged: no record begins with {data[at]}", "record it again") from None
    end = at + head.size
    if end > len(data):
        return None
    if head is TASK:
        end += TASK.unpack_from(data, at)[4]
    elif head is EXEC:
        end += sum(EXEC.unpack_from(data, at)[3:])
    elif head is CALL and data[at + _VERDICT_AT] & HAS_PATH:
        if end + PATH_LENGTH.size > len(data):
            return None
        end += PATH_LENGTH.size + PATH_LENGTH.unpack_from(data, end)[0]
    return end if end <= len(data) else None


class Thread:
    """A thread as known at some point of a trace.

    ``lineage`` and ``process``: its own and its process's lineage.  ``command``: what it executes, as one line.
    """

    __slots__ = ("command", "lineage", "pid", "process", "tid")

    def __init__(self, lineage: str, pid: int, tid: int = 0, command: str = "") -> None:
        self.lineage, self.pid, self.tid, self.command = lineage, pid, tid, command
        self.process = lineage.partition("/")[0]

    @property
    def is_first(self) -> bool:
        """Whether it is the thread that its process began with."""
        return self.lineage == self.process


class Threads:
    """Who is who, from the records until now."""

    def __init__(self) -> None:
        self.by_number: dict[int, Thread] = {}
        self._commands: dict[str, str] = {}
        self._of_process: dict[str, list[Thread]] = {}

    def learn(self, event: Event) -> None:
        """Take note of a record about threads."""
        if event.kind is Kind.TASK:
            thread = self.by_number[event.thread] = Thread(event.lineage, event.pid, event.other)
            known = self._commands
            thread.command = known.get(thread.process) or known.get(thread.process.rpartition(".")[0], "")
            known.setdefault(thread.process, thread.command)
            self._of_process.setdefault(thread.process, []).append(thread)
        elif event.kind is Kind.EXEC:
            process = self.by_number[event.thread].process
            command = self._commands[process] = " ".join(map(os.fsdecode, event.argv))
            for thread in self._of_process[process]:
                thread.command = command

    def of(self, event: Event) -> Thread:
        """The thread of a record."""
        return self.by_number.get(event.thread) or Thread("?", 0)

    def ancestors(self, thread: Thread) -> list[tuple[str, str]]:
        """Lineage and command of the process and of those above it, the first process first."""
        parts = thread.process.split(".")
        names = [".".join(parts[: length + 1]) for length in range(len(parts))]
        return [(name, self._commands.get(name, "")) for name in names]


def events(trace: Trace) -> Iterator[tuple[Event, Threads]]:
    """Decoded records, each with what is known of threads after it."""
    threads = Threads()
    for raw in trace.records():
        event = decode(raw)
        threads.learn(event)
        yield event, threads


def joined(trace: Trace) -> Iterator[tuple[Event, Threads]]:
    """The same with one event for each call: its waits are left out, and its end joined with its beginning.

    The result of a call is known if ``event.known``.
    """
    threads = Threads()
    for event in join(_learned(trace, threads), threads):
        yield event, threads


def _learned(trace: Trace, threads: Threads) -> Iterator[Event]:
    for raw in trace.records():
        event = decode(raw)
        if event.kind is Kind.TASK or event.kind is Kind.EXEC:
            threads.learn(event)
        yield event


def join(records: Iterable[Event], threads: Threads) -> Iterator[Event]:
    """Decoded records with one for each call; calls that still wait come at the end."""
    waits: dict[int, Event] = {}
    begun: list[Event] = []  # a call whose end may follow, and what came after it
    for event in records:
        if begun:
            if event.kind is Kind.TASK and begun[0].nr in CREATING:
                begun.append(event)
                continue
            failed = _is_failure(begun[0], event)
            _end_call(begun[0], event, threads)
            yield from begun
            begun = []
            if failed:
                continue
        if event.kind is Kind.RESULT:
            continue
        if event.kind is Kind.CALL:
            waited = waits.pop(event.thread, None)
            if event.verdict is Verdict.PARK:
                waits[event.thread] = waited or event
                continue
            if waited is not None:
                event.time_ns, event.waited = waited.time_ns, True
            if event.verdict is not Verdict.REPLY:
                begun = [event]
                continue
        yield event
    yield from (*begun, *waits.values())


def _end_call(call: Event, event: Event, threads: Threads) -> None:
    """Give a call the result that the event after it tells, if it is one that does."""
    kind, same = event.kind, call.thread == event.thread
    if kind is Kind.RESULT and same and call.nr == event.nr:
        call.result, call.digest = event.result, call.digest or event.digest
    elif kind is Kind.FORK and call.nr in CREATING:
        call.result = threads.by_number[event.other].tid
    elif kind is Kind.EXEC and same and call.nr in EXECUTING:
        call.result = 0
    elif _is_failure(call, event):
        call.result = event.result
    else:
        return
    call.verdict = Verdict.REPLY


def _is_failure(call: Event, event: Event) -> bool:
    """Whether an event says that the descriptor, with which a call was to be answered, could not be installed."""
    if call.verdict is not Verdict.INSTALL or event.kind is not Kind.CALL or event.verdict is not Verdict.REPLY:
        return False
    return (call.thread, call.nr, call.args, call.time_ns) == (event.thread, event.nr, event.args, event.time_ns)
