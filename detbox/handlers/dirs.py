"""Reading directories, and the working directory.

A directory is read whole, sorted by name, when it is read from its start.  The position of the guest's own
description counts entries and tells how far it has got; so lseek, dup and fork need nothing of their own.
"""

from __future__ import annotations

import errno
import os
import struct
from stat import S_IFDIR, S_IFMT
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE
from detbox.handlers import paths
from detbox.handlers.cover import shown_mode
from detbox.handlers.stat import of_fd
from detbox.kernel import _native
from detbox.machine.creds import CAP_SYS_CHROOT
from detbox.machine.inodes import procfs_ino

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

#: (inode, name, type)
Entry = tuple[int, bytes, int]

_SYS_FSTATFS = 138
_DIRENT = struct.Struct("<QQH")
_MOST = 1 << 20  # bytes returned at once, whatever the guest's buffer holds
# File systems whose d_ino is st_ino of the same device: ext2 to ext4, tmpfs, XFS, btrfs (linux/magic.h).
_HONEST = frozenset((0xEF53, 0x01021994, 0x58465342, 0x9123683E))


def getdents64(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t getdents64(int fd, void *buf, size_t size)"""
    return _getdents(m, t, a, _native.pack_dirents)


def getdents(m: Machine, t: Task, a: Args) -> Decision:
    """ssize_t getdents(unsigned fd, struct linux_dirent *buf, unsigned size)"""
    return _getdents(m, t, a, _records)


def _getdents(m: Machine, t: Task, a: Args, records: object) -> int:
    fd = t.process.files.borrow(t, a[0])
    try:
        position = os.lseek(fd, 0, os.SEEK_CUR)
        entry = t.process.files.get(a[0])
        listed: list[Entry] | None = entry.data
        if position == 0 or listed is None:
            listed = entry.data = _snapshot(m, t, fd)
        data, after = records(listed, position, min(a[2] & 0xFFFFFFFF, _MOST))  # type: ignore[operator]
        if after == position:
            if position < len(listed):
                return -errno.EINVAL  # not even one entry fits
            entry.data = None if position else listed
            return 0
        t.write(a[1], data)
        os.lseek(fd, after, os.SEEK_SET)
        return len(data)
    except OSError as e:
        if e.errno == errno.ESPIPE:
            return -errno.ENOTDIR
        raise
    finally:
        os.close(fd)


def _records(listed: list[Entry], position: int, room: int) -> tuple[bytes, int]:
    """The same with struct linux_dirent, which has the type in its last byte."""
    pieces = []
    while position < len(listed):
        ino, name, kind = listed[position]
        length = (len(name) + 27) & ~7  # 18 bytes of head, the name, a NUL, the type
        room -= length
        if room < 0:
            break
        position += 1
        head = _DIRENT.pack(ino, position, length)
        pieces.append(head + name.ljust(length - 19, b"\0") + bytes((kind,)))
    return b"".join(pieces), position


def _snapshot(m: Machine, t: Task, fd: int) -> list[Entry]:
    """The whole directory, in the order and with the numbers that the guest sees."""
    # Another description: reading must not move the guest's position.
    again = os.open(b".", os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
    try:
        st = os.fstat(again)
        if st.st_dev in m.inodes.odd_devs:
            kinds = {name: kind for name, _, kind, _ in _native.read_directory(again, False)}
            return _odd_snapshot(m, t, again, st, kinds)
        entries = _native.read_directory(again, _fs_type(again) not in _HONEST)
        inodes = m.inodes
        listed = [
            (inodes.of(st).ino, b".", S_IFDIR >> 12),
            (inodes.of(os.stat(b"..", dir_fd=again)).ino, b"..", S_IFDIR >> 12),
        ]
        find, here_dev = inodes.find, st.st_dev
        for name, ino, kind, dev in entries:
            entry = find((dev or here_dev, ino), kind << 12)
            listed.append((entry.ino, name, kind if entry.node is None else entry.node[0] >> 12))
        return listed
    finally:
        os.close(again)


def _odd_snapshot(
    m: Machine, t: Task, fd: int, st: os.stat_result, names: dict[bytes, int]
) -> list[Entry]:
    """A directory of procfs or sysfs."""
    path = paths.proc_path(m, t, paths.path_of(m, fd), st.st_dev, fd)
    # An entry that this kernel does not have could be listed, but neither opened nor examined.
    kept = [name for name in m.synth_listing(t, path, sorted(names), st.st_dev) if name in names]
    covered = st.st_dev == m.inodes.cover_dev
    listed = [
        (procfs_ino(path), b".", S_IFDIR >> 12),
        (procfs_ino(paths.dirname(path)), b"..", S_IFDIR >> 12),
    ]
    for name in kept:
        kind = shown_mode(name, names[name] << 12) >> 12 if covered else names[name]
        listed.append((procfs_ino(path.rstrip(b"/") + b"/" + name), name, kind))
    return listed


def _fs_type(fd: int) -> int:
    buffer = bytearray(120)
    _native.raw_syscall(_SYS_FSTATFS, fd, buffer)
    return int.from_bytes(buffer[:8], "little")


def chdir(m: Machine, t: Task, a: Args) -> Decision:
    """int chdir(const char *path)"""
    if t.process.creds.checked:
        path = t.cstr(a[0])
        # The point is looked for in the directory itself.
        paths.resolve(m, t, paths.AT_FDCWD, path + b"/." if path else path, _exists, follow=True)
    t.process.fs.changed_cwd()
    return CONTINUE


def _exists(at: int | None, name: bytes) -> None:
    os.stat(name, dir_fd=at)


def fchdir(m: Machine, t: Task, a: Args) -> Decision:
    """int fchdir(int fd)"""
    if t.process.creds.checked:
        st, vnode = of_fd(m, t, a[0])
        if S_IFMT(st.st_mode) == S_IFDIR and not paths.may(t, st, vnode, paths.EXECUTE):
            return -errno.EACCES
    t.process.fs.changed_cwd()
    return CONTINUE


def getcwd(m: Machine, t: Task, a: Args) -> Decision:
    """int getcwd(char *buf, size_t size)"""
    return CONTINUE


def chroot(m: Machine, t: Task, a: Args) -> Decision:
    """int chroot(const char *path)"""
    if not t.process.creds.capable(CAP_SYS_CHROOT):
        return -errno.EPERM
    t.process.fs.special = True
    t.process.fs.changed_cwd()
    return CONTINUE


def umask(m: Machine, t: Task, a: Args) -> Decision:
    """int umask(int mask): also for the few calls that create files in the kernel (bind, say)"""
    t.process.fs.umask = a[0] & 0o777
    return CONTINUE
