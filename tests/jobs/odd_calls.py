"""Makes system calls with odd arguments and prints what they answer: natively and under detbox it must be the same.

``odd_shapes`` has the calls.  Each has a process and a directory of its own.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator

from odd_shapes import BAD, BASE, EDGE, IOV, KERNEL, NUMBERS, ODD, SHAPES, SIGSET, Argument, put

LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.syscall.restype = ctypes.c_long
LIMIT_S = 2  # no call takes so long that does not wait for ever


def prepare() -> None:
    """The files of this directory."""
    with open("file", "wb") as stream:
        stream.write(b"0123456789" * 10)
    for name, mode in (("dir", 0o755), ("full", 0o755), ("closed", 0)):
        os.mkdir(name, mode)
    os.symlink("file", "link")
    os.symlink("nowhere", "dangling")
    os.symlink("loop", "loop")
    os.mkfifo("fifo")
    os.mkdir("full/entry")


def filled_pipe() -> tuple[int, int]:
    ends = os.pipe2(os.O_NONBLOCK)
    os.write(ends[1], b"in the pipe")
    return ends


def broken_pipe() -> int:
    gone, end = os.pipe2(os.O_NONBLOCK)
    os.close(gone)
    return end


def stream() -> int:
    end, other = socket.socketpair()
    other.sendall(b"in the socket")
    end.setblocking(False)
    other.detach()
    return end.detach()


def unblocked(sock: socket.socket) -> int:
    sock.setblocking(False)
    return sock.detach()


def terminal(side: int) -> int:
    ends = os.openpty()
    os.set_blocking(ends[side], False)
    return ends[side]


def opened(path: str, flags: int) -> Callable[[], int]:
    return lambda: os.open(path, flags, 0o644)


#: How each kind of descriptor is made.
MAKERS: dict[str, Callable[[], int]] = {
    "file": opened("file", os.O_RDWR), "reader": opened("file", os.O_RDONLY),
    "writer": opened("written", os.O_WRONLY | os.O_CREAT), "dir": opened("dir", os.O_RDONLY),
    "path-only": opened("file", os.O_PATH), "null": opened("/dev/null", os.O_RDWR | os.O_NONBLOCK),
    "zero": opened("/dev/zero", os.O_RDWR), "append": opened("file", os.O_RDWR | os.O_APPEND),
    "proc": opened("/proc/self/comm", os.O_RDONLY), "event": lambda: os.eventfd(1, os.EFD_NONBLOCK),
    "memory": lambda: os.memfd_create("m", os.MFD_ALLOW_SEALING), "epoll": lambda: LIBC.epoll_create1(0),
    "pipe-out": lambda: filled_pipe()[0], "pipe-in": lambda: filled_pipe()[1], "pipe-broken": broken_pipe,
    "stream": stream, "datagram": lambda: unblocked(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)),
    "listener": lambda: unblocked(socket.create_server(("127.0.0.1", 0))),
    "udp": lambda: unblocked(socket.socket(socket.AF_INET, socket.SOCK_DGRAM)),
    "timer": lambda: LIBC.timerfd_create(1, 0o4000), "inotify": lambda: LIBC.inotify_init1(0o4000),
    "signal": lambda: LIBC.signalfd(-1, ctypes.c_char_p(SIGSET + bytes(120)), 0o4000),
    "master": lambda: terminal(0), "terminal": lambda: terminal(1),
}  # fmt: skip


def calls(kinds: tuple[tuple[str, Argument], ...]) -> Iterator[tuple[Argument, ...]]:
    """The usual arguments, and each of them replaced by each odd value in turn."""
    usual = tuple(value for _, value in kinds)
    yield usual
    for at, (kind, value) in enumerate(kinds):
        for odd in ODD.get(kind, ()):
            if odd != value:
                yield (*usual[:at], odd, *usual[at + 1:])


def machine_value(argument: Argument, at: int) -> int:
    """What the kernel gets for an argument; strings of bytes are put into the arena."""
    if isinstance(argument, bytes):
        return put(argument + b"\0", 0x400 + at * 0x1100)
    if argument == "pid":
        return os.getpid()
    return MAKERS[argument]() if isinstance(argument, str) else argument


def shown(argument: Argument) -> str:
    if isinstance(argument, int):
        return {BAD: "bad", KERNEL: "kernel", EDGE: "edge", BASE: "arena"}.get(argument, hex(argument))
    if isinstance(argument, str):
        return argument
    text = argument.rstrip(b"\0")
    return repr(text)[1:] if len(text) < 12 and text.isascii() else f"<{len(argument)} bytes>"


def answer(number: int, arguments: tuple[Argument, ...]) -> int:
    values = [machine_value(argument, at) for at, argument in enumerate(arguments)]
    put(IOV, 0x7000)
    ctypes.set_errno(0)
    result: int = LIBC.syscall(ctypes.c_long(number), *(ctypes.c_ulong(value) for value in values))
    return result if result != -1 else -ctypes.get_errno()


def out(line: str) -> None:
    os.write(1, line.encode())


def one_shape(name: str, every: int) -> None:
    """All calls of one shape, or one of so many of them, each in a process of its own."""
    number, kinds = SHAPES[name]
    for index, arguments in enumerate(calls(kinds)):
        if index % every:
            continue
        top = f"{name}.{index}"
        files = any(kind in ("fd", "path") for kind, _ in kinds)
        if files:
            os.mkdir(top)
            os.chdir(top)
            prepare()
        child = os.fork()
        if child == 0:
            result = answer(number, arguments)
            text = errno.errorcode.get(-result, str(result)) if result < 0 else "ok" if name in NUMBERS else str(result)
            out(f"{name}({', '.join(map(shown, arguments))}) = {text}\n")
            os._exit(0)
        ended = select.select([os.pidfd_open(child)], [], [], LIMIT_S)[0]
        os.kill(child, signal.SIGKILL)
        status = os.waitpid(child, 0)[1]
        if not ended or status:
            out(f"{name}({', '.join(map(shown, arguments))}): {status if ended else 'waits'}\n")
        os.closerange(3, 16)
        if files:
            os.chdir("..")
            shutil.rmtree(top, ignore_errors=True)


def is_harmless() -> bool:
    """Whether this is a container of detbox's or an ordinary user's namespace: under root the calls change the host."""
    with open("/proc/1/comm", encoding="ascii") as stream:
        if stream.read() == "detbox-init\n":
            return True
    with open("/proc/self/uid_map", encoding="ascii") as stream:
        return stream.read().split()[1] != "0"


def main() -> None:
    if not is_harmless():
        sys.exit("this program is for the inside of a container only")
    os.closerange(3, 256)
    os.dup2(os.open("/dev/null", os.O_RDONLY), 0)
    os.closerange(3, 256)
    os.umask(0o022)
    for number in (signal.SIGPIPE, signal.SIGUSR1, signal.SIGXFSZ, signal.SIGIO):
        signal.signal(number, signal.SIG_IGN)
    every, *names = sys.argv[1:] or ["1"]
    for name in names or SHAPES:
        one_shape(name, int(every))


if __name__ == "__main__":
    main()
