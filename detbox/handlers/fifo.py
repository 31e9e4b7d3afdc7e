"""Opening a FIFO: a blocking open waits until the other side is opened too.

A reader can always be opened (without blocking). It then waits here, its descriptor held by the supervisor,
so that a writer finds it. A writer cannot be opened before there is a reader; it waits with nothing but a
reference to the FIFO, and the first reader opens it, so that this reader cannot take the FIFO for one that
its writers have left.
"""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTSYS, InstallFd, Park
from detbox.machine.files import Kind, OpenFile

if TYPE_CHECKING:
    from detbox.decision import Decision, Wake
    from detbox.machine.inodes import VInode
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_NONBLOCK = os.O_NONBLOCK | os.O_CLOEXEC


class _Waiter:
    """One waiting opener.  ``fd``: the open end, or -1; ``target``: O_PATH descriptor of the FIFO, or -1."""

    __slots__ = ("task", "vnode", "flags", "fd", "target", "ready")

    def __init__(self, task: Task, vnode: VInode, flags: int, fd: int, target: int) -> None:
        self.task = task
        self.vnode = vnode
        self.flags = flags
        self.fd = fd
        self.target = target
        self.ready = False

    def close(self) -> None:
        for fd in (self.fd, self.target):
            if fd >= 0:
                os.close(fd)
        self.fd = self.target = -1

    def __del__(self) -> None:
        self.close()


def opened(m: Machine, t: Task, fd: int, vnode: VInode, flags: int) -> Decision:
    """``fd``, opened without blocking, is an end of the FIFO ``vnode`` (or of an anonymous pipe)."""
    if m.inodes.pipe_dev == vnode.key[0]:
        return _install(fd, vnode, flags)
    access = flags & os.O_ACCMODE
    first = vnode.ino not in _all(m)
    waiting = _waiting(m, vnode)
    # Nobody of the run has it open yet.
    if first and (access == os.O_WRONLY or (access == os.O_RDONLY and _has_writer(fd))):
        m.doubt(t, "a FIFO that a process outside of the container has open")
    if access != os.O_RDONLY:
        # There is a reader already, or this is one itself (O_RDWR).
        _release(m, [w for w in waiting if w.flags & os.O_ACCMODE == os.O_RDONLY or access == os.O_RDWR])
        return _install(fd, vnode, flags)
    writers = [w for w in waiting if w.flags & os.O_ACCMODE == os.O_WRONLY]
    alone = not writers and not _has_writer(fd)
    _release(m, writers)
    if flags & os.O_NONBLOCK or not alone:
        return _install(fd, vnode, flags)
    return _wait(m, _Waiter(t, vnode, flags, fd, -1))


def open_writer(m: Machine, t: Task, target: int, vnode: VInode, flags: int) -> Decision:
    """Nobody reads the FIFO that ``target`` (owned by this function) refers to: wait for a reader."""
    if flags & os.O_NONBLOCK:
        os.close(target)
        return -errno.ENXIO
    _waiting(m, vnode)
    return _wait(m, _Waiter(t, vnode, flags, -1, target))


def holds(decision: Decision, fd: int) -> bool:
    """Whether a decision of this module has taken ``fd`` over."""
    return isinstance(decision, Park) and decision.extra.get("fifo") == fd


def _install(fd: int, vnode: VInode, flags: int) -> InstallFd:
    fcntl.fcntl(fd, fcntl.F_SETFL, flags & (os.O_APPEND | os.O_NONBLOCK))
    return InstallFd(fd, bool(flags & os.O_CLOEXEC), None, OpenFile(Kind.PIPE, os.fstat(fd), vnode))


def _has_writer(fd: int) -> bool:
    """Whether the FIFO behind a reading end has a writer: only then is an empty one not at its end."""
    unread = bytearray(4)
    fcntl.ioctl(fd, termios.FIONREAD, unread)
    if any(unread):
        return True
    try:
        os.read(fd, 1)
    except BlockingIOError:
        return True
    return False


def _all(m: Machine) -> dict[int, list[_Waiter]]:
    """Waiting openers by the FIFO's virtual inode number."""
    waiting: dict[int, list[_Waiter]] = m.data.setdefault("fifos", {})
    return waiting


def _waiting(m: Machine, vnode: VInode) -> list[_Waiter]:
    """Openers that wait for this FIFO, without those whose thread is gone or was interrupted."""
    everyone = _all(m)
    alive = []
    for waiter in everyone.get(vnode.ino, ()):
        if m.tasks.get(waiter.task.tid) is waiter.task and (waiter.fd >= 0 or waiter.target >= 0):
            alive.append(waiter)
        else:
            waiter.close()
    everyone[vnode.ino] = alive
    return alive


def _release(m: Machine, waiters: list[_Waiter]) -> None:
    for waiter in waiters:
        if waiter.fd < 0:
            link = b"self/fd/%d" % waiter.target
            waiter.fd = os.open(link, os.O_WRONLY | _NONBLOCK, dir_fd=m.proc_fd)
        waiter.ready = True
        _all(m)[waiter.vnode.ino].remove(waiter)
        m.wake(("fifo", waiter.vnode.ino, waiter.task.tid))


def _wait(m: Machine, waiter: _Waiter) -> Park:
    _all(m)[waiter.vnode.ino].append(waiter)

    def resume(wake: Wake) -> Decision:
        if not waiter.ready:
            return _park(m, waiter, resume)
        fd, waiter.fd = waiter.fd, -1
        waiter.close()
        return _install(fd, waiter.vnode, waiter.flags)

    return _park(m, waiter, resume)


def _park(m: Machine, waiter: _Waiter, resume: object) -> Park:
    def interrupted() -> int:
        if waiter in _all(m)[waiter.vnode.ino]:
            _all(m)[waiter.vnode.ino].remove(waiter)
        waiter.close()
        return -ERESTARTSYS

    side = "reader" if waiter.fd < 0 else "writer"
    park = Park(
        resume,  # type: ignore[arg-type]
        events=(("fifo", waiter.vnode.ino, waiter.task.tid),),
        interrupted=interrupted,
        why=f"open of a FIFO that has no {side}",
    )
    park.extra["fifo"] = waiter.fd
    return park
