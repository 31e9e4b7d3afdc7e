"""What a child process does between fork and exec to be on a perturbed host."""

from __future__ import annotations

import ctypes
import fcntl
import os
import pwd
import resource
import signal
import termios
from collections.abc import Mapping
from typing import Any

from detbox.kernel import _native

_CLONE_NEWUTS = 0x04000000
_ADDR_NO_RANDOMIZE, _UNAME26 = 0x0040000, 0x0020000
_PR_SET_PDEATHSIG = 1
#: Signals that glibc and musl keep for themselves; a program's start can leave them ignored.
OF_LIBC = (32, 33)
_LIBC = ctypes.CDLL(None, use_errno=True)  # loaded before any fork: a forked child should not run the loader


def end_with_parent(parent: int) -> None:
    """Have the calling process killed when the thread of ``parent`` (a process number) that started it ends."""
    _native.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def enter(settings: Mapping[str, Any], terminal: bool, parent: int) -> None:
    """Apply a host's settings to the calling process.  Raises OSError if one cannot be applied.

    ``terminal``: standard input is a terminal that becomes the controlling one (the process leads its
    session).
    The user comes last, since the other steps may need rights; only the tie to ``parent`` comes later, because
    the kernel undoes it when the user changes (prctl(2)).
    """
    os.umask(settings["umask"])
    if terminal:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if settings["hostname"] is not None:
        name = settings["hostname"].encode()
        _must(_LIBC.unshare(_CLONE_NEWUTS))
        _must(_LIBC.sethostname(name, len(name)))
    if settings["processors"] is not None:
        allowed = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, allowed[-settings["processors"] :])
    if settings["nice"]:
        os.nice(settings["nice"])
        os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    _limit(settings["limits"])
    persona = _ADDR_NO_RANDOMIZE if settings["address randomisation"] else 0
    persona |= _UNAME26 if settings["kernel release"] else 0
    if persona:
        _must(_LIBC.personality(persona))
    if settings["signals"]:
        for number in (signal.SIGHUP, signal.SIGPIPE, *OF_LIBC):
            _native.set_signal(number, True)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1, signal.SIGALRM, signal.SIGCHLD})
    if settings["user"] is not None:
        _become(settings["user"])
    end_with_parent(parent)


def _limit(limits: Mapping[str, int]) -> None:
    """Soft limits, cut to the hard ones."""
    for name, value in limits.items():
        number = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(number)[1]
        unlimited = resource.RLIM_INFINITY
        if hard != unlimited and (value == unlimited or value > hard):
            value = hard
        resource.setrlimit(number, (value, hard))


def _become(user: str) -> None:
    record = pwd.getpwnam(user)
    os.initgroups(user, record.pw_gid)
    os.setresgid(record.pw_gid, record.pw_gid, record.pw_gid)
    os.setresuid(record.pw_uid, record.pw_uid, record.pw_uid)


def _must(result: int) -> None:
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, os.strerror(error))
