"""A process that is stopped where it is about to execute a program."""

from __future__ import annotations

import os

from detbox.kernel import _native

_EXITKILL, _TRACE_EXEC, _EVENT_EXEC = 0x100000, 0x10, 4


def stopped_at_exec() -> int:
    """The number of a traced child in its PTRACE_EVENT_EXEC stop, of /bin/true; the caller sees to its end."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(theirs)
        os.read(ours, 1)
        os.execv("/bin/true", ["true"])
    os.close(ours)
    _native.seize(pid, _EXITKILL | _TRACE_EXEC)
    os.close(theirs)
    _, status = _native.wait_tid(pid, 0)
    assert status >> 16 == _EVENT_EXEC
    return pid
