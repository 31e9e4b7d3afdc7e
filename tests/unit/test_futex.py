"""Futex handlers against a fake machine: results, order, and memory words."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from errno import EAGAIN, EDEADLK, EFAULT, EINVAL, ENOSYS, EPERM, ESRCH, ETIMEDOUT
from typing import Any

import pytest

from detbox.decision import ERESTARTNOHAND, ERESTARTSYS, Park, Wake
from detbox.handlers import futex as handlers
from detbox.handlers import futex_core as core
from detbox.handlers import futex_exit, futex_pi
from detbox.machine.futexes import FutexTable

PRIVATE = core.PRIVATE_FLAG
WORD, OTHER, TIMEOUT = 0x1000, 0x1004, 0x2000


class FakeClock:
    def __init__(self) -> None:
        self.now = 1_000

    def look(self) -> int:
        self.now += 1
        return self.now

    def realtime(self, mono: int) -> int:
        return mono + 1_000_000


class FakeProcess:
    def __init__(self, memory: dict[int, int]) -> None:
        self.memory = memory
        self.mm = id(memory)
        self.pid = 2
        self.tasks: dict[int, Any] = {}


class FakeTask:
    def __init__(self, tid: int, process: FakeProcess) -> None:
        self.tid = tid
        self.process = process
        self.leads: Any = None

    def read(self, address: int, n: int) -> bytes:
        if address >= 0x10000:
            raise OSError(EFAULT, "fault")
        return bytes(self.process.memory.get(address + i, 0) for i in range(n))

    def write(self, address: int, data: bytes) -> None:
        self.read(address, 1)
        self.process.memory.update({address + i: byte for i, byte in enumerate(data)})

    def u32(self, address: int) -> int:
        return int(struct.unpack("<I", self.read(address, 4))[0])

    def u64(self, address: int) -> int:
        return int(struct.unpack("<Q", self.read(address, 8))[0])


class FakeMachine:
    def __init__(self) -> None:
        self.futexes = FutexTable()
        self.clock = FakeClock()
        self.process = FakeProcess({})
        self.tasks = {tid: FakeTask(tid, self.process) for tid in range(10, 16)}
        self.proc_fd = os.open("/proc", os.O_PATH)
        self.woken: list[Any] = []

    def wake(self, key: Any, count: int | None = None, value: Any = None) -> int:
        self.woken.append(key)
        return 1

    def call(self, tid: int, *a: int) -> Any:
        return self._run(handlers.futex, tid, a)

    def _run(self, handler: Any, tid: int, a: tuple[int, ...]) -> Any:
        arguments = tuple(x & (1 << 64) - 1 for x in a) + (0,) * (6 - len(a))
        try:
            return handler(self, self.tasks[tid], arguments)
        except OSError as error:
            return -(error.errno or 0)

    def poke(self, address: int, value: int) -> None:
        self.tasks[10].write(address, struct.pack("<I", value))

    def peek(self, address: int) -> int:
        return self.tasks[10].u32(address)

    def timespec(self, nanoseconds: int) -> int:
        self.tasks[10].write(TIMEOUT, struct.pack("<qq", *divmod(nanoseconds, 10**9)))
        return TIMEOUT


@pytest.fixture
def m() -> Iterator[FakeMachine]:
    machine = FakeMachine()
    yield machine
    os.close(machine.proc_fd)


def finish(m: FakeMachine, park: Any) -> Any:
    """Resume a parked call as the scheduler would after a wake-up."""
    assert isinstance(park, Park)
    assert park.events[0] in m.woken
    return park.resume(Wake("event", park.events[0]))


def test_wait_needs_the_value(m: FakeMachine) -> None:
    m.poke(WORD, 3)
    assert m.call(10, WORD, core.WAIT | PRIVATE, 4) == -EAGAIN
    assert m.call(10, WORD + 1, core.WAIT | PRIVATE, 4) == -EINVAL
    assert m.call(10, 0x20000, core.WAIT | PRIVATE, 4) == -EFAULT
    assert m.call(10, WORD, core.WAIT_BITSET | PRIVATE, 3, 0, 0, 0) == -EINVAL
    assert m.call(10, WORD, 77) == -ENOSYS
    assert m.call(10, WORD, core.WAIT | core.CLOCK_REALTIME_FLAG) == -ENOSYS
    assert not m.futexes


def test_first_in_first_out(m: FakeMachine) -> None:
    parks = [m.call(tid, WORD, core.WAIT | PRIVATE, 0) for tid in (12, 10, 11)]
    assert m.call(13, WORD, core.WAKE | PRIVATE, 2) == 2
    assert m.woken == [parks[0].events[0], parks[1].events[0]]
    assert [finish(m, park) for park in parks[:2]] == [0, 0]
    assert m.call(13, WORD, core.WAKE | PRIVATE, 9) == 1
    assert m.call(13, WORD, core.WAKE | PRIVATE, 9) == 0


def test_bitsets(m: FakeMachine) -> None:
    first = m.call(10, WORD, core.WAIT_BITSET | PRIVATE, 0, 0, 0, 1)
    second = m.call(11, WORD, core.WAIT_BITSET | PRIVATE, 0, 0, 0, 6)
    assert m.call(13, WORD, core.WAKE_BITSET | PRIVATE, 9, 0, 0, 2) == 1
    assert finish(m, second) == 0
    assert m.call(13, WORD, core.WAKE_BITSET | PRIVATE, 9, 0, 0, 0) == -EINVAL
    assert m.call(13, WORD, core.WAKE | PRIVATE, 9) == 1
    assert finish(m, first) == 0


def test_relative_timeout_keeps_its_deadline_over_a_restart(m: FakeMachine) -> None:
    a = (10, WORD, core.WAIT | PRIVATE, 0, m.timespec(5_000))
    park = m.call(*a)
    assert park.deadline == 1_001 + 5_000
    assert park.interrupted() == -ERESTARTNOHAND
    assert not m.futexes
    m.clock.now += 700
    again = m.call(*a)
    assert again.deadline == park.deadline
    assert again.resume(Wake("deadline")) == -ETIMEDOUT
    assert not m.futexes
    assert m.call(*a).deadline > park.deadline


def test_absolute_timeouts(m: FakeMachine) -> None:
    mono = m.call(10, WORD, core.WAIT_BITSET | PRIVATE, 0, m.timespec(9_000), 0, 1)
    assert mono.deadline == 9_000
    real = core.WAIT_BITSET | PRIVATE | core.CLOCK_REALTIME_FLAG
    assert m.call(11, WORD, real, 0, m.timespec(1_009_000), 0, 1).deadline == 9_000
    past = m.call(12, WORD, real, 0, m.timespec(5), 0, 1)
    assert past.deadline <= m.clock.now, "the others have their turns first"
    assert past.resume(Wake("deadline")) == -ETIMEDOUT
    assert m.call(12, WORD, real, 0, m.timespec(2**63), 0, 1).deadline is None


def test_interrupted_wait_without_timeout_restarts(m: FakeMachine) -> None:
    park = m.call(10, WORD, core.WAIT | PRIVATE, 0)
    assert park.interrupted() == -ERESTARTSYS
    assert m.call(11, WORD, core.WAKE | PRIVATE, 1) == 0
    park = m.call(10, WORD, core.WAIT | PRIVATE, 0)
    assert m.call(11, WORD, core.WAKE | PRIVATE, 1) == 1
    assert park.interrupted() == 0


def test_requeue(m: FakeMachine) -> None:
    parks = [m.call(tid, WORD, core.WAIT | PRIVATE, 0) for tid in (10, 11, 12, 13)]
    assert m.call(14, WORD, core.CMP_REQUEUE | PRIVATE, 1, 2, OTHER, 7) == -EAGAIN
    assert m.call(14, WORD, core.CMP_REQUEUE | PRIVATE, 1, 2, OTHER, 0) == 3
    assert finish(m, parks[0]) == 0
    assert m.call(14, OTHER, core.WAKE | PRIVATE, 9) == 2
    assert m.woken[1:] == [parks[1].events[0], parks[2].events[0]]
    assert m.call(14, WORD, core.REQUEUE | PRIVATE, 0, 1, OTHER) == 1
    assert m.call(14, WORD, core.REQUEUE | PRIVATE, -1, 1, OTHER) == -EINVAL


@pytest.mark.parametrize(
    ("encoded", "old", "new", "woken"),
    [
        (0 << 28 | 0 << 24 | 5 << 12 | 1, 1, 5, 2),  # set 5, if == 1
        (1 << 28 | 4 << 24 | 0xFFF << 12 | 1, 1, 0, 1),  # add -1, if > 1
        (2 << 28 | 3 << 24 | 6 << 12 | 1, 1, 7, 2),  # or 6, if <= 1
        ((3 | 8) << 28 | 1 << 24 | 1 << 12 | 0, 3, 1, 2),  # and not 1 << 1, if != 0
        (4 << 28 | 2 << 24 | 3 << 12 | 0, 0xFFFFFFFF, 0xFFFFFFFC, 2),  # xor 3, if < 0
    ],
)
def test_wake_op(m: FakeMachine, encoded: int, old: int, new: int, woken: int) -> None:
    m.call(10, WORD, core.WAIT | PRIVATE, 0)
    m.call(11, OTHER, core.WAIT | PRIVATE, 0)
    m.poke(OTHER, old)
    assert m.call(12, WORD, core.WAKE_OP | PRIVATE, 1, 1, OTHER, encoded) == woken
    assert m.peek(OTHER) == new


def test_waitv(m: FakeMachine) -> None:
    table = 0x3000
    m.tasks[10].write(table, struct.pack("<QQIIQQII", 0, WORD, 130, 0, 0, OTHER, 130, 0))
    park = m._run(handlers.futex_waitv, 10, (table, 2, 0, 0, 0))
    assert m.call(11, OTHER, core.WAKE | PRIVATE, 1) == 1
    assert m.call(11, WORD, core.WAKE | PRIVATE, 1) == 0
    assert finish(m, park) == 1
    m.poke(OTHER, 1)
    assert m._run(handlers.futex_waitv, 10, (table, 2, 0, 0, 0)) == -EAGAIN
    assert m._run(handlers.futex_waitv, 10, (table, 0, 0, 0, 0)) == -EINVAL
    assert m._run(handlers.futex_waitv, 10, (table, 129, 0, 0, 0)) == -EINVAL


def test_futex2(m: FakeMachine) -> None:
    park = m._run(handlers.futex_wait, 10, (WORD, 0, 3, 130, 0, 0))
    assert m._run(handlers.futex_wake, 11, (WORD, 4, 1, 130)) == 0
    assert m._run(handlers.futex_wake, 11, (WORD, 1, 0, 130)) == 0
    assert m._run(handlers.futex_wake, 11, (WORD, 1, 1, 128)) == -EINVAL
    assert m._run(handlers.futex_wake, 11, (WORD, 1, 1, 130)) == 1
    assert finish(m, park) == 0


def test_pi_lock_is_handed_over(m: FakeMachine) -> None:
    assert m.call(10, WORD, core.LOCK_PI | PRIVATE) == 0
    assert m.peek(WORD) == 10
    assert m.call(10, WORD, core.LOCK_PI | PRIVATE) == -EDEADLK
    assert m.call(11, WORD, core.TRYLOCK_PI | PRIVATE) == -EAGAIN
    assert m.call(11, WORD, core.UNLOCK_PI | PRIVATE) == -EPERM
    park = m.call(11, WORD, core.LOCK_PI2 | PRIVATE)
    assert m.peek(WORD) == futex_pi.WAITERS | 10
    assert m.call(12, WORD, core.WAKE | PRIVATE, 1) == -EINVAL
    assert m.call(10, WORD, core.UNLOCK_PI | PRIVATE) == 0
    assert m.peek(WORD) == futex_pi.WAITERS | 11
    assert finish(m, park) == 0
    assert m.call(11, WORD, core.UNLOCK_PI | PRIVATE) == 0
    assert m.peek(WORD) == 0
    m.poke(WORD, 4711)
    assert m.call(11, WORD, core.LOCK_PI | PRIVATE) == -ESRCH


def test_pi_owner_death(m: FakeMachine) -> None:
    m.call(10, WORD, core.LOCK_PI | PRIVATE)
    park = m.call(11, WORD, core.LOCK_PI | PRIVATE)
    futex_exit.before_exit(m, m.tasks[10])  # type: ignore[arg-type]
    futex_exit.after_exit(m, m.tasks.pop(10))  # type: ignore[arg-type]
    assert finish(m, park) == 0
    assert m.tasks[11].u32(WORD) == futex_pi.WAITERS | futex_pi.OWNER_DIED | 11


@pytest.mark.parametrize("ignored", [0xFFFFFFFF, 0, 4])  # do_futex() puts FUTEX_BITSET_MATCH_ANY there
def test_requeue_to_a_pi_lock(m: FakeMachine, ignored: int) -> None:
    wait = (core.WAIT_REQUEUE_PI | PRIVATE, 0, 0, OTHER, ignored)
    parks = [m.call(tid, WORD, *wait) for tid in (10, 11)]
    assert m.call(12, WORD, core.CMP_REQUEUE_PI | PRIVATE, 2, 9, OTHER, 0) == -EINVAL
    assert m.call(12, WORD, core.CMP_REQUEUE_PI | PRIVATE, 1, 9, OTHER, 0) == 2
    assert finish(m, parks[0]) == 0
    assert m.peek(OTHER) == futex_pi.WAITERS | 10
    assert parks[1].events[0] not in m.woken
    assert m.call(10, OTHER, core.UNLOCK_PI | PRIVATE) == 0
    assert finish(m, parks[1]) == 0
    assert m.peek(OTHER) == futex_pi.WAITERS | 11


def test_killed_waiter_leaves_its_queue(m: FakeMachine) -> None:
    m.call(10, WORD, core.WAIT | PRIVATE, 0)
    futex_exit.before_exit(m, m.tasks[10])  # type: ignore[arg-type]
    futex_exit.after_exit(m, m.tasks[10])  # type: ignore[arg-type]
    assert not m.futexes
    assert m.call(11, WORD, core.WAKE | PRIVATE, 1) == 0


def test_shared_keys_of_real_mappings() -> None:
    """Two mappings of one memfd are one futex; anonymous memory is the process's own."""
    import ctypes
    import mmap

    from detbox.machine.futex_keys import shared_key

    proc = os.open("/proc", os.O_PATH)
    fd = os.memfd_create("words")
    os.ftruncate(fd, 8192)
    maps = [mmap.mmap(fd, 4096), mmap.mmap(fd, 8192), mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE)]
    at = [ctypes.addressof(ctypes.c_char.from_buffer(area)) for area in maps]
    keys = [shared_key(proc, os.getpid(), "mm", address + 8) for address in at]
    assert keys[0] == keys[1] != shared_key(proc, os.getpid(), "mm", at[1] + 4104)
    assert keys[2] == ("anonymous", "mm", at[2] + 8)
    with pytest.raises(OSError):
        shared_key(proc, os.getpid(), "mm", 8)
    os.close(fd)
    os.close(proc)
