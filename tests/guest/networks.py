"""Network namespaces: a loopback device that is down at first, ports and names of their own, who may change what."""

import ctypes
import errno
import fcntl
import os
import signal
import socket
import struct

NEWUSER, NEWNET = 0x10000000, 0x40000000
SIOCGIFFLAGS, SIOCSIFFLAGS, UP = 0x8913, 0x8914, 1
NEWLINK, ADDRESS, REQUEST_ACK, CREATE = 16, 20, 0x5, 0x600
LIBC = ctypes.CDLL(None, use_errno=True)


def ask(call, *args):
    try:
        return call(*args)
    except OSError as error:
        return errno.errorcode[error.errno]


def call(name, *args):
    if getattr(LIBC, name)(*args) == -1:
        raise OSError(ctypes.get_errno(), name)


def in_child(body):
    """Run it in a child, which has to end well."""
    pid = os.fork()
    if pid == 0:
        body()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def own_network():
    uid, gid = os.geteuid(), os.getegid()
    call("unshare", NEWUSER | NEWNET)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def flags():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
    return struct.unpack("16xh14x", answer)[0]


def bring_up():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", flags() | UP))


def request(kind, more, body):
    """The kernel's answer to a request of rtnetlink(7)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as link:
        link.send(struct.pack("<IHHII", 16 + len(body), kind, REQUEST_ACK | more, 7, 0) + body)
        answer = link.recv(1 << 16)
    assert struct.unpack_from("<I", answer, 8)[0] == 7
    return -struct.unpack_from("<i", answer, 16)[0]


def listening(address=("127.0.0.1", 80), family=socket.AF_INET):
    sock = socket.socket(family)
    sock.bind(address)
    sock.listen()
    return sock


def connected(listener):
    sock = socket.socket(listener.family)
    sock.connect(listener.getsockname())
    return sock, listener.accept()[0]


def table(name):
    with open(f"/proc/net/{name}") as file:
        return file.read().splitlines()[1:]


def listeners():
    return [line.split()[1] for line in table("tcp") if line.split()[3] == "0A"]


def device_down(outside, name):
    """In a new namespace: nothing of the container's is seen, and nobody is reached."""
    own_network()
    assert not flags() & UP and listeners() == [] and table("unix") == [] and table("fib_trie") == []
    assert [line.split()[0] for line in table("dev")[1:]] == ["lo:"]
    assert ask(socket.create_connection, outside.getsockname()) == "ENETUNREACH"
    one = socket.socket(socket.AF_UNIX)
    assert ask(one.connect, name) == "ECONNREFUSED"
    two = socket.socket(socket.AF_UNIX)
    two.bind(name)
    two.listen()
    one.connect(name)
    assert struct.unpack("3i", one.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))[0] == os.getpid()
    # The port is free here, and its root may have the small ones.
    first, second = listening(outside.getsockname()), listening()
    assert len(listeners()) == 2
    first.close()
    second.close()


def brought_up(outside):
    """The device works like the container's then."""
    bring_up()
    assert flags() & UP
    assert ask(socket.create_connection, outside.getsockname()) == "ECONNREFUSED"
    assert ask(socket.create_connection, ("192.0.2.1", 80)) == "ENETUNREACH"
    for listener in (listening(), listening(("::1", 81), socket.AF_INET6)):
        here, there = connected(listener)
        here.sendall(b"x" * 100_000)
        assert len(there.recv(100_000, socket.MSG_WAITALL)) == 100_000
        there.sendall(b"y")
        assert here.recv(2) == b"y"
        datagram = socket.socket(listener.family, socket.SOCK_DGRAM)
        datagram.bind(listener.getsockname())
        datagram.sendto(b"z", datagram.getsockname())
        assert datagram.recvfrom(2) == (b"z", datagram.getsockname())
    assert any("127.0.0.1" in line for line in table("fib_trie"))


def group_of_receivers():
    group, port = "224.1.1.1", 5007
    members = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(2)]
    for member, where in zip(members, (group, ""), strict=True):
        member.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        member.bind((where, port))
        joined = socket.inet_aton(group) + socket.inet_aton("127.0.0.1")
        member.setsockopt(socket.IPPROTO_IP, socket.IP_ADD_MEMBERSHIP, joined)
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    assert ask(sender.sendto, b"nowhere", (group, port)) == "ENETUNREACH"
    sender.setsockopt(socket.IPPROTO_IP, socket.IP_MULTICAST_IF, socket.inet_aton("127.0.0.1"))
    sender.sendto(b"to all", (group, port))
    assert [member.recv(10) for member in members] == [b"to all"] * 2


def another_address():
    """Of the same device."""
    ten = socket.inet_aton("10.1.2.3")
    attributes = struct.pack("<HH4sHH4s", 8, 1, ten, 8, 2, ten)
    assert request(ADDRESS, CREATE, struct.pack("<4BI", socket.AF_INET, 24, 0, 0, 1) + attributes) == 0
    here, there = connected(listening(("10.1.2.3", 0)))
    here.sendall(b"x" * 100_000)
    assert len(there.recv(100_000, socket.MSG_WAITALL)) == 100_000 and here.getsockname()[0] == "10.1.2.3"
    assert any("10.1.2.3" in line for line in table("fib_trie"))


def no_other_device():
    """There is none of an unknown kind."""
    kind = struct.pack("<HH", 9, 1) + b"none\0\0\0\0"
    body = struct.pack("<BxHiII", 0, 0, 0, 0, 0) + struct.pack("<HH", 4 + len(kind), 18) + kind
    assert request(NEWLINK, CREATE, body) == errno.EOPNOTSUPP


def joined_later():
    """Who joins a namespace is in it."""
    ready, end = os.pipe(), os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(end[1])
        os.write(ready[1], b"r")
        os.read(end[0], 1)
        os._exit(0)
    os.close(end[0])
    os.read(ready[0], 1)
    there = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY)
    listener = listening(("127.0.0.1", 90))

    def joins():
        call("unshare", NEWNET)
        assert not flags() & UP
        call("setns", there, NEWNET)
        assert flags() & UP
        socket.create_connection(("127.0.0.1", 90))

    in_child(joins)
    assert listener.accept()[1][0] == "127.0.0.1"
    os.close(end[1])
    os.waitpid(pid, 0)


def without_rights():
    """Nothing is changed."""

    def powerless():
        call("prctl", 24, 12, 0, 0, 0)  # PR_CAPBSET_DROP, CAP_NET_ADMIN
        os.setresuid(0, 0, 0)
        os.execv("/bin/sh", ["sh", "-c", f"exec '{interpreter()}' -c '{DOWN}'"])

    in_child(powerless)
    assert flags() & UP


def alone(outside, name):
    """In a namespace of its own."""
    device_down(outside, name)
    brought_up(outside)
    group_of_receivers()
    another_address()
    no_other_device()
    joined_later()
    without_rights()


DOWN = """
import fcntl, socket, struct
try:
    fcntl.ioctl(socket.socket(2, 2), 0x8914, struct.pack("16sh14x", b"lo", 0))
except PermissionError:
    raise SystemExit(0)
raise SystemExit(1)
"""


def interpreter():
    return os.readlink("/proc/self/exe")


def main():
    signal.alarm(50)
    outside = listening(("127.0.0.1", 0))
    unix = socket.socket(socket.AF_UNIX)
    name = f"\0networks {os.getpid()}"
    unix.bind(name)
    unix.listen()
    in_child(lambda: alone(outside, name))
    for sock in (outside, unix):
        sock.setblocking(False)
        assert ask(sock.accept) == "EAGAIN"
    print("EXIT-SUCCESS", flush=True)


main()
