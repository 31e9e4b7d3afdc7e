"""Spin proofs on real, compiled loops: what is proved, where it parks, how it is released."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from detbox.kernel import _native
from detbox.spin import LoopTable, NotSpin, Pace, PtraceStepper, Spin, attempt, prove, prove_from, settle, visit

SOURCE = Path(__file__).with_name("spin_loops.c")
LEVELS = ("-O0", "-O2")
_INTERRUPT, _CONT = 0x4207, 7
_CPUCLOCK_SCHED = 2  # include/linux/posix-timers.h: a process's clock has its number in the others of the bits

SPINS = "wait_flag wait_pause twice barrier job cmpxchg exchange ticket backoff floating pthread_spin".split()
COUNTING = ["counting", "counting_memory"]
POLLING = ["poll_and_lock", "poll_down", "poll_by_sevens", "poll_in_memory"]
COMPUTING = "copying string_copy summing counting_down length generator clock_reading floating_sum".split()


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The loops at every optimisation level."""
    folder = tmp_path_factory.mktemp("spin")
    built = {}
    for level in LEVELS:
        built[level] = folder / f"loops{level}"
        subprocess.run(
            ["gcc", level, "-pthread", "-no-pie", "-Wl,-z,now", "-o", built[level], SOURCE], check=True
        )
    return built


class Guest:
    """A traced child in one of the loops."""

    def __init__(self, program: Path, loop: str) -> None:
        self.process = subprocess.Popen([program, loop], stdout=subprocess.PIPE)
        assert self.process.stdout is not None
        self.variables = [int(word, 16) for word in self.process.stdout.readline().split()]
        self.pid = self.process.pid
        _native.seize(self.pid, 0)
        self.stepper = PtraceStepper(self.pid)

    def stop(self, after: float) -> None:
        """Interrupt the thread as a tick would, once it has computed for so many seconds.

        What passes on the host's clock meanwhile may be much more, and on a busy host all of it somebody else's.
        """
        clock = ~self.pid << 3 | _CPUCLOCK_SCHED
        end = time.clock_gettime(clock) + after
        while time.clock_gettime(clock) < end:
            time.sleep(after)
        assert _native.ptrace_request(_INTERRUPT, self.pid, 0, 0) == 0
        self.wait()

    def wait(self) -> int:
        """Wait for a stop; its status."""
        status = _native.wait_tid(self.pid, 0)[1]
        self.stepper = PtraceStepper(self.pid)
        return status

    def go(self) -> None:
        """Let the thread run."""
        assert _native.ptrace_request(_CONT, self.pid, 0, 0) == 0

    def poke(self, variable: int, data: bytes) -> None:
        """Change memory as another thread would."""
        _native.write_mem(self.pid, self.variables[variable], data)


@contextmanager
def guest(program: Path, loop: str) -> Iterator[Guest]:
    """A guest that is killed at the end."""
    child = Guest(program, loop)
    try:
        yield child
    finally:
        child.process.kill()
        child.process.wait()
        assert child.process.stdout is not None
        child.process.stdout.close()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", SPINS)
def test_a_spin_is_proved_and_parked_at_one_state(programs: dict[str, Path], level: str, loop: str) -> None:
    with guest(programs[level], loop) as child:
        parked = set()
        for attempt_number in range(4):
            # Different instants, hence different instructions of the loop.
            child.stop(0.004 + 0.0017 * attempt_number)
            verdict = prove(child.stepper)
            assert isinstance(verdict, Spin), verdict
            assert verdict.unchanged(child.stepper.tid)
            assert verdict.steps <= 4 * verdict.period + 40
            parked.add((verdict.address, verdict.watched, child.stepper.registers()))
            child.go()
        assert len(parked) == 1


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", SPINS + COUNTING + POLLING)
def test_a_survey_lets_every_wait_be_proved(programs: dict[str, Path], level: str, loop: str) -> None:
    with guest(programs[level], loop) as child:
        child.stop(0.01)
        assert any(child.stepper.survey(64) for _ in range(3))
        assert child.stepper.stepped


@pytest.mark.parametrize("survey", [False, True])
def test_a_sigtrap_of_the_programs_own_is_no_step(programs: dict[str, Path], survey: bool) -> None:
    with guest(programs["-O2"], "wait_flag") as child:
        child.stop(0.01)
        os.kill(child.pid, signal.SIGTRAP)
        before = _rip(child)
        assert not (child.stepper.survey(8) if survey else child.stepper.step())
        assert not child.stepper.stepped and child.stepper.status >> 8 == signal.SIGTRAP
        assert _rip(child) == before


@pytest.mark.parametrize("survey", [False, True])
def test_steps_leave_a_blocked_sigtrap_blocked(programs: dict[str, Path], survey: bool) -> None:
    with guest(programs["-O2"], "wait_flag") as child:
        child.stop(0.01)
        everything = _native.get_sigmask(child.pid) | (1 << 31) - 1
        _native.set_sigmask(child.pid, everything)
        blocked = _native.get_sigmask(child.pid)  # without those that nobody can block
        assert child.stepper.survey(8) if survey else child.stepper.step()
        assert _native.get_sigmask(child.pid) == blocked


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", ["generator", "clock_reading"])
def test_a_survey_knows_most_work(programs: dict[str, Path], level: str, loop: str) -> None:
    with guest(programs[level], loop) as child:
        child.stop(0.01)
        assert not child.stepper.survey(128)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", COMPUTING)
def test_work_is_no_spin(programs: dict[str, Path], level: str, loop: str) -> None:
    with guest(programs[level], loop) as child:
        child.stop(0.01)
        assert isinstance(prove(child.stepper, 1500), NotSpin)
        assert isinstance(prove_from(child.stepper), NotSpin)


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", POLLING)
def test_loops_around_bounded_polls_are_spins(programs: dict[str, Path], level: str, loop: str) -> None:
    with guest(programs[level], loop) as child:
        parked = set()
        for attempt_number in range(4):
            child.stop(0.004 + 0.0017 * attempt_number)
            verdict = prove(child.stepper, 1000)
            assert isinstance(verdict, Spin), verdict
            assert verdict.bounded
            assert verdict.unchanged(child.stepper.tid)
            assert child.stepper.read(child.variables[4], 4) == bytes(4), "parked with the lock"
            parked.add((verdict.address, verdict.watched, child.stepper.registers()))
            child.go()
        assert len(parked) == 1
        child.stop(0.001)
        child.poke(0, b"\1\0\0\0")
        child.go()
        assert child.process.wait(5) == 0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize(
    ("loop", "told"),
    [("bounded", b"3000000000 9000000005\nleft\n"), ("bounded_memory", b"76 10\nleft\n")],
)
def test_turns_of_a_bounded_loop_are_left_out(
    programs: dict[str, Path], level: str, loop: str, told: bytes
) -> None:
    with guest(programs[level], loop) as child:
        child.stop(0.01)
        verdict = prove(child.stepper, 300)
        assert isinstance(verdict, NotSpin)
        assert verdict.bounded
        child.go()
        assert child.process.stdout is not None
        assert child.process.stdout.read() == told


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", COUNTING)
def test_counting_spins_need_the_induction(programs: dict[str, Path], level: str, loop: str) -> None:
    with guest(programs[level], loop) as child:
        child.stop(0.01)
        assert isinstance(prove(child.stepper, 300), NotSpin)
        verdict = prove_from(child.stepper)
        assert isinstance(verdict, Spin), verdict
        assert not verdict.exact
        assert verdict.unchanged(child.stepper.tid)
        child.poke(2, b"\4\0\0\0")
        assert not verdict.unchanged(child.stepper.tid)
        child.go()
        assert child.process.wait(5) == 0


def _told(program: Path, loop: str, after: float) -> bytes:
    """What a loop that counts tells when it is ended, if it is found after so many seconds of computing."""
    with guest(program, loop) as child:
        child.stop(after)
        found = prove_from(child.stepper)
        assert isinstance(found, Spin) and not found.exact
        settled = settle(child.stepper, found)
        if settled is None:
            return b""
        assert settled.settled and settled.unchanged(child.stepper.tid)
        child.poke(2, b"\4\0\0\0")
        assert not settled.unchanged(child.stepper.tid)
        child.go()
        assert child.process.stdout is not None
        return child.process.stdout.read()


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("loop", ["counts_wide", "counts_narrow"])
def test_how_far_a_loop_counts_does_not_depend_on_when_it_is_found(
    programs: dict[str, Path], level: str, loop: str
) -> None:
    told = {_told(programs[level], loop, after) for after in (0.002, 0.015, 0.0313)}
    assert len(told) == 1
    first, second, *_ = map(int, told.pop().split(b"\n")[0].split())
    turns = (first - 5) // 3 if loop == "counts_wide" else 1 - second
    if loop == "counts_wide":
        assert 1 << 37 < turns < 1 << 40 and abs(turns + second) < 2
    else:
        assert abs((7 + 5 * turns - first + (1 << 31)) % (1 << 32) - (1 << 31)) <= 5


@pytest.mark.parametrize("level", LEVELS)
def test_a_count_that_may_have_been_reached_before_is_not_determined(
    programs: dict[str, Path], level: str
) -> None:
    assert _told(programs[level], "counts_from_far", 0.005) == b""


@pytest.mark.parametrize("level", LEVELS)
def test_release(programs: dict[str, Path], level: str) -> None:
    with guest(programs[level], "barrier") as child:
        child.stop(0.01)
        verdict = prove(child.stepper)
        assert isinstance(verdict, Spin)
        child.poke(1, b"\0\1\1\1")
        assert not verdict.unchanged(child.stepper.tid)
        child.go()
        assert child.process.wait(5) == 0


@pytest.mark.parametrize("level", LEVELS)
def test_remembered_loops_are_caught_without_a_tick(programs: dict[str, Path], level: str) -> None:
    table = LoopTable()
    with guest(programs[level], "barrier") as child:
        child.stop(0.01)
        verdict = attempt(table, "mm", child.stepper, prove)
        assert isinstance(verdict, Spin)
        assert table.armed("mm")
        parked = child.stepper.registers()
        for arrivals in range(1, 3):
            child.poke(1, bytes([0] + [1] * arrivals))
            child.go()
            assert child.wait() >> 8 == signal.SIGTRAP
            again = visit(table, "mm", child.stepper)
            assert isinstance(again, Spin)
            assert again.address == verdict.address
        assert child.stepper.registers() != parked or level == "-O0"
        child.poke(1, b"\0\1\1\1")
        child.go()
        # The breakpoint is met once more: the loop is left while it is walked.
        assert child.wait() >> 8 == signal.SIGTRAP
        left = visit(table, "mm", child.stepper)
        assert isinstance(left, NotSpin)
        assert left.left
        table.disarm("mm", child.stepper)
        assert not table.armed("mm")
        child.go()
        assert child.process.wait(5) == 0


def test_breakpoints_stop_being_worth_it(programs: dict[str, Path]) -> None:
    table = LoopTable()
    with guest(programs["-O2"], "wait_flag") as child:
        child.stop(0.01)
        attempt(table, "mm", child.stepper, prove)
        child.go()
        child.wait()
        loop = table.at_breakpoint("mm", _rip(child))
        assert loop is not None
        loop.visits = 10_000
        visit(table, "mm", child.stepper)
        assert not table.armed("mm")


def test_attempts_on_a_long_computation_are_cheap() -> None:
    pace, computed, spent = Pace(), 0.0, 0.0
    while computed < 60:
        took = pace.limit * 25e-6
        computed += pace.delay
        spent += took
        pace.failed(took)
    assert spent < 0.01 * computed


def _rip(child: Guest) -> int:
    return int.from_bytes(child.stepper.registers()[16 * 8 : 17 * 8], "little")
