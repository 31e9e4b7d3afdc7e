"""Runs the host's Debian tools, and turns their failures into errors that say what to do."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from detbox.errors import HostError

_ADDRESS = re.compile(r"\b(?:https?|ftp|file)://\S+|(?<=connect to )\S+(?: \([0-9a-f.:]+\))?|(?<=resolve ')[^']+")
#: Which package brings a program.
_PACKAGES = {"apt-get": "apt", "gpgv": "gpgv", "dpkg": "dpkg", "diffoscope": "diffoscope"}


def call(
    command: Sequence[str],
    *,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
) -> subprocess.CompletedProcess[str]:
    """Runs a program to its end, without a terminal.  Raises HostError if it does not exist."""
    program = shutil.which(command[0])
    if program is None:
        package = _PACKAGES.get(command[0], command[0])
        raise HostError(f"the program {command[0]} is missing", f"install it: apt-get install {package}")
    # apt leaves temporary files if it is ended.
    with tempfile.TemporaryDirectory(prefix="detbox-call-") as place:
        return subprocess.run(
            [program, *command[1:]],
            cwd=cwd,
            env={**os.environ, "LC_ALL": "C.UTF-8", "TMPDIR": place, **(env or {})},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )


def complaints(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines in which one of apt's programs says what is wrong, without mirror addresses."""
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.startswith(("E: ", "Err:"))]
    lines = [line.removeprefix("E: ") for line in lines] or done.stderr.splitlines()[-3:]
    return [_ADDRESS.sub("the archive", line) for line in lines]
