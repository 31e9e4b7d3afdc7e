"""Whatever the pieces are that TCP's data is sent and received in: when one side waits for room and the other for data,
there is one of them.

Where a sender has a segment ready that is larger than the window, and the receiver does not find that the window has
grown by enough to say so, Linux waits for a timer; and so it does when what was sent had to be thrown away because the
pieces take more memory than their data.
"""

import itertools
import socket
import threading

#: Receive buffer asked for (0: none), sizes of the pieces that are sent, of those that are received, bytes in all.
CASES = (
    (0, (700,), 65536, 400_000),
    (0, (550,), 8192, 400_000),
    (0, (49,), 9837, 98_000),
    (60_000, (800,), 65536, 400_000),
    (50_000, (1, 1728), 7950, 500_000),
    (2_000, (1, 589), 65536, 300_000),
    (1, (589,), 8192, 200_000),
    (1, (1940,), 65536, 400_000),
    (1, (1, 1177), 500, 400_000),
)

def connected(buffer):
    with socket.socket() as server:
        if buffer:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        server.bind(("127.0.0.1", 0))
        server.listen()
        client = socket.create_connection(server.getsockname())
        accepted = server.accept()[0]
    if buffer:
        assert accepted.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) == max(2 * buffer, 2304)
    return client, accepted


def send(sock, sizes, total):
    for size in itertools.cycle(sizes):
        sock.sendall(bytes(min(size, total)))
        total -= size
        if total <= 0:
            sock.shutdown(socket.SHUT_WR)
            return


for buffer, sizes, most, total in CASES:
    client, server = connected(buffer)
    sender = threading.Thread(target=send, args=(client, sizes, total))
    sender.start()
    sender.join(1)  # until it waits
    received = 0
    while data := server.recv(most):
        received += len(data)
    sender.join()
    assert received == total, (received, total)
    print(buffer, sizes, received)
    client.close()
    server.close()
print("EXIT-SUCCESS")
