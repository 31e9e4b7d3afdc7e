"""Received messages: a ``recvmmsg`` that waits for all of them, and the times of their arrival."""

from __future__ import annotations

import os
import socket as host
import struct
from collections.abc import Callable
from errno import EBADF
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, ContinueThen, Decision, Park, Wake
from detbox.handlers.socket_core import MSG_DONTWAIT, MSGHDR, encode_inet, python_socket
from detbox.handlers.waiting import POLLIN, iovec, scatter, total
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_CONTROL = struct.Struct("<QII")  # struct cmsghdr: length, level, type
#: SCM_TIMESTAMP and SCM_TIMESTAMPNS in both layouts, and the nanoseconds in a unit of their second number.
_STAMPS = {29: 1000, 35: 1, 63: 1000, 64: 1}
#: struct mmsghdr: a struct msghdr and the length received.
_MMSGHDR = MSGHDR.size + 8


def with_stamps(m: Machine, header: int, count: Callable[[int], int]) -> Decision:
    """Let the kernel receive into the headers at ``header``, and put virtual times where it has put the host's.

    ``count(result)``: how many messages there are.
    """
    if not io_state(m).stamps:
        return CONTINUE

    def look(task: Task, result: int) -> None:
        for number in range(count(result) if result >= 0 else 0):
            _restamp(m, task, header + number * _MMSGHDR)

    return ContinueThen(look)


def _restamp(m: Machine, t: Task, header: int) -> None:
    _, _, _, _, control, length, _ = MSGHDR.unpack(t.read(header, MSGHDR.size))
    data, at = t.read(control, length) if control else b"", 0
    while at + _CONTROL.size <= len(data):
        size, level, kind = _CONTROL.unpack_from(data, at)
        if level == host.SOL_SOCKET and kind in _STAMPS and at + 32 <= len(data):
            seconds, rest = divmod(m.clock.realtime(m.clock.now), 1_000_000_000)
            t.write(control + at + 16, struct.pack("<qq", seconds, rest // _STAMPS[kind]))
        at += max(size + 7 & ~7, _CONTROL.size)


def receive_many(m: Machine, t: Task, fd: int, a: Args) -> Decision:
    """All the messages of a blocking ``recvmmsg``, without ancillary data."""
    count = min(a[2] & 0xFFFFFFFF, 1024)
    deadline = None
    if a[4]:
        seconds, nano = struct.unpack("<qq", t.read(a[4], 16))
        deadline = m.clock.now + seconds * 1_000_000_000 + nano
    done = 0

    def step(wake: Wake | None) -> Decision:
        nonlocal done
        own = t.process.files.borrow(t, fd)
        try:
            with python_socket(own) as sock:
                while done < count and not (done and deadline is not None and m.clock.now >= deadline):
                    _receive_one(t, sock, a[1] + done * _MMSGHDR, a[3])
                    done += 1
        except BlockingIOError:
            return Park(
                step, fds=((own, POLLIN),), why=f"receive messages from socket {fd}",
                interrupted=lambda: done or -ERESTARTSYS,
            )  # fmt: skip
        except OSError as error:
            os.close(own)
            return done or -(error.errno or EBADF)
        os.close(own)
        return done

    return step(None)


def _receive_one(t: Task, sock: host.socket, header: int, flags: int) -> None:
    name, room, base, count, _, _, _ = MSGHDR.unpack(t.read(header, MSGHDR.size))
    segments = iovec(t, base, count)
    data, _, seen, address = sock.recvmsg(total(segments), 0, flags & 0x3FFFFFFF | MSG_DONTWAIT)
    scatter(t, segments, 0, data)
    encoded = encode_inet(sock.family, address)
    if name:
        t.write(name, encoded[:room])
    t.write(header + 8, struct.pack("<I", len(encoded) if name else 0))
    t.write(header + 40, struct.pack("<Qi4xI", 0, seen, len(data)))
