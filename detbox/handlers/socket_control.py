"""Ancillary data of messages: stamps in virtual time, senders with their virtual users, and its layout.

The kernel knows one user of the guest, 0.  Credentials that a program sends are made that user's for the
moment of the call, since the kernel refuses others; who is meant is remembered, and shown to the receiver.
"""

from __future__ import annotations

import contextlib
import os
import socket as host
import struct
import time
from collections.abc import Callable, Iterator
from errno import EPERM
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen, Decision, Park, Wake
from detbox.handlers.socket_core import MSGHDR
from detbox.machine.io import io_state
from detbox.machine.userspaces import CAP_SETGID, CAP_SETUID

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

#: struct mmsghdr: a struct msghdr and the length received.
MMSGHDR = MSGHDR.size + 8
_HEADER = struct.Struct("<QII")  # struct cmsghdr: length, level, type
_CREDENTIALS = struct.Struct("<iII")  # struct ucred: pid, uid, gid
_SCM_CREDENTIALS = 2
#: SCM_TIMESTAMP, SCM_TIMESTAMPNS and SCM_TIMESTAMPING in both layouts, and the nanoseconds in a unit of the
#: second number of a time.
_STAMPS = {29: 1000, 35: 1, 63: 1000, 64: 1, 37: 1, 65: 1}
_NO_TIME = bytes(16)
_SO_TIMESTAMP, _SO_TIMESTAMPING, _SOF_SOFTWARE = 29, 37, 1 << 4
#: Most control data that is looked at; the kernel's own limit for sending is lower (net.core.optmem_max).
_MAX_CONTROL = 1 << 20


def aligned(length: int) -> int:
    """CMSG_ALIGN."""
    return length + 7 & ~7


def _parts(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(offset of the contents, level, type, contents) of each control message."""
    at = 0
    while at + _HEADER.size <= len(data):
        size, level, kind = _HEADER.unpack_from(data, at)
        if size < _HEADER.size:
            return
        yield at + _HEADER.size, level, kind, data[at + _HEADER.size : at + size]
        at += aligned(size)


def _control(t: Task, header: int) -> tuple[int, bytes]:
    """Address and contents of the control data of the struct msghdr at ``header``."""
    _, _, _, _, control, length, _ = MSGHDR.unpack(t.read(header, MSGHDR.size))
    return control, t.read(control, min(length, _MAX_CONTROL)) if control else b""


def encoded(parts: list[tuple[int, int, bytes]]) -> bytes:
    """Control messages (level, type, contents) as the kernel lays them out."""
    laid = (_HEADER.pack(_HEADER.size + len(data), level, kind) + data for level, kind, data in parts)
    return b"".join(part.ljust(aligned(len(part)), b"\0") for part in laid)


# ---------------------------------------------------------------- receiving


def look_at_control(m: Machine, header: int, count: Callable[[int], int]) -> Decision:
    """Let the kernel receive into the headers at ``header``, and put virtual values where it has put the host's.

    ``count(result)``: how many messages there are.
    """
    if not io_state(m).control:
        return CONTINUE

    def look(task: Task, result: int) -> None:
        for number in range(count(result) if result >= 0 else 0):
            at, data = _control(task, header + number * MMSGHDR)
            for offset, level, kind, value in _parts(data):
                changed = virtual(m, task, level, kind, value)
                if changed != value:
                    task.write(at + offset, changed)

    return ContinueThen(look)


def virtual(m: Machine, t: Task, level: int, kind: int, value: bytes) -> bytes:
    """What the guest is shown of a control message's contents."""
    if level != host.SOL_SOCKET:
        return value
    if kind in _STAMPS:
        seconds, rest = divmod(m.clock.realtime(m.clock.now), 1_000_000_000)
        stamp = struct.pack("<qq", seconds, rest // _STAMPS[kind])
        times = (value[at : at + 16] for at in range(0, len(value), 16))
        return b"".join(stamp[: len(old)] if old != _NO_TIME[: len(old)] else old for old in times)
    if kind == _SCM_CREDENTIALS and len(value) == _CREDENTIALS.size:
        pid = _CREDENTIALS.unpack(value)[0]
        if pid:  # 0 is a message that was sent before anybody asked for credentials
            sender = _outer(m, t, pid)
            creds = m.processes.get(sender, t.process).creds
            users = io_state(m).senders.get(sender, (creds.ruid, creds.rgid))
            return _CREDENTIALS.pack(pid, *t.process.creds.space.shown(*users))
    return value


# ---------------------------------------------------------------- sending


def note_sender(m: Machine, t: Task) -> None:
    """The thread sends something, to which the kernel may add its process's credentials."""
    state = io_state(m)
    if state.control:
        state.senders[t.process.pid] = (t.process.creds.ruid, t.process.creds.rgid)


def with_credentials(m: Machine, t: Task, headers: range, decision: Decision) -> Decision:
    """Where ``decision`` leaves it to the kernel to send the messages at ``headers``: with its user in them."""
    if isinstance(decision, Park):
        resume = decision.resume

        def again(wake: Wake) -> Decision:
            return with_credentials(m, t, headers, resume(wake))

        decision.resume = again
    return _lend(m, t, headers) if decision is CONTINUE else decision


def _lend(m: Machine, t: Task, headers: range) -> Decision:
    kept: list[tuple[int, bytes]] = []
    for header in headers:
        try:
            at, data = _control(t, header)
        except OSError:
            break  # the kernel sends what is before it
        for offset, level, kind, value in _parts(data):
            if (level, kind, len(value)) == (host.SOL_SOCKET, _SCM_CREDENTIALS, _CREDENTIALS.size):
                pid, uid, gid = _CREDENTIALS.unpack(value)
                io_state(m).senders[_outer(m, t, pid)] = _checked(t, uid, gid)
                kept.append((at + offset, value))
    if not kept:
        return CONTINUE

    def give_back(task: Task, result: int) -> None:
        for address, value in kept:
            task.write(address, value)

    # Where the data cannot be written the kernel refuses the guest's own numbers.
    with contextlib.suppress(OSError):
        for address, value in kept:
            t.write(address, _CREDENTIALS.pack(_CREDENTIALS.unpack(value)[0], 0, 0))
    return ContinueThen(give_back)


def _outer(m: Machine, t: Task, pid: int) -> int:
    """The container's number of the process that a thread calls ``pid``."""
    if not t.process.namespaces:
        return pid
    space = m.nested.space(t.tid)
    return m.nested.outer(pid, space) if space.depth else pid


def _checked(t: Task, uid: int, gid: int) -> tuple[int, int]:
    """The user and group that are meant, by the rule of scm_check_creds() in net/core/scm.c.

    Whose process number it may be is the kernel's to say.
    """
    creds = t.process.creds
    uid, gid = creds.space.user(uid), creds.space.gid(gid)
    if uid not in (creds.ruid, creds.euid, creds.suid) and not creds.capable(CAP_SETUID):
        raise OSError(EPERM, "another user")
    if gid not in (creds.rgid, creds.egid, creds.sgid) and not creds.capable(CAP_SETGID):
        raise OSError(EPERM, "another group")
    return uid, gid


def own_credentials(m: Machine, t: Task, sock: host.socket) -> list[tuple[int, int, bytes]]:
    """What makes a message that the supervisor sends look like one of the guest's thread, where that can be seen."""
    if not io_state(m).control or sock.family != host.AF_UNIX:
        return []
    return [(host.SOL_SOCKET, _SCM_CREDENTIALS, _CREDENTIALS.pack(t.process.pid, 0, 0))]


@contextlib.contextmanager
def for_supervisor(m: Machine, t: Task, header: int, sock: host.socket) -> Iterator[list[tuple[int, int, bytes]]]:
    """The control messages at ``header`` as the supervisor can send them; OSError(EBADF)."""
    lent: list[int] = []
    parts = []
    credentials = own_credentials(m, t, sock)
    try:
        for _, level, kind, value in _parts(_control(t, header)[1]):
            if (level, kind) == (host.SOL_SOCKET, host.SCM_RIGHTS):
                numbers = [t.process.files.borrow(t, fd) for fd in struct.unpack(f"<{len(value) // 4}i", value)]
                lent += numbers
                value = struct.pack(f"<{len(numbers)}i", *numbers)
            elif (level, kind, len(value)) == (host.SOL_SOCKET, _SCM_CREDENTIALS, _CREDENTIALS.size):
                value = _CREDENTIALS.pack(_CREDENTIALS.unpack(value)[0], 0, 0)
                credentials = []
            parts.append((level, kind, value))
        yield parts + credentials
    finally:
        for fd in lent:
            os.close(fd)


# ---------------------------------------------------------------- stamps of arrival


def start_stamping() -> host.socket:
    """Have the kernel stamp whatever arrives, and wait until it does; as long as the socket that is returned is open.

    It does so for all sockets of the machine when one asks for it, and begins a little later
    (net_enable_timestamp() in net/core/dev.c).
    """
    keeper = host.socket(host.AF_INET, host.SOCK_DGRAM)
    keeper.setsockopt(host.SOL_SOCKET, _SO_TIMESTAMP, 1)
    with host.socket(host.AF_INET, host.SOCK_DGRAM) as probe:
        probe.setsockopt(host.SOL_SOCKET, _SO_TIMESTAMPING, _SOF_SOFTWARE)
        probe.bind(("127.0.0.1", 0))
        for _ in range(1000):
            probe.sendto(b"x", probe.getsockname())
            if probe.recvmsg(1, 256)[1]:
                break
            time.sleep(0.001)
    return keeper
