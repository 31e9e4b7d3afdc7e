"""Renderers of the virtual mount table: mountinfo, mounts and mountstats."""

from __future__ import annotations

import os
from collections.abc import Sequence

from detbox.synth.table import Query
from detbox.synth.view import Mount

_ESCAPES = ((b"\\", b"\\134"), (b" ", b"\\040"), (b"\t", b"\\011"), (b"\n", b"\\012"), (b"#", b"\\043"))


def escape(text: bytes) -> bytes:
    """Octal escapes of the separators, as the kernel's mangle() writes them; the backslash goes first."""
    for plain, octal in _ESCAPES:
        text = text.replace(plain, octal)
    return text


def seen(query: Query) -> Sequence[Mount]:
    """The mounts that the process sees whose file it is."""
    own = query.process_or_none.mounts() if query.process_or_none is not None else None
    return query.view.mounts if own is None else own


def mountinfo(query: Query) -> bytes:
    """/proc/PID/mountinfo, in the order of the view.  The container's mounts are private, without optional fields."""
    return b"".join(_mountinfo_line(mount) for mount in seen(query))


def _mountinfo_line(mount: Mount) -> bytes:
    head = f"{mount.mount_id} {mount.parent_id} {mount.major}:{mount.minor} ".encode()
    place = escape(mount.root) + b" " + escape(mount.point) + b" " + mount.options.encode()
    if mount.optional:
        place += b" " + mount.optional.encode()
    kind = mount.fstype.encode() + b" " + escape(mount.source) + b" " + os.fsencode(mount.super_options)
    return head + place + b" - " + kind + b"\n"


def mounts(query: Query) -> bytes:
    """/proc/PID/mounts: super block options join the mount's own, the read-write word only once."""
    lines = []
    for mount in seen(query):
        words = [word for word in mount.super_options.split(",") if word not in ("rw", "ro")]
        options = ",".join([mount.options, *words])
        place = escape(mount.source) + b" " + escape(mount.point)
        lines.append(place + b" " + mount.fstype.encode() + b" " + os.fsencode(options) + b" 0 0\n")
    return b"".join(lines)


def mountstats(query: Query) -> bytes:
    """/proc/PID/mountstats: no file system has statistics."""
    return b"".join(
        b"device %s mounted on %s with fstype %s\n"
        % (escape(mount.source), escape(mount.point), mount.fstype.encode())
        for mount in seen(query)
    )
