"""`detbox verify` when something goes wrong: with the command, with its inputs, with the disk, or when it is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from under_detbox import DEBIAN_PYTHON, environment, unprivileged
from verifying import ROOT, fill, run_detbox, state, verify


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return fill(tmp_path / "work")


def marked_processes(mark: str) -> list[int]:
    """Processes with ``mark`` in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("after_s", [0.1, 0.3, 0.5, 0.8, 1.3, 2.0, 3.0])
def test_nothing_is_left_when_it_is_killed(after_s: float, work: Path) -> None:
    mark = f"mark-{os.getpid()}-{after_s}"
    script = f"echo {mark}; sh -c 'while :; do :; done' {mark} & while :; do :; done"
    rows = ["--perturb=file-system"] + (["--perturb=load", "--perturb=user"] if after_s > 1 else [])
    kind = [] if after_s > 2 else ["--native"]
    command = [sys.executable, "-m", "detbox", "verify", *kind, "--timeout=30", *rows, "--", "sh", "-c", script]
    with tempfile.TemporaryDirectory(prefix="detbox-test-") as name:
        place = Path(name)
        place.chmod(0o755)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": name}
        child = subprocess.Popen(command, cwd=work, env=variables, stderr=subprocess.DEVNULL)
        time.sleep(after_s)
        assert child.poll() is None
        in_memory = [Path("/dev/shm", copies.name) for copies in place.iterdir()]
        child.send_signal(signal.SIGKILL)
        child.wait()
        late = time.monotonic() + 20
        while time.monotonic() < late:
            left = [*place.iterdir(), *filter(Path.exists, in_memory), *marked_processes(mark)]
            if not left:
                break
            time.sleep(0.05)
        assert not left
    assert name not in Path("/proc/self/mountinfo").read_text()


def test_what_is_left_when_its_cleaner_is_killed_too_goes_with_the_next_run(work: Path) -> None:
    command = [sys.executable, "-m", "detbox"]
    script = ["verify", "--perturb=file-system", "--", "sh", "-c", "while :; do :; done"]
    with tempfile.TemporaryDirectory(prefix="detbox-test-") as name:
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": name}
        verification = subprocess.Popen([*command, *script], cwd=work, env=variables, stderr=subprocess.DEVNULL)
        children = Path(f"/proc/{verification.pid}/task/{verification.pid}/children")
        late = time.monotonic() + 30
        while not list(Path(name).glob("*/*/w/a")) and time.monotonic() < late:
            time.sleep(0.02)
        places = [place for copies in Path(name).iterdir() for place in (copies, Path("/dev/shm", copies.name))]
        subprocess.run([*command, "run", "--", "true"], cwd=work, env=variables, check=True)
        assert len(places) == 2 and all(place.is_dir() for place in places)  # they are in use
        cleaner = next(pid for pid in map(int, children.read_text().split()) if os.getsid(pid) == pid)
        for pid in (cleaner, verification.pid):
            os.kill(pid, signal.SIGKILL)
        verification.wait()
        assert all(place.is_dir() for place in places)
        subprocess.run([*command, "run", "--", "true"], cwd=work, env=variables, check=True)
        assert not any(place.exists() for place in places)


def test_a_command_that_fails_in_one_run_only(work: Path, tmp_path: Path) -> None:
    script = "import random, sys; print('made'); open('out', 'w').write('x'); sys.exit(random.getrandbits(60) % 97)"
    words = ["--leak", "getrandom", "--perturb=umask", f"--keep={tmp_path}/kept", "--", "python3", "-c", script]
    done = run_detbox("verify", *words, cwd=work)
    text = done.stdout.decode()
    assert done.returncode == 1
    assert "the command failed in run" in text
    assert f"the outputs of the runs are kept in {tmp_path}/kept" in done.stderr.decode()
    for run in ("run-1", "run-2"):
        assert (tmp_path / "kept" / run / "stdout").read_bytes() == b"made\n"
        assert (tmp_path / "kept" / run / "tree" / "out").read_text() == "x"
        assert isinstance(json.loads((tmp_path / "kept" / run / "report.json").read_text())["status"], int)


def test_a_command_that_changes_its_inputs(work: Path) -> None:
    before = state(work)
    script = "for f in *; do echo + >> $f; done"
    status, answer = verify("--native", "--perturb=path", "--", "sh", "-c", script, cwd=work)
    assert status == 0, answer["differences"]
    assert state(work) == before


def test_inputs_that_somebody_else_changes(work: Path) -> None:
    """The copies are made one after the other: a writer in between is told from an irreproducible command."""
    with subprocess.Popen(["sh", "-c", f"while :; do date +%N > {work}/a; sleep 0.05; done"]) as writer:
        done = run_detbox("verify", "--perturb=umask", "--", "cat", "a", cwd=work)
        writer.kill()
    assert done.returncode == 125
    assert b"inputs were changed while they were in use: " in done.stderr
    assert b"the results of the first run are kept in " in done.stderr


def test_an_input_that_cannot_be_read(tmp_path: Path) -> None:
    user = unprivileged()
    if user is None and os.geteuid() == 0:
        pytest.skip("there is no ordinary user who can run detbox")
    python = DEBIAN_PYTHON if user else sys.executable
    with tempfile.TemporaryDirectory(prefix="detbox-test-") as name:
        os.chmod(name, 0o755)
        secret = Path(name, "secret")
        secret.write_text("x")
        secret.chmod(0)
        done = subprocess.run(
            [python, "-m", "detbox", "verify", "--perturb=umask", "--", "true"], cwd=name, user=user,
            env={"PATH": os.environ["PATH"], **environment()}, capture_output=True, check=False,
        )  # fmt: skip
    assert done.returncode == 125
    assert f"{secret}: Permission denied" in done.stderr.decode()
    assert "every input is copied and must be readable" in done.stderr.decode()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_while_recording_the_runs(work: Path, tmp_path: Path) -> None:
    small, kept = tmp_path / "small", tmp_path / "kept"
    small.mkdir()
    spin = "import os\nfor i in range(60000): os.stat(str(i)) if 0 else os.access('/%d' % i, 0)\n"
    inner = [sys.executable, "-m", "detbox", "verify", "--perturb=umask", "--leak=getrandom", f"--keep={kept}"]
    inner += ["--", "python3", "-c", spin + "import random; print(random.random())"]
    shell = f"mount -t tmpfs -o size=200k none {small} && TMPDIR={small} exec \"$@\""
    done = subprocess.run(
        ["unshare", "-m", "sh", "-c", shell, "sh", *inner], cwd=work, capture_output=True, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 1, done.stderr.decode()
    assert b"the runs could not be recorded: " in done.stdout and b"No space left" in done.stdout
    assert (kept / "run-1" / "stdout").stat().st_size > 5
