"""Fixed contents of the files in /etc and /run that describe the machine and not the image."""

from __future__ import annotations

from collections.abc import Callable

from detbox.machine import constants
from detbox.synth.sysfs import Symlink

#: An alphabetical list of what is put in place of the image's file; ``None`` removes it.
FILES: dict[str, bytes | Symlink | None] = {
    "/etc/adjtime": None,  # the hardware clock's drift
    "/etc/gshadow": None,  # only root on the host could read it
    "/etc/gshadow-": None,
    "/etc/hostname": f"{constants.HOSTNAME}\n".encode(),
    # The host's name has a line of its own, as on any machine: it would be called localhost otherwise (`hostname -f`).
    "/etc/hosts": (
        "127.0.0.1\tlocalhost\n"
        f"127.0.0.1\t{constants.HOSTNAME}\n"
        "::1\tlocalhost ip6-localhost ip6-loopback\n"
    ).encode(),
    "/etc/localtime": Symlink("/usr/share/zoneinfo/Etc/UTC"),  # where it dangles, libc uses UTC too
    "/etc/machine-id": f"{constants.MACHINE_ID}\n".encode(),
    "/etc/mtab": Symlink("../proc/self/mounts"),
    "/etc/nsswitch.conf": (
        b"passwd: files\ngroup: files\nshadow: files\ngshadow: files\nhosts: files dns\nnetworks: files\n"
        b"protocols: files\nservices: files\nethers: files\nrpc: files\nnetgroup: files\n"
    ),
    # Nobody listens there: a refusal at once.  Libraries that find no line at all fail before they ask (libevent's).
    "/etc/resolv.conf": b"nameserver 127.0.0.1\n",
    "/etc/shadow-": None,
    "/etc/timezone": b"Etc/UTC\n",
    "/run/utmp": b"",
    "/var/lib/dbus/machine-id": f"{constants.MACHINE_ID}\n".encode(),
    "/var/log/btmp": None,  # logins to the host
    "/var/log/lastlog": None,
    "/var/log/wtmp": None,
}  # fmt: skip

def _with_lines(current: bytes, wanted: list[tuple[bytes, int, bytes]]) -> bytes:
    """Append each (name, number, line) unless the name or the number exists: the image's entries win.

    The result always ends its last line, because an appended line must not join it.
    """
    lines = current.splitlines()
    fields = [line.split(b":") for line in lines]
    names = {field[0] for field in fields}
    numbers = {field[2] for field in fields if len(field) > 2}
    for name, number, line in wanted:
        text = b"%d" % number
        if name in names or text in numbers:
            continue
        lines.append(line)
        names.add(name)
        numbers.add(text)
    return b"".join(line + b"\n" for line in lines)


def passwd(current: bytes, user: bytes, uid: int, gid: int, home: bytes = b"/root") -> bytes:
    """/etc/passwd with entries for root, nobody and the virtual user."""
    shell = b"/bin/sh"
    own = b"%s:x:%d:%d:%s:%s:%s" % (user, uid, gid, user, home, shell)
    return _with_lines(current, [
        (b"root", 0, b"root:x:0:0:root:/root:" + shell),
        (b"nobody", 65534, b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin"),
        (user, uid, own),
    ])  # fmt: skip


def group(current: bytes, name: bytes, gid: int) -> bytes:
    """/etc/group with entries for root, the group of nobody and the virtual user's group."""
    return _with_lines(current, [
        (b"root", 0, b"root:x:0:"),
        (b"nogroup", 65534, b"nogroup:x:65534:"),
        (name, gid, b"%s:x:%d:" % (name, gid)),
    ])  # fmt: skip


def shadow(users: bytes) -> bytes:
    """/etc/shadow for an /etc/passwd: nobody has a password, and none expires.

    The image's is for root's eyes alone.  Without any, PAM lets nobody become another user (su, cron).
    """
    names = [line.split(b":")[0] for line in users.splitlines() if b":" in line]
    return b"".join(b"%s:*:::::::\n" % name for name in names)


#: Files that are made from the image's own, in this order: path, the file that it is made from, its mode, and what
#: makes it (bytes, user or group name, uid, gid).
REMADE: dict[str, tuple[str, int, Callable[[bytes, bytes, int, int], bytes]]] = {
    "/etc/group": ("/etc/group", 0o644, lambda current, name, uid, gid: group(current, name, gid)),
    "/etc/passwd": ("/etc/passwd", 0o644, lambda current, name, uid, gid: passwd(current, name, uid, gid)),
    "/etc/shadow": ("/etc/passwd", 0o640, lambda current, name, uid, gid: shadow(current)),
}
