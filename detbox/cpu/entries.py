"""The cache's entries on disk: rows as JSON behind a checksum, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TypeVar

import xxhash

from detbox.cpu.sites import Site
from detbox.cpu.trampoline import Displacement

_Row = TypeVar("_Row", Site, Displacement)


def encoded(found: Sequence[Site | Displacement]) -> bytes:
    """The content of an entry."""
    body = json.dumps([item.to_row() for item in found], separators=(",", ":")).encode()
    return xxhash.xxh3_64_hexdigest(body).encode() + b"\n" + body


def decoded(content: bytes, row: type[_Row]) -> list[_Row] | None:
    """The rows of an entry; None if it is not whole and unchanged."""
    checksum, _, body = content.partition(b"\n")
    try:
        if checksum.decode() != xxhash.xxh3_64_hexdigest(body):
            return None
        return [row.from_row(values) for values in json.loads(body)]
    except (ValueError, TypeError):
        return None


def store(name: str, content: bytes, directory: int) -> None:
    """Write an entry under a temporary name and rename it.  ``directory``: a descriptor.  Raises OSError."""
    temporary = f".{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        with open(fd, "wb") as file:
            file.write(content)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        os.unlink(temporary, dir_fd=directory)
        raise
