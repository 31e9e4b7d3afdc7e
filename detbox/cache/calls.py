"""Which path each system call looks at or changes: called just before its handler.

A function returns the *marks* of the change, (path, aspects) each; they are entered if the call succeeds.
Whatever a call may change is looked at first, so that its former state is known in any case.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from stat import S_IFBLK, S_IFCHR, S_IFMT
from typing import TYPE_CHECKING

from detbox.cache.facts import CONTENT, IDENTITY, KIND, LIST, PYTIME, SIZE, TIMES, XATTR
from detbox.cache.world import join
from detbox.handlers.paths import AT_FDCWD
from detbox.kernel.numbers import NUMBERS

if TYPE_CHECKING:
    from detbox.cache.tracker import Tracker
    from detbox.supervisor.task import Args, Task

Marks = list[tuple[bytes, int]]
Probe = Callable[["Tracker", "Task", "Args"], Marks | None]

_M32 = 0xFFFFFFFF
_NOFOLLOW, _REMOVEDIR, _SYMLINK_FOLLOW = 0x100, 0x200, 0x400
_EXCHANGE = 2
_O_TMPFILE = 0o20000000
_MORE_THAN_READING = os.O_ACCMODE | os.O_TRUNC | os.O_CREAT | os.O_PATH | _O_TMPFILE
_AF_UNIX = 1
_SIGKILL = 9
CWD = AT_FDCWD

PROBES: dict[int, Probe] = {}
_NAMES = {number: name for name, number in NUMBERS.items()}


def _probe(*names: str) -> Callable[[Probe], Probe]:
    def enter(function: Probe) -> Probe:
        for name in names:
            PROBES[NUMBERS[name]] = function
        return function

    return enter


# -- looking ----------------------------------------------------------------------------


def _stat(k: Tracker, t: Task, dirfd: int, path: bytes, follow: bool) -> None:
    if path:
        k.look(t, dirfd, path, follow, KIND | SIZE)
        if path.endswith(b".py") and (follow or k.now(k.find(t, dirfd, path, False) or b"") == "f"):
            k.look(t, dirfd, path, False, KIND | PYTIME)


@_probe("stat", "lstat")
def stat(k: Tracker, t: Task, a: Args) -> None:
    _stat(k, t, CWD, t.cstr(a[0]), t.nr == NUMBERS["stat"])


@_probe("newfstatat")
def newfstatat(k: Tracker, t: Task, a: Args) -> None:
    if a[1]:
        _stat(k, t, a[0], t.cstr(a[1]), not a[3] & _NOFOLLOW)


@_probe("statx")
def statx(k: Tracker, t: Task, a: Args) -> None:
    if a[1]:
        _stat(k, t, a[0], t.cstr(a[1]), not a[2] & _NOFOLLOW)


#: Calls that only look at a path, their first argument: whether a link at its end is followed, and at what.
LOOKS = {
    NUMBERS[name]: (follow, aspects)
    for name, follow, aspects in (
        ("access", True, KIND), ("readlink", False, KIND), ("statfs", True, KIND), ("chdir", True, KIND),
        ("getxattr", True, KIND | XATTR), ("lgetxattr", False, KIND | XATTR),
        ("listxattr", True, KIND | XATTR), ("llistxattr", False, KIND | XATTR),
    )
}  # fmt: skip


@_probe("chroot")
def chroot(k: Tracker, t: Task, a: Args) -> None:
    k.unable(t, "has a root directory of its own")


@_probe("faccessat", "faccessat2", "readlinkat")
def by_path_at(k: Tracker, t: Task, a: Args) -> None:
    name = _NAMES[t.nr]
    path = t.cstr(a[1])
    if path:
        follow = name == "faccessat" or (name == "faccessat2" and not a[3] & _NOFOLLOW)
        k.look(t, a[0], path, follow, KIND)


@_probe("fgetxattr", "flistxattr")
def attributes_of_fd(k: Tracker, t: Task, a: Args) -> None:
    path = k.path_of_fd(t, a[0])
    if path is not None:
        k.touch(t, path, KIND | XATTR)


@_probe("getdents", "getdents64")
def getdents(k: Tracker, t: Task, a: Args) -> None:
    path = k.path_of_fd(t, a[0])
    if path is not None:
        k.touch(t, path, KIND | LIST)
        if path == b"/proc":
            k.unable(t, "lists the processes", whole=False)


@_probe("inotify_add_watch")
def inotify_add_watch(k: Tracker, t: Task, a: Args) -> None:
    k.look(t, CWD, t.cstr(a[1]), True, KIND)


@_probe("execve")
def execve(k: Tracker, t: Task, a: Args) -> None:
    k.executes(t, CWD, t.cstr(a[0]))


@_probe("execveat")
def execveat(k: Tracker, t: Task, a: Args) -> None:
    path = t.cstr(a[1])
    if path:
        k.executes(t, a[0], path)


@_probe("mount", "umount2", "unshare", "setns", "pivot_root")
def namespaces(k: Tracker, t: Task, a: Args) -> None:
    k.unable(t, "makes namespaces or mounts of its own")


@_probe("kill", "tkill", "rt_sigqueueinfo", "pidfd_send_signal")
def kill(k: Tracker, t: Task, a: Args) -> None:
    if a[1] & _M32 == _SIGKILL:
        k.kills()


@_probe("tgkill", "rt_tgsigqueueinfo")
def tgkill(k: Tracker, t: Task, a: Args) -> None:
    if a[2] & _M32 == _SIGKILL:
        k.kills()


# -- opening ----------------------------------------------------------------------------


@_probe("open")
def open_(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _open(k, t, CWD, t.cstr(a[0]), a[1])


@_probe("creat")
def creat(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _open(k, t, CWD, t.cstr(a[0]), os.O_CREAT | os.O_WRONLY | os.O_TRUNC)


@_probe("openat")
def openat(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _open(k, t, a[0], t.cstr(a[1]), a[2])


@_probe("openat2")
def openat2(k: Tracker, t: Task, a: Args) -> Marks | None:
    if t.u64(a[2] + 16) & 0x1F:
        k.unable(t, "opens a path with limits on how it is resolved (openat2)")
    return _open(k, t, a[0], t.cstr(a[1]), t.u64(a[2]))


def _open(k: Tracker, t: Task, dirfd: int, path: bytes, flags: int) -> Marks | None:
    if not flags & _MORE_THAN_READING:
        k.reads(t, dirfd, path, not flags & os.O_NOFOLLOW)
        return None
    exclusive = flags & (os.O_CREAT | os.O_EXCL) == os.O_CREAT | os.O_EXCL
    found = k.find(t, dirfd, path, not (flags & os.O_NOFOLLOW or exclusive))
    if found is None:
        return None
    if flags & os.O_PATH:
        k.touch(t, found, KIND | SIZE)
        return None
    if flags & _O_TMPFILE:
        k.touch(t, found, KIND)
        k.unable(t, "makes a file without a name", whole=False)
        return None
    k.touch(t, found, KIND)
    k.opens(t, found)
    kind = k.now(found)
    if kind == "f" and not exclusive:
        if flags & os.O_TRUNC:
            return k.rewrites(t, found)
        k.touch(t, found, SIZE | CONTENT)
        return k.rewrites(t, found) if flags & os.O_ACCMODE else None
    if kind == "-" and flags & os.O_CREAT:
        return k.appears(t, found)
    return None


#: What is asked by opening a path to read it, beside the aspects, which other calls look at.
OPENS = 1 << 9
EXECUTES = 1 << 10  # and by executing it
#: From a call's arguments to the question about its path, see Tracker.look; 0 if it is more than a question.
Ask = Callable[["Args"], int]


def _asks_open(a: Args) -> int:
    flags = a[2]
    return 0 if flags & _MORE_THAN_READING else OPENS | (not flags & os.O_NOFOLLOW)


def _asks_stat(a: Args) -> int:
    return (KIND | SIZE) << 1 | (not a[3] & _NOFOLLOW) if a[1] else 0


QUICK: dict[int, tuple[int, Ask]] = {
    NUMBERS["openat"]: (1, _asks_open), NUMBERS["newfstatat"]: (1, _asks_stat),
}  # fmt: skip


# -- changing names ---------------------------------------------------------------------


@_probe("mknod")
def makes_node(k: Tracker, t: Task, a: Args) -> Marks | None:
    return None if _device(k, t, a[1]) else _make(k, t, CWD, t.cstr(a[0]))


@_probe("mknodat")
def makes_node_at(k: Tracker, t: Task, a: Args) -> Marks | None:
    return None if _device(k, t, a[2]) else _make(k, t, a[0], t.cstr(a[1]))


def _device(k: Tracker, t: Task, mode: int) -> bool:
    made = S_IFMT(mode & 0xFFFF) in (S_IFCHR, S_IFBLK)
    if made:
        k.unable(t, "makes a device")
    return made


@_probe("mkdir")
def makes(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _make(k, t, CWD, t.cstr(a[0]))


@_probe("mkdirat")
def makes_at(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _make(k, t, a[0], t.cstr(a[1]))


@_probe("symlink")
def symlink(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _make(k, t, CWD, t.cstr(a[1]), link=True)


@_probe("symlinkat")
def symlinkat(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _make(k, t, a[1], t.cstr(a[2]), link=True)


def _make(k: Tracker, t: Task, dirfd: int, path: bytes, *, link: bool = False) -> Marks | None:
    found = k.find(t, dirfd, path.rstrip(b"/") or path, False)
    if found is None:
        return None
    k.touch(t, found, KIND)
    if k.now(found) != "-":
        return None
    if link:
        k.names_change()
    else:
        k.world.appeared()
    return k.appears(t, found)


@_probe("bind")
def bind(k: Tracker, t: Task, a: Args) -> Marks | None:
    path = socket_path(t, a)
    return None if path is None else _make(k, t, CWD, path)


@_probe("connect")
def connect(k: Tracker, t: Task, a: Args) -> None:
    path = socket_path(t, a)
    if path is not None:
        k.look(t, CWD, path, True, KIND)


def socket_path(t: Task, a: Args) -> bytes | None:
    size = min(a[2] & _M32, 110)
    if size < 3:
        return None
    address = t.read(a[1], size)
    if int.from_bytes(address[:2], "little") != _AF_UNIX or address[2] == 0:
        return None
    return address[2:].split(b"\0")[0]


@_probe("unlink", "rmdir")
def removes(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _remove(k, t, CWD, t.cstr(a[0]), t.nr == NUMBERS["rmdir"])


@_probe("unlinkat")
def removes_at(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _remove(k, t, a[0], t.cstr(a[1]), bool(a[2] & _REMOVEDIR))


def _remove(k: Tracker, t: Task, dirfd: int, path: bytes, directory: bool) -> Marks | None:
    found = k.find(t, dirfd, path.rstrip(b"/") or path, False)
    if found is None:
        return None
    k.touch(t, found, KIND | (LIST if directory else 0))
    return k.vanishes(t, found)


@_probe("rename")
def rename(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _rename(k, t, CWD, t.cstr(a[0]), CWD, t.cstr(a[1]), 0)


@_probe("renameat")
def renameat(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _rename(k, t, a[0], t.cstr(a[1]), a[2], t.cstr(a[3]), 0)


@_probe("renameat2")
def renameat2(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _rename(k, t, a[0], t.cstr(a[1]), a[2], t.cstr(a[3]), a[4])


def _rename(k: Tracker, t: Task, dir1: int, old: bytes, dir2: int, new: bytes, flags: int) -> Marks | None:
    one = k.find(t, dir1, old.rstrip(b"/") or old, False)
    other = k.find(t, dir2, new.rstrip(b"/") or new, False)
    if one is None or other is None:
        return None
    k.touch(t, one, KIND)
    k.touch(t, other, KIND)
    if k.now(one) == "-":
        return None
    if k.now(other) == "d":
        k.touch(t, other, LIST)
    return k.moves(t, one, other, both=bool(flags & _EXCHANGE))


@_probe("link")
def link(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _link(k, t, CWD, t.cstr(a[0]), CWD, t.cstr(a[1]), 0)


@_probe("linkat")
def linkat(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _link(k, t, a[0], t.cstr(a[1]), a[2], t.cstr(a[3]), a[4])


def _link(k: Tracker, t: Task, dir1: int, old: bytes, dir2: int, new: bytes, flags: int) -> Marks | None:
    other = k.find(t, dir2, new, False)
    if not old:
        k.unable(t, "gives a name to a file without one")
        return None
    one = k.find(t, dir1, old, bool(flags & _SYMLINK_FOLLOW))
    if one is None or other is None:
        return None
    k.touch(t, one, KIND | SIZE | CONTENT | XATTR)
    k.touch(t, other, KIND)
    if k.now(other) != "-":
        return None
    return k.links(t, one, other)


# -- changing what is there -------------------------------------------------------------


@_probe("chmod", "chown", "lchown", "utime", "utimes", "setxattr", "lsetxattr", "removexattr", "lremovexattr")
def changes(k: Tracker, t: Task, a: Args) -> Marks | None:
    return _change(k, t, CWD, t.cstr(a[0]), not _NAMES[t.nr].startswith("l"))


@_probe("fchmodat", "fchmodat2", "fchownat", "utimensat", "futimesat")
def changes_at(k: Tracker, t: Task, a: Args) -> Marks | None:
    path = t.cstr(a[1]) if a[1] else b""
    flags = {"fchmodat2": a[3], "fchownat": a[4], "utimensat": a[3]}.get(_NAMES[t.nr], 0)
    if not path:
        return changes_fd(k, t, a)
    return _change(k, t, a[0], path, not flags & _NOFOLLOW)


@_probe("fchmod", "fchown", "fsetxattr", "fremovexattr")
def changes_fd(k: Tracker, t: Task, a: Args) -> Marks | None:
    path = k.path_of_fd(t, a[0])
    return None if path is None else _changed(k, t, path)


def _change(k: Tracker, t: Task, dirfd: int, path: bytes, follow: bool) -> Marks | None:
    found = k.find(t, dirfd, path, follow)
    return None if found is None else _changed(k, t, found)


def _changed(k: Tracker, t: Task, path: bytes) -> Marks | None:
    k.touch(t, path, KIND | SIZE | XATTR)
    k.ledger.settle(path)  # its time of change moves
    k.in_place(t, path)
    return [(path, KIND | XATTR | IDENTITY | TIMES)]


@_probe("truncate")
def truncate(k: Tracker, t: Task, a: Args) -> Marks | None:
    found = k.find(t, CWD, t.cstr(a[0]), True)
    if found is None:
        return None
    k.touch(t, found, KIND | SIZE | CONTENT)
    return k.rewrites(t, found) if k.now(found) == "f" else None


def below(path: bytes) -> list[bytes]:
    """Every path below a directory, directories before what is in them."""
    found = []
    for top, directories, files in os.walk(path):
        found += [join(top, name) for name in (*directories, *files)]
    return found
