"""Runs that cannot end well end with a clear error, in time, and leave nothing behind."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from under_detbox import detbox, environment, twice, unprivileged

import detbox as package
from detbox.errors import Deadlock, Interrupted, LimitExceeded, TimedOut
from detbox.spec import DEFAULT_EPOCH_NS

MARK = "DETBOX_FAULT_MARK"
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")


def popen(
    command: list[str], work: Path, options: list[str], mark: str = "", user: str | None = None
) -> subprocess.Popen[bytes]:
    """detbox in a session of its own; ``mark`` is in the environment of it and of all that it starts."""
    env = os.environ | environment() | {MARK: mark}
    return subprocess.Popen(
        detbox(command, [*options, f"--env={MARK}"]), cwd=work, env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, user=user,
    )  # fmt: skip


def run(command: list[str], work: Path, *options: str, limit_s: float = 60) -> tuple[int, bytes, str]:
    """Status, stdout and stderr; a run that exceeds the limit is killed and fails the test."""
    child = popen(command, work, list(options))
    try:
        out, err = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        child.kill()
        child.communicate()
        raise
    return child.returncode, out, err.decode(errors="replace")


def virtual(mtime_ns: int | None) -> bool:
    """Whether a time is one of the first virtual minute."""
    return mtime_ns is not None and 0 <= mtime_ns // 10**9 - DEFAULT_EPOCH_NS // 10**9 < 60


def said_by_detbox(err: str) -> str:
    lines = [line for line in err.splitlines() if line.startswith("detbox:")]
    assert not any("Traceback" in line for line in lines), err
    return "\n".join(lines)


def marked(mark: str) -> list[int]:
    """PIDs of living processes with the mark in their environment or command line."""
    found = []
    for name in filter(str.isdigit, os.listdir("/proc")):
        if int(name) == os.getpid():
            continue
        try:
            seen = Path(f"/proc/{name}/environ").read_bytes() + Path(f"/proc/{name}/cmdline").read_bytes()
        except OSError:
            continue
        if mark.encode() in seen:
            found.append(int(name))
    return found


def temporaries() -> set[str]:
    """Names in the places where a program may leave files."""
    places = {tempfile.gettempdir(), "/tmp", "/var/tmp", "/dev/shm", "/run"}
    return {f"{place}/{name}" for place in places if os.path.isdir(place) for name in os.listdir(place)}


DEADLOCKS = {
    "pipe": "import os; r, w = os.pipe(); os.read(r, 1)",
    "lock": "import threading; l = threading.Lock(); l.acquire(); l.acquire()",
    "join": "import os; r, w = os.pipe(); p = os.fork(); os.wait() if p else os.read(r, 1)",
    "pause": "import signal; signal.pause()",
}


@pytest.mark.parametrize("kind", DEADLOCKS)
def test_deadlock_is_reported(kind: str, tmp_path: Path) -> None:
    status, _, err = run(["python3", "-c", DEADLOCKS[kind]], tmp_path)
    report = said_by_detbox(err)
    assert status == Deadlock.status, err
    assert "python3" in report, "the report names who waits"


def test_deadlock_report_is_the_same_each_time() -> None:
    observed = twice(["sh", "-c", 'mkdir d && echo x > d/made && exec python3 -c "$1"', "sh", DEADLOCKS["join"]])
    assert observed.status == Deadlock.status
    assert all(virtual(observed.tree[path].mtime_ns) for path in ("d", "d/made"))


ENDLESS = ("while :; do :; done", "while true; do sleep 9; done")


@pytest.mark.parametrize("script", ENDLESS)
def test_endless_guest_is_ended(script: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    begin = time.monotonic()
    child = popen(["sh", "-c", script], tmp_path, ["--timeout=2"], mark)
    _, err = child.communicate(timeout=30)
    assert child.returncode == TimedOut.status, err
    assert time.monotonic() - begin < 15
    assert not marked(mark)


def test_statistics_of_a_run_that_is_ended(tmp_path: Path) -> None:
    with pytest.raises(TimedOut) as late:
        package.run(["sh", "-c", "ls; while :; do :; done"], workdir=tmp_path, timeout=3)
    with pytest.raises(Deadlock) as dead:
        package.run(["sh", "-c", "ls; mkfifo p; cat p"], workdir=tmp_path)
    for caught in (late, dead):
        assert caught.value.stats["calls"]["getdents64"] == 2
    assert late.value.stats["guest_cpu_s"] > 0.1 > dead.value.stats["guest_cpu_s"]


FAMILY = """
for i in 1 2 3; do (for k in 1 2 3; do sleep 1; ls -R /etc > /dev/null; done) & done
wait
while :; do :; done
"""


@pytest.mark.limit(300)
def test_killed_at_any_moment_it_leaves_nothing(tmp_path: Path) -> None:
    chance = random.Random(1)
    before = temporaries()
    mounts = Path("/proc/self/mountinfo").read_text()
    for round_number in range(20):
        mark = uuid.uuid4().hex
        child = popen(["sh", "-c", FAMILY], tmp_path, [], mark)
        time.sleep(chance.uniform(0.0, 0.9))
        child.kill()
        child.communicate()
        deadline = time.monotonic() + 5
        while (left := marked(mark)) and time.monotonic() < deadline:
            time.sleep(0.02)
        assert not left, f"round {round_number}: {[Path(f'/proc/{p}/cmdline').read_bytes() for p in left]}"
    assert Path("/proc/self/mountinfo").read_text() == mounts
    assert {name for name in temporaries() - before if "detbox" in name} == set()
    assert list(tmp_path.iterdir()) == []


#: Opens, mappings, starts of programs and two threads at once, with what a lost answer would change.
BUSY = """
for i in $(seq 60); do
    /usr/bin/perl -MPOSIX -MFile::Temp -e 'print "$$ ", time, " ", join(" ", times), "\\n"'
done
python3 -c '
import threading, time
def f(n):
    for i in range(200):
        open("/etc/passwd").close()
        print(n, i, time.perf_counter_ns())
for t in [threading.Thread(target=f, args=(n,)) for n in range(2)]: t.start()
'
"""


def test_stopped_and_continued_it_runs_as_ever(tmp_path: Path) -> None:
    """As by a shell's job control, a debugger, or a host that is suspended."""
    # The same one, since the environment is an input: what a thread computes takes time, too.
    mark = uuid.uuid4().hex
    first = popen(["sh", "-c", BUSY], tmp_path, [], mark)
    expected, err = first.communicate(timeout=60)
    assert (first.returncode, err, expected.count(b"\n")) == (0, b"", 460)
    child = popen(["sh", "-c", BUSY], tmp_path, [], mark)
    while len(own := [pid for pid in marked(mark) if b"detbox" in Path(f"/proc/{pid}/cmdline").read_bytes()]) < 3:
        assert child.poll() is None
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(child.communicate()))
    reader.start()
    stops = 0
    while reader.is_alive():
        for number in signal.SIGSTOP, signal.SIGCONT:
            for pid in own:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            time.sleep(0.0005)
        stops += 1
    reader.join()
    assert (child.returncode, seen) == (0, [expected, b""])
    assert stops > 100


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_run(number: signal.Signals, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    command = ["sh", "-c", "trap '' INT TERM HUP; touch started; while :; do :; done"]
    child = popen(command, tmp_path, ["--timeout=60"], mark)
    while not (tmp_path / "started").exists():
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    child.send_signal(number)
    _, err = child.communicate(timeout=15)
    assert child.returncode == Interrupted.status, err
    assert virtual((tmp_path / "started").stat().st_mtime_ns)
    assert not marked(mark)


@contextlib.contextmanager
def small_disk(size: str, at: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", at], check=True)
    try:
        yield at
    finally:
        subprocess.run(["umount", at], check=True)


@NEEDS_ROOT
def test_full_disk_is_the_guests_error(tmp_path: Path) -> None:
    with small_disk("1m", tmp_path) as work:
        status, out, err = run(["sh", "-c", "head -c 4M /dev/zero > big; echo status $?; ls"], work)
        assert status == 0 and b"status 1" in out and "No space left" in err, (status, out, err)


def test_missing_work_directory(tmp_path: Path) -> None:
    status, _, err = run(["true"], tmp_path, f"--workdir={tmp_path}/nowhere")
    assert status == 125 and "nowhere" in said_by_detbox(err)


def test_missing_input(tmp_path: Path) -> None:
    status, _, err = run(["true"], tmp_path, f"--ro={tmp_path}/gone:/data")
    assert status == 125 and "gone" in said_by_detbox(err)


def test_missing_image(tmp_path: Path) -> None:
    status, _, err = run(["true"], tmp_path, f"--image={tmp_path}/image")
    assert status == 125 and "image" in said_by_detbox(err)


def test_unreadable_file_is_the_guests_error(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("x")
    secret.chmod(0)
    status, _, err = run(["setpriv", "--reuid=1000", "--clear-groups", "cat", "secret"], tmp_path)
    assert status == 1 and "ermission denied" in err


def test_commands_that_cannot_run(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no program")
    assert run(["no-such-command"], tmp_path)[0] == 127
    assert run(["./text"], tmp_path)[0] == 126
    assert run(["/etc"], tmp_path)[0] == 126


def test_status_and_signal_of_the_guest(tmp_path: Path) -> None:
    assert run(["sh", "-c", "exit 77"], tmp_path)[0] == 77
    assert run(["sh", "-c", "kill -SEGV $$"], tmp_path)[0] == 128 + signal.SIGSEGV


EATER = "a = []\nwhile True: a.append(bytearray(b'x') * (1 << 22))"


def test_memory_limit(tmp_path: Path) -> None:
    status, _, err = run(["python3", "-c", EATER], tmp_path, "--memory=200M", "--timeout=50")
    assert status == 1 and "MemoryError" in err, (status, err)
    script = "head -c 400M /dev/zero > /tmp/big; wc -c < /tmp/big"
    status, out, err = run(["sh", "-c", script], tmp_path, "--memory=50M")
    assert (status, out) == (0, b"52428800\n") and "No space left" in err, (status, out, err)


# What none of them may have alone is allowed; a parent's pages that children share are counted once.
TOGETHER = """
import os, signal, time
shared = bytearray(b"x") * (45 << 20)
for i in range(3):
    if os.fork() == 0:
        time.sleep(2)
        os._exit(0)
for i in range(3):
    os.wait()
with open("/dev/shm/shared", "wb") as file:
    file.truncate(60 << 20)
print("allowed", flush=True)
for i in range(9):
    if os.fork() == 0:
        own = bytearray(b"y") * (30 << 20)
        signal.pause()
time.sleep(1)
n = 0
while True:  # all of them waiting would be a deadlock
    n += 1
"""
HIDDEN = """
import mmap, os
print("allowed", flush=True)
fd = os.memfd_create("hidden")
os.truncate(fd, 60 << 20)
shown = mmap.mmap(fd, 60 << 20)
while True:
    os.write(fd, b"x" * (1 << 20))
"""
FILES = "for d in /usr /tmp /dev/shm; do head -c 60M /dev/zero > $d/big; done; while :; do i=$((i + 1)); done"


@pytest.mark.parametrize("user", [None, unprivileged()])
@pytest.mark.parametrize(
    "command", [["python3", "-c", TOGETHER], ["python3", "-c", HIDDEN], ["sh", "-c", FILES]],
    ids=["processes", "memfd", "files"],
)
def test_memory_limit_of_the_whole_run(command: list[str], user: str | None, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    with tempfile.TemporaryDirectory() as work:
        os.chmod(work, 0o777)
        child = popen(command, Path(work), ["--timeout=50", "--memory=100M"], mark, user)
        out, err = child.communicate(timeout=90)
    report = said_by_detbox(err.decode())
    assert child.returncode == LimitExceeded.status, (child.returncode, err)
    assert "100 MiB allowed" in report and "MiB used" in report, report
    assert ("MiB  python3 (PID" if command[0] == "python3" else "MiB  sh (PID 2)") in report, report
    assert out == (b"allowed\n" if command[0] == "python3" else b"")
    assert not marked(mark)


BOMB = "import os\nfor i in range(1000000):\n    try: os.fork()\n    except OSError: pass"


def test_fork_bomb_is_bounded(tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    child = popen(["python3", "-c", BOMB], tmp_path, ["--timeout=20", "--memory=500M"], mark)
    _, err = child.communicate(timeout=60)
    assert child.returncode in {LimitExceeded.status, TimedOut.status}, err[-2000:]
    assert not marked(mark)


def test_the_hosts_limit_of_open_files_is_told(tmp_path: Path) -> None:
    program = (
        "import os\ntry:\n  for n in range(500): os.open('/', os.O_RDONLY)\n"
        "except OSError as error: print(n, error.errno)"
    )
    assert limited("--nofile=200:200", program, tmp_path) == b"197 24\n"


#: A timer's signal comes in any case.
SENDER = """
import ctypes, signal
libc = ctypes.CDLL(None, use_errno=True)
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGRTMIN, signal.SIGRTMIN + 1])
sent = 0
while sent < 100 and libc.sigqueue(2, signal.SIGRTMIN, ctypes.c_void_p(sent)) == 0:
    sent += 1
print(9 < sent < 31, ctypes.get_errno())
event, timer = (ctypes.c_int * 16)(0, 0, signal.SIGRTMIN + 1), ctypes.c_void_p()
print(libc.timer_create(1, event, ctypes.byref(timer)))
libc.timer_settime(timer, 0, (ctypes.c_long * 4)(0, 0, 0, 9), None)
print(signal.sigwait([signal.SIGRTMIN + 1]) - signal.SIGRTMIN)
"""


def test_the_hosts_limit_of_signals_is_told(tmp_path: Path) -> None:
    assert limited("--sigpending=30:30", SENDER, tmp_path) == b"True 11\n0\n1\n"


def limited(limit: str, program: str, cwd: Path) -> bytes:
    """What a program of Python's prints under a hard limit of the host's, which is told."""
    ordinary = ["setpriv", "--bounding-set=-sys_resource"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*ordinary, "prlimit", limit, *detbox(["/usr/bin/python3", "-c", program])], cwd=cwd,
        env=os.environ | environment(), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0 and b"the host's hard limit" in done.stderr, done.stderr
    return done.stdout


def test_disk_of_temporaries_is_given_back(tmp_path: Path) -> None:
    free = shutil.disk_usage("/tmp").free
    status, _, err = run(["sh", "-c", "head -c 100M /dev/zero > /tmp/big"], tmp_path)
    assert status == 0, err
    assert shutil.disk_usage("/tmp").free > free - (50 << 20)


#: Traces a program and all that it starts, as `strace -f` does, and ends with its status.
TRACER = """
import os, sys
from detbox.kernel import _native
child = os.fork()
if child == 0:
    os.kill(os.getpid(), 19)
    os.execv(sys.argv[1], sys.argv[1:])
os.waitpid(child, os.WUNTRACED)
_native.seize(child, 0x2 | 0x4 | 0x8)  # PTRACE_O_TRACEFORK, TRACEVFORK, TRACECLONE
os.kill(child, 18)
while True:
    tid, status = os.waitpid(-1, 0x40000000)  # __WALL
    if tid == child and not os.WIFSTOPPED(status):
        os._exit(os.waitstatus_to_exitcode(status))
    if os.WIFSTOPPED(status):
        signo = 0 if status >> 16 or os.WSTOPSIG(status) in (19, 5) else os.WSTOPSIG(status)
        try:
            _native.ptrace_request(7, tid, 0, signo)  # PTRACE_CONT
        except ProcessLookupError:
            pass
"""


def test_a_detbox_that_is_traced_says_so(tmp_path: Path) -> None:
    command = [sys.executable, "-c", TRACER, *detbox(["true"], [])]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | environment(), capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 125, done.stderr
    assert "something traces detbox itself" in said_by_detbox(done.stderr)
