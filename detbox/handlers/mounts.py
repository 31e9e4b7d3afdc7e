"""Mounting: possible in a mount namespace of the guest's own, refused elsewhere.

The container's mounts belong to a user namespace above the guest's, so that the kernel would refuse as
well; the answer is given here so that it does not depend on the kernel's version.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from errno import EPERM
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen, Decision
from detbox.handlers import paths
from detbox.handlers.namespaces import may_mount
from detbox.machine.userspaces import CAP_SYS_ADMIN, TOP

if TYPE_CHECKING:
    from detbox.machine.creds import Creds
    from detbox.machine.inodes import VInode
    from detbox.machine.userspaces import UserSpace
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_NOFOLLOW = 8  # UMOUNT_NOFOLLOW
_REMOUNT, _BIND, _MOVE, _REC = 32, 4096, 8192, 16384
_PROPAGATION = 1 << 17 | 1 << 18 | 1 << 19 | 1 << 20  # MS_UNBINDABLE, MS_PRIVATE, MS_SLAVE, MS_SHARED
#: With these flags no file system is made.
_CHANGES = _REMOUNT | _BIND | _MOVE | _PROPAGATION
#: MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC; the attributes of mount_setattr(2) have the same values.
_ATTRIBUTES = 1 | 2 | 4 | 8
#: File systems that show nothing but what the guest puts there.
_OWN_CONTENT = frozenset((b"tmpfs", b"ramfs", b"overlay", b"devpts", b"mqueue"))
#: Those of them whose options may name an owner: of the root directory, and of terminals (which stay their openers').
_OWNED = (b"tmpfs", b"devpts")
_INVALID_ID = 0xFFFFFFFF


def mount(m: Machine, t: Task, a: Args) -> Decision:
    """``mount(source, target, type, flags, data)``."""
    if not may_mount(t):
        return -EPERM
    m.mounting.before_change(t)
    if a[3] & _CHANGES:
        return _change(m, t, a)
    kind = t.cstr(a[2]) if a[2] else b""
    if kind == b"proc":
        return _mount_proc(m, t, t.cstr(a[0]) if a[0] else b"none", t.cstr(a[1]), a[3])
    if kind == b"sysfs" and t.process.creds.capable(CAP_SYS_ADMIN, t.process.network.owner):
        return _mount_sys(m, t, t.cstr(a[1]))
    if kind not in _OWN_CONTENT and kind != b"sysfs":
        m.doubt(t, f"a mount of type {os.fsdecode(kind)} was refused: it could show the host")
        return -EPERM
    if kind == b"sysfs":
        return -EPERM
    target = t.cstr(a[1])
    options = t.cstr(a[4]) if a[4] and kind in _OWNED else b""
    layers = _Layers(m, t, t.cstr(a[4])) if a[4] and kind == b"overlay" else None
    owners, others = _owners(t.process.creds.space, options)
    if owners:
        m.mounting.exchange(t, a[4], others)

    def made(task: Task, result: int) -> None:
        if owners:
            m.mounting.exchange(task, a[4], options)
        if result == 0 and kind != b"mqueue":
            with _target(m, task, target) as fd:
                st = os.fstat(fd)
                creds = task.process.creds
                owner = owners.get(b"uid", creds.fsuid), owners.get(b"gid", creds.fsgid)
                m.inodes.another_file_system(st.st_dev, layers.owner(creds) if layers else owner)
                if layers:
                    layers.take_over(m, task, m.inodes.of(st))

    return ContinueThen(made)


def _owners(space: UserSpace, options: bytes) -> tuple[dict[bytes, int], bytes]:
    """The user and group that a file system's options name, and the options with nothing in place of these; OSError.

    The kernel takes only those that its own user namespace maps, which is one.
    """
    owners, words = {}, options.split(b",")
    for i, word in enumerate(words):
        name, _, number = word.partition(b"=")
        if name in (b"uid", b"gid") and number.isdigit() and int(number) < _INVALID_ID:
            owners[name] = space.user(int(number)) if name == b"uid" else space.gid(int(number))
            words[i] = b"," * len(word)
    return owners, b",".join(words)


@contextlib.contextmanager
def _target(m: Machine, t: Task, path: bytes, *, follow: bool = True) -> Iterator[int]:
    """O_PATH descriptor of what the guest means by a path."""
    flags = os.O_PATH | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    fd = paths.resolve(m, t, paths.AT_FDCWD, path, lambda at, name: os.open(name, flags, dir_fd=at), follow=follow)
    try:
        yield fd
    finally:
        os.close(fd)


def _change(m: Machine, t: Task, a: Args) -> Decision:
    """Bind and remount reach all the mounts that the guest takes for one file system."""
    flags = a[3]
    if flags & (_REMOUNT | _BIND) == _REMOUNT | _BIND:
        with _target(m, t, t.cstr(a[1])) as target:
            return 0 if m.mounting.remount(t, target, flags) else CONTINUE
    if flags & (_REMOUNT | _BIND | _REC) == _BIND:
        with _target(m, t, t.cstr(a[0])) as source, _target(m, t, t.cstr(a[1])) as target:
            return 0 if m.mounting.bind(t, source, target) else CONTINUE
    return CONTINUE


def _mount_proc(m: Machine, t: Task, source: bytes, path: bytes, flags: int) -> Decision:
    """The procfs of a PID namespace of the guest's own; the container's is its root's to mount once more."""
    with _target(m, t, path) as target:
        if not m.nested.space(t.tid).depth:
            if not t.process.creds.capable(CAP_SYS_ADMIN, TOP):
                return -EPERM
            m.mounting.again(t, b"/proc", target, flags & _ATTRIBUTES)
            return 0
        if paths.path_of(m, target).rpartition(b"/")[2] != b"proc":
            m.doubt(t, "a procfs on a directory that is not called proc was refused")
            return -EPERM
        m.nested.mount(t, target, source, flags & _ATTRIBUTES)
    with _target(m, t, path) as mounted:
        m.nested.learn(t, os.dup(mounted))
    return 0


def _mount_sys(m: Machine, t: Task, path: bytes) -> Decision:
    """Who has a network of its own may mount sysfs; it shows what the container's shows."""
    with _target(m, t, path) as target:
        m.mounting.again(t, b"/sys", target)
    return 0


class _Layers:
    """The directories of an overlay: what it shows belongs, as far as nobody has seen it, to who owns the lowest one.

    The kernel takes the files' own users, who are all the same to it.
    """

    def __init__(self, m: Machine, t: Task, options: bytes) -> None:
        self._paths = dict(word.partition(b"=")[::2] for word in options.split(b","))
        self._lower = self._owner_of(m, t, self._paths.get(b"lowerdir", b"").rpartition(b":")[2])
        self._upper = self._owner_of(m, t, self._paths.get(b"upperdir", b""))

    @staticmethod
    def _owner_of(m: Machine, t: Task, path: bytes) -> tuple[int, int] | None:
        with contextlib.suppress(OSError), _target(m, t, path) as fd:
            found = m.inodes.of(os.fstat(fd))
            return found.uid, found.gid
        return None

    def owner(self, creds: Creds) -> tuple[int, int]:
        """Of the overlay's files."""
        return self._lower or (creds.fsuid, creds.fsgid)

    def take_over(self, m: Machine, t: Task, top: VInode) -> None:
        """Give the overlay's top and its directory for work their owners."""
        top.uid, top.gid = self._upper or (top.uid, top.gid)
        with contextlib.suppress(OSError), _target(m, t, self._paths.get(b"workdir", b"") + b"/work") as fd:
            work, creds = m.inodes.of(os.fstat(fd)), t.process.creds
            work.uid, work.gid = creds.fsuid, creds.fsgid


def umount2(m: Machine, t: Task, a: Args) -> Decision:
    """``umount2(target, flags)``."""
    if not may_mount(t):
        return -EPERM
    with _target(m, t, t.cstr(a[0]), follow=not a[1] & _NOFOLLOW) as target:
        return 0 if m.mounting.unmount(t, target, a[1]) else CONTINUE


def pivot_root(m: Machine, t: Task, a: Args) -> Decision:
    """``pivot_root(new_root, put_old)``: the working directory may move along."""
    if not may_mount(t):
        return -EPERM
    # The kernel moves everybody in this mount namespace who was at the old root.
    for process in m.processes.values():
        if process.fs.special:
            process.fs.changed_cwd()
    return CONTINUE
