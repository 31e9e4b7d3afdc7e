"""Runs `detbox verify` as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import detbox

ROOT = Path(detbox.__file__).parents[1]
CHEAP = ("--no-perturb=load", "--no-perturb=memory")


def run_detbox(
    *words: str, cwd: Path, stdin: bytes = b"", env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    """What is kept of differing runs vanishes afterwards, unless ``words`` say where to keep it."""
    command = [sys.executable, "-m", "detbox", *words]
    with tempfile.TemporaryDirectory(prefix="detbox-test-") as place:
        os.chmod(place, 0o755)
        variables = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": place, **(env or {})}
        return subprocess.run(
            command, cwd=cwd, env=variables, input=stdin, capture_output=True, timeout=150, check=False
        )


def verify(*words: str, cwd: Path, stdin: bytes = b"") -> tuple[int, dict[str, Any]]:
    done = run_detbox("verify", "--json", *CHEAP, *words, cwd=cwd, stdin=stdin)
    assert done.stdout, done.stderr.decode()
    return done.returncode, json.loads(done.stdout)


def fill(directory: Path) -> Path:
    """Make ``directory`` with a few files, made in no order."""
    directory.mkdir()
    for name in ("m", "b", "z", "a", "q", "k", "c", "y", "d", "x"):
        (directory / name).write_text(name)
    return directory


def state(directory: Path) -> dict[str, tuple[int, bytes]]:
    """Times and contents."""
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in directory.iterdir()}
