"""unshare(2), setns(2) and the flags of clone(2) that make namespaces: who may, and what follows.

To the kernel all of the guest's processes are one user, root, in each user namespace of the guest's, so that it
refuses nothing that the guest's own users and capabilities allow.
"""

from __future__ import annotations

import errno
import fcntl
import os
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen, Decision, InstallFd
from detbox.handlers import identity
from detbox.handlers.processes import pidfd_target
from detbox.machine.creds import CAP_SYS_CHROOT
from detbox.machine.files import Kind
from detbox.machine.networks import Network
from detbox.machine.userspaces import CAP_SYS_ADMIN, MOST, TOP

if TYPE_CHECKING:
    from detbox.machine.creds import Creds
    from detbox.machine.userspaces import UserSpace
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

_FS, _FILES, _NEWNS, _NEWUTS = 0x200, 0x400, 0x20000, 0x4000000
_NEWUSER, _NEWPID, _NEWNET = 0x10000000, 0x20000000, 0x40000000
#: By the flags that mean them: their names in /proc/PID/ns.  Time namespaces are the kernel's to refuse.
_KINDS = {
    0x80: "time", _NEWNS: "mnt", 0x2000000: "cgroup", _NEWUTS: "uts", 0x8000000: "ipc", _NEWUSER: "user",
    _NEWPID: "pid", _NEWNET: "net",
}  # fmt: skip
_ALL = sum(_KINDS)
# include/uapi/linux/nsfs.h; later ones are on some hosts only.
REQUESTS = range(0xB701, 0xB705)
_NS_GET_USERNS, _NS_GET_PARENT, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = REQUESTS


def demand(m: Machine, t: Task, flags: int) -> None:
    """OSError unless the thread may make the namespaces of ``flags``."""
    creds = t.process.creds
    if flags & _ALL:
        m.user_spaces.before_change(t.process)
    if flags & _NEWUSER:
        for above in creds.new_space().above:
            if above.most != MOST and _below(m, above) >= above.most:
                raise OSError(errno.ENOSPC, "more user namespaces than are allowed")
    elif flags & _ALL and not creds.capable(CAP_SYS_ADMIN):
        raise OSError(errno.EPERM, "no rights to make namespaces")


def kinds(flags: int) -> list[str]:
    """The kinds of new namespaces that a process is in itself: unshare(2) makes a PID namespace for its children."""
    return [name for flag, name in _KINDS.items() if flags & flag and flag not in (_NEWPID, 0x80)]


def _below(m: Machine, space: UserSpace) -> int:
    """How many user namespaces there are in one: those that somebody is in, or in one of theirs."""
    there = {process.creds.space for process in m.processes.values()}
    return len({one for found in there for one in (found, *found.above) if space in one.above})


def made(process: Process, flags: int) -> None:
    """The process has made the namespaces of ``flags``, or was made in them, and has the credentials for that."""
    if flags & (_NEWNS | _NEWUSER | _NEWPID):
        process.namespaces = True
    if flags & _NEWNS:
        process.fs.special = True
        process.mounts = process.creds.space
    if flags & _NEWNET:
        process.network = Network(process.creds.space)


def unshare(m: Machine, t: Task, a: Args) -> Decision:
    """Namespaces of the guest's own: harmless, since its user namespace owns nothing of the container."""
    flags = a[0] & 0xFFFFFFFF
    demand(m, t, flags)

    def look(task: Task, result: int) -> None:
        process = task.process
        if result:
            return
        if flags & _NEWUSER:
            process.creds.enter(process.creds.new_space())
            m.user_spaces.made(process)
        if flags & (_FS | _NEWNS | _NEWUSER):
            special = process.fs.special
            process.fs = process.fs.copy(process.pid)
            process.fs.special = special
        made(process, flags)
        m.user_spaces.number(process, kinds(flags))
        if flags & _NEWUTS:
            identity.new_uts(m, process)
        if flags & _FILES:
            process.files = process.files.copy(process.pid)

    return ContinueThen(look)


def setns(m: Machine, t: Task, a: Args) -> Decision:
    """Join namespaces of the guest's own making; those of the container the kernel refuses."""
    found = _meant(m, t, a[0], a[1] & 0xFFFFFFFF)
    creds = t.process.creds
    space = found.get(_NEWUSER)
    if space is not None and space is not creds.space:
        if not creds.capable(CAP_SYS_ADMIN, space):
            return -errno.EPERM
        creds = creds.copy()
        creds.enter(space)
    for kind, owner in found.items():
        if kind != _NEWUSER and owner is not None:
            _demand_to_join(creds, kind, owner)

    def look(task: Task, result: int) -> None:
        if result == 0:
            _joined(m, task.process, found)

    return ContinueThen(look)


def _demand_to_join(creds: Creds, kind: int, owner: UserSpace) -> None:
    needed = creds.capable(CAP_SYS_ADMIN, owner) and creds.capable(CAP_SYS_ADMIN)
    if not needed or kind == _NEWNS and not creds.capable(CAP_SYS_CHROOT):
        raise OSError(errno.EPERM, "no rights in the namespace")


def _meant(m: Machine, t: Task, fd: int, flags: int) -> dict[int, UserSpace | None]:
    """The namespaces that setns(2) means, by their flags: the user namespace itself, and those that own the others.

    None for what is not the guest's.
    """
    m.user_spaces.before_change(t.process)
    if t.process.files.get(fd).kind is Kind.PIDFD:
        pid = pidfd_target(m, t, fd & 0xFFFFFFFF)
        names = [f"{pid}/ns/{name}" for flag, name in _KINDS.items() if flags & flag]
        fds = [os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd) for name in names]
    else:
        fds = [t.process.files.borrow(t, fd)]
    found: dict[int, UserSpace | None] = {}
    for own in fds:
        try:
            kind = fcntl.ioctl(own, _NS_GET_NSTYPE)
            found[kind] = m.user_spaces.of(own) if kind == _NEWUSER else _owner(m, own)
        except OSError:
            pass  # not a namespace, which the kernel will say
        finally:
            os.close(own)
    return found


def request(m: Machine, t: Task, a: Args) -> Decision:
    """ioctl_ns(2) is the kernel's, but the container's namespaces belong to its own users, and users are virtual."""
    m.user_spaces.before_change(t.process)
    what, own = a[1] & 0xFFFFFFFF, t.process.files.borrow(t, a[0])
    try:
        kind = fcntl.ioctl(own, _NS_GET_NSTYPE)
        if what == _NS_GET_OWNER_UID and kind == _NEWUSER:
            space = m.user_spaces.of(own) or TOP
            t.write(a[2], t.process.creds.space.shown_user(space.owner).to_bytes(4, "little"))
            return 0
        if what == _NS_GET_USERNS and kind != _NEWUSER and _owner(m, own) is None:
            if t.process.creds.space is not TOP:
                return -errno.EPERM
            return InstallFd(os.open(f"{t.tid}/ns/user", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd), True)
    finally:
        os.close(own)
    t.process.files.forget_all()
    return CONTINUE


def _owner(m: Machine, fd: int) -> UserSpace | None:
    try:
        own = fcntl.ioctl(fd, _NS_GET_USERNS)
    except PermissionError:
        return None  # the host's, as time is
    try:
        return m.user_spaces.of(own)
    finally:
        os.close(own)


def _joined(m: Machine, process: Process, found: dict[int, UserSpace | None]) -> None:
    space = found.get(_NEWUSER)
    if space is not None:
        process.creds.enter(space)
    process.fs = process.fs.copy(process.pid)
    process.fs.special = True
    process.namespaces = True
    if _NEWNS in found:
        process.mounts = found[_NEWNS]
    if _NEWNET in found:
        process.network = m.user_spaces.network(process)
    if _NEWUTS in found:
        identity.join_uts(m, process)


def may_mount(t: Task) -> bool:
    """Whether the thread may change what is mounted where it is (may_mount() in fs/namespace.c)."""
    owner = t.process.mounts
    return owner is not None and t.process.creds.capable(CAP_SYS_ADMIN, owner)
