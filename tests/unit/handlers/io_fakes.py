"""A machine and a guest in one process: real descriptors, borrowed by dup, and memory in a bytearray."""

from __future__ import annotations

import os
import select
import stat
import struct
import types
from collections.abc import Callable
from typing import Any

from detbox.decision import Decision, Park, Wake
from detbox.kernel import _native, siginfo
from detbox.machine.clock import Clock
from detbox.machine.creds import Creds
from detbox.machine.files import Kind, OpenFile, kind_of
from detbox.machine.networks import NETWORK

BASE = 0x10000
SIZE = 1 << 21
MAX64 = (1 << 64) - 1


class Files:
    """The guest's descriptors are the test's own."""

    def __init__(self) -> None:
        self.known: dict[int, OpenFile] = {}
        self.forgotten: list[int | str] = []

    def get(self, fd: int) -> OpenFile:
        if fd not in self.known:
            st = os.fstat(fd)
            link = os.readlink(f"/proc/self/fd/{fd}").encode()
            inodes: Any = types.SimpleNamespace(memfd_dev=-1, odd_devs=())
            self.known[fd] = OpenFile(kind_of(st, inodes, link), st)
            if stat.S_ISREG(st.st_mode):
                self.known[fd].vnode = f"vnode {st.st_ino}"  # type: ignore[assignment]
        return self.known[fd]

    def borrow_blocking(self, t: object, fd: int, mask: int) -> int:
        return _native.borrow_blocking(os.getpid(), fd, mask)

    def borrow_idle(self, t: object, fd: int, mask: int) -> int:
        return _native.borrow_idle(os.getpid(), fd, mask)

    def takes_at_once(self, t: object, fd: int, wanted: int) -> bool:
        return _native.takes_at_once(os.getpid(), fd, wanted)

    def borrow(self, t: object, fd: int) -> int:
        return os.dup(fd)

    def forget(self, fd: int) -> None:
        self.forgotten.append(fd)
        self.known.pop(fd, None)

    def forget_all(self) -> None:
        self.forgotten.append("all")
        self.known.clear()


class Task:
    """A guest thread whose memory starts at BASE."""

    def __init__(self) -> None:
        self.memory = bytearray(SIZE)
        self.tid = os.getpid()
        self.rng = types.SimpleNamespace(bytes=lambda n: b"R" * n)
        self.process: Any = types.SimpleNamespace(
            pid=os.getpid(), files=Files(), data={}, creds=Creds.of(1000, 1001), network=NETWORK
        )

    def _at(self, address: int, length: int) -> int:
        if not BASE <= address <= BASE + SIZE - length:
            raise OSError(14, "EFAULT")
        return address - BASE

    def read(self, address: int, length: int) -> bytes:
        start = self._at(address, length)
        return bytes(self.memory[start : start + length])

    def write(self, address: int, data: bytes) -> None:
        start = self._at(address, len(data))
        self.memory[start : start + len(data)] = data

    def segments(self, address: int, count: int) -> list[tuple[int, int]]:
        return list(struct.iter_unpack("<QQ", self.read(address, 16 * count)))

    def gather(self, segments: list[tuple[int, int]], skip: int, limit: int) -> bytes:
        return b"".join(self.read(*segment) for segment in segments)[skip : skip + limit]

    def scatter(self, segments: list[tuple[int, int]], skip: int, data: bytes) -> None:
        places = [address + offset for address, length in segments for offset in range(length)][skip:]
        for address, byte in zip(places, data, strict=False):
            self.write(address, bytes([byte]))

    def u32(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    def u64(self, address: int) -> int:
        return int.from_bytes(self.read(address, 8), "little")


class Machine:
    """The parts of the machine that I/O handlers use."""

    def __init__(self) -> None:
        self.clock = Clock(0)
        self.timers = self.clock.timers
        self.data: dict[str, Any] = {}
        self.processes: dict[int, Any] = {}
        self.pending = 0
        self.touched: list[object] = []
        self.inodes = types.SimpleNamespace(touch=self.touched.append, of=lambda st: None)
        self.output: list[tuple[int, bytes]] = []
        self.fills = 0
        self.fill: Callable[[], None] = lambda: None
        self.console = types.SimpleNamespace(
            write=lambda which, data: self.output.append((which, data)), fill_stdin=self._fill
        )
        self.proc_fd = os.open("/proc", os.O_PATH)
        self.woken: list[object] = []
        self.signals: list[int] = []
        self.doubts: list[str] = []

    @staticmethod
    def repaired_siginfo(task: object, signo: int, info: bytes) -> bytes:
        """Children are user 7's."""
        return siginfo.child(info, 7) if siginfo.code_of(info) > 0 else info

    def _fill(self) -> None:
        self.fills += 1
        self.fill()

    def wake(self, key: object, count: int | None = None, value: object = None) -> int:
        self.woken.append(key)
        return 0

    def signal(self, target: object, signo: int, *, code: int) -> None:
        self.signals.append(signo)

    def need_loopback(self, task: Any) -> None:
        """There is a loopback device already."""

    def pending_signals(self, t: object) -> int:
        return self.pending

    def doubt(self, t: object, text: str) -> None:
        self.doubts.append(text)


def resume(park: Decision, kind: str = "fd") -> Decision:
    """Resume a parked call as the scheduler does; descriptors have to be ready if that is the reason."""
    assert isinstance(park, Park), park
    if kind == "fd":
        poller = select.poll()
        for fd, mask in park.fds:
            poller.register(fd, mask)
        assert poller.poll(1000), "nothing to resume for"
    for fd, _ in park.fds:
        os.close(fd)
    return park.resume(Wake(kind))


def mark(t: Task, fd: int, kind: Kind) -> None:
    """Let the guest's descriptor be of a kind of the run's own (stdin, …)."""
    t.process.files.get(fd).kind = kind
