"""How much a TCP connection takes and gives depends on what is sent and received, however long that takes the machine.

Behind a window that is smaller than a segment the kernel waits for a timer, and then sends what fits.  What comes
beyond a receive buffer that was made smaller is thrown away, and sent again when a timer says so.
"""

import array
import fcntl
import hashlib
import socket
import struct
import termios
import threading

SMALL = 4096


def connected():
    with socket.create_server(("127.0.0.1", 0)) as server:
        client = socket.create_connection(server.getsockname())
        return client, server.accept()[0]


def unread(sock):
    count = array.array("i", [0])
    fcntl.ioctl(sock, termios.FIONREAD, count)
    return count[0]


def fill(sock, *sizes):
    """Send until the socket takes no more; how much that was."""
    sent = 0
    try:
        while True:
            for size in sizes:
                sent += sock.send(bytes(size))
    except BlockingIOError:
        return sent


def compute():
    """Takes a second or so, longer than the kernel's timers."""
    hashlib.pbkdf2_hmac("sha256", b"password", b"salt", 1_000_000)


def a_full_connection_stays_full():
    for sizes in ((SMALL, 28678, 2), (1000,), (65536,)):
        client, server = connected()
        client.setblocking(False)
        server.setblocking(False)
        sent = fill(client, *sizes)
        there = unread(server)
        assert 0 < there < sent
        compute()
        assert (unread(server), fill(client, *sizes)) == (there, 0), sizes
        received = 0
        while unread(server):
            received += len(server.recv(1 << 20))
        assert received == sent
        print(sizes, sent, there)
        client.close()
        server.close()


def a_smaller_buffer_loses_nothing():
    for sizes in ((1448, 32768, 16384, 100), (65536,)):
        client, server = connected()
        usual = server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)
        for wanted, shown in ((SMALL, 2 * SMALL), (1, 2304), (10000, 20000)):
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, wanted)
            assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == shown
        total = 20 * sum(sizes)

        def send(sock=client, data=bytes(total), sizes=sizes):
            at = 0
            while at < len(data):
                for size in sizes:
                    sock.sendall(data[at : at + size])
                    at += size
            sock.shutdown(socket.SHUT_WR)

        sender = threading.Thread(target=send)
        sender.start()
        received = 0
        while data := server.recv(50_000):
            received += len(data)
        sender.join()
        assert received == total, (received, total)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, usual)
        assert server.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == 2 * usual
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        client.close()
        server.close()


a_full_connection_stays_full()
a_smaller_buffer_loses_nothing()
print("EXIT-SUCCESS")
