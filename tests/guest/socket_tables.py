"""/proc/net shows the sockets of all processes with their states, owners and the numbers that fstat gives."""

import os
import shutil
import socket
import struct
import subprocess
import sys
import time

LISTEN, ESTABLISHED, CLOSE_WAIT, UNCONNECTED = "0A", "01", "08", "07"
FIN_WAIT = ("04", "05")


def table(name):
    """Fields of the lines of a table by inode number."""
    column = 6 if name == "unix" else 9
    with open(f"/proc/net/{name}") as file:
        rows = [line.split() for line in file.readlines()[1:]]
    return {int(row[column]): row for row in rows}


def number(sock):
    ino = os.fstat(sock.fileno()).st_ino
    assert os.readlink(f"/proc/self/fd/{sock.fileno()}") == f"socket:[{ino}]"
    return ino


def state(name, sock):
    row = table(name)[number(sock)]
    local = row[1].split(":")
    assert int(local[1], 16) == sock.getsockname()[1], row
    assert int(row[7]) == os.geteuid(), row
    return row[3]


listener = socket.create_server(("127.0.0.1", 0))
before = number(listener)
client = socket.create_connection(listener.getsockname())
assert os.getxattr(f"/proc/self/fd/{client.fileno()}", "system.sockprotoname") == b"TCP\0"
served, _ = listener.accept()
assert table("tcp").keys() >= {number(listener), number(client), number(served)}
assert state("tcp", listener) == LISTEN
assert state("tcp", client) == state("tcp", served) == ESTABLISHED
client.shutdown(socket.SHUT_WR)
assert served.recv(1) == b""
assert state("tcp", client) in FIN_WAIT and state("tcp", served) == CLOSE_WAIT
assert number(listener) == before

datagram = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
datagram.bind(("127.0.0.1", 0))
assert state("udp", datagram) == UNCONNECTED
if socket.has_ipv6:
    six = socket.create_server(("::1", 0), family=socket.AF_INET6)
    assert state("tcp6", six) == LISTEN

local = socket.socket(socket.AF_UNIX)
local.bind("a socket")
local.listen()
one, other = socket.socketpair()
rows = table("unix")
assert rows[number(local)][3:6] == ["00010000", "0001", "01"] and rows[number(local)][7:] == ["a", "socket"]
assert rows[number(one)][1] == rows[number(other)][1] == "00000003" and rows[number(one)][5] == "03"

# Sockets that nobody has looked at yet, of another process.
ready, tell = os.pipe()
child = os.fork()
if child == 0:
    kept = [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]
    os.write(tell, b".")
    kept[0].accept()  # nobody comes
os.read(ready, 1)
listening = [row for row in table("tcp").values() if row[3] == LISTEN]
assert len(listening) >= 4
sys.stdout.flush()
for command in (["ss", "-anp"], ["netstat", "-anp"], ["lsof", "-n", "-i", "-U"]):
    if shutil.which(command[0]):
        print(command, flush=True)
        subprocess.run(command, stderr=subprocess.DEVNULL, check=False)
os.kill(child, 9)
os.wait()
gone = number(listener)
listener.close()
assert gone not in table("tcp")
os.unlink("a socket")
# Times of arrival: between those of sending and of receiving, in the clock that the program reads.
udp = (socket.AF_INET, socket.SOCK_DGRAM)
with socket.socket(*udp) as target, socket.socket(*udp) as source:
    target.bind(("127.0.0.1", 0))
    for option, unit in ((29, 1000), (35, 1)):  # SO_TIMESTAMP, SO_TIMESTAMPNS
        target.setsockopt(socket.SOL_SOCKET, option, 1)
        before = time.time_ns()
        source.sendto(b"x", target.getsockname())
        (level, kind, stamp), = target.recvmsg(10, 100)[1]
        seconds, rest = struct.unpack("qq", stamp)
        assert (level, kind) == (socket.SOL_SOCKET, option)
        assert before // unit <= seconds * 10**9 // unit + rest <= time.time_ns() // unit
# What the host's settings and clock would show through.
with socket.socket() as tcp:
    assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
    tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, b"reno")
    assert tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0") == b"reno"
    if "detbox" in os.uname().release:
        options = [(level, name) for level in (socket.SOL_SOCKET, socket.IPPROTO_TCP) for name in range(1, 100)]
        for level, name in options:
            try:
                print(level, name, tcp.getsockopt(level, name, 256).hex())
            except OSError as error:
                print(level, name, error.errno)
print("EXIT-SUCCESS")
