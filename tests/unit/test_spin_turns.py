"""Turns that are made without steps: they end as the processor's do."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from detbox.spin import LoopTable, NotSpin, Spin, attempt, prove, visit
from detbox.spin.stepper import OFFSET, RIP, register
from detbox.spin.turns import turns
from detbox.spin.walk import Walk
from tests.unit.test_spin import LEVELS, Guest, guest, programs

__all__ = ["programs"]
_MEMORY = 64  # bytes that the loop uses behind rsi
_PAUSE = b"\xf3\x90"
_FREE = "rax rbx rcx rdx r8 r9 r10 r11 r12 r13 r14 r15".split()
WAITS = "wait_flag wait_pause barrier job cmpxchg exchange ticket".split()


def _restore(child: Guest, registers: bytes, memory: int, held: bytes) -> None:
    child.stepper.assign([(at, register(registers, at)) for name, at in OFFSET.items() if name != "orig_rax"])
    child.stepper.write(memory, held)


def _state(child: Guest, memory: int) -> tuple[bytes, bytes]:
    stack = register(child.stepper.registers(), OFFSET["rsp"])
    return child.stepper.registers(), child.stepper.read(memory, _MEMORY) + child.stepper.read(stack - 64, 64)


def test_every_instruction_does_what_the_processor_does(programs: dict[str, Path]) -> None:
    chance = random.Random(7)
    paths = set()
    with guest(programs["-O2"], "every") as child:
        child.stop(0.01)
        while child.stepper.read(register(child.stepper.registers(), RIP), len(_PAUSE)) != _PAUSE:
            assert child.stepper.step()  # to where nothing is on the stack
        for _ in range(40):
            # What is not the loop's, a turn's last jump, ends each of them.
            memory = register(child.stepper.registers(), OFFSET["rsi"])
            values = [chance.choice((chance.getrandbits(64), chance.getrandbits(8), -1 & 2**64 - 1)) for _ in _FREE]
            child.stepper.assign(zip((OFFSET[name] for name in _FREE), values, strict=True))
            for place in (8, 16, 24, 32):
                child.stepper.write(memory + place, chance.getrandbits(64).to_bytes(8, "little"))
            begin = child.stepper.registers()
            before = child.stepper.read(memory, _MEMORY)
            walk = Walk(child.stepper)
            while not walk.visits or walk.address() not in {visit.address for visit in walk.visits}:
                assert not walk.advance()
            addresses = frozenset(visit.address for visit in walk.visits[:-1])
            last = walk.visits[-1]
            paths.add(addresses)
            # Once more, up to the last jump, by the processor ...
            _restore(child, begin, memory, before)
            for _ in walk.visits[:-1]:
                assert child.stepper.step()
            expected = _state(child, memory)
            assert register(expected[0], RIP) == last.address
            # ... and without it.
            _restore(child, begin, memory, before)
            known = turns(child.stepper, register(begin, RIP), addresses, None)
            assert known is not None
            taken = known.take(child.stepper)
            assert taken is not None, [visit.instruction.text for visit in walk.visits]
            assert isinstance(taken[0], NotSpin)
            assert taken[1] == child.stepper.registers()
            assert _state(child, memory) == expected
            while child.stepper.registers()[RIP : RIP + 8] != begin[RIP : RIP + 8]:
                assert child.stepper.step()
    assert len(paths) >= 4


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", WAITS)
def test_spins_are_found_without_steps(programs: dict[str, Path], level: str, loop: str) -> None:
    table = LoopTable()
    with guest(programs[level], loop) as child:
        child.stop(0.01)
        found = attempt(table, "mm", child.stepper, prove)
        assert isinstance(found, Spin)
        verdicts = []
        for _ in range(3):
            child.go()
            child.wait()
            verdict = visit(table, "mm", child.stepper)
            assert isinstance(verdict, Spin)
            verdicts.append((verdict._replace(steps=0), child.stepper.registers()))
        assert verdicts[0] == verdicts[1] == verdicts[2]
        known = table._loops["mm"][found.address].turns
        assert known is not None and known.checked and not known.vain


def test_changed_code_is_not_executed(programs: dict[str, Path]) -> None:
    with guest(programs["-O2"], "wait_flag") as child:
        child.stop(0.01)
        found = prove(child.stepper)
        assert isinstance(found, Spin)
        known = turns(child.stepper, found.address, found.addresses, None)
        assert known is not None and known.take(child.stepper, commit=False) is not None
        child.stepper.patch(max(found.addresses), 0x90)
        assert known.take(child.stepper, commit=False) is None
        again = turns(child.stepper, found.address, found.addresses, known)
        assert again is not None and again is not known


def test_what_a_walk_contradicts_is_not_used(programs: dict[str, Path]) -> None:
    with guest(programs["-O2"], "wait_flag") as child:
        child.stop(0.01)
        found = prove(child.stepper)
        assert isinstance(found, Spin)
        known = turns(child.stepper, found.address, found.addresses, None)
        assert known is not None
        foreseen = known.take(child.stepper, commit=False)
        assert foreseen is not None
        known.check(foreseen, found, bytes(len(foreseen[1])))
        assert not known.checked and known.hopeless
