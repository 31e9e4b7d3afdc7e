"""The `detbox` command as a process: messages, statuses, start-up time."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import detbox

ROOT = Path(detbox.__file__).parents[1]


def cli(*words: str, cwd: Path | str = "/tmp", **more: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, "-m", "detbox", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        **more,  # type: ignore[call-overload]
    )


def assert_refused(done: subprocess.CompletedProcess[str]) -> None:
    assert done.returncode == 125
    assert done.stdout == ""
    assert done.stderr
    assert all(line.startswith("detbox: ") for line in done.stderr.splitlines())
    assert "Traceback" not in done.stderr


def test_version() -> None:
    done = cli("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"detbox {detbox.__version__}\n", "")


@pytest.mark.parametrize(
    "words", [["--help"], ["run", "--help"], ["doctor", "--help"], ["syscalls", "--help"]]
)
def test_help(words: list[str]) -> None:
    done = cli(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: detbox" in done.stdout


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["frobnicate"],
        ["run"],
        ["run", "--"],
        ["run", "--seed"],
        ["run", "--bogus", "true"],
        ["run", "--seed", "x", "true"],
        ["run", "-C", "/missing", "true"],
        ["run", "--config", "/missing", "true"],
        ["doctor", "--bogus"],
    ],
)
def test_mistakes_are_told_apart_from_the_guests_failures(words: list[str]) -> None:
    assert_refused(cli(*words))


def test_vanished_current_directory(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    shell = 'rmdir "$PWD"; exec "$0" -m detbox run -- true'
    done = subprocess.run(
        ["sh", "-c", shell, sys.executable],
        cwd=gone,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert_refused(done)


def test_closed_descriptors() -> None:
    command = f"exec {sys.executable} -m detbox --version <&- >&- 2>&-"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT)
    assert done.returncode == 0


def test_closed_reader_is_no_error() -> None:
    command = f"{sys.executable} -m detbox doctor --json | true"
    done = subprocess.run(["sh", "-c", command], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_start_imports_little() -> None:
    """A command line is answered without what only runs need: their modules cost more than all the rest."""
    code = "import sys; from detbox.cli import verbs; verbs.parser(); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    parts = {".".join(name.split(".")[:2]) for name in done.stdout.split() if name.startswith("detbox.")}
    assert not parts & {"detbox.container", "detbox.supervisor", "detbox.handlers", "detbox.synth", "detbox.images"}
    packages = {name.partition(".")[0] for name in done.stdout.split()}
    assert not packages & {"capstone", "elftools", "ptrace", "pyroute2", "pychroot", "sqlite3", "xxhash", "rich"}


def test_a_missing_module_is_what_the_host_lacks() -> None:
    code = "import sys; sys.modules[sys.argv[1]] = None; from detbox.cli.main import main; sys.exit(main(sys.argv[2:]))"
    for name, shown in (("xxhash", "module xxhash"), ("detbox.kernel._native", "C extension")):
        words = [sys.executable, "-c", code, name, "run", "--", "true"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
        assert_refused(done)
        assert shown in done.stderr and sys.executable in done.stderr and "bug" not in done.stderr
