"""Tiny root file systems for the tests of images."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path
from typing import Any


def tarball(path: Path, *members: tuple[str, dict[str, Any]], mode: str = "w") -> Path:
    """A tarball of (name, what) where what has ``content``, ``link``, ``hard``, ``type`` and TarInfo's fields."""
    with tarfile.open(path, mode) as tar:
        for name, what in members:
            info = tarfile.TarInfo(name)
            rest = dict(what)
            content = rest.pop("content", None)
            if "link" in rest:
                info.type, info.linkname = tarfile.SYMTYPE, rest.pop("link")
            elif "hard" in rest:
                info.type, info.linkname = tarfile.LNKTYPE, rest.pop("hard")
            elif content is None:
                info.type = tarfile.DIRTYPE
                info.mode = 0o755
            for field, value in rest.items():
                setattr(info, field, value)
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content) if content is not None else None)
    return path


def small(path: Path, mode: str = "w") -> Path:
    """A root file system with one of everything."""
    return tarball(
        path,
        (".", {}),
        ("./bin", {}),
        ("./bin/tool", {"content": b"#!/bin/sh\n", "mode": 0o4755, "mtime": 1_000_000_000}),
        ("./bin/same", {"hard": "./bin/tool"}),
        ("./etc", {}),
        ("./etc/secret", {"content": b"x", "mode": 0o000, "gid": 42}),
        ("./etc/shut", {"mode": 0o000, "uid": 7}),
        ("./etc/shut/in", {"content": b"in"}),
        ("./etc/link", {"link": "../../../outside"}),
        ("./dev", {}),
        ("./dev/null", {"content": None, "type": tarfile.CHRTYPE}),
        ("./pipe", {"content": None, "type": tarfile.FIFOTYPE, "mode": 0o600}),
        ("./später é\udcff", {"content": b"name"}),
        mode=mode,
    )
