"""Work on trees with the rights that it needs: in a user namespace where the caller is not root.

Three ways, by what is to be done:

* :func:`as_owner`: files of the caller's own whose modes shut even their owner out.  One user is mapped.
* :func:`as_root`: files of all owners.  An ordinary user needs a range of subordinate user ids for it.
* :func:`run`: a command in a tree, which is its root directory, by way of pychroot.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import pwd
import shutil
import signal
import subprocess
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

from detbox.errors import DetboxError, HostError, InternalError
from detbox.kernel import _native

T = TypeVar("T")
CLONE_NEWNS, CLONE_NEWUSER, CLONE_NEWNET = 0x20000, 0x10000000, 0x40000000
PR_SET_PDEATHSIG = 1
PRIVATE = 0x4000 | 0x40000  # MS_REC | MS_PRIVATE
#: How many ids a Debian system uses: nobody is 65534.
IDS = 65536
#: What a program inside sees of the environment, before what is declared.
ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "DEBIAN_FRONTEND": "noninteractive",
    "DEBCONF_NONINTERACTIVE_SEEN": "true",
}


def as_owner(body: Callable[[], T]) -> T:
    """``body()``, with root's rights over the caller's own files.  Its result must be picklable."""
    return body() if os.geteuid() == 0 else _in_child(body, _map_self)


def as_root(body: Callable[[], T]) -> T:
    """``body()`` where all users and groups of an image exist.  Raises HostError where that cannot be had."""
    if os.geteuid() == 0:
        return body()
    check_subids()
    return _in_child(body, _map_range)


def check_subids() -> None:
    """HostError if this user has no subordinate ids, or nothing to map them with."""
    if os.geteuid() == 0:
        return
    for program in ("newuidmap", "newgidmap"):
        if shutil.which(program) is None:
            raise HostError(f"the program {program} is missing", "install it: apt-get install uidmap")
    for file in ("/etc/subuid", "/etc/subgid"):
        if _subids(file) is None:
            name = _user_name()
            raise HostError(
                f"{name} has no range of {IDS} ids in {file}",
                "let root give a range that nobody else has, such as: "
                f"usermod --add-subuids 100000-165535 --add-subgids 100000-165535 {name}",
            )


def run(
    root: str | os.PathLike[str],
    command: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    binds: Mapping[str, str] | None = None,
    network: bool = False,
    stdin: bytes = b"",
) -> subprocess.CompletedProcess[bytes]:
    """Runs a command with ``root`` as its root directory, as the image's root, and waits for it.

    ``env``: added to :data:`ENVIRONMENT`.  ``binds``: host path → path inside, shown there.  Without ``network``
    there is none.  ``/dev``, ``/proc`` and the like exist while it runs.  The result has status, output and
    error output; the caller judges them.  Raises HostError.
    """
    path = os.path.abspath(root)
    environment = {**ENVIRONMENT, **(env or {})}

    def body() -> subprocess.CompletedProcess[bytes]:
        return _chrooted(path, list(command), environment, dict(binds or {}), network, stdin)

    # Also for root in a process of its own: the namespaces end with it.
    return _in_child(body, None) if os.geteuid() == 0 else as_root(body)


def _chrooted(
    path: str, command: list[str], env: dict[str, str], binds: dict[str, str], network: bool, stdin: bytes
) -> subprocess.CompletedProcess[bytes]:
    try:
        from pychroot.base import Chroot
    except ImportError:
        raise HostError("pychroot is missing", "install it: pip install 'detbox[images]'") from None
    # Whatever is mounted stays in a mount namespace of this process's own.
    _native.unshare(CLONE_NEWNS | (0 if network else CLONE_NEWNET))
    _native.mount(None, b"/", None, PRIVATE, None)
    mounts: dict[str, Any] = {f"{source}:{target}": {"create": True} for source, target in binds.items()}
    chroot = Chroot(path, mountpoints=mounts)
    _choose_mounts(chroot, path, network)
    read_end, write_end = os.pipe()
    with chroot:
        os.close(read_end)
        try:
            done = subprocess.run(command, input=stdin, capture_output=True, env=env, cwd="/", check=False)
        except FileNotFoundError:
            done = subprocess.CompletedProcess(command, 127, b"", f"{command[0]}: not in the image".encode())
        with open(write_end, "wb") as out:
            pickle.dump((done.returncode, done.stdout, done.stderr), out)
    os.close(write_end)
    with open(read_end, "rb") as results:
        status, output, errors = pickle.load(results)
    return subprocess.CompletedProcess(command, status, output, errors)


def _choose_mounts(chroot: Any, path: str, network: bool) -> None:
    """pychroot's own mounts, as far as the image can have them."""
    resolver = os.path.join(path, "etc/resolv.conf")
    if not network or os.path.islink(resolver):
        del chroot.mountpoints["/etc/resolv.conf"]
    del chroot.mountpoints["sysfs:/sys"]  # belongs to the network namespace, and nothing needs it


def _in_child(body: Callable[[], T], prepare: Callable[[int], None] | None) -> T:
    """``body()`` in a forked child; ``prepare``: what the parent does once the child has its user namespace."""
    made_read, made_write = os.pipe()
    go_read, go_write = os.pipe()
    out_read, out_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        for fd in (made_read, go_write, out_read):
            os.close(fd)
        _child(body, prepare is not None, made_write, go_read, out_write)
    for fd in (made_write, go_read, out_write):
        os.close(fd)
    try:
        if os.read(made_read, 1) and prepare is not None:
            prepare(pid)
        if prepare is not None:
            os.write(go_write, b"g")
        os.close(go_write)
        with open(out_read, "rb", closefd=False) as results:
            text = results.read()
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    finally:
        for fd in (made_read, out_read):
            os.close(fd)
        with contextlib.suppress(OSError):
            os.close(go_write)
        os.waitpid(pid, 0)
    if not text:
        raise HostError("a process that worked on an image was killed", "is there memory enough?")
    good, result = pickle.loads(text)
    if good:
        return result
    raise result


def _child(body: Callable[[], Any], mapped: bool, made: int, go: int, out: int) -> None:
    """The child's life.  It never returns."""
    status = 1
    try:
        _native.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        try:
            if mapped:
                _enter_user_namespace(made, go)
            answer: tuple[bool, Any] = (True, body())
        except SystemExit as leaving:  # pychroot's process that waits for the namespace's first one
            os._exit(int(leaving.code or 0))
        except (DetboxError, OSError) as error:
            answer = (False, error)
        except BaseException as error:
            answer = (False, InternalError(f"{type(error).__name__}: {error}\n{traceback.format_exc()}"))
        with open(out, "wb") as file:
            file.write(_pickled(answer))
        status = 0
    finally:
        os._exit(status)


def _pickled(answer: tuple[bool, Any]) -> bytes:
    if not answer[0] and isinstance(answer[1], DetboxError):
        error = answer[1]
        fresh = type(error)(error.message, error.remedy)
        return pickle.dumps((False, fresh)) if fresh.args == (error.message,) else pickle.dumps(answer)
    return pickle.dumps(answer)


def _enter_user_namespace(made: int, go: int) -> None:
    try:
        _native.unshare(CLONE_NEWUSER)
    except OSError as error:
        raise HostError(f"cannot create a user namespace: {error.strerror}", "run: detbox doctor") from error
    os.write(made, b"m")
    if os.read(go, 1) != b"g":
        os._exit(1)
    # The rights that came with the namespace were lost if the ids were looked up before they were mapped.
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _map_self(pid: int) -> None:
    maps = {"setgroups": "deny", "uid_map": f"0 {os.geteuid()} 1", "gid_map": f"0 {os.getegid()} 1"}
    for name, text in maps.items():
        with open(f"/proc/{pid}/{name}", "w", encoding="ascii") as file:
            file.write(text)


def _map_range(pid: int) -> None:
    for program, own, file in (
        ("newuidmap", os.geteuid(), "/etc/subuid"),
        ("newgidmap", os.getegid(), "/etc/subgid"),
    ):
        start = _subids(file)
        command = [program, str(pid), "0", str(own), "1", "1", str(start), str(IDS - 1)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HostError(f"{program} failed: {done.stderr.strip()}", f"see {file}")


def _user_name() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return str(os.geteuid())


def _subids(file: str) -> int | None:
    """The first id of this user's first range that is large enough."""
    for name, start, count in _ranges(file):
        if name in (_user_name(), str(os.geteuid())) and count >= IDS - 1:
            return start
    return None


def _ranges(file: str) -> Iterator[tuple[str, int, int]]:
    with contextlib.suppress(FileNotFoundError), open(file, encoding="utf-8") as lines:
        for line in lines:
            name, _, numbers = line.strip().partition(":")
            start, _, count = numbers.partition(":")
            if start.isdigit() and count.isdigit():
                yield name, int(start), int(count)
