"""All descriptors of a process, with what stands behind them."""

from __future__ import annotations

import os
import select
import signal
import socket
import threading
from pathlib import Path

import pytest

from detbox.kernel import _native


def test_each_is_as_the_kernel_has_it(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    file = os.open(tmp_path / "f", os.O_RDWR | os.O_APPEND)
    os.lseek(file, 7, os.SEEK_SET)
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        found = {row[0]: row[1:] for row in _native.descriptors(proc, os.getpid())}
        for fd in (file, *ends, proc):
            st = os.fstat(fd)
            assert found[fd][:4] == (st.st_dev, st.st_ino, st.st_mode, st.st_rdev)
        assert found[file][4] & (os.O_ACCMODE | os.O_APPEND) == os.O_RDWR | os.O_APPEND
        assert found[file][5] == 7
        assert found[ends[0]][4] & os.O_NONBLOCK and not found[ends[1]][4] & os.O_NONBLOCK
        assert set(found) >= set(map(int, os.listdir("/proc/self/fd"))) & {0, 1, 2, file, *ends, proc}
        with pytest.raises(OSError, match="No such file"):
            _native.descriptors(proc, 1 << 22)
    finally:
        for fd in (file, *ends, proc):
            os.close(fd)


def test_one_that_another_thread_closes_meanwhile_is_none() -> None:
    over = False

    def open_and_close() -> None:
        while not over:
            os.close(os.open("/", os.O_PATH))

    thread = threading.Thread(target=open_and_close)
    thread.start()
    proc = os.open("/proc", os.O_PATH | os.O_DIRECTORY)
    try:
        for _ in range(300):
            assert _native.descriptors(proc, os.getpid())
    finally:
        over = True
        thread.join()
        os.close(proc)


def test_one_that_blocks_is_borrowed() -> None:
    here = os.getpid()
    read, write = os.pipe()
    try:
        own = _native.borrow_blocking(here, read, select.POLLIN)
        assert own not in (-1, read) and os.fstat(own).st_ino == os.fstat(read).st_ino
        os.close(own)
        assert _native.borrow_blocking(here, write, select.POLLOUT) == -1, "there is room"
        os.close(_native.borrow_blocking(here, write, 0))
        os.write(write, b"x")
        assert _native.borrow_blocking(here, read, select.POLLIN) == -1
        os.read(read, 1)
        os.set_blocking(read, False)
        assert _native.borrow_blocking(here, read, select.POLLIN) == _native.borrow_blocking(here, read, 0) == -1
        with pytest.raises(OSError, match="Bad file descriptor"):
            _native.borrow_blocking(here, 1 << 20, 0)
    finally:
        os.close(read)
        os.close(write)


@pytest.mark.parametrize("kind", ["pipe", "unix", "tcp", "datagram"])
def test_what_takes_all_at_once(kind: str) -> None:
    """Asked of the kernel: a blocking write that is said not to wait returns before anybody reads."""
    here = os.getpid()
    if kind == "pipe":
        ends = os.pipe()
    elif kind == "tcp":
        with socket.create_server(("127.0.0.1", 0)) as server:
            one = socket.create_connection(server.getsockname())
            ends = server.accept()[0].detach(), one.detach()
    else:
        pair = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM if kind == "datagram" else socket.SOCK_STREAM)
        ends = pair[0].detach(), pair[1].detach()
    try:
        refused = False
        for size in (20_000, 4096, 1024):
            while (said := _native.takes_at_once(here, ends[1], size)):
                signal.alarm(5)
                assert os.write(ends[1], bytes(size)) == size
                signal.alarm(0)
            refused = refused or not said
        assert refused
        os.set_blocking(ends[1], False)
        assert _native.takes_at_once(here, ends[1], 1 << 30), "it fails"
        os.set_blocking(ends[1], True)
        os.close(ends[0])
        assert _native.takes_at_once(here, ends[1], 1 << 30), "nobody reads any more"
    finally:
        os.close(ends[1])


def test_nothing_is_borrowed_from_who_is_gone() -> None:
    """Also not from one that something was borrowed from before."""
    read, write = os.pipe()
    try:
        for _ in range(2):
            child = os.fork()
            if child == 0:
                os.read(read, 1)
                os._exit(0)
            os.close(_native.borrow_fd(child, read))
            os.close(_native.borrow_fd(child, write))
            os.write(write, b"x")
            os.waitpid(child, 0)
            with pytest.raises(ProcessLookupError):
                _native.borrow_fd(child, read)
    finally:
        os.close(read)
        os.close(write)
