"""The code around loops: what is taken down of it, and what is left alone."""

from __future__ import annotations

import os
from pathlib import Path

from detbox.kernel import _native
from detbox.spin.ground import Ground
from detbox.spin.stepper import OFFSET, RIP, register
from tests.unit.test_spin import guest, programs

__all__ = ["programs"]

PROC = os.open("/proc", os.O_PATH)


def test_code_of_files_is_taken_down_once_up_to_a_jump(programs: dict[str, Path]) -> None:
    with guest(programs["-O2"], "ticket") as child:
        child.stop(0.01)
        at = register(child.stepper.registers(), RIP)
        ground = Ground(frozenset(), PROC)
        assert ground.more(child.stepper.tid, at)
        (start, code), *others = ground.code
        assert start == at and not others and child.stepper.read(at, len(code)) == code
        assert at.to_bytes(8, "little") in ground.places
        assert ground.more(child.stepper.tid, at) and len(ground.code) == 1
        assert _native.still_held(child.stepper.tid, ground.code)


def test_neither_breakpoints_nor_other_memory_are_taken_down(programs: dict[str, Path]) -> None:
    with guest(programs["-O2"], "ticket") as child:
        child.stop(0.01)
        at = register(child.stepper.registers(), RIP)
        ground = Ground(frozenset({at}), PROC)
        assert not ground.more(child.stepper.tid, at)
        assert not ground.more(child.stepper.tid, register(child.stepper.registers(), OFFSET["rsp"]))
        assert not ground.code and not any(ground.places)
