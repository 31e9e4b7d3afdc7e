"""``fcntl``, ``dup`` and their relatives: the kernel does it, the descriptor cache forgets."""

from __future__ import annotations

import os
from errno import EBADF, EINVAL, EPERM
from fcntl import F_GETFL, F_SETPIPE_SZ
from fcntl import fcntl as host_fcntl
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision
from detbox.handlers import locks
from detbox.handlers.waiting import fd_of, signed32
from detbox.kernel import _native
from detbox.machine.files import Kind
from detbox.machine.io import KERNEL_SIGNALS, THREAD_SIGNALS

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

F_DUPFD, F_SETFL, F_SETLKW, F_SETOWN_EX = 0, 4, 7, 15
F_OFD_SETLKW, F_SETLEASE, F_DUPFD_CLOEXEC = 38, 1024, 1030
F_DUPFD_QUERY, F_CREATED_QUERY = 1027, 1028
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
#: fs.pipe-max-size of an unconfigured kernel, in bytes.
PIPE_SIZE_MAX = 1 << 20
_O_ASYNC = 0o20000
_SYS_GETSOCKOPT, _SOL_SOCKET, _SO_DOMAIN, _AF_UNIX = 55, 1, 39, 1


def fcntl(m: Machine, t: Task, a: Args) -> Decision:
    """``fcntl(fd, command, argument)``: what can wait, make a descriptor or ask for signals is looked at."""
    command = a[1] & 0xFFFFFFFF
    if command in (F_DUPFD, F_DUPFD_CLOEXEC):
        t.process.files.forget_all()
        return CONTINUE
    if command == F_SETLKW:
        return locks.setlkw_posix(m, t, fd_of(a[0]), a[2])
    if command == F_OFD_SETLKW:
        return locks.setlkw_ofd(m, t, fd_of(a[0]), a[2])
    if command == F_SETPIPE_SZ:
        return _set_pipe_size(t, fd_of(a[0]), signed32(a[2]))
    if command == F_SETLEASE:
        return -EINVAL  # what a file system without leases says
    if command in (F_ADD_SEALS, F_GET_SEALS) and t.process.files.get(fd_of(a[0])).kind is Kind.REG:
        return _seals(t, fd_of(a[0]), command)
    if command in (F_DUPFD_QUERY, F_CREATED_QUERY):
        return -EINVAL  # newer than the kernel that the guest is told of
    if command == F_SETFL and a[2] & _O_ASYNC:
        expect_signals(m, t, fd_of(a[0]))
    elif command == F_SETOWN_EX:
        m.data[THREAD_SIGNALS] = True
    return CONTINUE


def _seals(t: Task, fd: int, command: int) -> int:
    """What a file on a disk answers; one in memory would say that it cannot be sealed."""
    own = t.process.files.borrow(t, fd)
    try:
        flags = host_fcntl(own, F_GETFL)
    finally:
        os.close(own)
    if flags & os.O_PATH:
        return -EBADF
    return -EPERM if command == F_ADD_SEALS and flags & os.O_ACCMODE == os.O_RDONLY else -EINVAL


def expect_signals(m: Machine, t: Task, fd: int) -> None:
    """The kernel is going to send signals when ``fd`` is ready.

    It does so within the call that makes it ready, except on a network, whose packets may come later.
    """
    m.data[KERNEL_SIGNALS] = True
    family, size = bytearray(4), bytearray((4, 0, 0, 0))
    own = t.process.files.borrow(t, fd)
    try:
        refused = _native.raw_syscall(_SYS_GETSOCKOPT, own, _SOL_SOCKET, _SO_DOMAIN, family, size)
    finally:
        os.close(own)
    if not refused and family[0] != _AF_UNIX:
        m.doubt(t, "signals for input and output (O_ASYNC) of a network come when the host sends them")


def _set_pipe_size(t: Task, fd: int, size: int) -> Decision:
    """The limit is the host's to change, so that the fixed one is applied before it."""
    if size > PIPE_SIZE_MAX:
        return -EPERM
    own = t.process.files.borrow(t, fd)
    try:
        return host_fcntl(own, F_SETPIPE_SZ, size)
    finally:
        os.close(own)


def dup(m: Machine, t: Task, a: Args) -> Decision:
    """``dup(fd)``."""
    t.process.files.forget_all()
    return CONTINUE


def dup2(m: Machine, t: Task, a: Args) -> Decision:
    """``dup2(old, new)``."""
    t.process.files.forget(fd_of(a[1]))
    return CONTINUE


dup3 = dup2


def close_range(m: Machine, t: Task, a: Args) -> Decision:
    """``close_range(first, last, flags)``: with CLOSE_RANGE_UNSHARE the table becomes the process's own."""
    t.process.files.forget_all()
    return CONTINUE


def close(m: Machine, t: Task, a: Args) -> Decision:
    """``close(fd)``, where it is intercepted at all."""
    t.process.files.forget(fd_of(a[0]))
    return CONTINUE
