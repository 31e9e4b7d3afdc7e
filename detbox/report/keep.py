"""Keeps what runs have left, for people: their output trees, streams and statuses."""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from detbox.errors import UserError
from detbox.report.copies import copy_file
from detbox.report.verify import Run


def place(given: str | None) -> Path:
    """The directory for what is kept: ``given``, which must be empty or new, or a new one of our own choice.

    ``given`` is made when there is something to keep: it may be among the inputs' files.  Raises UserError.
    """
    if given is None:
        return Path(tempfile.mkdtemp(prefix="detbox-kept-"))
    path = Path(given).absolute()
    try:
        if not path.exists():
            can_be_made(path)
        elif any(path.iterdir()):
            raise UserError(f"--keep {given}: is not empty", "name a new directory")
    except OSError as error:
        raise UserError(f"--keep {given}: {error.strerror}", "name a new directory") from None
    return path


def can_be_made(path: Path) -> None:
    """Raises OSError if nothing can be made at ``path``, as far as that can be told without making it."""
    if not os.access(path.parent, os.W_OK | os.X_OK):
        number = errno.EACCES if path.parent.is_dir() else errno.ENOENT
        raise OSError(number, os.strerror(number))


def keep(runs: Mapping[str, Run], target: Path) -> Path:
    """Move the outputs of runs, by name, into ``target``.  Nothing else may look at the runs' trees afterwards.

    Raises OSError, whose file is told.
    """
    try:
        target.mkdir(exist_ok=True)
        _keep(runs, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), error.filename or str(target)) from error
    return target


def _keep(runs: Mapping[str, Run], target: Path) -> None:
    for name, run in runs.items():
        into = target / name
        into.mkdir()
        (into / "stdout").write_bytes(run.observed.stdout)
        (into / "stderr").write_bytes(run.observed.stderr)
        report = {"status": run.observed.status, "host": {k: str(v) for k, v in run.host.settings.items()}}
        (into / "report.json").write_text(json.dumps({**report, "detbox": run.answer}, indent=2))
        if run.observed.work is not None:
            _move(run.observed.work, into / "tree")


def _move(source: Path, target: Path) -> None:
    """A rename needs no room on a full disk; a copy is for another file system."""
    try:
        os.rename(source, target)
    except OSError:
        shutil.copytree(source, target, symlinks=True, copy_function=copy_file)
