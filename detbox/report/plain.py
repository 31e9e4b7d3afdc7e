"""A plain container for native runs: namespaces and mounts like a run's under detbox, and nothing determinised.

The caller, a process of its own for each run, makes the namespaces and waits; its child is process 1 of the new PID
namespace, builds the file system and starts the command.  With process 1 everything in the container ends, and it
ends with its parent.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import struct
import warnings  # noqa: F401  os.execvpe() imports it, where an image is the root directory
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detbox.container import operations as ops
from detbox.container import plan
from detbox.container.overlay import Overlay
from detbox.errors import CommandNotFound, CommandNotInvocable, DetboxError, HostError
from detbox.kernel import _native

_CLONE_NEWNS, _CLONE_NEWUSER, _CLONE_NEWPID = 0x00020000, 0x10000000, 0x20000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_ANSWER = struct.Struct("<ii")  # errno of the start, exit status or minus the signal
_OWN = frozenset(("proc", "sys", "dev", "tmp", "run", ".detbox"))
_PRIVATE = frozenset(("home", "root", "srv", "mnt", "media", "boot"))  # shown as they are, and read-only
_SCRATCH = "/.detbox"


@dataclass(frozen=True)
class Plain:
    """One native run.

    ``work``: host path of the work directory's copy; ``shown``: its path in the container, and ``alias`` another
    one, or "".  ``mounts``: source, path in the container and whether it may be written.
    ``burn``: process numbers to use up before the command gets one.
    ``ignored``: signals that the command is to find ignored.
    """

    argv: Sequence[str]
    env: dict[str, str]
    work: str
    shown: str
    mounts: Sequence[tuple[str, str, bool]]
    image: str | None
    alias: str
    burn: int
    ignored: Sequence[int]

    @classmethod
    def from_json(cls, raw: dict[str, Any]) -> Plain:
        """The inverse of ``vars``."""
        return cls(**raw)


def run(plain: Plain) -> int:
    """Run the command; its exit status, or minus the number of the signal that ended it.  Raises DetboxError."""
    uid, gid = os.geteuid(), os.getegid()
    try:
        _native.unshare(_CLONE_NEWPID | (_CLONE_NEWUSER if uid else 0))
        if uid:
            for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
                with open(f"/proc/self/{name}", "w", encoding="ascii") as file:
                    file.write(text)
    except OSError as error:
        raise HostError(f"cannot create namespaces: {error.strerror}", "run: detbox doctor") from error
    end, answer = os.pipe2(os.O_CLOEXEC)
    first = os.fork()
    if first == 0:
        os.close(end)
        _first_process(plain, answer)
    os.close(answer)
    parts = b""
    while part := os.read(end, 4096):
        parts += part
    os.waitpid(first, 0)
    if parts[:1] != b"=":
        raise HostError(f"the plain container: {parts.decode() or 'its first process was killed'}")
    failure, status = _ANSWER.unpack_from(parts, 1)
    _raise_if_not_started(plain.argv[0], failure)
    return int(status)


def _raise_if_not_started(command: str, failure: int) -> None:
    if failure in (2, 20):  # ENOENT, ENOTDIR
        raise CommandNotFound(f"natively: {command}: {os.strerror(failure)}")
    if failure:
        raise CommandNotInvocable(f"natively: {command}: {os.strerror(failure)}")


def _first_process(plain: Plain, answer: int) -> None:
    """Process 1: never returns.  Afterwards no module can be imported: an image has none."""
    _native.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    orphaned = select.poll()
    orphaned.register(answer, 0)
    if orphaned.poll(0):  # the parent was gone before
        os._exit(1)
    try:
        _build(plain)
        for _ in range(plain.burn):
            child = os.fork()
            if child == 0:
                os._exit(0)
            os.waitpid(child, 0)
        failure, status = _command(plain)
        os.write(answer, b"=" + _ANSWER.pack(failure, status))
    except DetboxError as error:
        os.write(answer, error.message.encode())
    except BaseException as error:
        os.write(answer, f"{type(error).__name__}: {error}".encode())
    finally:
        os._exit(0)


def _command(plain: Plain) -> tuple[int, int]:
    """Start the command and wait for it; errno of the start, and how it ended."""
    end, failed = os.pipe2(os.O_CLOEXEC)
    child = os.fork()
    if child == 0:
        try:
            for number in (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT):  # Python has changed these
                signal.signal(number, signal.SIG_IGN if number in plain.ignored else signal.SIG_DFL)
            os.execvpe(plain.argv[0], list(plain.argv), plain.env)
        except OSError as error:
            os.write(failed, struct.pack("<i", error.errno or 2))
        finally:
            os._exit(127)
    os.close(failed)
    said = os.read(end, 4)
    while True:
        pid, status = os.wait()
        if pid == child:
            break
    return (struct.unpack("<i", said)[0] if said else 0), os.waitstatus_to_exitcode(status)


def _build(plain: Plain) -> None:
    """Assemble the file system and enter it."""
    _native.unshare(_CLONE_NEWNS)  # the parent keeps the host's view
    _native.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    steps = plan.image_root(plain.image) if plain.image else _host_root()
    steps += [_Proc("/proc"), ops.Bind("/dev", "/dev", False), ops.Bind("/sys", "/sys", False)]
    steps += [ops.Tmpfs("/tmp", 0o1777), ops.Tmpfs("/run", 0o755), ops.Bind(plain.work, plain.shown, False)]
    steps += [ops.Bind(source, path, not writable) for source, path, writable in plain.mounts]
    if plain.alias:
        steps.append(ops.Bind(plain.work, plain.alias, False))
    for step in steps:
        step.prepare()
    before = os.umask(0o022)
    for step in steps:
        try:
            step.execute()
        except OSError as error:
            raise HostError(f"cannot set up ({step.describe()}): {error}") from error
    os.umask(before)
    ops.enter(ops.STAGE)
    os.chdir(plain.shown)


class _Proc(ops.Special):
    """The process files of the new namespace; the host's where the kernel allows no other."""

    def __init__(self, path: str) -> None:
        super().__init__("proc", path)

    def execute(self) -> None:
        try:
            super().execute()
        except DetboxError:
            _native.mount("/proc", os.fsencode(ops.staged("/proc")), None, _MS_BIND | _MS_REC, None)


def _host_root() -> list[ops.Step]:
    """The host's own files: changes to them vanish."""
    found: list[ops.Step] = [ops.Tmpfs("/", 0o755), ops.Tmpfs(_SCRATCH, 0o700)]
    for name in sorted(os.listdir("/")):
        path = "/" + name
        if name in _OWN:
            continue
        if os.path.islink(path):
            found.append(ops.Symlink(path, os.readlink(path)))
        elif os.path.isdir(path) and os.access(path, os.R_OK | os.X_OK):
            with contextlib.suppress(PermissionError):
                overlay = Overlay(path, path, f"{_SCRATCH}/{name}", 0)
                found.append(ops.Bind(path, path, True) if name in _PRIVATE else overlay)
    return [*found, ops.Detach(_SCRATCH)]
