"""A thread in its own code is told from one in a call, by its processor time alone."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.kernel.numbers import NUMBERS
from detbox.supervisor import owncode
from detbox.supervisor.owncode import OwnCode


@contextmanager
def _child(does: Callable[[], object]) -> Iterator[Any]:
    """A machine and a task that are what the look needs, of a process that does something for ever."""
    pid = os.fork()
    if not pid:
        signal.alarm(60)
        while True:
            does()
    proc = os.open("/proc", os.O_RDONLY)
    try:
        process = SimpleNamespace(pid=pid)
        task = SimpleNamespace(tid=pid, process=process, native=True, nr=NUMBERS["write"])
        yield SimpleNamespace(proc_fd=proc), task
    finally:
        os.close(proc)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _found(m: Any, task: Any, looks: int) -> bool:
    """Whether that many looks, each after some processor time, find the thread in its own code."""
    watch, waited = OwnCode(), 0.02
    while looks:
        pause = watch.pause(m, task, waited)
        if not pause:
            return True
        time.sleep(0.1)
        looks -= 1
    return False


def _computes() -> None:
    for _ in range(100_000):
        pass


def test_own_code_is_found() -> None:
    with _child(_computes) as (m, task):
        assert _found(m, task, 150)


def test_a_call_is_not_taken_for_it() -> None:
    zero, memory = os.open("/dev/zero", os.O_RDONLY), [bytearray(1 << 27)]
    with _child(lambda: os.readv(zero, memory)) as (m, task):
        assert not _found(m, task, 15)


def test_a_sleep_is_not_taken_for_it() -> None:
    with _child(signal.pause) as (m, task):
        assert not _found(m, task, 5)


def test_other_calls_need_no_look() -> None:
    task: Any = SimpleNamespace(native=True, nr=NUMBERS["getpid"])
    machine: Any = None
    assert OwnCode().pause(machine, task, 0.02) == 0
    task.nr, task.native = NUMBERS["write"], False
    assert OwnCode().pause(machine, task, 0.02) == 0


def test_a_call_may_take_long_on_a_busy_host() -> None:
    with _child(signal.pause) as (m, task):
        assert OwnCode().pause(m, task, 60.0) > 0


def test_no_call_takes_that_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owncode, "_CALL_DELAY", 0.3)
    zero, memory = os.open("/dev/zero", os.O_RDONLY), [bytearray(1 << 27)]
    with _child(lambda: os.readv(zero, memory)) as (m, task):
        assert _found(m, task, 150)


def test_nothing_is_waited_for_when_the_thread_is_gone() -> None:
    with _child(signal.pause) as (m, task):
        task.tid = 0
        assert OwnCode().pause(m, task, 0.02) > 0
        assert OwnCode().pause(m, task, 5.0) == 0
