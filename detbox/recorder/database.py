"""A trace as an SQLite database, for queries."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from detbox.errors import UserError
from detbox.kernel.numbers import NAMES
from detbox.recorder import decode
from detbox.recorder.calls import GIVEN, MESSAGES_GIVEN, NUMBERS_LEFT, VECTORS_GIVEN
from detbox.recorder.files import Files
from detbox.recorder.format import Event, Kind, Verdict
from detbox.recorder.read import Threads, Trace, joined

#: By table: what it has, and the type and meaning of each column.
TABLES: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {
    "processes": (
        "one row for each process",
        {
            "process": ("TEXT", "lineage: 1, 1.1, 1.2, 1.2.1 …"),
            "parent": ("TEXT", "lineage of the process that created it"),
            "pid": ("INTEGER", "its number in the guest"),
            "command": ("TEXT", "what it executed last, or the creator's command"),
            "program": ("TEXT", "path of the executed file, NULL if it executed nothing"),
            "start_s": ("REAL", "virtual seconds"),
            "end_s": ("REAL", "virtual seconds, NULL if the run was ended before"),
            "status": ("INTEGER", "exit status, NULL if a signal ended it"),
            "signal": ("TEXT", "the signal that ended it"),
            "calls": ("INTEGER", "number of recorded calls"),
        },
    ),
    "calls": (
        "one row for each call, in order",
        {
            "id": ("INTEGER PRIMARY KEY", "order in the run"),
            "process": ("TEXT", "lineage of the process"),
            "thread": ("TEXT", "lineage of the thread; 1/1 is a thread of 1"),
            "time_s": ("REAL", "virtual seconds"),
            "name": ("TEXT", "of the call"),
            "arguments": ("TEXT", "as `trace show` prints them"),
            "path": ("TEXT", "absolute path of the file, also if the call names a descriptor"),
            "path2": ("TEXT", "the second path of rename, link …"),
            "result": ("INTEGER", "NULL if it is not known"),
            "error": ("TEXT", "ENOENT …, NULL if the call succeeded"),
            "written_crc": ("INTEGER", "CRC-32 of the data that the call handed over"),
            "read_crc": ("INTEGER", "CRC-32 of the data that the call left in memory"),
            "waited": ("INTEGER", "1 if the thread had to wait"),
        },
    ),
    "files": (
        "one row for each file and process that used it",
        {
            "path": ("TEXT", "absolute; pipe:N for pipes, socket:Na and socket:Nb for pairs"),
            "process": ("TEXT", "lineage"),
            "opened": ("INTEGER", "how often"),
            "bytes_read": ("INTEGER", "by read and its relatives"),
            "bytes_written": ("INTEGER", "by write and its relatives"),
            "read": ("INTEGER", "1 if read, mapped or executed"),
            "written": ("INTEGER", "1 if written, truncated, created or renamed to"),
            "created": ("INTEGER", "1 if the process created it"),
            "removed": ("INTEGER", "1 if the process removed it or renamed it away"),
            "executed": ("INTEGER", "1 if executed"),
        },
    ),
    "outputs": (
        "one row for each piece of standard output and error",
        {
            "id": ("INTEGER PRIMARY KEY", "order"),
            "call": ("INTEGER", "id of the call that wrote it"),
            "process": ("TEXT", "lineage of the writer"),
            "stream": ("TEXT", "stdout or stderr"),
            "bytes": ("INTEGER", "length"),
            "crc": ("INTEGER", "CRC-32"),
        },
    ),
}

#: Queries that say what the tables are good for: (what it tells, the query).
EXAMPLES: tuple[tuple[str, str], ...] = (
    ("the commonest calls", "SELECT name, count(*) AS times FROM calls GROUP BY name ORDER BY times DESC LIMIT 10"),
    (
        "which processes took longest (virtual time)",
        "SELECT process, round(end_s - start_s, 6) AS seconds, command FROM processes ORDER BY seconds DESC LIMIT 10",
    ),
    (
        "commands that failed",
        "SELECT process, status, signal, command FROM processes WHERE status <> 0 OR signal <> ''",
    ),
    (
        "files that the run created and kept",
        "SELECT path, sum(bytes_written) AS bytes FROM files GROUP BY path "
        "HAVING max(created) AND NOT max(removed) ORDER BY path",
    ),
    (
        "inputs: what was read and never written",
        "SELECT path, count(*) AS readers FROM files WHERE read AND path LIKE '/%' GROUP BY path "
        "HAVING path NOT IN (SELECT path FROM files WHERE written) ORDER BY readers DESC, path LIMIT 20",
    ),
    (
        "who wrote what another process read",
        "SELECT w.process AS writer, w.path, r.process AS reader FROM files w JOIN files r USING (path) "
        "WHERE w.written AND r.read AND w.process <> r.process LIMIT 20",
    ),
    (
        "files that were looked for and not found",
        "SELECT path, count(*) AS times FROM calls WHERE error = 'ENOENT' GROUP BY path ORDER BY times DESC LIMIT 10",
    ),
    (
        "who printed how much",
        "SELECT stream, command, sum(bytes) AS bytes FROM outputs JOIN processes USING (process) "
        "GROUP BY stream, command ORDER BY bytes DESC",
    ),
    (
        "what a process looked at a clock for",
        "SELECT process, name, count(*) AS times FROM calls "
        "WHERE name IN ('clock_gettime', 'gettimeofday', 'time') GROUP BY process, name ORDER BY times DESC LIMIT 10",
    ),
)

_NS = 1e9
_STREAMS = {1: "stdout", 2: "stderr"}
_TAKES = frozenset({*GIVEN, *VECTORS_GIVEN, *MESSAGES_GIVEN})
_RAW = ("nr", "a0", "a1", "a2", "a3", "a4", "a5", "named", "named2")


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
            row = self._row(thread.process, thread.pid, thread.command)
            row.calls += 1
            if row.start is None:
                row.start = event.time_ns / _NS
            while waiting < len(self.outputs):
                self.outputs[waiting][:2] = number, thread.process
                waiting += 1
            yield self._call(number, event, thread.process, thread.lineage, paths)

    @staticmethod
    def _call(number: int, event: Event, process: str, thread: str, paths: tuple[bytes, ...]) -> tuple[Any, ...]:
        result = event.result if event.known else None
        error = decode.error_name(event.result) or None if event.known else None
        takes = event.nr in _TAKES
        crc = event.digest if event.digest and event.nr not in NUMBERS_LEFT else None
        names = [os.fsdecode(path).encode("utf-8", "backslashreplace").decode() for path in paths[:2]]
        path, path2 = (*names, None, None)[:2]
        return (
            number, process, thread, event.time_ns / _NS, NAMES.get(event.nr, str(event.nr)), path, path2, result,
            error, crc if takes else None, None if takes else crc, int(event.waited or event.verdict is Verdict.PARK),
            event.nr, *map(_signed, event.args), event.path, event.path2,
        )  # fmt: skip

    def _process(self, event: Event, threads: Threads) -> None:
        if event.kind is Kind.FORK:
            child = threads.by_number[event.other]
            self._row(child.process, child.pid, child.command)
        elif event.kind is Kind.EXEC:
            thread = threads.of(event)
            row = self._row(thread.process, thread.pid, thread.command)
            row.command, row.program = _text(thread.command), os.fsdecode(event.path)
            row.start = event.time_ns / _NS if row.start is None else row.start
        elif event.kind is Kind.EXIT:
            thread = threads.of(event)
            row = self._row(thread.process, thread.pid, thread.command)
            row.end = event.time_ns / _NS
            if os.WIFSIGNALED(event.status):
                row.signal = decode.ending(event.status).rpartition(" ")[2]
            else:
                row.status = os.WEXITSTATUS(event.status)

    def _row(self, process: str, pid: int, command: str) -> _Row:
        if process not in self.processes:
            parent = process.rpartition(".")[0] or None
            self.processes[process] = _Row(parent, pid, _text(command))
        return self.processes[process]


def _text(text: str) -> str:
    """Text without the stand-ins for bytes that are no UTF-8, which SQLite would refuse."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _signed(value: int) -> int:
    """A register as SQLite's integers have it."""
    return value - (1 << 64) if value >> 63 else value


def _decoded(nr: int, *rest: Any) -> str:
    values = tuple(value & (1 << 64) - 1 for value in rest[:6])
    return _text(decode.arguments(nr, values, *rest[6:]))


def load(trace: Trace) -> sqlite3.Connection:
    """A database in memory with the documented tables; it can only be read.  Raises UserError for a damaged trace."""
    base = sqlite3.connect(":memory:")
    base.create_function("decoded", len(_RAW), _decoded, deterministic=True)
    for table, (_, columns) in TABLES.items():
        if table != "calls":
            base.execute(f"CREATE TABLE {table} ({', '.join(f'{name} {kind}' for name, (kind, _) in columns.items())})")
    columns = TABLES["calls"][1]
    stored = [name for name in columns if name != "arguments"]
    base.execute(f"CREATE TABLE all_calls ({', '.join([*(f'{n} {columns[n][0]}' for n in stored), *_RAW])})")
    shown = [name if name != "arguments" else f"decoded({', '.join(_RAW)}) AS arguments" for name in columns]
    base.execute(f"CREATE VIEW calls AS SELECT {', '.join(shown)} FROM all_calls")
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
        ((_text(os.fsdecode(path)), process, use.opened, use.bytes_read, use.bytes_written, use.read, use.written,
          use.created, use.removed, use.executed) for (process, path), use in rows.files.uses.items()),
    )  # fmt: skip
    base.executemany(
        "INSERT INTO outputs VALUES (?, ?, ?, ?, ?, ?)", ((n, *row) for n, row in enumerate(rows.outputs, 1))
    )
    base.commit()
    base.execute("PRAGMA query_only = ON")
    return base


def query(base: sqlite3.Connection, text: str) -> tuple[list[str], list[tuple[Any, ...]]]:
    """Names of the columns, and the rows.  Raises UserError for what is no query."""
    try:
        cursor = base.execute(text)
        if cursor.description is None:
            raise UserError("this is no query", "only SELECT gives something; the trace cannot be changed")
        return [column[0] for column in cursor.description], cursor.fetchall()
    except (sqlite3.Error, sqlite3.Warning) as error:
        tables = ", ".join(TABLES)
        raise UserError(f"the query cannot be run: {error}", f"the tables are {tables}; --tables shows them") from None


def schema() -> str:
    """The tables and their columns, for people."""
    lines = []
    for table, (meaning, columns) in TABLES.items():
        lines.append(f"{table}: {meaning}")
        lines += [f"  {name:<14} {kind.split()[0]:<8} {what}" for name, (kind, what) in columns.items()]
    return "\n".join(lines) + "\n"
