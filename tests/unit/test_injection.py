"""Code for a stopped thread is executed to its end, whatever else stops the thread meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from types import SimpleNamespace
from typing import cast

import pytest

from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.supervisor import injection
from detbox.supervisor.task import Task
from tests.harness.executing import stopped_at_exec

PTRACE_CONT, PTRACE_INTERRUPT = 7, 0x4207
EXITKILL = 0x100000


@pytest.fixture
def started() -> Iterator[Task]:
    """A thread that is stopped where it is about to execute a program."""
    pid = stopped_at_exec()
    yield cast("Task", SimpleNamespace(tid=pid))
    _native.ptrace_request(PTRACE_CONT, pid, 0, 0)
    assert _native.wait_tid(pid, 0) == (pid, 0)


@pytest.fixture
def signalled() -> Iterator[Task]:
    """A thread that is about to take a signal."""
    pid = os.fork()
    if pid == 0:
        while True:
            signal.pause()
    _native.seize(pid, EXITKILL)
    os.kill(pid, signal.SIGUSR1)
    _, status = _native.wait_tid(pid, 0)
    assert status >> 8 == signal.SIGUSR1
    yield cast("Task", SimpleNamespace(tid=pid, data={}))
    os.kill(pid, signal.SIGKILL)
    _native.wait_tid(pid, 0)


@pytest.fixture
def listener() -> Iterator[int]:
    """In place of a filter's: no call comes by it."""
    _native.prepare_events()
    ours, theirs = os.pipe()
    yield ours
    os.close(ours)
    os.close(theirs)


def interrupt(tid: int) -> None:
    """As who looks for a spin does: of a thread that has just stopped, it may be."""
    assert _native.ptrace_request(PTRACE_INTERRUPT, tid, 0, 0) == 0


@pytest.mark.parametrize("interrupted", [False, True])
def test_at_exec(started: Task, listener: int, interrupted: bool) -> None:
    if interrupted:
        interrupt(started.tid)
    calls = ((NUMBERS["getpid"],), (NUMBERS["close"], 1 << 20))
    assert injection.at_exec(started, calls, listener, -1) == [started.tid, -9]


@pytest.mark.parametrize("interrupted", [False, True])
def test_call(signalled: Task, interrupted: bool) -> None:
    if interrupted:
        interrupt(signalled.tid)
    assert injection.call(signalled, NUMBERS["close"], 1 << 20) == -9
    assert injection.call(signalled, NUMBERS["getpid"]) == signalled.tid


def test_a_stop_that_no_signal_tells_is_found(signalled: Task, listener: int) -> None:
    """As where this process stood still while the thread went on."""
    _native.ptrace_request(PTRACE_CONT, signalled.tid, 0, 0)
    old = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        assert _native.await_call(listener, signalled.tid, 10) is None
        interrupt(signalled.tid)
        status = _native.await_call(listener, signalled.tid, 20_000)
    finally:
        signal.signal(signal.SIGCHLD, old or signal.SIG_DFL)
    assert isinstance(status, int)
    assert os.WSTOPSIG(status) == signal.SIGTRAP
