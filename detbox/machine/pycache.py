"""The modification time that Python's compiled files record for their source.

A ``.pyc`` file holds the source's mtime (PEP 3147, PEP 552), and Python compiles
anew where it differs.  Since every file of an image shows one constant time, all
of them would be stale, and an interpreter would spend its start recompiling its
library.  A source that has a compiled file therefore shows the time that this
one records: a function of the image's content alone.
"""

from __future__ import annotations

import os
import struct

_HEADER = struct.Struct("<4sIII")  # magic, flags, source mtime, source size
#: Interpreters whose files are looked for, newest first.
_TAGS = [b"cpython-3%d" % minor for minor in range(16, 5, -1)]


def recorded_mtime(path: bytes, dir_fd: int | None, size: int) -> int | None:
    """Seconds since 1970 that a compiled file records for the source ``path`` of ``size`` bytes, or None."""
    found = recorded(path, dir_fd)
    return found[0] if found is not None and found[1] == size & 0xFFFFFFFF else None


def recorded(path: bytes, dir_fd: int | None) -> tuple[int, int] | None:
    """Time in seconds since 1970 and size in bytes that a compiled file records for the source ``path``, or None."""
    head, _, name = path.rpartition(b"/")
    stem = (head + b"/" if head or path[:1] == b"/" else b"") + b"__pycache__/" + name[:-3]
    for index, tag in enumerate(_TAGS):
        try:
            fd = os.open(b"%s.%s.pyc" % (stem, tag), os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
        except FileNotFoundError:
            continue
        except OSError:
            return None
        try:
            header = os.read(fd, _HEADER.size)
        finally:
            os.close(fd)
        if index:
            # The interpreter of one image is the same everywhere: ask for it first from now on.
            _TAGS.insert(0, _TAGS.pop(index))
        if len(header) < _HEADER.size:
            return None
        _, flags, mtime, size = _HEADER.unpack(header)
        return (mtime, size) if flags == 0 else None
    return None
