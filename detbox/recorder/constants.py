"""Names of constants that python-ptrace's tables do not have, mostly as Python's own modules know them."""

from __future__ import annotations

import mmap
import resource
import select
import termios
import time
from types import ModuleType


def _named(module: ModuleType, *starts: str) -> dict[int, str]:
    """By value: a module's names that begin so; of several for one value the first in the alphabet."""
    names = sorted((name for name in dir(module) if name.startswith(starts)), reverse=True)
    return {value: name for name in names if isinstance(value := getattr(module, name), int)}


_CLOCKS = _named(time, "CLOCK_")
#: By call and parameter.
NAMED: dict[str, dict[str, dict[int, str]]] = {
    **{name: {"which_clock": _CLOCKS} for name in ("clock_gettime", "clock_getres", "clock_nanosleep", "timer_create")},
    "timerfd_create": {"clockid": _CLOCKS},
    "ioctl": {"cmd": _named(termios, "TIO", "TCGET", "TCSET", "FIO")},
    "prlimit64": {"resource": _named(resource, "RLIMIT_")},
    "madvise": {"behavior": _named(mmap, "MADV_")},
    "lseek": {"whence": {0: "SEEK_SET", 1: "SEEK_CUR", 2: "SEEK_END", 3: "SEEK_DATA", 4: "SEEK_HOLE"}},
    "epoll_ctl": {"op": {1: "EPOLL_CTL_ADD", 2: "EPOLL_CTL_DEL", 3: "EPOLL_CTL_MOD"}},
    "epoll_create1": {"flags": {select.EPOLL_CLOEXEC: "EPOLL_CLOEXEC"}},
}

_FUTEX = "WAIT WAKE FD REQUEUE CMP_REQUEUE WAKE_OP LOCK_PI UNLOCK_PI TRYLOCK_PI WAIT_BITSET WAKE_BITSET"
NAMED["futex"] = {"op": {number: f"FUTEX_{name}" for number, name in enumerate(_FUTEX.split())}}
#: Of futex(2)'s operation.
FUTEX_FLAGS = ((128, "FUTEX_PRIVATE_FLAG"), (256, "FUTEX_CLOCK_REALTIME"))
