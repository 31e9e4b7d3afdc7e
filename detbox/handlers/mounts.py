"""Mounting: possible in a mount namespace of the guest's own, refused elsewhere.

The container's mounts belong to a user namespace above the guest's, so that the kernel would refuse as
well; the answer is given here so that it does not depend on the kernel's version.
"""

from __future__ import annotations

from errno import EPERM
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task


def _own_namespace(m: Machine, t: Task) -> Decision:
    if not t.process.namespaces:
        return -EPERM
    m.doubt(t, "mounts file systems in a namespace of its own; what they show is not determinised")
    return CONTINUE


def _new_descriptor(m: Machine, t: Task) -> Decision:
    t.process.files.forget_all()
    return _own_namespace(m, t)


def mount(m: Machine, t: Task, a: Args) -> Decision:
    """``mount(source, target, type, flags, data)``."""
    return _own_namespace(m, t)


def umount2(m: Machine, t: Task, a: Args) -> Decision:
    """``umount2(target, flags)``."""
    return _own_namespace(m, t)


def pivot_root(m: Machine, t: Task, a: Args) -> Decision:
    """``pivot_root(new_root, put_old)``: the working directory may move along."""
    t.process.fs.changed_cwd()
    return _own_namespace(m, t)


def move_mount(m: Machine, t: Task, a: Args) -> Decision:
    """``move_mount(from_dirfd, from, to_dirfd, to, flags)``."""
    return _own_namespace(m, t)


def fsconfig(m: Machine, t: Task, a: Args) -> Decision:
    """``fsconfig(fd, command, key, value, aux)``."""
    return _own_namespace(m, t)


def mount_setattr(m: Machine, t: Task, a: Args) -> Decision:
    """``mount_setattr(dirfd, path, flags, attr, size)``."""
    return _own_namespace(m, t)


def open_tree(m: Machine, t: Task, a: Args) -> Decision:
    """``open_tree(dirfd, path, flags)``."""
    return _new_descriptor(m, t)


def fsopen(m: Machine, t: Task, a: Args) -> Decision:
    """``fsopen(type, flags)``."""
    return _new_descriptor(m, t)


def fsmount(m: Machine, t: Task, a: Args) -> Decision:
    """``fsmount(fd, flags, attributes)``."""
    return _new_descriptor(m, t)


def fspick(m: Machine, t: Task, a: Args) -> Decision:
    """``fspick(dirfd, path, flags)``."""
    return _new_descriptor(m, t)
