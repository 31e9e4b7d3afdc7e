"""What rtnetlink tells of times and of chance is the same in each run, however it is received."""

import ctypes
import os
import socket
import struct

GETLINK, GETADDR, GETNEIGHTBL, DUMP = 18, 22, 66, 0x301
NEWLINK, NEWADDR, NEWNEIGHTBL, DONE = 16, 20, 64, 3


def attributes(data):
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        yield kind & 0x3FFF, data[4:length]
        data = data[length + -length % 4 :]


def by_recvmsg_into(sock):
    """In two pieces, after a look."""
    length = sock.recv_into(bytearray(1), 1, socket.MSG_PEEK | socket.MSG_TRUNC)
    first, second = bytearray(301), bytearray(length)
    assert sock.recvmsg_into([first, second])[0] == length
    return bytes(first + second)[:length]


def by_peek(sock):
    seen = sock.recv(1 << 16, socket.MSG_PEEK | socket.MSG_DONTWAIT)
    data = sock.recv(1 << 16)
    assert seen == data
    return data


def by_recvmsg_at_once(sock):
    return sock.recvmsg(1 << 16, 1024, socket.MSG_DONTWAIT)[0]


class IoVec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class Header(ctypes.Structure):
    """struct mmsghdr"""

    _fields_ = (
        ("name", ctypes.c_void_p), ("name_length", ctypes.c_uint), ("parts", ctypes.POINTER(IoVec)),
        ("count", ctypes.c_size_t), ("control", ctypes.c_void_p), ("control_length", ctypes.c_size_t),
        ("flags", ctypes.c_ulong), ("received", ctypes.c_ulong),
    )  # fmt: skip


def recvmmsg(sock, count, flags):
    """(data, sender's name) of some messages."""
    libc = ctypes.CDLL(None, use_errno=True)
    buffers = [ctypes.create_string_buffer(1 << 15) for _ in range(count)]
    names = [ctypes.create_string_buffer(128) for _ in range(count)]
    parts = [IoVec(ctypes.addressof(buffer), len(buffer)) for buffer in buffers]
    headers = (Header * count)(*(
        Header(ctypes.addressof(name), 128, ctypes.pointer(part), 1) for name, part in zip(names, parts, strict=True)
    ))
    got = libc.recvmmsg(sock.fileno(), headers, count, flags, None)
    assert got > 0, ctypes.get_errno()
    found = [(headers[n].received & 0xFFFFFFFF, headers[n].name_length) for n in range(got)]
    return [(buffers[n].raw[:size], names[n].raw[:named]) for n, (size, named) in enumerate(found)]


def by_recvmmsg(count, flags):
    def receive(sock):
        messages = recvmmsg(sock, count, flags)
        kernel = struct.pack("=HHII", socket.AF_NETLINK, 0, 0, 0)
        assert {name for _, name in messages} == {kernel}, messages
        return b"".join(data for data, _ in messages)

    return receive


WAITFORONE = 0x10000
WAYS = (
    by_recvmmsg(1, 0),
    by_recvmmsg(2, WAITFORONE),
    by_recvmmsg(2, socket.MSG_DONTWAIT),
    # A dump comes in two messages, of which the second one says that it is at its end.
    by_recvmmsg(2, 0),
    lambda sock: sock.recv(1 << 16),
    lambda sock: sock.recvmsg(1 << 16)[0],
    lambda sock: os.read(sock.fileno(), 1 << 16),
    by_recvmsg_into,
    by_recvmsg_at_once,
    by_peek,
)


def dump(receive, kind):
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        sock.bind((0, 0))
        sock.send(struct.pack("=IHHIIB3x", 20, kind, DUMP, 1, 0, 0))
        while True:
            data = receive(sock)
            while data:
                length, kind = struct.unpack_from("=IH", data)
                if kind == DONE:
                    return
                yield kind, data[16:length]
                data = data[length + -length % 4 :]


def main():
    for receive in WAYS:
        found = set()
        for kind, body in dump(receive, GETADDR):
            assert kind == NEWADDR
            times = dict(attributes(body[8:]))[6]
            assert times == struct.pack("=IIII", 0xFFFFFFFF, 0xFFFFFFFF, 0, 0), times
            found.add(kind)
        for kind, body in dump(receive, GETLINK):
            assert kind == NEWLINK
            families = dict(attributes(dict(attributes(body[16:]))[26]))
            if 10 in families:
                cache = dict(attributes(families[10]))[5]
                assert struct.unpack("=IIII", cache)[1:3] == (0, 30000), cache
            found.add(kind)
        for kind, body in dump(receive, GETNEIGHTBL):
            parameters = dict(attributes(dict(attributes(body[4:]))[6]))
            assert kind == NEWNEIGHTBL and struct.unpack("=Q", parameters[3]) == (30000,)
            found.add(kind)
        assert found == {NEWADDR, NEWLINK, NEWNEIGHTBL}
    # Numbers of closed sockets come again, and what others receive is left alone.
    for _ in range(3):
        one, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        told = struct.pack("=IHHII", 44, NEWADDR, 0, 0, 0) + bytes(8) + struct.pack("=HHIIII", 20, 6, 1, 2, 3, 4)
        one.send(told)
        assert other.recv(100) == told
        one.close()
        other.close()
    # Names of those who send, where all messages are waited for.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as one:
        one.bind("/tmp/one")
        for name in (None, "/tmp/two", "\0three"):
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as two:
                if name:
                    two.bind(name)
                two.sendto(b"x", "/tmp/one")
        path = struct.pack("=H", socket.AF_UNIX) + b"/tmp/two\0"
        abstract = struct.pack("=H", socket.AF_UNIX) + b"\0three"
        assert recvmmsg(one, 3, 0) == [(b"x", b""), (b"x", path), (b"x", abstract)]
    print("EXIT-SUCCESS", flush=True)


main()
