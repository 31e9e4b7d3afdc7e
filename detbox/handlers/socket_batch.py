"""``recvmmsg`` that waits for all its messages: received one by one, without ancillary data."""

from __future__ import annotations

import os
import socket as host
import struct
from errno import EBADF
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTSYS, Decision, Park, Wake
from detbox.handlers.socket_core import MSG_DONTWAIT, MSGHDR, encode_inet, python_socket
from detbox.handlers.waiting import POLLIN, iovec, scatter, total

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

#: struct mmsghdr: a struct msghdr and the length received.
_MMSGHDR = MSGHDR.size + 8


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
