"""Children of the supervisor that do one thing in namespaces of the guest's and end with its error number."""

from __future__ import annotations

import os
from collections.abc import Callable
from errno import EINVAL

from detbox.kernel import _native


def leave(body: Callable[[], None]) -> None:
    """Run ``body`` and end this process with its error number."""
    try:
        body()
    except OSError as error:
        os._exit(error.errno or EINVAL)
    except BaseException:
        os._exit(EINVAL)
    os._exit(0)


def wait_for(child: int) -> None:
    """Wait for such a child; OSError if that is how it ended."""
    _, status = _native.wait_tid(child, 0)
    error = os.waitstatus_to_exitcode(status)
    if error:
        raise OSError(error if error > 0 else EINVAL, "mount")


def with_guest(pid: int, body: Callable[[int], None]) -> None:
    """Run ``body`` in such a child, with a descriptor (pidfd) of a process of the guest's; raises its OSError."""
    guest = os.pidfd_open(pid)
    child = os.fork()
    if child == 0:
        leave(lambda: body(guest))
    os.close(guest)
    wait_for(child)
