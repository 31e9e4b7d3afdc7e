"""Runs one probe in a child process with a time limit, so that no probe can harm or hang the doctor."""

from __future__ import annotations

import ctypes
import errno
import os
import select
import signal
from collections.abc import Callable

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIMIT_S = 5.0

PR_SET_PDEATHSIG = 1
CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000


class ProbeFailed(Exception):
    """The feature is not there; the text says how it failed."""


def syscall(number: int, *args: int | bytes | None) -> int:
    """A system call by number; raises OSError.  Integers are passed as 64 bits."""
    words = [ctypes.c_ulong(arg) if isinstance(arg, int) else arg for arg in args]
    result = int(_LIBC.syscall(ctypes.c_long(number), *words))
    if result == -1:
        number_of_error = ctypes.get_errno()
        raise OSError(number_of_error, os.strerror(number_of_error))
    return result


def prctl(option: int, value: int = 0) -> None:
    """prctl(2) with one argument; raises OSError."""
    if _LIBC.prctl(ctypes.c_int(option), ctypes.c_ulong(value), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def unshare(flags: int) -> None:
    """unshare(2); raises OSError."""
    if _LIBC.unshare(ctypes.c_int(flags)) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))


def mount(source: str, target: str, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2); raises OSError."""
    arguments = [os.fsencode(text) for text in (source, target, kind)]
    if _LIBC.mount(*arguments, ctypes.c_ulong(flags), os.fsencode(data)) != 0:
        raise OSError(ctypes.get_errno(), f"mount {kind}: {os.strerror(ctypes.get_errno())}")


def become_root_of_namespaces(flags: int = 0) -> None:
    """Enters a new user namespace as its root, and the other namespaces of ``flags`` with it."""
    uid, gid = os.geteuid(), os.getegid()
    unshare(CLONE_NEWUSER | flags)
    for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
        try:
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
        except OSError as error:
            raise OSError(error.errno, f"writing /proc/self/{name}: {error.strerror}") from None


def try_out(probe: Callable[[], str]) -> tuple[bool, str]:
    """Runs ``probe`` in a child: (whether it returned, its text or how it failed)."""
    reader, writer = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        os.close(reader)
        _in_child(probe, writer)
    os.close(writer)
    try:
        text = _read_all(reader)
    finally:
        os.close(reader)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
    if text.startswith("+"):
        return True, text[1:]
    if text.startswith("-"):
        return False, text[1:]
    died = os.waitstatus_to_exitcode(status)
    return False, "no answer in time" if died == -signal.SIGKILL else f"the probe died of signal {-died}"


def _in_child(probe: Callable[[], str], writer: int) -> None:
    try:
        prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        text = "+" + probe()
    except OSError as error:
        name = errno.errorcode.get(error.errno or 0, str(error.errno))
        text = f"-{error.strerror or error} ({name})"
    except ProbeFailed as error:
        text = f"-{error}"
    os.write(writer, text.encode("utf-8", "replace"))
    os._exit(0)


def _read_all(reader: int) -> str:
    """All that the child writes, or nothing if it does not end in time."""
    text = b""
    poller = select.poll()
    poller.register(reader, select.POLLIN)
    while poller.poll(_LIMIT_S * 1000):
        piece = os.read(reader, 4096)
        if not piece:
            break
        text += piece
        if not piece.endswith(b"\n") and text[:1] in b"+-":
            break
    return text.decode("utf-8", "replace")
