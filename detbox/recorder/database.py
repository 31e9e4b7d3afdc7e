"""A trace as an SQLite database, for queries: made once, and kept for the next one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import detbox
from detbox.errors import UserError
from detbox.kernel.numbers import NAMES
from detbox.recorder import decode
from detbox.recorder.calls import GIVEN, MESSAGES_GIVEN, NUMBERS_LEFT, VECTORS_GIVEN
from detbox.recorder.files import Files
from detbox.recorder.format import Event, Kind, Verdict
from detbox.recorder.read import Thread, Threads, Trace, joined
from detbox.recorder.tables import TABLES

#: Raised with each change of the tables, or of what is read from a trace.
LAYOUT = 1
#: How much room the databases of former questions may take.
MOST_BYTES = 1 << 30
_DRAFT_S = 3600.0
_NS = 1e9
_STREAMS = {1: "stdout", 2: "stderr"}
_TAKES = frozenset({*GIVEN, *VECTORS_GIVEN, *MESSAGES_GIVEN})
_RAW = ("nr", "registers", "named", "named2")
_REGISTERS = struct.Struct("<6Q")


@dataclass
class _Row:
    parent: str | None
    pid: int
    command: str
    program: str | None = None
    start: float | None = None
    end: float | None = None
    status: int | None = None
    signal: str | None = None
    calls: int = 0


@dataclass
class _Import:
    """Reads a trace into rows."""

    trace: Trace
    processes: dict[str, _Row] = field(default_factory=dict)
    files: Files = field(default_factory=Files)
    outputs: list[list[Any]] = field(default_factory=list)

    def calls(self) -> Iterator[tuple[Any, ...]]:
        """The rows of ``calls``; the others are complete when it has come to its end."""
        number, waiting = 0, 0  # outputs come before the call that wrote them
        for event, threads in joined(self.trace):
            paths = self.files.learn(event, threads)
            if event.kind is Kind.OUTPUT:
                self.outputs.append([None, None, _STREAMS.get(event.other), event.result, event.digest])
                continue
            if event.kind is not Kind.CALL:
                self._process(event, threads)
                continue
            number += 1
            thread = threads.of(event)
            row = self.processes.get(thread.process) or self._row(thread)
            row.calls += 1
            if row.start is None:
                row.start = event.time_ns / _NS
            while waiting < len(self.outputs):
                self.outputs[waiting][:2] = number, thread.process
                waiting += 1
            yield self._call(number, event, thread.process, thread.lineage, paths)

    @staticmethod
    def _call(number: int, event: Event, process: str, thread: str, paths: tuple[bytes, ...]) -> tuple[Any, ...]:
        nr, verdict = event.nr, event.verdict
        result = event.result if verdict is Verdict.REPLY else None
        error = decode.error_name(result) if result is not None and result < 0 else ""
        takes = nr in _TAKES
        crc = event.digest if event.digest and nr not in NUMBERS_LEFT else None
        path = _name(paths[0]) if paths else None
        path2 = _name(paths[1]) if len(paths) > 1 else None
        return (
            number, process, thread, event.time_ns / _NS, NAMES.get(nr) or str(nr), path, path2, result,
            error or None, crc if takes else None, None if takes else crc,
            int(event.waited or verdict is Verdict.PARK), nr, _REGISTERS.pack(*event.args), event.path, event.path2,
        )  # fmt: skip

    def _process(self, event: Event, threads: Threads) -> None:
        if event.kind is Kind.FORK:
            child = threads.by_number[event.other]
            self._row(child)
        elif event.kind is Kind.EXEC:
            thread = threads.of(event)
            row = self._row(thread)
            row.command, row.program = _text(thread.command), os.fsdecode(event.path)
            row.start = event.time_ns / _NS if row.start is None else row.start
        elif event.kind is Kind.EXIT:
            row = self._row(threads.of(event))
            row.end = event.time_ns / _NS
            if os.WIFSIGNALED(event.status):
                row.signal = decode.ending(event.status).rpartition(" ")[2]
            else:
                row.status = os.WEXITSTATUS(event.status)

    def _row(self, thread: Thread) -> _Row:
        if thread.process not in self.processes:
            parent = thread.process.rpartition(".")[0] or None
            self.processes[thread.process] = _Row(parent, thread.pid, _text(thread.command))
        return self.processes[thread.process]


def _text(text: str) -> str:
    """Text without the stand-ins for bytes that are no UTF-8, which SQLite would refuse."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _name(path: bytes) -> str:
    return path.decode("utf-8", "backslashreplace")


def _decoded(nr: int, registers: bytes, *names: bytes) -> str:
    return _text(decode.arguments(nr, _REGISTERS.unpack(registers), *names))


def opened(trace: Trace, kept: Path | None) -> sqlite3.Connection:
    """A database with the documented tables, which can only be read.  Raises UserError for a damaged trace.

    ``kept``: a directory for databases of former questions; one that cannot be used is done without.
    """
    place = _place(trace, kept) if kept is not None else None
    base = _known(place) if place is not None else None
    if base is not None:
        trace.complete = True
    elif place is None:
        base = sqlite3.connect(":memory:")
        _fill(base, trace)
    else:
        base = _made(place, trace)
    base.create_function("decoded", len(_RAW), _decoded, deterministic=True)
    shown = [name if name != "arguments" else f"decoded({', '.join(_RAW)}) AS arguments" for name in TABLES["calls"][1]]
    base.execute(f"CREATE TEMP VIEW calls AS SELECT {', '.join(shown)} FROM all_calls")
    base.execute("PRAGMA query_only = ON")
    return base


def _place(trace: Trace, kept: Path) -> Path | None:
    """The database's file: its name tells the trace's content, and how it was read."""
    try:
        with trace.path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=20)).hexdigest()
        kept.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return kept / f"{digest}-{LAYOUT}-{detbox.__version__}.sqlite"


def _known(place: Path) -> sqlite3.Connection | None:
    """The database of a former question."""
    try:
        os.utime(place)  # it is in use; see _make_room
        base = sqlite3.connect(f"{place.as_uri()}?mode=ro&immutable=1", uri=True)
        base.execute("SELECT count(*) FROM outputs")
    except (OSError, sqlite3.Error):
        return None
    return base


def _made(place: Path, trace: Trace) -> sqlite3.Connection:
    """A new database, kept for the next question if the trace is whole; in memory if it cannot be written."""
    draft = place.with_name(f".{os.getpid()}-{place.name}")
    base = sqlite3.connect(draft)
    try:
        base.execute("PRAGMA journal_mode = OFF")
        base.execute("PRAGMA synchronous = OFF")
        _fill(base, trace)
        if trace.complete:
            os.rename(draft, place)
            with contextlib.suppress(OSError):  # of another process that does the same
                _make_room(place.parent)
        return base
    except (OSError, sqlite3.Error):
        base.close()
        base = sqlite3.connect(":memory:")
        _fill(base, Trace(trace.path))
        return base
    finally:
        draft.unlink(missing_ok=True)  # the open file lives on


def _make_room(directory: Path) -> None:
    """Remove the databases that were not used for longest, and drafts of processes that were killed."""
    found = sorted(((entry.stat().st_mtime, entry) for entry in os.scandir(directory)), key=lambda pair: -pair[0])
    total = 0
    for used, entry in found:
        total += entry.stat().st_size
        if total > MOST_BYTES or entry.name.startswith(".") and time.time() - used > _DRAFT_S:
            os.unlink(entry.path)


def _fill(base: sqlite3.Connection, trace: Trace) -> None:
    for table, (_, columns) in TABLES.items():
        if table != "calls":
            base.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, (kind, _) in columns.items())})")
    columns = TABLES["calls"][1]
    stored = [name for name in columns if name != "arguments"]
    base.execute(f"CREATE TABLE all_calls ({', '.join([*(f'{n} {columns[n][0]}' for n in stored), *_RAW])})")
    rows = _Import(trace)
    marks = ", ".join("?" * (len(stored) + len(_RAW)))
    base.executemany(f"INSERT INTO all_calls VALUES ({marks})", rows.calls())
    base.executemany(
        "INSERT INTO processes VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((name, row.parent, row.pid, row.command, row.program and _text(row.program), row.start, row.end, row.status,
          row.signal, row.calls) for name, row in rows.processes.items()),
    )  # fmt: skip
    base.executemany(
        "INSERT INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        ((_name(path), process, use.opened, use.bytes_read, use.bytes_written, use.read, use.written,
          use.created, use.removed, use.executed) for (process, path), use in rows.files.uses.items()),
    )  # fmt: skip
    base.executemany(
        "INSERT INTO outputs VALUES (?, ?, ?, ?, ?, ?)", ((n, *row) for n, row in enumerate(rows.outputs, 1))
    )
    base.commit()


def query(base: sqlite3.Connection, text: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Names of the columns, and the rows.  Raises UserError for what is no query, or one of another file."""
    base.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_DENY if action == sqlite3.SQLITE_ATTACH else sqlite3.SQLITE_OK
    )
    try:
        cursor = base.execute(text)
        if cursor.description is None:
            raise UserError("this is no query", "only SELECT gives something; the trace cannot be changed")
        return [column[0] for column in cursor.description], cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        tables = ", ".join(TABLES)
        raise UserError(f"the query cannot be run: {error}", f"the tables are {tables}; --tables shows them") from None
