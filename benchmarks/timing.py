"""Runs one command natively and under detbox, side by side, and keeps the times."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from detbox.values import own_directory

REPOSITORY = Path(__file__).resolve().parents[1]
#: A command that takes longer than this (seconds) fails: no row may eat the whole table's time.
LIMIT_S = 240


class Failed(Exception):
    """A command of a benchmark did not succeed; the message has the end of what it said."""


@dataclass(frozen=True)
class Cost:
    """What one command took, in seconds: real time, and processor time of all its processes."""

    wall: float
    cpu: float


@dataclass
class Pair:
    """The costs of a native and a detbox command, one entry for each repetition."""

    native: list[Cost] = field(default_factory=list)
    detbox: list[Cost] = field(default_factory=list)

    def medians(self) -> tuple[float, float]:
        """Median real times in seconds: native, under detbox."""
        return median(cost.wall for cost in self.native), median(cost.wall for cost in self.detbox)

    def cpu_ratio(self) -> float:
        """Quotient of the median processor times."""
        return median(cost.cpu for cost in self.detbox) / median(cost.cpu for cost in self.native)


def detbox_command(command: Sequence[str], options: Sequence[str] = ()) -> list[str]:
    """The command line that runs ``command`` under detbox in the current directory, as a user types it."""
    installed = Path(sys.executable).with_name("detbox")
    program = [str(installed)] if installed.exists() else [sys.executable, "-m", "detbox"]
    return [*program, "run", *options, "--", *command]


def cache_dir() -> Path:
    """Where the benchmarks keep what they need again."""
    return Path(own_directory("cache", os.environb), "benchmarks")


def _environment() -> dict[str, str]:
    """Of all commands."""
    changes = {
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONDONTWRITEBYTECODE": "",
        "LC_ALL": "C",
    }
    return os.environ | changes


def run(command: Sequence[str], cwd: Path) -> tuple[Cost, str]:
    """Run a command to its end; what it cost, and its standard error.  Raises Failed."""
    with tempfile.TemporaryFile() as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=cwd, env=_environment(),
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=said,
        )  # fmt: skip
        # wait4 gives the times of the command and of everything that was waited for below it.
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        said.seek(0)
        text = said.read().decode(errors="replace")
    if status or wall > LIMIT_S:
        how = f"status {process.returncode} after {wall:.0f} s"
        raise Failed(f"{' '.join(command)}: {how}: {text[-400:].strip()}")
    return Cost(wall, usage.ru_utime + usage.ru_stime), text


def side_by_side(
    native: Sequence[str],
    boxed: Sequence[str],
    repetitions: int,
    directory: Callable[[], Path],
) -> Pair:
    """Alternate ``native`` and ``boxed`` under detbox, each time in a directory that ``directory()`` makes.

    The first, unmeasured turn of each fills the caches.
    """
    pair = Pair()
    for turn in range(repetitions + 1):
        one, _ = run(native, directory())
        boxed_cost, text = run(detbox_command(boxed, ["--stats"]), directory())
        numbers = _numbers(text)
        # The guest is not waited for by detbox's own process, which is outside its PID namespace.
        other = Cost(boxed_cost.wall, numbers["supervisor_cpu_s"] + numbers["guest_cpu_s"])
        if turn:
            pair.native.append(one)
            pair.detbox.append(other)
    return pair


def statistics(command: Sequence[str], cwd: Path) -> dict[str, float]:
    """The top-level numbers of ``detbox run --stats``."""
    _, text = run(detbox_command(command, ["--stats"]), cwd)
    return _numbers(text)


def _numbers(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for line in text.splitlines():
        words = line.removeprefix("detbox:").split()
        if line.startswith("detbox: ") and not line.startswith("detbox:   ") and len(words) == 2:
            found[words[0]] = float(words[1])
    return found
