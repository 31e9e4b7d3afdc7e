"""Compiles guest programs, each content once."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

FLAGS = ("-O1", "-g", "-Wall", "-Wextra", "-Werror", "-pthread")
LIBRARIES = ("-lutil", "-lrt", "-lm")


def cache_dir() -> Path:
    """Where programs are kept between test runs; readable by the users of perturbed hosts."""
    directory = Path(tempfile.gettempdir()) / f"detbox-guest-programs-{os.geteuid()}"
    directory.mkdir(mode=0o755, exist_ok=True)
    status = directory.lstat()
    if status.st_uid != os.geteuid() or directory.is_symlink():
        raise PermissionError(f"{directory} belongs to somebody else; remove it")
    return directory


def compiled(source: Path, headers: Iterable[Path] = (), flags: Sequence[str] = FLAGS) -> Path:
    """A directory that holds nothing but the program made from ``source``, called ``program``."""
    digest = hashlib.sha256(repr((flags, LIBRARIES)).encode())
    for path in (source, *headers):
        digest.update(path.read_bytes())
    directory = cache_dir() / f"{source.stem}-{digest.hexdigest()[:16]}"
    if not (directory / "program").exists():
        directory.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache_dir()) as scratch:
            output = Path(scratch) / "program"
            command = ["gcc", *flags, "-o", str(output), source.name, *LIBRARIES]
            subprocess.run(command, cwd=source.parent, check=True)
            output.rename(directory / "program")
    return directory
