"""What kernel/relay.c does for threads that wait by turns is what would be done without it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from programs import compiled

HERE = Path(__file__).parent
_WITHOUT = """
import sys
from detbox.supervisor.relay import Relay
if sys.argv.pop(1) == "without":
    Relay.take = lambda self, task: False
from detbox.cli.main import program
program()
"""


def _output(how: str, directory: Path) -> bytes:
    own = [sys.executable, "-c", _WITHOUT, how, "run", "--timeout", "100", "-C", str(directory), "--", "./program"]
    done = subprocess.run(own, stdin=subprocess.DEVNULL, capture_output=True, timeout=120)
    assert not done.returncode, done.stderr
    return done.stdout


@pytest.mark.parametrize("program", ["spin_turns.c", "spin_queues.c", "spin_memory.c"])
def test_turns_taken_in_c_are_those_of_the_supervisor(program: str) -> None:
    directory = compiled(HERE / program, [HERE / "guest.h"])
    assert _output("with", directory) == _output("without", directory)
