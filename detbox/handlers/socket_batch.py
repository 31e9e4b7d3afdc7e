"""A ``recvmmsg`` that waits for several messages: the supervisor receives them, one by one."""

from __future__ import annotations

import os
import socket as host
import struct
from errno import EBADF
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTSYS, Decision, Park, Wake
from detbox.handlers.socket_control import MMSGHDR, encoded, virtual
from detbox.handlers.socket_core import MSG_DONTWAIT, MSGHDR, encode_inet, python_socket
from detbox.handlers.waiting import POLLIN, iovec, scatter, total

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_MSG_CTRUNC, _MSG_CMSG_CLOEXEC = 0x8, 0x40000000
#: Most control data of a message: a message has at most 253 descriptors (SCM_MAX_FD), and some stamps.
_MAX_CONTROL = 1 << 16


def receive_many(m: Machine, t: Task, fd: int, a: Args) -> Decision:
    """All the messages of a blocking ``recvmmsg``."""
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
                    _receive_one(m, t, sock, a[1] + done * MMSGHDR, a[3])
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


def _receive_one(m: Machine, t: Task, sock: host.socket, header: int, flags: int) -> None:
    name, room, base, count, control, space, _ = MSGHDR.unpack(t.read(header, MSGHDR.size))
    segments = iovec(t, base, count)
    space = min(space, _MAX_CONTROL) if control else 0
    wanted = flags & 0x3FFFFFFF | MSG_DONTWAIT | _MSG_CMSG_CLOEXEC
    data, parts, seen, address = sock.recvmsg(total(segments), space, wanted)
    scatter(t, segments, 0, data)
    encoded_address = encode_inet(sock.family, address)
    if name:
        t.write(name, encoded_address[:room])
    told, cut = _to_guest(m, t, parts, bool(flags & _MSG_CMSG_CLOEXEC))
    if told:
        t.write(control, told[:space])
    seen = seen & ~_MSG_CMSG_CLOEXEC | flags & _MSG_CMSG_CLOEXEC | (_MSG_CTRUNC if cut else 0)
    t.write(header + 8, struct.pack("<I", len(encoded_address) if name else 0))
    t.write(header + 40, struct.pack("<Qi4xI", min(len(told), space), seen, len(data)))


def _to_guest(m: Machine, t: Task, parts: list[tuple[int, int, bytes]], cloexec: bool) -> tuple[bytes, bool]:
    """The control data for the guest, with its numbers of received descriptors; whether some did not fit."""
    told, cut = [], False
    for level, kind, value in parts:
        if (level, kind) != (host.SOL_SOCKET, host.SCM_RIGHTS):
            told.append((level, kind, virtual(m, t, level, kind, value)))
            continue
        numbers: list[int] = []
        for own in struct.unpack(f"<{len(value) // 4}i", value):
            try:
                if not cut:
                    numbers.append(m.install_fd(t, own, cloexec))
            except OSError:
                cut = True  # the guest's table is full
            os.close(own)
        if numbers:
            told.append((level, kind, struct.pack(f"<{len(numbers)}i", *numbers)))
    return encoded(told), cut
