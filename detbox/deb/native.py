"""A build without detbox: the same script in an ordinary container over the same root.

``python -m detbox.deb.native ORDER`` runs it in the current directory, as one step of a perturbed host
(:mod:`detbox.report.perturb`).  ORDER is a JSON file: ``root`` (directory), ``answer`` (file for the CPU time),
``clock`` (path of libfaketime, or ""), ``locales`` (directory of their sources, or "") and ``machine`` (fields of
:class:`Machine`).
"""

from __future__ import annotations

import fcntl
import json
import os
import resource
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detbox.deb.plan import SCRIPT
from detbox.deb.root import BUILD_DIR, BUILDER, BUILDER_ID
from detbox.kernel import _native
from detbox.report.enter import OF_LIBC

_NEWNS, _NEWIPC, _NEWUSER, _NEWPID, _NEWNET = 0x20000, 0x8000000, 0x10000000, 0x20000000, 0x40000000
_MS_BIND, _MS_REC, _MS_PRIVATE = 0x1000, 0x4000, 0x40000
_PR_SET_PDEATHSIG = 1
_SIOCSIFFLAGS, _IFF_UP = 0x8914, 0x1
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
# Ours, and what changes the meaning of a build's commands: the tools of Debian do not pass such variables on.
_NOT_PASSED = ("PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "POSIXLY_CORRECT", "MAKEFLAGS", "CFLAGS")
_CLOCK = "/usr/lib/detbox-clock.so"
_LOCALES = "/usr/share/i18n"
#: What precedes a build that has a later wall clock.  Times of files that were shifted, too, would look like a
#: difference of the package; and dpkg-source cannot unpack with it.
LATER = f"env LD_PRELOAD={_CLOCK} FAKETIME=+400d FAKETIME_DONT_FAKE_MONOTONIC=1 NO_FAKE_STAT=1 FAKE_UTIME=0 "


@dataclass(frozen=True)
class Machine:
    """What a build machine has of its own, besides what hosts differ in: the rest of what Debian's own tests vary.

    ``base``: where sources are unpacked.  ``builder``, ``uid``: the account.  ``path``: more of PATH.
    ``jobs``: more parallel jobs than were declared, since build machines tell the number of their processors.
    """

    base: str
    builder: str
    uid: int
    path: str = ""
    jobs: int = 0

    @property
    def home(self) -> str:
        """The builder's home, which does not exist."""
        return f"/nonexistent/{self.builder}"


@dataclass(frozen=True)
class Tools:
    """What is taken from the archive for other clocks and locales: host paths, "" for what cannot be had."""

    clock: str = ""
    locales: str = ""


#: Of the first and of the second build.
MACHINES = (
    Machine(BUILD_DIR, BUILDER, BUILDER_ID),
    Machine(f"{BUILD_DIR}/other-place", "other-builder", 2222, "/opt/other-tools/bin", 1),
)


def main(order: str) -> int:
    """Runs the build; its exit status."""
    given = json.loads(Path(order).read_text())
    work, machine = os.getcwd(), Machine(**given["machine"])
    scratch = Path(work).parent / "native"
    scratch.mkdir()
    _enter(scratch, Path(given["root"]), work, given)
    child = os.fork()
    if child == 0:
        _native.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        _build(str(scratch / "root"), machine)
    _, status = os.waitpid(child, 0)
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    Path(given["answer"]).write_text(json.dumps({"cpu_s": used.ru_utime + used.ru_stime}))
    return os.waitstatus_to_exitcode(status)


def _enter(scratch: Path, root: Path, work: str, given: Mapping[str, Any]) -> None:
    """Namespaces, and the file system below ``scratch/root``.  ``given``: the order."""
    uid, gid = os.geteuid(), os.getegid()
    _native.unshare(_NEWNS | _NEWIPC | _NEWPID | _NEWNET | (_NEWUSER if uid else 0))
    if uid:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            Path(f"/proc/self/{name}").write_text(text)
    _native.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)
    os.umask(0o022)
    top = scratch / "root"
    for name in ("root", "upper", "work"):
        (scratch / name).mkdir()
    # Through descriptors: paths may have characters that overlayfs takes for separators.
    places = [os.open(path, os.O_PATH) for path in (root, scratch / "upper", scratch / "work")]
    lower, upper, below = (f"/proc/self/fd/{fd}" for fd in places)
    layers = f"userxattr,lowerdir={lower},upperdir={upper},workdir={below}"
    _native.mount("overlay", os.fsencode(top), "overlay", 0, layers)
    for name in ("work", "dev", "proc", "tmp"):
        (top / name).mkdir(exist_ok=True)
    _native.mount(work, os.fsencode(top / "work"), None, _MS_BIND | _MS_REC, None)
    _native.mount("tmpfs", os.fsencode(top / "dev"), "tmpfs", 0, "mode=755")
    for name in _DEVICES:
        (top / "dev" / name).touch()
        _native.mount(f"/dev/{name}", os.fsencode(top / "dev" / name), None, _MS_BIND, None)
    for name in ("shm", "pts"):
        (top / "dev" / name).mkdir(mode=0o755)
    _native.mount("tmpfs", os.fsencode(top / "dev/shm"), "tmpfs", 0, "mode=1777")
    _native.mount("devpts", os.fsencode(top / "dev/pts"), "devpts", 0, "newinstance,ptmxmode=0666,mode=0620")
    for name, target in (("ptmx", "pts/ptmx"), ("fd", "/proc/self/fd"), ("stdin", "/proc/self/fd/0"),
                         ("stdout", "/proc/self/fd/1"), ("stderr", "/proc/self/fd/2")):  # fmt: skip
        (top / "dev" / name).symlink_to(target)
    name = socket.gethostname()
    # As on every build machine: tests look their host up.
    (top / "etc/hosts").write_text(f"127.0.0.1 localhost\n127.0.1.1 {name} {name.partition('.')[0]}\n")
    if given["clock"]:
        (top / _CLOCK[1:]).write_bytes(Path(given["clock"]).read_bytes())
    if given["locales"]:
        (top / _LOCALES[1:]).mkdir(exist_ok=True)
        _native.mount(given["locales"], os.fsencode(top / _LOCALES[1:]), None, _MS_BIND, None)


def _build(top: str, machine: Machine) -> None:
    """In the child, PID 1 of its namespace; never returns."""
    status = 125
    try:
        os.chroot(top)
        os.chdir("/work")
        _native.mount("proc", b"/proc", "proc", 0, None)
        _loopback_up()
        # What the perturbed host ignores and blocks would break programs in ways that have nothing to do with bytes.
        for number in (signal.SIGHUP, signal.SIGPIPE, *OF_LIBC):
            _native.set_signal(number, False)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        _make_locale(os.environ["LC_ALL"])
        if _all_ids_exist():
            _become(machine)
        # PID 1 has no default actions of signals, and must collect orphans.
        child = os.fork()
        if child == 0:
            os.execve("/bin/sh", ["sh", f"/work/{SCRIPT}"], _environment(machine))
        status = _wait_for(child)
    except BaseException as error:
        os.write(2, f"native build: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(status)


def _make_locale(name: str) -> None:
    """Make a locale of the host's one that the build root has: with a missing one tests of packages fail."""
    language, _, charmap = name.partition(".")
    if charmap and os.path.exists(f"{_LOCALES}/locales/{language}"):
        command = ["localedef", "-i", language, "-f", charmap, name]
        subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)


def _environment(machine: Machine) -> dict[str, str]:
    found = {name: value for name, value in os.environ.items() if name not in _NOT_PASSED}
    found |= {"USER": machine.builder, "LOGNAME": machine.builder, "HOME": machine.home}
    if machine.path:
        found["PATH"] += f":{machine.path}"
    return found


def _become(machine: Machine) -> None:
    """The machine's builder, whom the root need not know yet."""
    if machine.uid != BUILDER_ID:
        _append("/etc/passwd", f"{machine.builder}:x:{machine.uid}:{machine.uid}::{machine.home}:/bin/sh\n")
        _append("/etc/group", f"{machine.builder}:x:{machine.uid}:\n")
    os.setgroups([])
    os.setresgid(machine.uid, machine.uid, machine.uid)
    os.setresuid(machine.uid, machine.uid, machine.uid)
    _native.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # new credentials clear it (prctl(2))


def _append(path: str, text: str) -> None:
    """As bytes: Python looks for a text file's codec among its own files, which the root directory need not have."""
    with open(path, "ab") as file:
        file.write(text.encode())


def _all_ids_exist() -> bool:
    """Whether this user namespace has more than the caller's own user."""
    return int(Path("/proc/self/uid_map").read_bytes().split()[2]) > BUILDER_ID


def _wait_for(child: int) -> int:
    """The exit status of ``child`` as a shell gives it; orphans that end earlier are collected."""
    pid, raw = os.wait()
    while pid != child:
        pid, raw = os.wait()
    code = os.waitstatus_to_exitcode(raw)
    return code if code >= 0 else 128 - code


def _loopback_up() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", _IFF_UP))


def order(root: Path, place: Path, tools: Tools, machine: Machine) -> dict[str, Any]:
    """The content of an order; the answer comes into ``place``."""
    return {"root": str(root), "answer": str(place / "answer"), **asdict(tools), "machine": asdict(machine)}


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
