"""The resource limits of the guest: a fixed base, whatever the limits of whoever started detbox."""

from __future__ import annotations

import contextlib
import resource

INFINITY = (1 << 64) - 1
RLIMIT_NICE, RLIMIT_RTPRIO, RLIMIT_RTTIME = 13, 14, 15
COUNT = 16
#: fs.nr_open: no process may have more descriptors.
NR_OPEN = 1 << 20
_PROCESSES = 31797
#: Threads of a whole run. Who asks for one more thread is told so; one more process ends the run.
TASKS_AT_MOST = 4096

#: (soft, hard) of every limit when the guest starts.
BASE: tuple[tuple[int, int], ...] = (
    (INFINITY, INFINITY),  # CPU, seconds
    (INFINITY, INFINITY),  # FSIZE, bytes
    (INFINITY, INFINITY),  # DATA, bytes
    (8 << 20, INFINITY),  # STACK, bytes
    (0, INFINITY),  # CORE, bytes
    (INFINITY, INFINITY),  # RSS, bytes, without effect in Linux
    (_PROCESSES, _PROCESSES),  # NPROC
    (1024, NR_OPEN),  # NOFILE
    (8 << 20, 8 << 20),  # MEMLOCK, bytes
    (INFINITY, INFINITY),  # AS, bytes
    (INFINITY, INFINITY),  # LOCKS
    (_PROCESSES, _PROCESSES),  # SIGPENDING
    (819200, 819200),  # MSGQUEUE, bytes
    (0, 0),  # NICE
    (0, 0),  # RTPRIO
    (INFINITY, INFINITY),  # RTTIME, microseconds
)

#: Limits that the kernel enforces by what the process itself does, so that they act at the same point in every run.
ENFORCED = frozenset((
    resource.RLIMIT_FSIZE, resource.RLIMIT_DATA, resource.RLIMIT_STACK, resource.RLIMIT_NOFILE,
    resource.RLIMIT_AS, resource.RLIMIT_MSGQUEUE,
))
#: What the kernel counts for each user, the processes on the host included; a user namespace has in all what its maker
#: had when it was made.
COUNTED = (
    resource.RLIMIT_NPROC, resource.RLIMIT_MEMLOCK, resource.RLIMIT_SIGPENDING, resource.RLIMIT_MSGQUEUE,
)
#: Limits that handlers apply to the guest's own values, and those of the host's time: as wide as the host has them.
_WIDE = (*COUNTED[:3], resource.RLIMIT_CPU, RLIMIT_RTTIME)


def widen(which: tuple[int, ...] = COUNTED) -> None:
    """Give the calling process as much as the host allows; root has no limit."""
    for number in which:
        hard = resource.getrlimit(number)[1]
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(number, (hard, hard))
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(number, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def apply_base() -> None:
    """Give the calling process the real soft limits that :data:`BASE` promises, as far as the host's hard
    limits go; the guest's first process calls this before its exec."""
    widen(_WIDE)
    # A core file would be written by the kernel, and where to is the host's setting: nobody gets one.  With 0 a host's
    # program that collects them would be run all the same, and a parent would read that there is one; with 1 it is not
    # (fs/coredump.c), and a file of one byte is too small for any.
    for which in sorted(ENFORCED | {resource.RLIMIT_CORE}):
        hard = resource.getrlimit(which)[1]
        base = 1 if which == resource.RLIMIT_CORE else BASE[which][0]
        soft = resource.RLIM_INFINITY if base == INFINITY else base
        # RLIM_INFINITY is -1 in Python.
        if hard != resource.RLIM_INFINITY and (soft == resource.RLIM_INFINITY or soft > hard):
            soft = hard
        resource.setrlimit(which, (soft, hard))


# What one line of /proc/PID/limits is called, and its unit (fs/proc/base.c).
_NAMES = (
    ("Max cpu time", "seconds"), ("Max file size", "bytes"), ("Max data size", "bytes"),
    ("Max stack size", "bytes"), ("Max core file size", "bytes"), ("Max resident set", "bytes"),
    ("Max processes", "processes"), ("Max open files", "files"), ("Max locked memory", "bytes"),
    ("Max address space", "bytes"), ("Max file locks", "locks"), ("Max pending signals", "signals"),
    ("Max msgqueue size", "bytes"), ("Max nice priority", ""), ("Max realtime priority", ""),
    ("Max realtime timeout", "us"),
)  # fmt: skip


def text(limits: tuple[tuple[int, int], ...]) -> str:
    """The content of /proc/PID/limits."""
    lines = [f"{'Limit':25s} {'Soft Limit':20s} {'Hard Limit':20s} {'Units':10s}"]
    for (name, unit), values in zip(_NAMES, limits, strict=True):
        soft, hard = ("unlimited" if value == INFINITY else str(value) for value in values)
        lines.append(f"{name:25s} {soft:20s} {hard:20s} {unit:10s}")
    return "\n".join(lines) + "\n"
