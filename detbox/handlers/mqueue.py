"""POSIX message queues: the kernel's own, entered only when the call will not wait.

A queue's descriptor can be polled like a pipe's.  Limits and defaults are the
constants of a fresh IPC namespace (ipc/mqueue.c), not the host's settings.
"""

from __future__ import annotations

import os
import select
import struct
from errno import EACCES, EPERM, ETIMEDOUT
from fcntl import F_GETFL, fcntl
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, ContinueThen, Decision, Park, Wake
from detbox.handlers import paths
from detbox.handlers.futex_core import Args, absolute_deadline, read_timespec, signed
from detbox.handlers.waiting import ready
from detbox.kernel import _native

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

_MQ_OPEN, _MQ_GETSETATTR = 240, 245
_ACCESS = {os.O_RDONLY: paths.READ, os.O_WRONLY: paths.WRITE, os.O_RDWR: paths.READ | paths.WRITE}
_MQ_PRIO_MAX = 32768
_SIGEV_SIGNAL = 0

#: Who is told of a message in an empty queue: (device, inode) -> (process, signal).
Subscribers = dict[tuple[int, int], tuple["Process", int]]


def mq_open(m: Machine, t: Task, a: Args) -> Decision:
    """Native: a new descriptor of an unknown number.  To the kernel all queues are root's, who may open any."""
    flags, creds = a[1] & 0xFFFFFFFF, t.process.creds
    t.process.files.forget_all()
    if (creds.checked or creds.fsuid or creds.fsgid) and _shared(m, t):
        status = _status(t.cstr(a[0]))
        if status is None and flags & os.O_CREAT:
            return ContinueThen(lambda task, result: _made(m, task, result))
        exclusive = flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL
        if status is not None and not exclusive:
            wanted = _ACCESS.get(flags & os.O_ACCMODE, 0)
            if not paths.may(t, status, m.inodes.of(status), wanted):
                return -EACCES
    return CONTINUE


def mq_unlink(m: Machine, t: Task, a: Args) -> Decision:
    """Native, for who owns the queue: their directory belongs to root and is sticky."""
    creds = t.process.creds
    if creds.checked and creds.fsuid and _shared(m, t):
        status = _status(t.cstr(a[0]))
        if status is not None:
            vnode = m.inodes.of(status)
            if not creds.owns(vnode.uid, vnode.gid):
                return -EPERM
    return CONTINUE


def _shared(m: Machine, t: Task) -> bool:
    """Whether the thread's queues are the container's."""
    if not t.process.namespaces:
        return True
    own, its = (os.stat(f"{name}/ns/ipc", dir_fd=m.proc_fd).st_ino for name in ("self", t.tid))
    return own == its


def _status(name: bytes) -> os.stat_result | None:
    """What fstat(2) says of the container's queue of that name."""
    fd = _native.raw_syscall(_MQ_OPEN, name + b"\0", os.O_RDONLY | os.O_CLOEXEC, 0, 0)
    if fd < 0:
        return None
    try:
        return os.fstat(fd)
    finally:
        os.close(fd)


def _made(m: Machine, t: Task, result: int) -> None:
    """A thread has made a queue, which is its user's."""
    if result >= 0:
        fd = t.process.files.borrow(t, result)
        try:
            m.inodes.created(os.fstat(fd), t.process.creds.fsuid, t.process.creds.fsgid)
        finally:
            os.close(fd)


def mq_getsetattr(m: Machine, t: Task, a: Args) -> Decision:
    """Native."""
    return CONTINUE


def mq_timedsend(m: Machine, t: Task, a: Args) -> Decision:
    """``mq_timedsend(descriptor, message, size, priority, absolute real time)``."""
    if a[3] >= _MQ_PRIO_MAX:
        return CONTINUE
    return _transfer(m, t, a, select.POLLOUT)


def mq_timedreceive(m: Machine, t: Task, a: Args) -> Decision:
    """``mq_timedreceive(descriptor, buffer, size, priority, absolute real time)``."""
    return _transfer(m, t, a, select.POLLIN)


def mq_notify(m: Machine, t: Task, a: Args) -> Decision:
    """Native; a signal's receiver is noted, because a sender has to wake it."""
    fd = t.process.files.borrow(t, signed(a[0]))
    try:
        status = os.fstat(fd)
    finally:
        os.close(fd)
    queue = (status.st_dev, status.st_ino)
    notify, signo = struct.unpack("<8xii", t.read(a[1], 16))[::-1] if a[1] else (-1, 0)

    def look(task: Task, result: int) -> int | None:
        if result == 0 and notify == _SIGEV_SIGNAL:
            _subscribers(m)[queue] = (task.process, signo)
        elif result == 0:
            _subscribers(m).pop(queue, None)
        return None

    return ContinueThen(look)


def _transfer(m: Machine, t: Task, a: Args, mask: int) -> Decision:
    deadline = absolute_deadline(m, read_timespec(t, a[4]), realtime=True) if a[4] else None
    fd = t.process.files.borrow(t, signed(a[0]))
    parked = False
    try:
        if _fails_at_once(fd, a[2], mask) or ready(fd, mask):
            return _go_on(m, t, a, fd, mask)
        parked = True
    finally:
        if not parked:
            os.close(fd)

    def resume(wake: Wake) -> Decision:
        if wake.kind == "deadline":
            return -ETIMEDOUT
        if wake.kind == "event":
            message, priority = wake.value
            t.write(a[1], message)
            if a[3]:
                t.write(a[3], struct.pack("<I", priority))
            return len(message)
        # Another thread may have been faster: look again.
        return _transfer(m, t, a, mask)

    why = f"message queue at descriptor {signed(a[0])}"
    events = (_receivers(fd),) if mask == select.POLLIN else ()
    return Park(resume, events=events, fds=((fd, mask),), deadline=deadline, interrupted=ERESTARTSYS, why=why)


def _fails_at_once(fd: int, size: int, mask: int) -> bool:
    """Whether the kernel answers without waiting, whatever the queue holds."""
    attributes = bytearray(64)
    if _native.raw_syscall(_MQ_GETSETATTR, fd, 0, attributes) < 0:
        return True
    limit = struct.unpack_from("<q", attributes, 16)[0]
    flags = fcntl(fd, F_GETFL)
    wrong_way = flags & os.O_ACCMODE == (os.O_RDONLY if mask == select.POLLOUT else os.O_WRONLY)
    wrong_size = size > limit if mask == select.POLLOUT else size < limit
    return wrong_way or wrong_size or bool(flags & os.O_NONBLOCK)


def _go_on(m: Machine, t: Task, a: Args, fd: int, mask: int) -> Decision:
    """Let the call through; a message may send a signal to whoever asked for one, but not if somebody waits for it."""
    if mask != select.POLLOUT or not _subscribers(m):
        return CONTINUE
    status = os.fstat(fd)
    queue = (status.st_dev, status.st_ino)
    if queue not in _subscribers(m):
        return CONTINUE
    if _handed_over(m, t, a, fd):
        return 0

    def look(task: Task, result: int) -> int | None:
        subscriber = _subscribers(m).get(queue) if result == 0 else None
        if subscriber is not None:
            m.after_signal(task, subscriber[1], [subscriber[0]])
        return None

    return ContinueThen(look)


def _handed_over(m: Machine, t: Task, a: Args, fd: int) -> bool:
    """Whether the message went to a thread that waits for one: it is never in the queue then (``pipelined_send``)."""
    attributes = bytearray(64)
    _native.raw_syscall(_MQ_GETSETATTR, fd, 0, attributes)
    limit, messages = struct.unpack_from("<qq", attributes, 16)
    if messages or a[2] > limit or fcntl(fd, F_GETFL) & os.O_ACCMODE == os.O_RDONLY:
        return False
    return m.wake(_receivers(fd), 1, (t.read(a[1], a[2]), a[3])) > 0


def _receivers(fd: int) -> tuple[str, int, int]:
    """What those wait on who want a message of the queue."""
    status = os.fstat(fd)
    return "mqueue", status.st_dev, status.st_ino


def _subscribers(m: Machine) -> Subscribers:
    found: Subscribers = m.data.setdefault("mq_notify", {})
    return found
