"""`detbox trace` as a command: the same bytes each time, what it shows, and what it says of bad files."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import detbox
from detbox.recorder.tables import EXAMPLES, TABLES

ROOT = Path(detbox.__file__).parents[1]

THREADS = """
import threading
total, lock = [], threading.Lock()
def work(n):
    for i in range(20):
        with lock:
            total.append(n)
threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
open("order", "w").write(repr(total))
"""
ENDINGS = """
import os, resource, signal, socket, subprocess, threading
for path in ("/etc", "/absent"):
    try:
        os.execv(path, ["x"])
    except OSError:
        pass
signal.signal(signal.SIGALRM, lambda *_: None)
signal.alarm(1)
signal.pause()
os.sched_yield()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGALRM])
signal.alarm(1)
assert signal.sigtimedwait([signal.SIGALRM], 5).si_code == 128
thread = threading.Thread(target=os.getppid)
thread.start()
thread.join()
left, right = socket.socketpair()
if os.fork() == 0:
    left.close()
    right.send(right.recv(9)[::-1])
    os._exit(0)
right.close()
left.send(b"question")
left.recv(9)
os.wait()
resource.setrlimit(resource.RLIMIT_NOFILE, (4, 9))
try:
    [open("/etc/passwd") for _ in range(5)]
except OSError:
    pass
os.execv("/bin/true", ["true"])
"""
DEATHS = """
import ctypes, os, signal
prctl, pdeathsig, begun, left = ctypes.CDLL(None).prctl, 1, *os.pipe()
for turn in range(30):
    if os.fork() == 0:
        for _ in range(3):
            if os.fork() == 0:
                prctl(pdeathsig, signal.SIGKILL)
                os.write(left, b"x")
                signal.pause()
            os.read(begun, 1)
        if turn % 2:
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    os.wait()
"""
BUILD = "echo one > a; (cat a; date) > b; ls c; sort b | cat > c; mv c d; rm a; exit 3"


def run_detbox(*words: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **changes}
    return subprocess.run(
        [sys.executable, "-m", "detbox", *words],
        cwd=cwd, env=environment, stdin=subprocess.DEVNULL, capture_output=True, timeout=150, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of a small job."""
    directory = tmp_path_factory.mktemp("build")
    (directory / "work").mkdir()
    done = run_detbox(
        "trace", "-o", "../trace", "--real-times", "../times", "--", "sh", "-c", BUILD, cwd=directory / "work"
    )
    assert done.returncode == 3, done.stderr.decode()
    return directory / "trace"


def rows(trace: Path, sql: str) -> list[dict[str, Any]]:
    done = run_detbox("trace", "query", "--json", str(trace), sql, cwd=trace.parent)
    assert done.returncode == 0, done.stderr.decode()
    found: list[dict[str, Any]] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    "command",
    [
        ["python3", "-c", THREADS],
        ["sh", "-c", "seq 20000 | sort -r | head -n 3; sleep 1 & wait; ls; echo $$ > file"],
        ["sh", "-c", "kill -9 $$"],
        ["python3", "-c", DEATHS],
    ],
    ids=["threads", "pipeline", "killed", "killed by a parent's end"],
)
def test_a_job_has_one_trace_whatever_the_host(command: list[str], tmp_path: Path) -> None:
    found = []
    hosts = ({"LC_ALL": "C", "TZ": "UTC"}, {"LC_ALL": "de_DE.UTF-8", "TZ": "Asia/Tokyo", "X": "y"})
    for turn, host in enumerate(hosts):
        work = tmp_path / ("w" * (turn * 20 + 1))
        work.mkdir()
        for name in ("a", "b", "c")[:: 1 - 2 * turn]:
            (work / name).touch()
        before = os.umask(0o22 if turn else 0o77)
        load = subprocess.Popen(["sh", "-c", "while :; do :; done"]) if turn else None
        try:
            done = run_detbox("trace", "-o", str(tmp_path / f"{turn}.trace"), "--", *command, cwd=work, **host)
        finally:
            os.umask(before)
            if load is not None:
                load.kill()
                load.wait()
        assert not done.stderr, done.stderr.decode()
        found.append((done.returncode, done.stdout, (tmp_path / f"{turn}.trace").read_bytes()))
    assert found[0] == found[1]


def test_recording_changes_nothing(tmp_path: Path) -> None:
    found = []
    for name, words in (("plain", ["run"]), ("traced", ["trace", "-o", "../trace"])):
        (tmp_path / name).mkdir()
        done = run_detbox(*words, "--", "sh", "-c", BUILD, cwd=tmp_path / name)
        outputs = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in (tmp_path / name).iterdir()}
        found.append((done.returncode, done.stdout, done.stderr, outputs))
    assert found[0] == found[1]


def test_every_call_has_a_result(build: Path) -> None:
    assert rows(build, "SELECT DISTINCT name FROM calls WHERE result IS NULL") == [{"name": "exit_group"}]


@pytest.fixture(scope="module")
def endings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The trace of a job whose calls end in all kinds of ways."""
    directory = tmp_path_factory.mktemp("endings")
    done = run_detbox("trace", "-o", "trace", "--", "python3", "-c", ENDINGS, cwd=directory)
    assert done.returncode == 0, done.stderr.decode()
    return directory / "trace"


def test_the_command_does_not_see_a_trace_in_its_directory(tmp_path: Path) -> None:
    for name in ("trace", "./trace"):
        words = ["-o", name, "--real-times", "times", "--", "sh", "-c", "ls; rm -f trace times; exit 3"]
        done = run_detbox("trace", *words, cwd=tmp_path)
        assert (done.returncode, done.stderr) == (3, b"")
        assert done.stdout in (b"", b"times\ntrace\n")
        assert sorted(os.listdir(tmp_path)) == ["times", "trace"]
        assert rows(tmp_path / "trace", "SELECT count(*) AS n FROM processes") == [{"n": 3}]


def test_calls_that_fail_or_are_interrupted_have_results(endings: Path) -> None:
    unknown = rows(endings, "SELECT DISTINCT name FROM calls WHERE result IS NULL")
    assert {row["name"] for row in unknown} <= {"exit", "exit_group"}
    executed = rows(endings, "SELECT path, error FROM calls WHERE name = 'execve' AND id > 1")
    assert [(row["path"], row["error"]) for row in executed] == [
        ("/etc", "EACCES"), ("/absent", "ENOENT"), ("/bin/true", None),
    ]  # fmt: skip
    found = rows(endings, "SELECT name, result, error FROM calls WHERE name IN ('pause', 'rt_sigtimedwait', 'clone3')")
    assert [(row["name"], row["error"] or row["result"]) for row in found] == [
        ("pause", "ERESTARTNOHAND"), ("rt_sigtimedwait", 14), ("clone3", 3),
    ]  # fmt: skip
    opened = rows(endings, "SELECT error FROM calls WHERE path = '/etc/passwd' ORDER BY id DESC LIMIT 1")
    assert opened == [{"error": "EMFILE"}]


def test_files_that_were_read_written_created_and_removed(build: Path) -> None:
    found = {
        row["path"]: (row["bytes_written"], row["read"], row["created"], row["removed"])
        for row in rows(
            build,
            "SELECT path, sum(bytes_written) AS bytes_written, max(read) AS read, max(created) AS created, "
            "max(removed) AS removed FROM files WHERE path LIKE '/work/%' GROUP BY path",
        )
    }
    assert found["/work/a"] == (4, 1, 1, 1)
    assert found["/work/d"][2:] == (1, 0)
    assert found["/work/c"][1:] == (1, 1, 1)
    assert rows(build, "SELECT count(*) AS n FROM files WHERE path LIKE 'pipe:%' AND written")[0]["n"] == 1


def test_processes_and_outputs(build: Path) -> None:
    assert rows(build, "SELECT status FROM processes WHERE process = '1'") == [{"status": 3}]
    assert rows(build, "SELECT command, status FROM processes WHERE command LIKE 'ls%'") == [
        {"command": "ls c", "status": 2}
    ]
    found = rows(build, "SELECT DISTINCT stream, command FROM outputs JOIN processes USING (process)")
    assert found == [{"stream": "stderr", "command": "ls c"}]


@pytest.mark.parametrize("sql", [text for _, text in EXAMPLES], ids=[what for what, _ in EXAMPLES])
def test_examples_run(sql: str, build: Path) -> None:
    done = run_detbox("trace", "query", str(build), sql, cwd=build.parent)
    assert done.returncode == 0, done.stderr.decode()
    assert "─" in done.stdout.decode()


def test_examples_and_tables_are_printed(build: Path) -> None:
    examples = run_detbox("trace", "query", "--examples", cwd=build.parent).stdout.decode()
    assert all(text in examples for _, text in EXAMPLES)
    tables = run_detbox("trace", "query", "--tables", cwd=build.parent).stdout.decode()
    for table, (_, columns) in TABLES.items():
        assert table in tables and all(column in tables for column in columns)
        done = run_detbox("trace", "query", "--csv", str(build), f"SELECT * FROM {table}", cwd=build.parent)
        assert next(csv.reader(io.StringIO(done.stdout.decode()))) == list(columns)


@pytest.mark.parametrize(
    "sql, message",
    [
        ("DROP TABLE files", b"readonly"), ("DELETE FROM processes", b"readonly"), ("SELEC", b"syntax error"),
        ("SELECT * FROM absent", b"no such table"), ("ATTACH '/etc/passwd' AS y", b"not authorized"),
        ("BEGIN", b"no query"), ("", b"which query"), ("SELECT 1; SELECT 2", b"one statement"),
    ],
)  # fmt: skip
def test_queries_that_are_none(sql: str, message: bytes, build: Path) -> None:
    done = run_detbox("trace", "query", str(build), sql, cwd=build.parent)
    assert (done.returncode, done.stdout) == (125, b"")
    assert message in done.stderr and b"Traceback" not in done.stderr


@pytest.mark.parametrize(
    "words, expected, unexpected",
    [
        (["--path", "/work/[ab]", "--call", "openat"], [b'"a"', b'"b"'], [b"libc"]),
        (["--path", "/work/a", "--call", "write,copy_file_range"], [b"copy_file_range(", b"write("], [b"openat("]),
        (["--call", "%process"], [b"clone(", b"exit_group(", b"= 0"], [b"openat(", b"+++"]),
        (["--command", "sort*"], [b"+++ executes sort b"], [b"executes cat"]),
        (["--process", "1.1"], [b" 1.1 "], [b" 1.2 "]),
        (["--process", "pid:2", "--call", "%file"], [b" 1 "], [b" 1.1 "]),
        (["--time", "0-0.0001"], [b"0.000010000"], [b"0.000110000"]),
    ],
    ids=lambda words: " ".join(words) if isinstance(words[0], str) else "",
)
def test_show_selects(words: list[str], expected: list[bytes], unexpected: list[bytes], build: Path) -> None:
    done = run_detbox("trace", "show", str(build), *words, cwd=build.parent)
    assert done.returncode == 0, done.stderr.decode()
    assert all(text in done.stdout for text in expected), done.stdout.decode()
    assert not any(text in done.stdout for text in unexpected), done.stdout.decode()


@pytest.mark.parametrize(
    "words, message",
    [
        (["show", "trace", "--call", "nonsense"], b"no such system call"),
        (["show", "trace", "--call", "%nonsense"], b"the classes are"),
        (["show", "trace", "--time", "5"], b"not a range"),
        (["show", "trace", "--process", "x"], b"not a lineage"),
        (["show", "absent"], b"No such file"),
        (["show", "/bin/sh"], b"not a trace"),
        (["query", "/bin/sh", "SELECT 1"], b"not a trace"),
        (["graph", "/bin/sh"], b"not a trace"),
        (["diff", "trace", "/bin/sh"], b"not a trace"),
        (["graph", "trace", "-o", "x.png"], b".svg or .dot"),
        (["graph", "trace", "-o", "/absent/x.svg"], b"cannot be written"),
        (["graph", "trace", "--real-times", "trace"], b"no real times"),
        (["-o", "/absent/trace", "--", "true"], b"cannot be written"),
        (["-o", ".", "--", "true"], b"cannot be written"),
    ],
)
def test_mistakes(words: list[str], message: bytes, build: Path) -> None:
    done = run_detbox("trace", *words, cwd=build.parent)
    assert (done.returncode, done.stdout) == (125, b"")
    assert message in done.stderr and b"Traceback" not in done.stderr


def test_a_full_disk_while_recording_leaves_the_run_alone(tmp_path: Path) -> None:
    done = run_detbox("trace", "-o", "/dev/full", "--", "sh", "-c", "echo out; echo kept > file", cwd=tmp_path)
    assert done.returncode == 125
    assert b"No space left" in done.stderr and b"results are kept" in done.stderr
    assert (done.stdout, (tmp_path / "file").read_bytes()) == (b"out\n", b"kept\n")
    assert (tmp_path / "file").stat().st_mtime < time.time() - 86_400 or time.time() < 1_767_225_600


def test_a_run_that_is_killed_leaves_a_readable_trace(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    words = ["trace", "-o", "../trace", "--", "sh", "-c", "while :; do echo x > file; done"]
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    run = subprocess.Popen([sys.executable, "-m", "detbox", *words], cwd=tmp_path / "work", env=variables)
    deadline = time.monotonic() + 60
    while not (tmp_path / "trace").exists() or (tmp_path / "trace").stat().st_size < 50_000:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    run.send_signal(signal.SIGKILL)
    run.wait()
    done = run_detbox("trace", "show", "trace", "--call", "write", cwd=tmp_path)
    assert done.returncode == 0
    assert b"write(1" in done.stdout and b"ends early" in done.stderr


def test_the_first_divergence_is_found_though_later_events_shift(tmp_path: Path) -> None:
    for name, script in (("one", "cat < a; echo x; cat < a"), ("other", "cat < a; echo x; echo y; echo z; cat < a")):
        work = tmp_path / f"work-{name}"
        work.mkdir()
        (work / "a").write_text("a")
        (work / "script").write_text(script)
        assert run_detbox("trace", "-o", f"../{name}", "--", "sh", "script", cwd=work).returncode == 0
    done = run_detbox("trace", "diff", "one", "other", cwd=tmp_path)
    assert done.returncode == 1
    assert b"first divergent event" in done.stdout and b"read(10" in done.stdout
    done = run_detbox("trace", "diff", "one", "one", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, b"the traces are the same\n")


def test_the_picture(build: Path) -> None:
    import xml.etree.ElementTree as xml

    done = run_detbox("trace", "graph", str(build), "--real-times", "times", "-o", "x.svg", cwd=build.parent)
    assert done.returncode == 0, done.stderr.decode()
    text = (build.parent / "x.svg").read_text()
    assert xml.fromstring(text).tag.endswith("svg")
    assert all(word in text for word in ("sort b", "ls c", "ms real", "marker-end"))
    assert run_detbox("trace", "graph", str(build), "-o", "x.dot", cwd=build.parent).returncode == 0
    assert (build.parent / "x.dot").read_text().startswith("digraph")


def test_pipes_and_pairs_of_sockets_are_in_the_picture(build: Path, endings: Path) -> None:
    from detbox.report.graph import read

    def flows(trace: Path) -> list[tuple[str, str, tuple[str, ...]]]:
        return sorted((flow.source.lineages[0], flow.target.lineages[0], flow.pipes) for flow in read(trace).flows)

    assert flows(endings) == [("1", "1.1", ("socket:1b",)), ("1.1", "1", ("socket:1a",))]
    assert [names for _, _, names in flows(build) if names] == [("pipe:1",)]
    assert 'class="flow piped"' in run_detbox("trace", "graph", str(build), cwd=build.parent).stdout.decode()
