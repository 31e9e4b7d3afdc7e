"""Calls, stops and the end of the time are told as they come, however they are waited for."""

from __future__ import annotations

import mmap
import os
import struct
import time
from collections.abc import Callable

import pytest

from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS

CALLS, STOPS, NOTIF_CONTINUE, PTRACE_CONT, PTRACE_INTERRUPT, EVENT_STOP = 3000, 40, 1, 7, 0x4207, 128
LOAD, JUMP_IF_EQUAL, RETURN = 0x20, 0x15, 0x06
ALLOW, TRAP = 0x7FFF0000, 0x7FC00000
#: Calls GETSID so often, computes for 0.3 s without a call, and ends with status 5.
PROGRAM = f"""
import ctypes, os, time
call = ctypes.CDLL(None).syscall
for number in range({CALLS}):
    assert call({NUMBERS["getsid"]}, number) == 1000 + number
end = time.monotonic() + 0.3
while time.monotonic() < end:
    pass
os._exit(5)
"""


def guest() -> tuple[int, int]:
    """A traced child in which getsid(2) and execve(2), by which it loses its listener, are intercepted; and that."""
    rules = (
        (LOAD, 0, 0, 0),
        (JUMP_IF_EQUAL, 1, 0, NUMBERS["getsid"]),
        (JUMP_IF_EQUAL, 0, 1, NUMBERS["execve"]),
        (RETURN, 0, 0, TRAP),
        (RETURN, 0, 0, ALLOW),
    )
    cell = mmap.mmap(-1, 4096)
    go_read, go_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.read(go_read, 1)
        program = b"".join(struct.pack("<HBBI", *rule) for rule in rules)
        _native.filter_and_exec(program, cell, b"/usr/bin/python3", [b"python3", b"-c", PROGRAM.encode()], [])
    _native.seize(pid, 0)
    _native.prepare_events()
    os.write(go_write, b"g")
    while not (number := struct.unpack_from("i", cell)[0]):
        time.sleep(0.001)
    return pid, _native.pidfd_getfd(os.pidfd_open(pid), number - 1)


def supervise(tick_ms: int) -> bool:
    pid, listener = guest()
    calls = stops = ticks = 0
    while True:
        event = _native.wait_event(listener, -1, tick_ms)
        if event is None:
            ticks += 1
        elif event is False:
            listener = -1
        elif len(event) == 5 and event[2] == NUMBERS["execve"]:
            _native.reply(listener, event[0], 0, 0, NOTIF_CONTINUE)
        elif len(event) == 5:
            assert event[1] == pid and event[3][0] == calls
            calls += 1
            if calls % (CALLS // STOPS) == 0:
                # It stops at the end of this call.
                _native.ptrace_request(PTRACE_INTERRUPT, pid, 0, 0)
            _native.reply(listener, event[0], 1000 + event[3][0], 0, 0)
        elif os.WIFSTOPPED(event[1]):
            stops += event[1] >> 16 == EVENT_STOP
            _native.ptrace_request(PTRACE_CONT, pid, 0, 0)
        else:
            # Two ticks: the first one may have ended the way of waiting in which the calls were received.
            return (calls, stops, os.waitstatus_to_exitcode(event[1])) == (CALLS, STOPS, 5) and ticks >= 2


def in_child(body: Callable[[], bool]) -> int:
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            status = 0 if body() else 2
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize("tick_ms", [20, 1])
def test_all_is_told(tick_ms: int) -> None:
    assert in_child(lambda: supervise(tick_ms)) == 0
