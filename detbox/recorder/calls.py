"""What a recorder must know about calls: their parameters, and where they take and leave data."""

from __future__ import annotations

from functools import lru_cache

from detbox.kernel.numbers import NUMBERS

#: Length of a call's data: a fixed number of bytes, or the call's result.
RESULT = -1

_PATH_NAMES = ("path", "filename", "pathname", "oldname", "oldpath", "old", "dir_name")
_SECOND_NAMES = ("newname", "newpath", "new")
# Calls that hand data to the kernel: (argument with the address, argument with the length).
_GIVEN = {"write": (1, 2), "pwrite64": (1, 2), "sendto": (1, 2)}
#: Calls that hand over a vector of buffers: argument 1 is its address, argument 2 its length.
VECTORS_GIVEN = frozenset(NUMBERS[name] for name in ("writev", "pwritev", "pwritev2"))
#: The same, for calls that leave data there.
VECTORS_LEFT = frozenset(NUMBERS[name] for name in ("readv", "preadv", "preadv2"))
#: Calls whose argument 1 is a struct msghdr.
MESSAGES_GIVEN = frozenset({NUMBERS["sendmsg"]})
MESSAGES_LEFT = frozenset({NUMBERS["recvmsg"]})
#: Calls that create a process, if they do not create a thread.
CREATING = frozenset(NUMBERS[name] for name in ("clone", "clone3", "fork", "vfork"))
#: Calls whose end is not looked at: those that never come back, and those that an interrupt would make the kernel
#: begin again (kernel/fork.c, copy_process: a new process does not share signals that came before it).
UNWATCHED = CREATING | frozenset(NUMBERS[name] for name in ("exit", "exit_group", "sendfile", "tee", "vmsplice"))
#: Calls that do so, or do less, for some devices: what is read from /dev/zero ends with the page at which there is an
#: interrupt (drivers/char/mem.c, read_iter_zero), and what moves data through pipes does not begin (fs/splice.c,
#: splice_from_pipe_next).
UNWATCHED_DEVICES = frozenset(
    NUMBERS[name]
    for name in ("read", "readv", "pread64", "preadv", "preadv2", "write", "writev", "pwrite64", "pwritev", "pwritev2")
)
#: Calls that execute another program if they succeed.
EXECUTING = frozenset(NUMBERS[name] for name in ("execve", "execveat"))
#: Calls that open a file and may create it.
OPENING = frozenset(NUMBERS[name] for name in ("open", "openat", "openat2", "creat"))
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
    "getxattr": (2, RESULT),
    "lgetxattr": (2, RESULT), "fgetxattr": (2, RESULT), "listxattr": (1, RESULT), "llistxattr": (1, RESULT),
}  # fmt: skip

#: Calls that leave one or two small numbers, which are recorded themselves (the second one shifted by 16 bits):
#: (argument with the address, how many).
NUMBERS_LEFT = {
    NUMBERS[name]: where
    for name, where in {"wait4": (1, 1), "pipe": (0, 2), "pipe2": (0, 2), "socketpair": (3, 2)}.items()
}

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
        "openat2": (("int", "dirfd"), ("const char*", "pathname"), ("void*", "how"), ("size_t", "size")),
        "fchmodat2": (("int", "dirfd"), ("const char*", "pathname"), ("mode_t", "mode"), ("int", "flags")),
        "clone3": (("void*", "args"), ("size_t", "size")),
        "umount2": (("const char*", "path"), ("int", "flags")),
        "pidfd_open": (("pid_t", "pid"), ("unsigned", "flags")),
        "close_range": (("unsigned", "first"), ("unsigned", "last"), ("unsigned", "flags")),
    }  # fmt: skip
    found = {}
    for name, number in NUMBERS.items():
        if name in known:
            found[number] = known[name]
        elif name in SYSCALL_PROTOTYPES:
            found[number] = tuple((kind, label) for kind, label in SYSCALL_PROTOTYPES[name][1])
    return found


def path_arguments() -> dict[int, tuple[int, ...]]:
    """By call number: which arguments are paths (one or two)."""
    found = {}
    for number, labels in parameters().items():
        if number == NUMBERS["getcwd"]:  # leaves a path
            continue
        texts = [(place, label) for place, (kind, label) in enumerate(labels) if "char" in kind]
        first = [place for place, label in texts if label in _PATH_NAMES][:1]
        if first:
            found[number] = (*first, *[place for place, label in texts if label in _SECOND_NAMES])
    return found


def counts() -> dict[int, int]:
    """By call number: how many of the six registers are arguments."""
    return {number: len(labels) for number, labels in parameters().items()}
