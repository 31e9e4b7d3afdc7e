"""The memory of copies of code (detbox.counted) in the guest, as the supervisor makes it, reads it and writes to it."""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.counted.slots import COUNTER
from detbox.counted.store import PLACE, SIZE, SLOTS_SIZE
from detbox.kernel import _native, registers
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_MAPPING
from detbox.supervisor import injection

if TYPE_CHECKING:
    from detbox.supervisor.task import Task

#: Key of a task's data: it runs in a copy, or has made its call there.
INSIDE = "counting_inside"
# PROT_READ | PROT_EXEC; MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE.  What can be written counts
# for the limit of a process's data (RLIMIT_DATA), and that is the guest's: only the slots can, by the copies.
_PROTECTION, _FLAGS = 5, 0x104022
_SLOTS_PROTECTION, _SLOTS_FLAGS = 7, 0x4032  # and PROT_WRITE; MAP_FIXED
_COUNTER, _COUNT = PLACE + COUNTER, struct.Struct("<q")
_NO_FILE = OWN_MAPPING | 0xFFFFFFFF


def make_room(task: Task) -> bool:
    """Have a stopped thread map it; False if there is no room."""
    parts = (SIZE, _PROTECTION, _FLAGS), (SLOTS_SIZE, _SLOTS_PROTECTION, _SLOTS_FLAGS)
    return all(injection.call(task, NUMBERS["mmap"], PLACE, *part, _NO_FILE, 0) == PLACE for part in parts)


class TaskMemory:
    """A stopped thread's memory, for its copies."""

    def __init__(self, task: Task, original: Callable[[object, int, bytes], bytes] | None = None) -> None:
        self._task = task
        self._tid = task.tid
        self._mm = task.process.mm
        self._original = original

    def read(self, address: int, length: int) -> bytes:
        held = _native.read_mem(self._tid, address, length)
        return self._original(self._mm, address, held) if self._original is not None else held

    def write(self, address: int, data: bytes) -> None:
        if address < PLACE + SLOTS_SIZE:
            _native.write_mem(self._tid, address, data)
        else:
            _native.write_code(self._tid, [(address, data)])

    def write_all(self, pieces: list[tuple[int, bytes]]) -> None:
        _native.write_code(self._tid, pieces)

    def occupied(self) -> int:
        """The highest address of a copy that a thread may be in."""
        places = [0]
        for task in self._task.process.files.m.tasks.values():
            if task.process.mm is not self._mm or INSIDE not in task.data:
                continue
            if task.notif:
                places.append(task.ip)
                continue
            try:
                places.append(registers.get(task.tid).rip)
            except ProcessLookupError:
                return PLACE + SIZE
        return max(places)


def left_of(task: Task) -> int:
    """How many instructions a thread may still count."""
    left: int = _COUNT.unpack(_native.read_mem(task.tid, _COUNTER, 8))[0]
    return left


def set_left(task: Task, left: int) -> None:
    """Set it."""
    _native.write_mem(task.tid, _COUNTER, _COUNT.pack(left))
