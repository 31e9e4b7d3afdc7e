"""Writes files that others may be reading: as a whole or not at all."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def write(path: Path, text: str, aside: Path | None = None) -> None:
    """Give ``path`` a new content; on failure the old one stays, and nothing else.

    ``aside``: where it is written first, on the same file system.  Raises OSError.
    """
    with tempfile.NamedTemporaryFile("w", dir=aside or path.parent, delete=False, encoding="utf-8") as file:
        try:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.rename(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise
