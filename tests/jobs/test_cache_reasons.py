"""What cannot be cached by itself is named with its reason: programs for each of them, all in one job."""

# ruff: noqa: E501  (one row of the table, one line)

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from cached import REPOSITORY, Bench

from detbox.cache.store import Store

TRACER = "import ctypes, os; c = ctypes.CDLL(None); p = os.fork()"
WATCHES = "os.waitpid(p, 0); c.ptrace(7, p, 0, 0); os.waitpid(p, 0)"
#: A line of the script, and the reason that one of its programs must have.  P is Python.
PROGRAMS = (
    ("head -c1 > one", "uses standard input"),
    ("yes y | head -30000 > yes", "waits for another program at a pipe"),
    ("(sleep 1; echo late) | tr a b > late", "waits for input from another program"),
    ("P 'import subprocess, socket; a, b = socket.socketpair(); b.send(b\"x\"); subprocess.run([\"head\", \"-c1\"], stdin=a)'", "uses a socket"),
    ("P 'import socket; socket.socket()'", "uses a network socket"),
    ("P 'import socket; s = socket.socket(1); s.bind(\"s\"); s.listen()'", "binds a socket"),
    ("P 'import socket; s = socket.socket(1); s.connect(\"s\")' 2> refused", "connects a socket"),
    ("sh -c 'kill -0 $PPID'", "signals or looks at another process"),
    ("flock f true", "locks a file"),
    ("P 'import ctypes; ctypes.CDLL(None).shmget(0, 10, 0o600)'", "uses System V shared memory"),
    ("P 'import ctypes; ctypes.CDLL(None).semget(0, 1, 0o600)'", "uses System V semaphores"),
    ("P 'import ctypes; ctypes.CDLL(None).msgget(0, 0o600)'", "uses System V queues"),
    ("P 'import ctypes; ctypes.CDLL(None).mq_open(b\"/q\", 0)'", "uses a message queue"),
    ("P 'import os; os.pidfd_open(os.getppid())'", "uses process descriptors"),
    ("taskset -c 0 true", "sets affinity"),
    ("nice -n 5 true", "sets priority"),
    ("timeout 9 true", "sets a timer"),
    ("sh -c 'ulimit -t 9; /bin/true; :'", "limits its processor time"),
    ("mkfifo p; (cat p > /dev/null) & echo x > p; wait", "opens a pipe by its name"),
    ("sh -c 'sleep 1 & exit 0'; sleep 2", "leaves a process behind"),
    ("setsid true", "leaves its process group"),
    ("P 'import os; os.open(\".\", os.O_TMPFILE | os.O_RDWR)'", "makes a file without a name"),
    ("echo x | P 'import fcntl; fcntl.fcntl(0, 1032)'", "asks for or sets the size of a pipe"),
    ("echo x | P 'import os; os.set_blocking(0, False)'", "changes the flags of a descriptor that others have"),
    ("echo x | P 'import ctypes; ctypes.CDLL(None).read(0, 1, 9)'", "gives a bad address"),
    ("echo x | P 'import os; os.splice(0, os.open(\"t\", os.O_RDWR | os.O_CREAT), 9)'", "moves data between a pipe and other files"),
    ("P 'import os; os.sendfile(1, os.open(\"f\", 0), 0, 9)' | cat > sent", "moves data between a pipe and other files"),
    ("P 'import os; os.write(1, bytes(2 << 20))' | wc -c", "writes very much at once to a pipe"),
    ("echo x | P 'import select; select.epoll().register(0)'", "waits for a descriptor that others have"),
    ("ls /proc > /dev/null", "lists the processes"),
    ("cat /proc/loadavg > /dev/null", "looks at /proc/loadavg"),
    ("unshare -U true", "makes namespaces"),
    (f"P '{TRACER}; p or (c.ptrace(0), os.execl(\"/bin/true\", \"true\")); {WATCHES}'", "traces another process"),
    (f"P '{TRACER}; p or (c.ptrace(0), os.execl(\"/bin/echo\", \"echo\")); {WATCHES}'", "is traced"),
    ("P 'import ctypes; ctypes.CDLL(None).inotify_init()'", "files are being watched"),
)


def test_each_reason_is_said(tmp_path: Path) -> None:
    bench = Bench(tmp_path, lambda work: (work / "f").write_text("f\n"), stdin=b"input\n")
    script = "\n".join(["P() { /usr/bin/python3 -c \"$1\"; }", *(line for line, _ in PROGRAMS)])
    plain = bench.run(script, bench.inputs())
    first, _, _ = bench.cached(script, bench.inputs())
    again, outcome, why = bench.cached(script, bench.inputs())
    assert first == again == plain
    assert outcome == "not cacheable" and "namespaces" in why
    store = Store(bench.store)
    inside = [one for one in store.runs()[1]["executions"] if one["result"] == "not cacheable"]
    store.close()
    for line, reason in PROGRAMS:
        mine = [one for one in inside if one["command"][-1] in line or os.path.basename(one["command"][0]) in line]
        assert any(reason in one["why"] for one in mine), (line, reason, mine)


def test_what_programs_start_with_is_compared(tmp_path: Path) -> None:
    """Arguments and variables of programs inside."""

    def setup(work: Path) -> None:
        (work / "flags").write_text("-r")
        (work / "value").write_text("1")
        (work / "job").write_text("sort $(cat flags) flags\nX=$(cat value) sh -c 'head -c9 flags'\n")

    def change(work: Path) -> None:
        (work / "flags").write_text("-u")
        (work / "value").write_text("2")

    bench = Bench(tmp_path, setup)
    bench.cached("sh job", bench.inputs())
    bench.cached("sh job", bench.inputs(change))
    told = subprocess.run(
        [sys.executable, "-m", "detbox", "cache", "why", f"--cache-dir={bench.store}"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.PIPE, text=True, check=True,
    ).stdout  # fmt: skip
    reasons = {line.split()[0]: line.partition("miss: ")[2] for line in told.splitlines()[2:]}
    assert reasons["sort"] == "argument 1: -r -> -u", told
    assert reasons["head"] == "environment X", told
