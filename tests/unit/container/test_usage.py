"""Looking at what a run uses: the watch's rhythm, and what it says."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detbox.container import usage
from detbox.errors import LimitExceeded

#: Two processes that share 32 MiB, below one that stands for the supervisor.
GUEST = """
import os, time
block = bytearray(b"x") * (32 << 20)
if os.fork() == 0: time.sleep(99)
os.write(1, b"r")
time.sleep(99)
"""
BELOW = "import subprocess, sys; subprocess.run([sys.executable, '-c', {!r}])"


def test_without_a_limit_nobody_looks() -> None:
    watch = usage.Watch(os.getpid(), None)
    assert watch.left() is None
    watch.look()


def test_who_uses_how_much() -> None:
    command = [sys.executable, "-c", BELOW.format(BELOW.format(GUEST))]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as keeper:
        watch = usage.Watch(keeper.pid, 1 << 20)
        try:
            assert keeper.stdout is not None and keeper.stdout.read(1) == b"r"
            with pytest.raises(LimitExceeded) as found:
                for _ in range(1000):
                    time.sleep(watch.left() or 0)
                    watch.look()
            heads = found.value.message.splitlines()
            assert heads[0].startswith("the run used more memory than it may: 1 MiB allowed, ")
            assert 32 < int(heads[0].split()[-3]) < 60, "shared pages are counted once"
            assert len(heads) == 4 and all("MiB  " in line for line in heads[1:])
        finally:
            for pid in [keeper.pid, *usage.processes(keeper.pid)]:
                os.kill(pid, 9)


def test_a_place_that_leads_elsewhere_counts_nothing(tmp_path: Path) -> None:
    device = tmp_path.stat().st_dev
    assert usage._used(str(tmp_path), device) > 0
    assert usage._used(str(tmp_path), device + 1) == usage._used(str(tmp_path / "missing"), device) == 0
