"""What a recorder must know about calls: their parameters, and where they take and leave data."""

from __future__ import annotations

from functools import lru_cache

from detbox.kernel.numbers import NUMBERS

#: Length of a call's data: a fixed number of bytes, or the call's result.
RESULT = -1

_PATH_NAMES = ("path", "filename", "pathname", "oldname", "oldpath", "dir_name")
# Calls that hand data to the kernel: (argument with the address, argument with the length).
_GIVEN = {"write": (1, 2), "pwrite64": (1, 2), "sendto": (1, 2)}
#: Calls whose data is a vector of buffers: argument 1 is its address, argument 2 its length.
VECTORS = frozenset(NUMBERS[name] for name in ("writev", "pwritev"))
# Calls that leave data in the guest's memory: (argument with the address, length).
_LEFT = {
    "read": (1, RESULT), "pread64": (1, RESULT), "recvfrom": (1, RESULT), "getrandom": (0, RESULT),
    "getdents64": (1, RESULT), "readlink": (1, RESULT), "readlinkat": (2, RESULT), "getcwd": (0, RESULT),
    "sched_getaffinity": (2, RESULT), "clock_gettime": (1, 16), "clock_getres": (1, 16), "gettimeofday": (0, 16),
    "time": (0, 0), "times": (0, 32), "getrusage": (1, 144), "uname": (0, 390), "sysinfo": (0, 112),
    "stat": (1, 144), "lstat": (1, 144), "fstat": (1, 144), "newfstatat": (2, 144), "statx": (4, 256),
    "statfs": (1, 120), "fstatfs": (1, 120), "getitimer": (1, 32), "getpid": (0, 0), "gettid": (0, 0),
    "getppid": (0, 0), "getpgid": (0, 0), "getsid": (0, 0), "getuid": (0, 0), "geteuid": (0, 0), "getgid": (0, 0),
    "getegid": (0, 0), "umask": (0, 0), "prlimit64": (3, 16), "getcpu": (0, 4), "getpriority": (0, 0),
}  # fmt: skip

GIVEN = {NUMBERS[name]: where for name, where in _GIVEN.items()}
LEFT = {NUMBERS[name]: where for name, where in _LEFT.items() if name in NUMBERS}


@lru_cache(maxsize=1)
def parameters() -> dict[int, tuple[tuple[str, str], ...]]:
    """By call number: type and name of each parameter, as python-ptrace's tables have them."""
    from ptrace.syscall.prototypes import SYSCALL_PROTOTYPES

    known = {
        "openat": (("int", "dirfd"), ("const char*", "pathname"), ("int", "flags"), ("mode_t", "mode")),
        "newfstatat": (("int", "dirfd"), ("const char*", "pathname"), ("void*", "buf"), ("int", "flags")),
        "statx": (
            ("int", "dirfd"), ("const char*", "pathname"), ("int", "flags"), ("unsigned", "mask"), ("void*", "buf"),
        ),
        "faccessat2": (("int", "dirfd"), ("const char*", "pathname"), ("int", "mode"), ("int", "flags")),
        "getrandom": (("void*", "buf"), ("size_t", "count"), ("unsigned", "flags")),
    }  # fmt: skip
    found = {}
    for name, number in NUMBERS.items():
        if name in known:
            found[number] = known[name]
        elif name in SYSCALL_PROTOTYPES:
            found[number] = tuple((kind, label) for kind, label in SYSCALL_PROTOTYPES[name][1])
    return found


def path_arguments() -> dict[int, int]:
    """By call number: which argument is a path (the first one of several)."""
    found = {}
    for number, labels in parameters().items():
        for position, (kind, label) in enumerate(labels):
            if "char" in kind and label in _PATH_NAMES:
                found[number] = position
                break
    return found


def counts() -> dict[int, int]:
    """By call number: how many of the six registers are arguments."""
    return {number: len(labels) for number, labels in parameters().items()}
