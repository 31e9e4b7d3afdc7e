"""Renderers of /proc/sysvipc: the kernel's tables of the guest's own IPC namespace, without host values.

Identifiers, keys, sizes and process numbers are the guest's.  Times come from the host's clock and are shown
as the time of the boot; owners are mapped; resident and swapped sizes depend on the host's memory.
"""

from __future__ import annotations

from detbox.synth.table import Query

_OWNERS = frozenset((b"uid", b"cuid"))
_GROUPS = frozenset((b"gid", b"cgid"))
_TIMES = frozenset((b"atime", b"dtime", b"ctime", b"stime", b"rtime", b"otime"))
_MEMORY = frozenset((b"rss", b"swap"))


def table(query: Query) -> bytes:
    """One of msg, sem and shm; columns keep the kernel's widths."""
    lines = query.reader(query.path).splitlines()
    if not lines:
        return b""
    names = lines[0].split()
    out = [lines[0]]
    for line in lines[1:]:
        cells = zip(names, line.split(), strict=False)
        out.append(b" ".join(_cell(query, name, word) for name, word in cells))
    return b"".join(line + b"\n" for line in out)


def _cell(query: Query, name: bytes, word: bytes) -> bytes:
    if name in _OWNERS | _GROUPS and word.isdigit():
        return b"%5d" % query.view.virtual_uid(int(word))
    if name in _TIMES:
        return b"%10d" % (0 if word == b"0" else query.view.boot_time_s)
    if name in _MEMORY:
        return b"%21d" % 0
    return word.rjust(10)
