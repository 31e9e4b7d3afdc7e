"""Messages that the supervisor itself receives or sends, since the kernel would wait between two of them.

Or within one: a stream takes a message with ancillary data in parts, and sends the data with the first.
"""

from __future__ import annotations

import os
import socket as host
import struct
from errno import EAGAIN, EBADF, EINTR
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.handlers.rtnetlink import shown
from detbox.handlers.socket_control import MMSGHDR, encoded, for_supervisor, own_credentials, virtual
from detbox.handlers.socket_core import MSG_DONTWAIT, MSG_NOSIGNAL, MSGHDR, encode_address, python_socket
from detbox.handlers.socket_names import at_address
from detbox.handlers.waiting import CHUNK, POLLIN, POLLOUT, gather, iovec, scatter, total

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
    scatter(t, segments, 0, shown(data) if sock.family == host.AF_NETLINK else data)
    encoded_address = encode_address(sock.family, address)
    if name:
        t.write(name, encoded_address[:room])
    told, cut = _to_guest(m, t, parts, bool(flags & _MSG_CMSG_CLOEXEC))
    if told:
        t.write(control, told[:space])
    seen = seen & ~_MSG_CMSG_CLOEXEC | flags & _MSG_CMSG_CLOEXEC | (_MSG_CTRUNC if cut else 0)
    t.write(header + 8, struct.pack("<I", len(encoded_address) if name else 0))
    t.write(header + 40, struct.pack("<Qi4xI", min(len(told), space), seen, len(data)))


def send_here(
    m: Machine, t: Task, fd: int, headers: range, flags: int, deadline: int | None, *, single: bool
) -> Decision:
    """Send the messages whose headers are at ``headers``.

    ``single``: the result is the number of bytes, as of ``sendmsg``, and not that of messages.
    """
    sent = done = 0  # messages, and bytes of the current one

    def result() -> int:
        return done if single else sent + (done > 0)

    def step(wake: Wake | None) -> Decision:
        nonlocal sent, done
        if wake is not None and wake.kind == "deadline":
            return result() or -EAGAIN
        own = t.process.files.borrow(t, fd)
        try:
            with python_socket(own) as sock:
                while sent < len(headers):
                    count, wanted = _send_part(m, t, sock, headers[sent], flags, done)
                    done += count
                    if not single:
                        t.write(headers[sent] + MSGHDR.size, struct.pack("<I", done))
                    if done >= wanted:
                        sent += 1
                        if single:
                            break
                        done = 0
        except BlockingIOError:
            return Park(
                step, fds=((own, POLLOUT),), deadline=deadline, why=f"send messages to socket {fd}",
                interrupted=lambda: result() or (-ERESTARTSYS if deadline is None else -EINTR),
            )  # fmt: skip
        except OSError:
            os.close(own)
            return result() or CONTINUE  # the kernel tells the guest, with SIGPIPE if that is due
        os.close(own)
        return result()

    return step(None)


def _send_part(m: Machine, t: Task, sock: host.socket, header: int, flags: int, done: int) -> tuple[int, int]:
    """Send what the socket takes of a message of which ``done`` bytes are sent; (bytes, the message's length)."""
    name, room, base, count, _, _, _ = MSGHDR.unpack(t.read(header, MSGHDR.size))
    segments = iovec(t, base, count)
    wanted = total(segments)
    data = gather(t, segments, done, CHUNK if sock.type == host.SOCK_STREAM else wanted)
    kept = flags & 0x7FFFFFFF | MSG_DONTWAIT | MSG_NOSIGNAL
    if done:
        return sock.sendmsg([data], own_credentials(m, t, sock), kept), wanted
    address = t.read(name, min(room, 128)) if name and room else b""
    with for_supervisor(m, t, header, sock) as parts:
        if not address:
            return sock.sendmsg([data], parts, kept), wanted
        return at_address(m, t, address, lambda to: sock.sendmsg([data], parts, kept, to)), wanted


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
