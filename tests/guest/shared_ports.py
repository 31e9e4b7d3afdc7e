"""Sockets that share a port (SO_REUSEPORT): which of them gets what is chosen alike in each run, whoever closes."""

import os
import socket


def sharing(kind, address):
    sock = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET, kind)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(address)
    if kind == socket.SOCK_STREAM:
        sock.listen()
    sock.setblocking(False)
    return sock


def serving(socks):
    """Which of the sockets has something."""
    for index, sock in enumerate(socks):
        try:
            if sock.type == socket.SOCK_STREAM:
                sock.accept()[0].close()
            else:
                sock.recv(9)
            return index
        except BlockingIOError:
            pass
    raise AssertionError("nobody got it")


def send(kind, socks):
    """Which of the sockets gets something."""
    with socket.socket(socks[0].family, kind) as client:
        client.connect(socks[0].getsockname())
        if kind == socket.SOCK_DGRAM:
            client.send(b"message")
        return serving(socks)


def check(kind, host):
    socks = [sharing(kind, (host, 0))]
    for _ in range(3):
        socks.append(sharing(kind, socks[0].getsockname()[:2]))
    print(kind.name, host, *(send(kind, socks) for _ in range(40)), flush=True)
    socks.pop(1).close()
    print("without the second", *(send(kind, socks) for _ in range(20)), flush=True)
    child = os.fork()
    if not child:
        print("in the child", *(send(kind, socks) for _ in range(10)), flush=True)
        os._exit(0)
    os.waitpid(child, 0)
    if kind == socket.SOCK_STREAM:
        socks.pop().shutdown(socket.SHUT_RD)
    socks.append(sharing(kind, socks[0].getsockname()[:2]))
    print("with another", *(send(kind, socks) for _ in range(20)))
    while len(socks) > 1:
        socks.pop(0).close()
        print(len(socks), *(send(kind, socks) for _ in range(10)))


def owned_by_children():
    """Each is a child's alone; the one that made them has closed them."""
    listeners = [sharing(socket.SOCK_STREAM, ("127.0.0.1", 0))]
    listeners += [sharing(socket.SOCK_STREAM, listeners[0].getsockname()) for _ in range(2)]
    name, children = listeners[0].getsockname(), []
    for index, listener in enumerate(listeners):
        child = os.fork()
        if not child:
            for other in listeners:
                if other is not listener:
                    other.close()
            listener.setblocking(True)
            while True:
                connection = listener.accept()[0]
                connection.sendall(b"%d" % index)
                connection.close()
        children.append(child)
    for listener in listeners:
        listener.close()

    def asked():
        with socket.create_connection(name) as client:
            return client.recv(9).decode()

    print("children", *(asked() for _ in range(20)))
    while children:
        os.kill(children[0], 9)
        os.waitpid(children.pop(0), 0)
        if children:
            print(len(children), "children", *(asked() for _ in range(10)))


for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
    for host in ("127.0.0.1", "::1", "0.0.0.0"):
        check(kind, host)
owned_by_children()
print("EXIT-SUCCESS")
