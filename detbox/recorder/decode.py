"""Arguments and results of calls as text, with python-ptrace's tables of constants."""

from __future__ import annotations

import errno
import os
import signal
from functools import lru_cache
from typing import Any

from detbox.kernel.numbers import NAMES, NUMBERS
from detbox.recorder import calls, constants
from detbox.recorder.format import Event, Verdict

_MAX_ERRNO = 4095
_RESTART = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}
_ADDRESSES = frozenset(NUMBERS[name] for name in ("mmap", "brk", "mremap", "shmat"))
_OCTAL = ("mode_t", "umode_t")
_SMALL = 10_000  # larger numbers of unknown meaning are shown in hexadecimal
_AT_FDCWD, _LOW = -100, 0xFFFFFFFF
_AT_EMPTY_PATH = 0x1000
_AT_FLAGS = (
    (0x100, "AT_SYMLINK_NOFOLLOW"), (0x200, "AT_REMOVEDIR"), (0x400, "AT_SYMLINK_FOLLOW"),
    (0x800, "AT_NO_AUTOMOUNT"), (0x1000, "AT_EMPTY_PATH"),
)  # fmt: skip
_MAP_FLAGS = (
    (1, "MAP_SHARED"), (2, "MAP_PRIVATE"), (0x10, "MAP_FIXED"), (0x20, "MAP_ANONYMOUS"), (0x100, "MAP_GROWSDOWN"),
    (0x800, "MAP_DENYWRITE"), (0x4000, "MAP_NORESERVE"), (0x8000, "MAP_POPULATE"), (0x20000, "MAP_STACK"),
)  # fmt: skip
_SOCKET_KIND = 0xF
_SOCKET_FLAGS = ((0o4000, "SOCK_NONBLOCK"), (0o2000000, "SOCK_CLOEXEC"))
_WAIT_FLAGS = ((1, "WNOHANG"), (2, "WUNTRACED"), (4, "WEXITED"), (8, "WCONTINUED"), (0x01000000, "WNOWAIT"))


@lru_cache(maxsize=1)
def _tables() -> tuple[dict[str, dict[str, dict[int, str]]], dict[tuple[str, str], Any]]:
    """python-ptrace's: constants by call, parameter and value; bits by call and parameter."""
    from ptrace.syscall import posix_arg
    from ptrace.syscall.linux_constants import SYSCALL_ARG_DICT

    opening, access = posix_arg.OPEN_FLAGS_BITMASK, posix_arg.ACCESS_MODE_BITMASK
    at = ("newfstatat", "statx", "faccessat2", "fchownat", "utimensat", "linkat", "execveat", "fchmodat2")
    bits: dict[tuple[str, str], Any] = {
        ("open", "flags"): opening, ("openat", "flags"): opening, ("pipe2", "flags"): opening,
        ("access", "mode"): access, ("faccessat", "mode"): access, ("faccessat2", "mode"): access,
        ("mmap", "prot"): posix_arg.MMAP_PROT_BITMASK, ("mprotect", "prot"): posix_arg.MMAP_PROT_BITMASK,
        ("mmap", "flags"): _MAP_FLAGS, ("clone", "flags"): posix_arg.CLONE_FLAGS_BITMASK,
        ("clone", "clone_flags"): posix_arg.CLONE_FLAGS_BITMASK, ("wait4", "options"): _WAIT_FLAGS,
        ("waitid", "options"): _WAIT_FLAGS, ("unlinkat", "flag"): _AT_FLAGS,
        **{(name, label): _AT_FLAGS for name in at for label in ("flags", "flag")},
    }  # fmt: skip
    named = {**SYSCALL_ARG_DICT, **constants.NAMED}
    named["socketpair"] = named["socket"]
    return named, bits


_NO_BITS = {
    ("open", "flags"): "O_RDONLY", ("openat", "flags"): "O_RDONLY", ("access", "mode"): "F_OK",
    ("faccessat", "mode"): "F_OK", ("faccessat2", "mode"): "F_OK", ("mmap", "prot"): "PROT_NONE",
    ("mprotect", "prot"): "PROT_NONE",
}  # fmt: skip


def arguments(nr: int, values: tuple[int, ...], path: bytes = b"", path2: bytes = b"") -> str:
    """The arguments of a call, separated by commas; ``values`` are its raw registers."""
    name = NAMES.get(nr, "")
    labels = calls.parameters().get(nr, (("", ""),) * 6)
    paths = dict(zip(calls.path_arguments().get(nr, ()), (path, path2), strict=False))
    words = []
    for place, ((kind, label), value) in enumerate(zip(labels, values, strict=False)):
        if paths.get(place) or (place in paths and value and _takes_empty(name, values)):
            words.append(quoted(paths[place]))
        elif label == "mode" and name in ("open", "openat") and not values[place - 1] & os.O_CREAT:
            break  # whatever the register holds: the kernel does not look at it
        else:
            words.append(_value(name, kind, label, value))
    return ", ".join(words)


def _takes_empty(name: str, values: tuple[int, ...]) -> bool:
    """Whether a call has AT_EMPTY_PATH, and may so name a descriptor alone."""
    place = {"newfstatat": 3, "statx": 2, "fchownat": 4, "linkat": 4, "execveat": 4, "faccessat2": 3}.get(name)
    return place is not None and bool(values[place] & _AT_EMPTY_PATH)


def quoted(text: bytes) -> str:
    """A path as strace shows it."""
    return '"' + os.fsdecode(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _value(name: str, kind: str, label: str, value: int) -> str:
    known, bits = _tables()
    low = value & _LOW
    flags = constants.FUTEX_FLAGS if (name, label) == ("futex", "op") else ()
    named = known.get(name, {}).get(label, {}).get(low & ~sum(bit for bit, _ in flags))
    if named is not None:
        return "|".join([named, *(word for bit, word in flags if low & bit)])
    if (name, label) in bits:
        return _flags(low, bits[name, label], _NO_BITS.get((name, label), "0"))
    if label in ("dirfd", "dfd", "olddfd", "newdfd") and _signed(low, 32) == _AT_FDCWD:
        return "AT_FDCWD"
    if (name, label) == ("socket", "type"):
        return _socket_type(low)
    if label in ("fd", "fildes"):
        return str(_signed(low, 32))
    if label in ("sig", "signum"):
        return _signal(low)
    if kind in _OCTAL:
        return f"0{low:o}"
    if "*" in kind or "[" in kind:
        return f"{value:#x}" if value else "NULL"
    if kind in ("int", "pid_t", "unsigned int", "unsigned", "uid_t", "gid_t", "clockid_t", "key_t"):
        return str(_signed(low, 32))
    return str(value) if value < _SMALL else f"{value:#x}"


def _flags(value: int, table: Any, none: str) -> str:
    found, rest = set(), value
    for bit, word in sorted(table, key=lambda row: -row[0].bit_count()):
        if value & bit == bit and rest & bit:
            found.add(word)
            rest &= ~bit
    words = [word for _, word in table if word in found]
    if none == "O_RDONLY" and not value & os.O_ACCMODE:
        words.insert(0, none)
    if rest:
        words.append(f"{rest:#x}")
    return "|".join(words) or none


def _socket_type(value: int) -> str:
    from ptrace.syscall.socketcall_constants import SOCKET_TYPE

    kind = value & _SOCKET_KIND
    return "|".join([SOCKET_TYPE.get(kind, str(kind)), *(word for bit, word in _SOCKET_FLAGS if value & bit)])


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return str(number)


def _signed(value: int, bits: int) -> int:
    return value - (1 << bits) if value >> (bits - 1) else value


def error_name(result: int) -> str:
    """ENOENT for -2; "" for what is no error."""
    if not -_MAX_ERRNO <= result < 0:
        return ""
    return errno.errorcode.get(-result) or _RESTART.get(-result, str(-result))


def answer(event: Event) -> str:
    """What became of a call."""
    if event.known:
        return number(event.nr, event.result) + data(event)
    words = {Verdict.PARK: "? (waits)", Verdict.INSTALL: "a new descriptor"}
    return words.get(event.verdict, "?") + data(event)


def number(nr: int, result: int) -> str:
    """A result, an error by its name."""
    if name := error_name(result):
        return f"? {name}" if name.startswith("ERESTART") else f"-1 {name}"
    return f"{result:#x}" if nr in _ADDRESSES else str(result)


def data(event: Event) -> str:
    """What is known of a call's data."""
    if event.nr in calls.NUMBERS_LEFT:
        if not event.known or event.result < 0:
            return ""
        if event.nr == NUMBERS["wait4"]:
            return f" [{ending(event.digest)}]" if event.result and event.args[1] else ""
        return f" [{event.digest & 0xFFFF}, {event.digest >> 16}]"
    return f" (data crc {event.digest:08x})" if event.digest else ""


def ending(status: int) -> str:
    """A wait status in words."""
    if os.WIFSIGNALED(status):
        return f"killed by {_signal(os.WTERMSIG(status))}"
    if os.WIFSTOPPED(status):
        return f"stopped by {_signal(os.WSTOPSIG(status))}"
    return f"exited with {os.WEXITSTATUS(status)}" if os.WIFEXITED(status) else f"status {status:#x}"
