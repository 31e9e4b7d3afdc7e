"""Coarse steps: what a program did more or less does not show after its end."""

from __future__ import annotations

import os

import pytest

from detbox.machine.clock import BOOT_NS, Clock
from detbox.machine.inodes import InodeTable
from detbox.machine.program import Program
from detbox.supervisor import numbering
from detbox.supervisor.numbering import END_NS, INODE_STEP, LAST_PROCESS, PROCESS_STEP, Numbering


@pytest.fixture
def counters(monkeypatch: pytest.MonkeyPatch) -> Numbering:
    monkeypatch.setattr(os, "open", lambda *_, **__: -1)
    monkeypatch.setattr(numbering, "_use_up", lambda: 0)
    clock = Clock(0)
    return Numbering(clock, InodeTable(0, clock.stamp), -1)


def test_the_end_of_a_program_is_coarse(counters: Numbering) -> None:
    clock, inodes = counters._clock, counters._inodes
    clock.now, inodes.next_number, counters.last_process = BOOT_NS + 1, 3, 4
    counters.program_ends()
    assert (clock.now, inodes.next_number) == (BOOT_NS + END_NS, INODE_STEP)
    assert counters.last_process + 1 == 2 * PROCESS_STEP
    counters.program_ends()
    assert (clock.now, inodes.next_number) == (BOOT_NS + END_NS, INODE_STEP)


def test_process_numbers_begin_again(counters: Numbering) -> None:
    counters.last_process = LAST_PROCESS
    counters.program_ends()
    assert counters.last_process == numbering.FIRST_AGAIN - 1


def test_process_numbers_begin_again_within_a_program(counters: Numbering) -> None:
    counters.created(LAST_PROCESS - 1)
    assert counters.last_process == LAST_PROCESS - 1
    counters.created(LAST_PROCESS)
    assert counters.last_process == numbering.FIRST_AGAIN - 1


def test_a_name_does_not_depend_on_what_else_was_started() -> None:
    one, other = Program("shell"), Program("shell")
    other.start(b"date")
    assert one.start(b"gcc a.c").name == other.start(b"gcc a.c").name
    assert one.start(b"gcc a.c").name != Program("make").start(b"gcc a.c").name


def test_the_same_program_twice_has_two_names() -> None:
    shell = Program("shell")
    assert shell.start(b"mktemp").name != shell.start(b"mktemp").name
