"""The guest's tree of files as the cache sees it: where paths lead, and through what.

The kernel resolves a path without telling what it passed.  So the way is walked here a second time, one
look per component; directories that were walked are remembered until a name that may lie on a way changes.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from stat import S_ISDIR, S_ISLNK
from typing import TYPE_CHECKING

from detbox.handlers.paths import proc_link

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_MAX_LINKS = 40  # include/linux/namei.h MAXSYMLINKS
#: File systems of the container's own making.
MADE = (b"/proc", b"/sys", b"/dev")
#: (canonical path, directories and links passed on the way: also the directory that the path is in, without which
#: it would not be, and which not everybody may search)
Way = tuple[bytes, tuple[bytes, ...]]
_HEAD = 256  # BINPRM_BUF_SIZE: what the kernel looks at of a program
_PT_INTERP = 3
_MAGIC = (b"cwd", b"root", b"exe")


def made(path: bytes) -> bool:
    """Whether a canonical path lies in a file system that the container makes itself."""
    return path.startswith(MADE) and any(path == top or path[len(top)] == 47 for top in MADE if path.startswith(top))


#: Files of the container's own that are functions of the configuration, of time, or of the process that looks.
_STEADY = frozenset((
    b"", b"self", b"thread-self", b"cpuinfo", b"meminfo", b"filesystems", b"mounts", b"version", b"uptime", b"devices",
    b"cmdline", b"partitions", b"swaps", b"modules", b"misc",
))  # fmt: skip
_OWN = frozenset((
    b"", b"exe", b"cwd", b"root", b"maps", b"smaps", b"cmdline", b"environ", b"auxv", b"comm", b"mounts", b"mountinfo",
    b"mountstats", b"cgroup", b"limits", b"oom_score_adj", b"uid_map", b"gid_map", b"setgroups", b"fd", b"status",
    b"stat", b"statm", b"attr", b"autogroup", b"cpuset", b"io", b"loginuid", b"oom_adj", b"oom_score", b"personality",
    b"sessionid", b"smaps_rollup", b"timerslack_ns", b"wchan",
))  # fmt: skip
_DEVICES = frozenset((
    b"", b"null", b"zero", b"full", b"random", b"urandom", b"fd", b"stdin", b"stdout", b"stderr", b"tty",
))  # fmt: skip


def steady(path: bytes, pid: int) -> bool:
    """Whether what lies at a path for which :func:`made` holds can only depend on what a program starts with."""
    parts = (*path.split(b"/"), b"", b"")[1:4]
    if parts[0] == b"dev":
        return parts[1] in _DEVICES
    if parts[0] != b"proc":
        return parts[0] == b"sys"
    if parts[1] == b"%d" % pid:
        return parts[2] in _OWN
    if parts[1] == b"sys":
        return not path.endswith(b"/ns_last_pid")
    return parts[1] in _STEADY and (parts[1] != b"" or path == b"/proc")


def join(directory: bytes, name: bytes) -> bytes:
    """The path of an entry of a canonical directory."""
    return b"/" + name if directory == b"/" else directory + b"/" + name


def parent_of(path: bytes) -> bytes:
    """The directory of a canonical path."""
    return path[: path.rindex(b"/")] or b"/"


class World:
    """Resolves the paths of one run."""

    def __init__(self, m: Machine, kind_of: Callable[[bytes], str]) -> None:
        """``kind_of``: the KIND of a path."""
        self.m = m
        self._kind_of = kind_of
        self.found: dict[tuple[bytes, bytes, bool], Way] = {}  # whatever has been asked since a name changed
        self._ways: dict[tuple[bytes, bytes], Way] = {}  # of directories
        self._missing: dict[tuple[bytes, bytes], Way] = {}  # ways that end early
        self._plain: set[bytes] = set()  # canonical paths that are no links
        self.changes = 0  # how often a name has changed that ways may pass through

    def changed(self) -> None:
        """A name that ways may pass through has changed."""
        self.changes += 1
        self.found.clear()
        self._ways.clear()
        self._missing.clear()
        self._plain.clear()

    def appeared(self) -> None:
        """A directory has been made."""
        self.changes += 1
        self.found.clear()
        self._missing.clear()

    def find(self, t: Task, base: bytes, path: bytes, follow: bool) -> Way:
        """Where ``path`` leads, relative to the canonical directory ``base``.

        What it leads to need not exist; a way that ends early ends at what is missing or no directory.
        """
        key = (b"" if path[:1] == b"/" else base, path, follow)
        known = self.found.get(key)
        if known is None:
            known = self._look(t, base, path, follow)
            # The links of procfs lead everybody elsewhere.
            if not any(step.startswith(b"/proc") for step in (known[0], *known[1])):
                self.found[key] = known
        return known

    def _look(self, t: Task, base: bytes, path: bytes, follow: bool) -> Way:
        head, _, name = path.rpartition(b"/")
        if not name or name in (b".", b".."):
            return self._walk(t, base, path, True)
        start = base
        passed: tuple[bytes, ...] = (base,)
        if head or path[:1] == b"/":
            key = (b"" if path[:1] == b"/" else base, head)
            way = self._ways.get(key)
            if way is None:
                short = self._missing.get(key)
                if short is not None:
                    return short
                way = self._walk(t, base, head + b"/", True)
                if way[0].startswith(b"/proc"):
                    return self._walk(t, base, path, follow)
                if not os.path.isdir(way[0]):
                    self._missing[key] = way
                    return way
                way = self._ways[key] = way[0], (*way[1], way[0])
            start, passed = way
        child = b"/" + name if start == b"/" else start + b"/" + name
        if child not in self._plain:
            if _is_link(child) if made(child) else self._kind_of(child)[0] == "l":
                return self._walk(t, base, path, follow)
            self._plain.add(child)
        return child, passed

    def _walk(self, t: Task, base: bytes, path: bytes, follow: bool) -> Way:
        passed: dict[bytes, None] = {}
        at = b"/" if path[:1] == b"/" else base
        follow = follow or path.endswith((b"/", b"/."))
        todo = _components(path)
        links = 0
        while todo:
            name = todo.pop()
            passed[at] = None
            if name == b"..":
                at = parent_of(at)
                continue
            child = join(at, name)
            text = self._magic(t, at, name)
            if text is None:
                try:
                    st = os.lstat(child)
                except OSError:
                    return child, tuple(passed)
                if not S_ISLNK(st.st_mode):
                    if not todo or not S_ISDIR(st.st_mode):
                        return child, tuple(passed)
                    at = child
                    continue
                text = os.readlink(child)
            if not todo and not follow:
                return child, tuple(passed)
            passed[child] = None
            links += 1
            if links > _MAX_LINKS or not text:
                return child, tuple(passed)
            if text[:1] == b"/":
                at = b"/"
            elif at.startswith(b"/proc/"):
                return child, tuple(passed)  # pipe:[1] and the like
            todo += _components(text)
        return at, tuple(passed)

    def _magic(self, t: Task, at: bytes, name: bytes) -> bytes | None:
        """Where a link of procfs leads."""
        if not at.startswith(b"/proc"):
            return None
        if at == b"/proc":
            return proc_link(self.m, t, name, self.m.inodes.proc_dev)
        if name in _MAGIC or at.endswith(b"/fd"):
            try:
                return os.readlink(at[len(b"/proc/") :] + b"/" + name, dir_fd=self.m.proc_fd)
            except OSError:
                return None
        return None


def _components(path: bytes) -> list[bytes]:
    return [part for part in reversed(path.split(b"/")) if part not in (b"", b".")]


def _is_link(path: bytes) -> bool:
    try:
        return S_ISLNK(os.lstat(path).st_mode)
    except OSError:
        return False


def interpreter_of(path: bytes) -> bytes | None:
    """The program that runs the program: of a script, or of a dynamically linked file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with open(fd, "rb") as file:
        head = file.read(_HEAD)
        if head.startswith(b"#!"):
            words = head[2:].split(b"\n")[0].split()
            return words[0] if words else None
        if not head.startswith(b"\x7fELF\x02") or len(head) < 64:
            return None
        offset, size, count = (
            int.from_bytes(head[at : at + length], "little") for at, length in ((32, 8), (54, 2), (56, 2))
        )
        file.seek(offset)
        table = file.read(min(size * count, 1 << 16))
        for at in range(0, len(table) - 55, max(size, 56)):
            if int.from_bytes(table[at : at + 4], "little") == _PT_INTERP:
                start = int.from_bytes(table[at + 8 : at + 16], "little")
                length = int.from_bytes(table[at + 32 : at + 40], "little")
                file.seek(start)
                return file.read(min(length, 4096)).rstrip(b"\0") or None
    return None
