"""Code of a stopped thread is changed where it is what is expected, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from detbox.cpu.edits import Edit
from detbox.kernel import _native, registers
from detbox.supervisor import memory
from tests.harness.executing import stopped_at_exec

PTRACE_CONT = 7


@pytest.fixture
def stopped() -> Iterator[int]:
    """A thread that is stopped before its program's first instruction."""
    pid = stopped_at_exec()
    yield pid
    os.kill(pid, 9)
    _native.wait_tid(pid, 0)


def test_all_or_nothing(stopped: int) -> None:
    place = registers.get(stopped).rip
    first, second = memory.peek(stopped, place, 4), memory.peek(stopped, place + 8, 2)
    wrong = bytes(255 - byte for byte in second)
    assert not memory.apply(stopped, [Edit(0, first, b"abcd"), Edit(8, wrong, b"ef")], place)
    assert memory.peek(stopped, place, 4) == first
    assert memory.apply(stopped, [Edit(0, first, b"abcd"), Edit(8, second, b"ef")], place)
    assert memory.peek(stopped, place, 4) + memory.peek(stopped, place + 8, 2) == b"abcdef"


def test_more_than_are_read_at_once(stopped: int) -> None:
    place = registers.get(stopped).rip
    old = memory.peek(stopped, place, 600)
    edits = [Edit(at, old[at : at + 1], b"%c" % (at % 251)) for at in range(600)]
    assert memory.apply(stopped, edits, place)
    assert memory.peek(stopped, place, 600) == bytes(at % 251 for at in range(600))


def test_nothing_expected(stopped: int) -> None:
    place = registers.get(stopped).rip
    assert memory.apply(stopped, [Edit(place, b"", b"new")])
    assert memory.peek(stopped, place, 3) == b"new"


def test_not_mapped(stopped: int) -> None:
    assert not memory.apply(stopped, [Edit(0x1000, b"old", b"new")])


def test_registers_are_those_of_the_stop(stopped: int) -> None:
    before = registers.get(stopped)
    changed = registers.get(stopped)
    changed.rbx = 5
    registers.put(stopped, changed)
    assert (before.rbx, registers.get(stopped).rbx) == (0, 5)
    place = before.rip
    assert memory.apply(stopped, [Edit(place, b"", b"\xff\xc3\xcc")])  # inc ebx; int3
    _native.ptrace_request(PTRACE_CONT, stopped, 0, 0)
    _native.wait_tid(stopped, 0)
    assert (registers.get(stopped).rbx, registers.get(stopped).rip) == (6, place + 3)
