"""Decides what the guest sees of procfs: file contents, directory listings, modes and link texts.

Everything derives from the rows in :mod:`detbox.synth.root`, :mod:`detbox.synth.sysctl`,
:mod:`detbox.synth.tasks` and :mod:`detbox.synth.net`.  A file that has no row is refused and named, so that a
newer kernel cannot leak by adding one.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable

from detbox.machine.constants import NAMESPACE_INODES
from detbox.records import NamedTuple
from detbox.synth import mounts, net, process, root, sysctl, tasks
from detbox.synth.table import Access, Answer, Query, Reader, RealFile, Refused, Row, Synthetic, real, synth
from detbox.synth.view import MachineView, ProcessView, ThreadView

#: Symbolic links of /proc itself; the first two are answered for the thread that asks.
ROOT_LINKS = (
    real("self", "a link to the reader's process", mode=0o120777),
    real("thread-self", "a link to the reader's thread", mode=0o120777),
    real("net", "a link to self/net", mode=0o120777),
    synth("mounts", "a link to self/mounts", mounts.mounts, mode=0o120777),
)
#: Directories whose entries are the kernel's own (numbers of descriptors, address ranges).
DYNAMIC = {"fd": 0o040500, "fdinfo": 0o040555, "map_files": 0o040500}
#: Name of a memfd that stands for a procfs file: this prefix and the file's path.
MEMFD_PREFIX = "detbox:"



class Level:
    """The rows of one place (/proc, /proc/PID, /proc/PID/task/TID or net), indexed by name."""

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = {row.name: row for row in rows}
        self.children: dict[str, list[Row | str]] = {"": []}
        for row in self.rows.values():
            if not row.refuse:
                self._enter(row)

    def _enter(self, row: Row) -> None:
        directory, _, leaf = row.name.rpartition("/")
        self._make_directory(directory)
        if leaf != "*":
            self.children[directory].append(row)

    def _make_directory(self, name: str) -> None:
        if name in self.children:
            return
        parent, _, leaf = name.rpartition("/")
        self._make_directory(parent)
        self.children[name] = []
        self.children[parent].append(leaf)

    def find(self, name: str) -> Row | None:
        """The row of a file: its own, or that of all files below a directory (``dir/*`` holds at any
        depth)."""
        row = self.rows.get(name)
        while row is None and "/" in name:
            name = name.rpartition("/")[0]
            row = self.rows.get(name + "/*")
        return row


ROOT = Level((*root.ROWS, *sysctl.ROWS, *ROOT_LINKS))
PROCESS = Level(row for row in tasks.ROWS if row.only != "thread")
THREAD = Level(row for row in tasks.ROWS if row.only != "process")
NET = Level(net.ROWS)


#: For those alone who may debug the process (proc_mem_open() in fs/proc/base.c).
_OF_DEBUGGERS = frozenset(("mem", "maps", "smaps", "smaps_rollup", "numa_maps", "environ", "auxv", "pagemap"))


class Place(NamedTuple):
    """A procfs path taken apart: its level, the name within it, and the task that it is about."""

    level: Level
    name: str
    process: ProcessView | None = None
    thread: ThreadView | None = None
    task_directory: bool = False  # /proc/PID/task itself


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def place(path: bytes, view: MachineView) -> Place | None:
    """Take a canonical path apart; None if it names a process or thread that the guest does not have."""
    parts = path.decode("latin-1").split("/")[2:]
    if parts == [""]:
        parts = []
    if not parts or not _is_number(parts[0]):
        if parts[:1] == ["net"] and len(parts) > 1:
            return Place(NET, "/".join(parts[1:]))
        return Place(ROOT, "/".join(parts))
    found = view.find(int(parts[0]))
    if found is None:
        return None
    owner, thread = found
    level, rest = PROCESS, parts[1:]
    if rest[:1] == ["task"]:
        if len(rest) == 1:
            return Place(PROCESS, "task", owner, thread, task_directory=True)
        named = owner.thread(int(rest[1])) if _is_number(rest[1]) else None
        if named is None:
            return None
        thread, level, rest = named, THREAD, rest[2:]
    if rest[:1] == ["net"]:
        level, rest = NET, rest[1:]
    return Place(level, "/".join(rest), owner, thread)


def render(
    path: bytes, view: MachineView, reader: Reader, *, write: bool = False, memory: Callable[[], bool] = lambda: True
) -> Answer:
    """What an open of ``path`` (canonical, below /proc) gives.

    ``reader(path)`` returns the real bytes of a procfs file.  ``write``: the open asks for write access.
    ``memory()``: whether who opens may debug the process, whose memory, and what is in it, is open then.
    Never raises for a well-formed view; a reader's OSError becomes a refusal with its errno.
    """
    where = place(path, view)
    if where is None:
        return Refused(errno.ENOENT)
    if where.task_directory or where.name in where.level.children:
        return Refused(errno.EISDIR) if write else RealFile()
    row = where.level.find(where.name)
    if row is None:
        return Refused(errno.ENOENT, unknown=True)
    if row.refuse:
        return Refused(row.refuse)
    query = Query(path, view, reader, where.process, where.thread)
    if row.name in _OF_DEBUGGERS and not query.process.hidden and not memory():
        return Refused(errno.EACCES)
    if write:
        return _open_for_writing(row, query, memory)
    if row.render is not None:
        return _rendered(row, query)
    return _real(row, query, memory)


def _rendered(row: Row, query: Query, sink: bool = False) -> Answer:
    assert row.render is not None
    if row.name == "fdinfo/*" and query.process.hidden:
        return Refused(errno.EACCES)
    try:
        return Synthetic(row.render(query), sink)
    except OSError as error:
        return Refused(error.errno or errno.EIO)


def _real(row: Row, query: Query, memory: Callable[[], bool]) -> Answer:
    owner = query.process_or_none
    if owner is not None and owner.hidden:
        return Synthetic(process.cmdline(query)) if row.name == "cmdline" else Refused(errno.EACCES)
    return RealFile()


def _open_for_writing(row: Row, query: Query, memory: Callable[[], bool]) -> Answer:
    if row.write is Access.NO:
        return Refused(errno.EACCES)
    if row.write is Access.SINK:
        return _rendered(row, query, sink=True)
    return _real(row, query, memory)


def _number_or_name(name: bytes) -> tuple[int, int, bytes]:
    return (1, int(name), name) if name.isdigit() else (0, 0, name)


def listing(path: bytes, real_names: list[bytes], view: MachineView) -> list[bytes]:
    """The names in a procfs directory (without ``.`` and ``..``): words sorted by bytes, then numbers by
    value.

    ``real_names`` (what the kernel lists) decides only where entries are the guest's doing (descriptors) and
    whether a file whose content is the kernel's exists on this host.
    """
    where = place(path, view)
    if where is None:
        return []
    if where.task_directory:
        assert where.process is not None
        return [b"%d" % tid for tid in where.process.tids]
    if where.name in DYNAMIC and where.level in (PROCESS, THREAD):
        assert where.process is not None
        return [] if where.process.hidden else sorted(real_names, key=_number_or_name)
    if where.name == "ns" and where.level in (PROCESS, THREAD):
        return sorted(name.encode() for name in NAMESPACE_INODES)
    names = set()
    for child in where.level.children.get(where.name, ()):
        if isinstance(child, str):
            names.add(child.encode())
        elif not child.real or child in ROOT_LINKS or child.name.encode() in real_names:
            names.add(child.name.rpartition("/")[2].encode())
    if not where.name and where.level in (PROCESS, THREAD):
        names |= {b"net", b"task"} if where.level is PROCESS else {b"net"}
    if not where.name and where.level is ROOT:
        names |= {b"%d" % pid for pid in view.processes}
    return sorted(names, key=_number_or_name)


def mode(path: bytes, view: MachineView) -> int | None:
    """st_mode of what the guest sees at a procfs path; None where it sees nothing."""
    where = place(path, view)
    if where is None:
        return None
    if where.name in DYNAMIC and where.level in (PROCESS, THREAD):
        return DYNAMIC[where.name]
    if where.task_directory or where.name in where.level.children:
        return 0o040511 if where.name == "ns" else 0o040555
    row = where.level.find(where.name)
    return None if row is None or row.refuse else row.mode


def memfd_name(path: bytes) -> str:
    """Name for the memfd that stands for ``path`` (kernel's limit: 249)."""
    return (MEMFD_PREFIX + path.decode("latin-1"))[:249]


def rows() -> list[tuple[str, Row]]:
    """Every row with its full path pattern, sorted: the documentation is generated from this."""
    every = [(f"/proc/{row.name}", row) for row in ROOT.rows.values()]
    for row in tasks.ROWS:
        head = "/proc/PID/task/TID/" if row.only == "thread" else "/proc/PID/"
        every.append((head + row.name, row))
    every += [(f"/proc/PID/net/{row.name}", row) for row in NET.rows.values()]
    return sorted(every, key=lambda item: item[0])
