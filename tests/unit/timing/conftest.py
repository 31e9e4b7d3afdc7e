"""A virtual machine without a kernel, for handlers of time, identity and limits."""

from __future__ import annotations

import struct
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.decision import Park
from detbox.machine.clock import Clock, CpuTime
from detbox.machine.creds import Creds
from detbox.machine.rng import RandomStream

EPOCH_NS = 1_600_000_000 * 10**9
MEMORY = 1 << 16


class FakeTask:
    """A thread with 64 KiB of memory from address 0 on."""

    def __init__(self, tid: int, process: Any) -> None:
        self.tid = tid
        self.process = process
        self.memory = bytearray(MEMORY)
        self.data: dict[str, Any] = {}
        self.restart: Any = None
        self.cpu = CpuTime(process.cpu)
        self.rng = RandomStream(0, "1")
        process.tasks[tid] = self

    def read(self, address: int, size: int) -> bytes:
        self._check(address, size)
        return bytes(self.memory[address:address + size])

    def write(self, address: int, data: bytes) -> None:
        self._check(address, len(data))
        self.memory[address:address + len(data)] = data

    def u32(self, address: int) -> int:
        return int.from_bytes(self.read(address, 4), "little")

    def put(self, address: int, form: str, *values: int) -> int:
        """Store a structure; its address."""
        self.write(address, struct.pack(form, *values))
        return address

    def get(self, address: int, form: str) -> tuple[Any, ...]:
        """The structure at an address."""
        return struct.unpack(form, self.read(address, struct.calcsize(form)))

    @staticmethod
    def _check(address: int, size: int) -> None:
        if not 0 < address <= MEMORY - size:
            raise OSError(14, "EFAULT")


class FakeMachine:
    """One process with one thread; what is sent and woken is remembered."""

    def __init__(self) -> None:
        self.clock = Clock(EPOCH_NS)
        self.spec = SimpleNamespace(cpus=4, hostname="detbox", memory_bytes=None)
        self.tasks: dict[int, FakeTask] = {}
        self.processes: dict[int, Any] = {}
        self.data: dict[str, Any] = {}
        self.sent: list[tuple[int, dict[str, Any]]] = []
        self.woken: list[Any] = []
        self.doubts: list[str] = []
        self.proc_fd = -1

    def forget_reaped(self, process: Any) -> None:
        pass

    def signal(self, target: Any, signo: int, **details: Any) -> None:
        self.sent.append((int(signo), details))

    def wake(self, key: Any, count: int | None = None, value: Any = None) -> int:
        self.woken.append(key)
        return 1

    def doubt(self, task: Any, text: str) -> None:
        self.doubts.append(text)

    def process(self, pid: int, creds: Creds | None = None) -> FakeTask:
        process = SimpleNamespace(
            pid=pid, tasks={}, data={}, cpu=CpuTime(), creds=creds or Creds.of(0, 0), namespaces=False,
            mounts=None, mm=SimpleNamespace(dumpable=True))
        self.processes[pid] = process
        self.tasks[pid] = FakeTask(pid, process)
        return self.tasks[pid]

    def call(self, t: FakeTask, handler: Callable[..., Any], *args: int) -> Any:
        """The result of a call as the guest sees it: a parked one waits for its deadline."""
        self.clock.charge(t.cpu)
        registers = tuple(arg & (1 << 64) - 1 for arg in args) + (0,) * (6 - len(args))
        try:
            decision = handler(self, t, registers)
        except OSError as error:
            return -(error.errno or 0)
        if isinstance(decision, Park) and decision.deadline is not None:
            self.clock.jump_to(decision.deadline)
            self.clock.expire()
            return decision.resume(None)  # type: ignore[arg-type]
        return decision

    def pass_time(self, ns: int) -> None:
        """Let all threads wait for so long, each timer expiring at its own time."""
        end = self.clock.now + ns
        while (deadline := self.clock.next_deadline()) is not None and deadline <= end:
            self.clock.jump_to(deadline)
            self.clock.expire()
        self.clock.jump_to(end)


@pytest.fixture
def m() -> FakeMachine:
    return FakeMachine()


@pytest.fixture
def t(m: FakeMachine) -> FakeTask:
    return m.process(2)
