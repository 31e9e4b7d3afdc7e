"""``struct rusage`` as the guest sees it: CPU time is virtual, everything else is fixed."""

from __future__ import annotations

import struct

from detbox.kernel.timespec import pack_timeval
from detbox.machine.clock import user_and_system

#: Peak resident size, in kibibytes.  The real one depends on the host's memory and page cache.
MAX_RSS_KIB = 8192
#: Page faults without I/O.
MINOR_FAULTS = 256

# struct rusage from ru_maxrss on (include/uapi/linux/resource.h); ru_minflt is the fifth.
_REST = struct.pack("<14q", MAX_RSS_KIB, 0, 0, 0, MINOR_FAULTS, *([0] * 9))
_REST_UNUSED = bytes(len(_REST))


def rusage(cpu_ns: int) -> bytes:
    """What getrusage(2) and wait4(2) report for so much CPU time, in ns (0: there was no process)."""
    user, system = user_and_system(cpu_ns)
    return pack_timeval(user) + pack_timeval(system) + (_REST if cpu_ns else _REST_UNUSED)
