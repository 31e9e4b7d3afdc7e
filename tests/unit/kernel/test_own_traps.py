"""The supervisor's own rdtsc traps like the guest's, and is executed all the same."""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import time
from collections.abc import Callable

from detbox.kernel import _native

PR_GET_TSC, PR_TSC_SIGSEGV = 25, 2


def in_child(body: Callable[[], bool]) -> int:
    """The exit status of a forked child: 0 if ``body`` is true there; its signal, negative."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os._exit(0 if body() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def mode() -> int:
    value = ctypes.c_int()
    assert ctypes.CDLL(None).prctl(PR_GET_TSC, ctypes.byref(value), 0, 0, 0) == 0
    return value.value


def test_clocks_go_on() -> None:
    def body() -> bool:
        before = time.monotonic()
        _native.trap_like_guest(False)
        first = time.monotonic()
        time.sleep(0.01)
        second = time.monotonic()
        return mode() == PR_TSC_SIGSEGV and before <= first and first + 0.01 <= second < first + 60

    assert in_child(body) == 0


def test_a_real_fault_still_kills() -> None:
    def body() -> bool:
        _native.trap_like_guest(False)
        ctypes.string_at(8)
        return True

    assert in_child(body) == -signal.SIGSEGV
