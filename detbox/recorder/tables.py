"""The tables that a trace is asked about in SQL, and queries to start from."""

from __future__ import annotations

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


def schema() -> str:
    """The tables and their columns, for people."""
    lines = []
    for table, (meaning, columns) in TABLES.items():
        lines.append(f"{table}: {meaning}")
        lines += [f"  {name:<14} {kind.split()[0]:<8} {what}" for name, (kind, what) in columns.items()]
    return "\n".join(lines) + "\n"
