"""The kernel's structures of time on x86-64, to and from nanoseconds."""

from __future__ import annotations

import struct
from errno import EINVAL

NS = 1_000_000_000
US = 1_000
#: KTIME_MAX: longer times are as good as this one.
FOREVER_NS = (1 << 63) - 1
#: sysconf(_SC_CLK_TCK): ticks of times(2) per second.
USER_HZ = 100
NS_PER_TICK = NS // USER_HZ

_PAIR = struct.Struct("<qq")
_PAIRS = struct.Struct("<4q")
TIMESPEC_SIZE = TIMEVAL_SIZE = _PAIR.size
ITIMERSPEC_SIZE = ITIMERVAL_SIZE = _PAIRS.size


def pack_timespec(ns: int) -> bytes:
    """``struct timespec``."""
    return _PAIR.pack(*divmod(ns, NS))


def pack_timeval(ns: int) -> bytes:
    """``struct timeval``, rounded down."""
    seconds, rest = divmod(ns, NS)
    return _PAIR.pack(seconds, rest // US)


def unpack_timespec(data: bytes) -> int:
    """Nanoseconds; OSError(EINVAL) where the kernel finds the time invalid."""
    return _nanoseconds(*_PAIR.unpack(data), unit=1)


def pack_itimerspec(interval_ns: int, value_ns: int) -> bytes:
    """``struct itimerspec``: interval, value."""
    return pack_timespec(interval_ns) + pack_timespec(value_ns)


def unpack_itimerspec(data: bytes) -> tuple[int, int]:
    """(interval, value) in nanoseconds; OSError(EINVAL)."""
    words = _PAIRS.unpack(data)
    return _nanoseconds(*words[:2], unit=1), _nanoseconds(*words[2:], unit=1)


def pack_itimerval(interval_ns: int, value_ns: int) -> bytes:
    """``struct itimerval``: interval, value."""
    return pack_timeval(interval_ns) + pack_timeval(value_ns)


def unpack_itimerval(data: bytes) -> tuple[int, int]:
    """(interval, value) in nanoseconds; OSError(EINVAL)."""
    words = _PAIRS.unpack(data)
    return _nanoseconds(*words[:2], unit=US), _nanoseconds(*words[2:], unit=US)


def _nanoseconds(seconds: int, fraction: int, *, unit: int) -> int:
    """``unit``: nanoseconds of one ``fraction``."""
    if seconds < 0 or not 0 <= fraction * unit < NS:
        raise OSError(EINVAL, "not a time")
    return min(seconds * NS + fraction * unit, FOREVER_NS)
