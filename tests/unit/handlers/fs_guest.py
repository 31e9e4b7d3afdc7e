"""A guest for the file-system handlers: the test process itself, with memory that is a byte array."""

from __future__ import annotations

import os
import struct
from types import SimpleNamespace
from typing import Any

from detbox.decision import CONTINUE, InstallFd
from detbox.machine.creds import Creds
from detbox.machine.files import FileTable, FsContext
from detbox.machine.inodes import InodeTable
from detbox.machine.layers import Layers

EPOCH_NS = 1_577_836_800 * 10**9
AT_FDCWD = -100 & 0xFFFFFFFFFFFFFFFF


class FakeTask:
    """Memory from address 0x1000 on; strings are allocated as they are needed."""

    def __init__(self, process: Any) -> None:
        self.tid = os.getpid()
        self.process = process
        self.memory = bytearray(1 << 20)
        self.free = 0x1000

    def put(self, data: bytes) -> int:
        addr = self.free
        self.memory[addr : addr + len(data)] = data
        self.free += len(data)
        return addr

    def path(self, text: bytes | str) -> int:
        return self.put(os.fsencode(text) + b"\0")

    def read(self, addr: int, length: int) -> bytes:
        return bytes(self.memory[addr : addr + length])

    def write(self, addr: int, data: bytes) -> None:
        self.memory[addr : addr + len(data)] = data

    def cstr(self, addr: int) -> bytes:
        return bytes(self.memory[addr : self.memory.index(0, addr)])


class Guest:
    """One machine with one process and one thread."""

    def __init__(self, uid: int = 0) -> None:
        self.now = EPOCH_NS
        self.woken: list[Any] = []
        self.doubts: list[str] = []
        proc_fd = os.open("/proc", os.O_PATH)
        m: Any = SimpleNamespace(
            mounting=SimpleNamespace(private=lambda process: False),
            proc_fd=proc_fd, stdio={}, processes={}, tasks={}, data={}, code_mapped=None,
            wake=lambda key, count=None, value=None: self.woken.append(key),
            synth_open=lambda t, path, fd, flags: fd,
            synth_listing=lambda t, path, names, dev: names,
            own_numbers=lambda t, dev: (t.process.pid, t.tid),
            process_of=lambda number: m.processes.get(number),
            doubt=lambda t, text: self.doubts.append(text),
        )  # fmt: skip
        m.inodes = InodeTable(EPOCH_NS, self.stamp)
        m.layers = Layers()
        m.ways = 0
        m.inodes.learn_devices((b"/tmp", b"/dev/shm"))  # where the tests' own directories may be
        process: Any = SimpleNamespace(pid=os.getpid(), tasks={}, data={})
        process.creds = Creds.of(uid, uid)
        process.files = FileTable(m, process.pid)
        process.fs = FsContext(m, process.pid)
        self.m, self.process = m, process
        self.t: Any = FakeTask(process)
        m.processes[process.pid] = process
        m.tasks[self.t.tid] = self.t

    def stamp(self) -> int:
        self.now += 1000
        return self.now

    def call(self, handler: Any, *args: Any) -> Any:
        """Run a handler as the loop does; strings become guest addresses, errors negative numbers."""
        raw = [self.t.path(x) if isinstance(x, (bytes, str, os.PathLike)) else x for x in args]
        values = tuple(x & 0xFFFFFFFFFFFFFFFF for x in raw) + (0,) * (6 - len(raw))
        try:
            return self.settle(handler(self.m, self.t, values))
        except OSError as e:
            return -(e.errno or 0)

    def settle(self, decision: Any) -> Any:
        """The guest's result: a descriptor is already in the right table, because it is our own."""
        if isinstance(decision, InstallFd):
            self.process.files.set(decision.fd, decision.info)
            return decision.fd
        return "continue" if decision is CONTINUE else decision

    def stat(self, handler: Any, *args: Any) -> SimpleNamespace:
        """Run a handler of the stat family whose second argument is the buffer."""
        buf = self.t.put(bytes(144))
        result = self.call(handler, args[0], buf, *args[1:])
        assert result == 0, result
        return unpack_stat(self.t.read(buf, 144))


def unpack_stat(data: bytes) -> SimpleNamespace:
    names = "dev ino nlink mode uid gid pad rdev size blksize blocks atime an mtime mn ctime cn".split()
    st = SimpleNamespace(**dict(zip(names, struct.unpack_from("<QQQIIIIQqqqqqqqqq", data), strict=True)))
    st.atime_ns = st.atime * 10**9 + st.an
    st.mtime_ns = st.mtime * 10**9 + st.mn
    st.ctime_ns = st.ctime * 10**9 + st.cn
    return st
