"""Counted single steps of a real thread: where they stop, and that the count is exact."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.spin.stepper import OFFSET, RIP, register

PTRACE_INTERRUPT, EXITKILL = 0x4207, 0x100000
ALL_STEPPED, BEFORE_CALL, OTHER_STOP = 0, 1, 2
# Every case waits in a loop of two instructions until `go` is set.
PROGRAM = r"""
#include <stdio.h>
volatile int go;
volatile unsigned long flags;
#define CASE(letter, code) case letter: \
        __asm__ volatile("1: cmpl $0, go(%%rip)\n je 1b\n" code "2: jmp 2b" ::: "memory")
int main(int argc, char **argv)
{
    printf("%p\n", (void *)&go);
    fflush(stdout);
    switch (argv[1][0]) {
    CASE('c', "mov $39, %%eax\n syscall\n nop\n mov $60, %%eax\n xor %%edi, %%edi\n syscall\n");
    CASE('p', "pushfq\n pop flags(%%rip)\n pushw $0\n pushfw\n");
    CASE('f', "ud2\n");
    CASE('s', "lea -4096(%%rsp), %%rdi\n mov $100, %%ecx\n rep stosb\n");
    }
}
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stepped")
    (folder / "stepped.c").write_text(PROGRAM)
    command = ["gcc", "-O1", "-mno-red-zone", "-no-pie", "-o", folder / "stepped", folder / "stepped.c"]
    subprocess.run(command, check=True)
    return folder / "stepped"


@pytest.fixture
def stopped(program: Path, request: pytest.FixtureRequest) -> Iterator[tuple[int, int]]:
    """(pid, address of ``flags``) of the program, stopped in its waiting loop, which is then ended."""
    with subprocess.Popen([program, request.param], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        address = int(child.stdout.readline(), 16)
        _native.seize(child.pid, EXITKILL)
        assert _native.ptrace_request(PTRACE_INTERRUPT, child.pid, 0, 0) == 0
        _native.wait_tid(child.pid, 0)
        # From the beginning of the loop, so that what follows is the same each time.
        while _compared(child.pid) != address:
            _native.step_many(child.pid, 1, b"\1" * 500)
        _native.write_mem(child.pid, address, b"\1\0\0\0")
        yield child.pid, address
        child.kill()


def _compared(pid: int) -> int:
    """The address that `cmpl $0, …(%rip)` is about to look at, or 0 before another instruction."""
    rip = register(_native.get_regs(pid), RIP)
    code = _native.read_mem(pid, rip, 7)
    return rip + 7 + int.from_bytes(code[2:6], "little", signed=True) if code[:2] == b"\x83\x3d" else 0


@pytest.mark.parametrize("stopped", ["c"], indirect=True)
def test_calls_are_stepped_over_only_if_known(stopped: tuple[int, int]) -> None:
    pid, _ = stopped
    known = bytearray(64)
    done, _, why = _native.step_many(pid, 100, known)
    assert (done, why) == (3, BEFORE_CALL)  # cmpl, je, mov
    assert _native.step_many(pid, 100, known)[::2] == (0, BEFORE_CALL)
    known[NUMBERS["getpid"]] = 1
    done, _, why = _native.step_many(pid, 2, known)
    assert (done, why) == (2, ALL_STEPPED)  # the call is one step, and the nop another
    assert register(_native.get_regs(pid), OFFSET["rax"]) == pid
    assert _native.step_many(pid, 100, known)[::2] == (2, BEFORE_CALL)  # before exit


@pytest.mark.parametrize("stopped", ["p"], indirect=True)
def test_pushed_flags_do_not_show_the_trap_flag(stopped: tuple[int, int]) -> None:
    pid, _ = stopped
    assert _native.step_many(pid, 4, b"")[::2] == (4, ALL_STEPPED)
    # What `pop flags(%rip)` has read is still below the stack pointer.
    stack = register(_native.get_regs(pid), OFFSET["rsp"])
    assert not int.from_bytes(_native.read_mem(pid, stack - 8, 8), "little") & 0x100
    assert _native.step_many(pid, 2, b"")[::2] == (2, ALL_STEPPED)
    stack = register(_native.get_regs(pid), OFFSET["rsp"])
    assert not int.from_bytes(_native.read_mem(pid, stack, 2), "little") & 0x100


@pytest.mark.parametrize("stopped", ["f"], indirect=True)
def test_a_fault_is_handed_over(stopped: tuple[int, int]) -> None:
    pid, _ = stopped
    done, status, why = _native.step_many(pid, 100, b"")
    assert (done, why) == (2, OTHER_STOP)
    assert os.WSTOPSIG(status) == signal.SIGILL


@pytest.mark.parametrize("stopped", ["f"], indirect=True)
def test_a_pending_signal_and_death_are_handed_over(stopped: tuple[int, int]) -> None:
    pid, _ = stopped
    os.kill(pid, signal.SIGUSR1)
    done, status, why = _native.step_many(pid, 100, b"")
    assert (done, why, os.WSTOPSIG(status)) == (0, OTHER_STOP, signal.SIGUSR1)
    os.kill(pid, signal.SIGKILL)
    done, status, why = _native.step_many(pid, 100, b"")
    assert why == OTHER_STOP
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGKILL


@pytest.mark.parametrize("stopped", ["s"], indirect=True)
def test_each_turn_of_a_string_instruction_is_a_step(stopped: tuple[int, int]) -> None:
    pid, _ = stopped
    assert _native.step_many(pid, 4 + 50, b"")[::2] == (54, ALL_STEPPED)
    assert register(_native.get_regs(pid), OFFSET["rcx"]) == 50
