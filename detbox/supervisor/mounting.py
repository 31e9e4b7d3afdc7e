"""Mount namespaces of the guest's own: their tables, and the operations that meet the container's real mounts.

What the guest takes for one file system consists of several mounts.  An operation on it has to reach all of
them, and must not clear flags that are locked because the container has them: those operations are
done for the guest, by a child of the supervisor in the guest's mount namespace.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.kernel import _native
from detbox.kernel.invoke import call
from detbox.supervisor.children import with_guest
from detbox.supervisor.memory import poke
from detbox.supervisor.task import Process, Task
from detbox.synth.mounttable import RealMount, Shape, Tree, below, parse

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detbox.supervisor.machine import Machine
    from detbox.synth.view import Mount

_CLONE_NEWNS = 0x20000
_EMPTY_PATH = 0x1000  # AT_EMPTY_PATH
_RECURSIVE = 0x8000  # AT_RECURSIVE
_CLONE_TREE = 1  # OPEN_TREE_CLONE
_EMPTY_PATHS = 0x4 | 0x40  # MOVE_MOUNT_F_EMPTY_PATH, MOVE_MOUNT_T_EMPTY_PATH
_DETACH = 2  # MNT_DETACH
#: struct mount_attr: attr_set, attr_clr, propagation, userns_fd.
_ATTRIBUTES = struct.Struct("<4Q")
#: The attributes of mount_setattr(2) that mount(2) has under the same numbers, and their names in mountinfo.
_FLAGS = {1: "ro", 2: "nosuid", 4: "nodev", 8: "noexec"}
_HERE = os.O_PATH | os.O_CLOEXEC


class Mounting:
    """The nested mount namespaces of one run."""

    def __init__(self, m: Machine, table: Sequence[Mount]) -> None:
        """``table``: the container's mounts as the guest is shown them."""
        self.m = m
        self._inode = os.stat("1/ns/mnt", dir_fd=m.proc_fd).st_ino
        self._shape = Shape(parse(self._text(1)), table)
        #: What the guest has asked for mounts of the container's: (namespace, mount id) → flags.
        self._asked: dict[tuple[int, int], list[str]] = {}

    def _text(self, tid: int) -> bytes:
        fd = os.open(f"{tid}/mountinfo", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.m.proc_fd)
        with open(fd, "rb") as stream:
            return stream.read()

    def private(self, process: Process) -> bool:
        """Whether the process has mounts of its own; False if it is gone."""
        try:
            return self._space(process.pid) != self._inode
        except OSError:
            return False

    def shown(self, process: Process) -> list[Mount] | None:
        """The mounts that the process sees, None if they are the container's."""
        try:
            space = self._space(process.pid)
            if space == self._inode:
                return None
            tree = self._tree(process.pid)
        except OSError:
            return None  # it is gone
        asked = {number: flags for (where, number), flags in self._asked.items() if where == space}
        return tree.shown(self.m.inodes.devices, asked)

    def _space(self, tid: int) -> int:
        return os.stat(f"{tid}/ns/mnt", dir_fd=self.m.proc_fd).st_ino

    def _tree(self, tid: int) -> Tree:
        return Tree(self._shape, parse(self._text(tid)))

    def inside(self, task: Task, fd: int, path: bytes) -> bytes | None:
        """The path of an open file in its file system; None if the thread does not see its mount.

        ``path``: as the kernel gives it for the descriptor, which begins at the top of the mount namespace.
        """
        number = _native.mount_id(fd, b"")
        mount = next((one for one in parse(self._text(task.tid)) if one.mount_id == number), None)
        if mount is None:
            return None
        root = os.readlink(f"{task.tid}/root", dir_fd=self.m.proc_fd)
        rest = below(path, (os.fsencode(root).rstrip(b"/") + mount.point.rstrip(b"/")) or b"/")
        return None if rest is None else (mount.root.rstrip(b"/") + rest) or b"/"

    def before_change(self, task: Task) -> None:
        """The guest is about to mount something, which may get the number of a mount that is gone."""
        space, tree = self._space(task.tid), self._tree(task.tid)
        for where, number in list(self._asked):
            if where == space and number not in tree.by_id:
                del self._asked[where, number]

    def _find(self, task: Task, fd: int) -> tuple[Tree, RealMount] | None:
        """The mount whose root is ``fd``, if it is one of the container's."""
        tree = self._tree(task.tid)
        mount = tree.by_id.get(_native.mount_id(fd, b""))
        return (tree, mount) if mount is not None and self._shape.origin(mount) is not None else None

    # -- what is done for the guest --------------------------------------------------

    @staticmethod
    def exchange(task: Task, address: int, options: bytes) -> None:
        """Write a file system's options, as many bytes as were there, for the time of the call."""
        poke(task.tid, address, options)

    def bind(self, task: Task, source: int, target: int) -> bool:
        """Bind ``source`` without what is mounted below it, unless that is for the kernel to do; OSError."""
        found = self._find(task, source)
        if found is None:
            return False
        tree, mount = found
        path = os.readlink(b"self/fd/%d" % source, dir_fd=self.m.proc_fd)
        inside = [child for child in tree.by_id.values() if below(child.point, path) and child is not mount]
        if not inside or not all(child.mount_id in tree.hidden for child in inside):
            return False

        def copy() -> None:
            new = call("open_tree", source, b"\0", _CLONE_TREE | _EMPTY_PATH | _RECURSIVE)
            call("move_mount", new, b"\0", target, b"\0", _EMPTY_PATHS)

        self._inside(task, copy)
        return True

    def again(self, task: Task, what: bytes, target: int, attributes: int = 0) -> None:
        """Mount what the container has on /sys or /proc (``what``) on ``target`` (O_PATH), too; OSError."""
        with_guest(task.process.pid, lambda guest: _bind_again(guest, what, target, attributes))

    def remount(self, task: Task, target: int, flags: int) -> bool:
        """Give the mount at ``target`` these flags of mount(2), unless that is for the kernel to do; OSError."""
        found = self._find(task, target)
        if found is None:
            return False
        tree, mount = found
        wanted = flags & sum(_FLAGS)
        changes = [(target, self._change(mount, wanted))]
        root = os.open(f"{task.tid}/root", _HERE, dir_fd=self.m.proc_fd)
        opened = [root]
        try:
            for other in tree.continuation(mount):
                try:
                    fd = os.open(other.point.lstrip(b"/") or b".", _HERE | os.O_NOFOLLOW, dir_fd=root)
                except OSError:
                    continue  # something else is mounted over it
                opened.append(fd)
                if _native.mount_id(fd, b"") == other.mount_id:
                    changes.append((fd, self._change(other, wanted)))
            self._inside(task, lambda: _set_all(changes))
            asked = [name for flag, name in _FLAGS.items() if wanted & flag & ~1]
            self._asked[self._space(task.tid), mount.mount_id] = asked
        finally:
            for fd in opened:
                os.close(fd)
        return True

    def _change(self, mount: RealMount, wanted: int) -> bytes:
        origin = self._shape.origin(mount)
        locked = origin[0].options if origin is not None else ()
        clear = sum(flag for flag, name in _FLAGS.items() if not wanted & flag and name not in locked)
        return _ATTRIBUTES.pack(wanted, clear, 0, 0)

    def unmount(self, task: Task, target: int, flags: int) -> bool:
        """Unmount ``target`` with what belongs to it, unless that is for the kernel to do; OSError."""
        found = self._find(task, target)
        if found is None:
            return False
        tree, mount = found
        under = tree.continuation(mount)
        on_it = [child for one in (mount, *under) for child in tree.children(one)]
        if not under or any(child.mount_id not in tree.hidden for child in on_it):
            return False

        def detach() -> None:
            os.fchdir(target)
            call("umount2", b".\0", flags | _DETACH)

        self._inside(task, detach)
        return True

    def _inside(self, task: Task, body: Callable[[], None]) -> None:
        """Run ``body`` in a child in the guest's mount namespace; raises its OSError."""
        with_guest(task.process.pid, lambda guest: _entered(guest, body))


def _entered(guest: int, body: Callable[[], None]) -> None:
    call("setns", guest, _CLONE_NEWNS)
    body()


def _bind_again(guest: int, what: bytes, target: int, attributes: int) -> None:
    tree = call("open_tree", -1, what + b"\0", _CLONE_TREE | _RECURSIVE)
    if attributes:
        wanted = _ATTRIBUTES.pack(attributes, 0, 0, 0)
        call("mount_setattr", tree, b"\0", _EMPTY_PATH | _RECURSIVE, wanted, len(wanted))
    call("setns", guest, _CLONE_NEWNS)
    call("move_mount", tree, b"\0", target, b"\0", _EMPTY_PATHS)


def _set_all(changes: list[tuple[int, bytes]]) -> None:
    for fd, attributes in changes:
        call("mount_setattr", fd, b"\0", _EMPTY_PATH, attributes, len(attributes))
