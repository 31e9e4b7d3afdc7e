"""Classes of cause, and what the bytes of a difference say about them.

``CLASSES`` is the table: which property of a native host (a row of the table of perturbations) shows a class if it
alone is changed, and at which calls two recorded runs part because of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from detbox.report.perturb import Observed


@dataclass(frozen=True)
class Class:
    """One class.  ``rows``: of the perturbations; ``calls``: that show it; ``what`` a reader should know."""

    name: str
    what: str
    rows: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


CLASSES: tuple[Class, ...] = (
    Class("time", "when the command runs, or how long it takes", ("time of run",), (
        "clock_gettime", "gettimeofday", "time", "times", "getrusage", "clock_getres", "getitimer")),
    Class("random", "random numbers of the kernel", (), ("getrandom",)),
    Class("readdir order", "the order in which a directory lists its entries", ("creation order",),
          ("getdents64", "getdents")),
    Class("PID", "numbers of processes", ("process numbers",), (
        "getpid", "gettid", "getppid", "getpgid", "getsid", "clone", "fork", "vfork", "clone3")),
    Class("address", "where memory lies (ASLR)", ("address randomisation",), ("mmap", "brk", "mremap")),
    Class("uname", "the host's name or kernel release", ("hostname", "kernel release"), ("uname",)),
    Class("CPU count", "how many processors there are", ("processors",), ("sched_getaffinity",)),
    Class("cpuid", "which processor it is", (), ("getcpu",)),
    Class("thread race", "which thread or process comes first", (), ("futex",)),
    Class("umask", "the mask for new files' modes", ("umask",), ("umask",)),
    Class("locale", "LANG and LC_ALL", ("locale",)),
    Class("host path", "where the work directory is", ("path",), ("getcwd",)),
    Class("inode", "inode numbers", ("inodes",), ("stat", "lstat", "fstat", "newfstatat", "statx")),
    Class("mtime", "times of the inputs", ("mtimes",), ("utimensat", "utime", "utimes", "futimesat")),
    Class("environment", "variables that are not declared", ("environment",)),
    Class("time zone", "TZ", ("time zone",)),
    Class("user", "who runs the command: user, groups, HOME", ("user",), (
        "getuid", "geteuid", "getgid", "getegid", "getgroups", "getresuid", "getresgid")),
    Class("file system", "kind, size and fill of the file system", ("file system",), ("statfs", "fstatfs")),
    Class("limits", "resource limits", ("limits",), ("prlimit64", "getrlimit")),
    Class("memory", "free memory and load", ("memory", "load"), ("sysinfo",)),
    Class("terminal", "whether there is a terminal", ("terminal",), ("ioctl",)),
    Class("priority", "niceness and scheduling class", ("nice",), ("getpriority", "sched_getscheduler")),
    Class("descriptors", "inherited descriptors", ("descriptors",), ("fcntl", "dup", "close")),
    Class("signals", "inherited ignored and blocked signals", ("signals",), ("rt_sigaction", "rt_sigprocmask")),
    Class("content read", "what was read from a file, pipe or socket", (), (
        "read", "pread64", "readv", "recvfrom", "readlink", "readlinkat")),
    Class("computed data", "data that the program itself made: the cause lies before this event", (), (
        "write", "pwrite64", "writev", "sendto")),
)  # fmt: skip

BY_ROW = {row: cls.name for cls in CLASSES for row in cls.rows}
BY_CALL = {call: cls.name for cls in CLASSES for call in cls.calls}
_NUMBER = re.compile(rb"\d+")
_ADDRESS = re.compile(rb"0x[0-9a-f]{5,16}\b|\b(?:7f|55|56)[0-9a-f]{10}\b")


@dataclass(frozen=True)
class Cause:
    """A class of cause, what speaks for it, and of how many differences it is the cause."""

    name: str
    evidence: str
    count: int = 1

    def text(self) -> str:
        """The evidence, and of how many differences this is the cause."""
        return self.evidence + (f"; {self.count} differences" if self.count > 1 else "")


def same_pieces(left: bytes, right: bytes) -> bool:
    """Whether two texts consist of the same lines or words in another order."""
    return sorted(left.split(b"\n")) == sorted(right.split(b"\n")) or sorted(left.split()) == sorted(right.split())


def differing_numbers(left: bytes, right: bytes) -> Iterator[tuple[int, int]]:
    """Decimal numbers at the same places of two texts that are different, in order."""
    pairs = zip(_NUMBER.findall(left), _NUMBER.findall(right), strict=False)
    yield from ((int(x), int(y)) for x, y in pairs if x != y)


def are_inodes(left: bytes, right: bytes, runs: tuple[Observed, Observed]) -> bool:
    """Whether the differing numbers are inode numbers of the runs' own files."""
    numbers = list(differing_numbers(left, right))
    known = [inodes_of(run) for run in runs]
    return bool(numbers) and all(x in known[0] and y in known[1] for x, y in numbers)


def inodes_of(run: Observed) -> set[int]:
    """Inode numbers of everything in a run's output tree, which must still be there."""
    if run.work is None:
        return set()
    found = {run.work.lstat().st_ino}
    for directory, below, files in os.walk(run.work):
        for name in (*below, *files):
            found.add(os.lstat(os.path.join(directory, name)).st_ino)
    return found


def are_addresses(left: bytes, right: bytes) -> bool:
    """Whether two texts look as if they differed in addresses."""
    return _ADDRESS.sub(b"", left) == _ADDRESS.sub(b"", right) and bool(_ADDRESS.search(left))


def grows(values: list[bytes]) -> bool:
    """Whether some number at the same place grows from each text to the next: a clock's reading, most likely."""
    rows = [[int(word) for word in _NUMBER.findall(text)] for text in values]
    if len({len(row) for row in rows}) != 1:
        return False
    return any(all(x < y for x, y in zip(column, column[1:], strict=False)) for column in zip(*rows, strict=True))
