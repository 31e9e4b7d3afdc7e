"""`detbox verify` and `detbox trace` as commands: identical where they should be, and planted bugs are named."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import detbox

ROOT = Path(detbox.__file__).parents[1]
CHEAP = ("--no-perturb=load", "--no-perturb=memory")

# What each of them prints is different on each native run, for one reason.
RESTLESS = {
    "clock": "date +%s.%N",
    "random": "od -An -tx1 -N16 /dev/urandom",
    "process number": "echo $$",
    "order of directory entries": "ls -U | tr '\\n' ' '",
    "umask": "umask > /dev/null; mkdir made; : > empty",
    "host's name": "hostname",
    "host path": "pwd",
    "locale": "echo $LC_ALL",
    "address": "grep -m1 stack /proc/self/maps",
}


def run_detbox(*words: str, cwd: Path, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "detbox", *words]
    return subprocess.run(command, cwd=cwd, env=environment, input=stdin, capture_output=True, timeout=150, check=False)


def verify(*words: str, cwd: Path, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
    done = run_detbox("verify", "--json", *CHEAP, *words, cwd=cwd, stdin=stdin)
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


@pytest.fixture
def work(tmp_path: Path) -> Path:
    """A directory with a few files, made in no order."""
    directory = tmp_path / "work"
    directory.mkdir()
    for name in ("m", "b", "z", "a", "q", "k", "c", "y", "d", "x"):
        (directory / name).write_text(name)
    return directory


def state(directory: Path) -> dict[str, tuple[int, bytes]]:
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}


def test_identical_and_the_own_directory_is_not_touched(work: Path) -> None:
    before = state(work)
    status, answer = verify("--", "sh", "-c", "cat; date; echo new > file; rm m", cwd=work, stdin=b"input")
    assert (status, answer["identical"], answer["differences"]) == (0, True, [])
    assert state(work) == before
    terminal = next(row for row in answer["perturbations"] if row["name"] == "terminal")
    assert not terminal["applied"] and terminal["why"]


@pytest.mark.parametrize("cause", RESTLESS)
def test_what_differs_natively_is_identical_and_its_cause_is_named(cause: str, work: Path) -> None:
    if cause == "host's name" and os.geteuid() != 0:
        pytest.skip("only root can change it")
    status, answer = verify("--native", "--", "sh", "-c", RESTLESS[cause], cwd=work)
    assert status == 0, answer["differences"]
    assert not answer["native"]["identical"]
    assert cause in [found["name"] for found in answer["native"]["causes"]]


@pytest.mark.parametrize(
    "call, script",
    [
        ("getrandom", "import random; print(random.random())"),
        ("getdents64", "import os; print(os.listdir())"),
        ("clock_gettime", "import time; print(time.clock_gettime(time.CLOCK_REALTIME))"),
    ],
)
def test_a_planted_bug_is_found_and_named(call: str, script: str, work: Path) -> None:
    status, answer = verify("--leak", call, "--", "python3", "-c", script, cwd=work)
    assert status == 1
    assert not answer["identical"]
    assert "stdout" in [found["what"] for found in answer["differences"]]
    assert answer["divergence"]["call"] == call
    assert answer["divergence"]["stack"][0][1].startswith("python3 -c import")


def test_the_native_run_cannot_change_the_host(work: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    status, answer = verify("--native", "--", "sh", "-c", f"touch {outside}/x 2>&1 | wc -l; touch /tmp/y", cwd=work)
    assert status == 0 and answer["native"]["differences"] is not None
    assert not list(outside.iterdir())


def test_text_for_people(work: Path) -> None:
    done = run_detbox("verify", "--native", "--perturb=process-numbers", "--", "sh", "-c", "echo $$", cwd=work)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert done.stderr == b""
    assert "perturbed: process numbers\n" in text
    assert "natively: 1 difference\n" in text
    assert text.endswith("under detbox: identical\n")


@pytest.mark.parametrize(
    "words, status",
    [
        (["-n", "1", "--", "true"], 125),
        (["--perturb", "nonsense", "--", "true"], 125),
        (["--native", "--ro", "/etc:/x", "--", "true"], 125),
        (["--", "no-such-command"], 127),
        (["--perturb", "umask", "--timeout", "1", "--", "sh", "-c", "while :; do :; done"], 124),
    ],
)
def test_failures_are_no_verdicts(words: list[str], status: int, work: Path) -> None:
    done = run_detbox("verify", *words, cwd=work)
    assert done.returncode == status
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_writable_mounts_are_copied_too(work: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "f").write_text("x")
    status, answer = verify("--rw", f"{kept}:/kept", "--", "sh", "-c", "date > /kept/g; rm /kept/f", cwd=work)
    assert status == 0, answer["differences"]
    assert [path.name for path in kept.iterdir()] == ["f"]


def test_the_trace_of_a_job_is_always_the_same(work: Path, tmp_path: Path) -> None:
    script = "echo a | cat > /dev/null; sleep 1 & wait; ls > /dev/null"
    for name in ("one", "other"):
        done = run_detbox("trace", "-o", str(tmp_path / name), "--", "sh", "-c", script, cwd=work)
        assert done.returncode == 0, done.stderr.decode()
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()
    shown = run_detbox("trace", "show", str(tmp_path / "one"), "--process", "1.2", cwd=work)
    assert b"+++ executes cat" in shown.stdout
    assert all(b" 1.2 " in line for line in shown.stdout.splitlines())
    done = run_detbox("trace", "diff", str(tmp_path / "one"), str(tmp_path / "other"), cwd=work)
    assert (done.returncode, done.stdout) == (0, b"the traces are the same\n")


def test_traces_of_different_jobs_part(work: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        assert run_detbox("trace", "-o", str(tmp_path / name), "--", "cat", name, cwd=work).returncode == 0
    done = run_detbox("trace", "diff", str(tmp_path / "a"), str(tmp_path / "b"), cwd=work)
    assert done.returncode == 1
    assert b"first divergent event" in done.stdout


def test_a_full_disk_while_recording(work: Path) -> None:
    done = run_detbox("trace", "-o", "/dev/full", "--", "true", cwd=work)
    assert done.returncode == 125
    assert b"No space left" in done.stderr
