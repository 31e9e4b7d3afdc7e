"""A plain container for native runs: the host's own files, read-only but for one directory and /tmp.

It runs in a child between fork and exec, so it imports nothing late.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

from detbox.kernel import _native

_CLONE_NEWNS, _CLONE_NEWUSER = 0x00020000, 0x10000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_MOUNT_SETATTR, _AT_RECURSIVE, _MOUNT_ATTR_RDONLY = 442, 0x8000, 0x1
_AT_FDCWD = -100
_TMP = "/tmp"


def contain(within: Path) -> None:
    """Make everything but ``within`` read-only for the calling process; /tmp is empty.  Raises OSError."""
    uid, gid = os.geteuid(), os.getegid()
    _native.unshare(_CLONE_NEWNS | (_CLONE_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                file.write(text)
    here = os.getcwd()
    _native.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    _set_read_only("/", True)
    place = os.open(within, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _native.mount("tmpfs", _TMP.encode(), "tmpfs", 0, "mode=1777")
    os.makedirs(within, exist_ok=True)
    _native.mount(f"/proc/self/fd/{place}", os.fsencode(within), None, _MS_BIND, None)
    os.close(place)
    _set_read_only(str(within), False)
    os.chdir(here)


def _set_read_only(path: str, on: bool) -> None:
    """mount_setattr(2): attributes to set, to clear, propagation, user namespace."""
    attributes = struct.pack("<4Q", *((_MOUNT_ATTR_RDONLY, 0) if on else (0, _MOUNT_ATTR_RDONLY)), 0, 0)
    flags = _AT_RECURSIVE if on else 0
    result = _native.raw_syscall(_MOUNT_SETATTR, _AT_FDCWD, os.fsencode(path), flags, attributes, len(attributes))
    if result < 0:
        raise OSError(-result, os.strerror(-result), path)
