"""Runs jobs with and without a cache, each in a fresh copy of its inputs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from detbox.cache.store import Store
from detbox.images.inside import as_owner
from detbox.report.tree import Entry, snapshot

REPOSITORY = Path(__file__).resolve().parents[2]
#: Inputs have an old time, so that the cache may trust it.
OLD_NS = 1_500_000_000 * 10**9

Change = Callable[[Path], object]


@dataclass(frozen=True)
class Result:
    """All that a user sees of a run."""

    status: int
    output: bytes  # stdout and stderr in their order
    tree: dict[str, Entry]


def _age(top: Path) -> None:
    for path in [top, *top.rglob("*")]:
        os.utime(path, ns=(OLD_NS, OLD_NS), follow_symlinks=False)


@dataclass
class Bench:
    """Runs jobs below a directory, each run in a fresh copy of its inputs."""

    top: Path
    setup: Change
    count: int = 0
    options: tuple[str, ...] = ()
    stdin: bytes = b""
    env: dict[str, str] = field(default_factory=dict)

    def inputs(self, change: Change | None = None) -> Path:
        """A new work directory with the inputs, changed or not."""
        self.count += 1
        work = self.top / f"run{self.count}" / "work"
        work.mkdir(parents=True)
        self.setup(work)
        if change is not None:
            change(work)
        as_owner(lambda: _age(work))
        return work

    def run(self, script: str | Sequence[str], work: Path, *options: str) -> Result:
        """One run of a shell's script (or a command), stdout and stderr in one pipe."""
        command = ["sh", "-c", script] if isinstance(script, str) else list(script)
        argv = [sys.executable, "-m", "detbox", "run", *options, *self.options, "--", *command]
        env = {**os.environ, "PYTHONPATH": str(REPOSITORY), **self.env}
        done = subprocess.run(
            argv, cwd=work, env=env, input=self.stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        return Result(done.returncode, done.stdout, snapshot(work, (os.geteuid(), os.getegid())))

    @property
    def store(self) -> str:
        return str(self.top / "store")

    def cached(self, script: str | Sequence[str], work: Path, *options: str) -> tuple[Result, str, str]:
        """One run with the cache: (result, what came of it, why)."""
        result = self.run(script, work, "--cache", f"--cache-dir={self.store}", *options)
        store = Store(self.store)
        runs = store.runs()
        store.close()
        assert runs, (result.status, result.output, store.trouble)
        newest = runs[0]
        return result, str(newest["result"]), str(newest["why"])
