"""Waits for the kernel's workers that carry what is written to terminals: by one more piece of their work.

Work is begun in the order in which it was queued.  So when something that was queued later has been done, on a
pseudo-terminal of the supervisor's own, what was queued before has been begun, however busy the host is.  That
terminal is in an instance of devpts that no path leads to.
"""

from __future__ import annotations

import os
import select
import tty
from fcntl import ioctl
from functools import lru_cache

from detbox.kernel.invoke import call

_FSCONFIG_SET_STRING, _FSCONFIG_CREATE, _FSMOUNT_CLOEXEC = 1, 6, 1
_TIOCSPTLCK, _TIOCGPTPEER = 0x40045431, 0x5441
_FLAGS = os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC


def wait_for_earlier() -> None:
    """Return when the work that has been queued for other terminals has at least been begun."""
    pair = _pair()
    if pair is not None:
        master, slave, poller = pair
        os.write(master, b"x")
        poller.poll(0)  # n_tty_poll() waits for the worker, since there is nothing to read
        os.read(slave, 1)


@lru_cache
def _pair() -> tuple[int, int, select.poll] | None:
    """Both sides of a terminal in raw mode; None where the kernel gives none."""
    try:
        context = call("fsopen", b"devpts\0", 0)
        call("fsconfig", context, _FSCONFIG_SET_STRING, b"ptmxmode\0", b"0600\0", 0)
        call("fsconfig", context, _FSCONFIG_CREATE, 0, 0, 0)
        mount = call("fsmount", context, _FSMOUNT_CLOEXEC, 0)
        os.close(context)
        master = os.open("ptmx", _FLAGS, dir_fd=mount)
        os.close(mount)
        ioctl(master, _TIOCSPTLCK, bytes(4))
        slave = ioctl(master, _TIOCGPTPEER, _FLAGS)
        tty.setraw(slave)
    except OSError:
        return None
    poller = select.poll()
    poller.register(slave, select.POLLIN)
    return master, slave, poller
