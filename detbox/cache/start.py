"""What a program inside of a run starts with: the key of its result, or why it can have none."""

from __future__ import annotations

import functools
import hashlib
import operator
import os
from resource import RLIMIT_CPU
from stat import S_IFMT, S_ISCHR, S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from detbox.cache import pipes
from detbox.cache.world import made
from detbox.handlers.limits import limits_of
from detbox.handlers.locks import RECHECK
from detbox.kernel import _native
from detbox.machine.creds import Creds
from detbox.machine.files import DEVICES_MADE, Kind
from detbox.machine.limits import INFINITY
from detbox.machine.tracees import is_traced
from detbox.records import field, names, record
from detbox.supervisor.task import INHERITED

if TYPE_CHECKING:
    from detbox.cache.pipes import Pipe
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: Lines of /proc/PID/status that a program inherits.
_SIGNALS = (b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:")
_CONSOLE = {Kind.STDIN: "stdin", Kind.STDOUT: "stdout", Kind.STDERR: "stderr"}
_TICK_NS = 10_000_000  # /proc/PID/stat shows when a process was forked, in such steps
_credentials = operator.attrgetter(*names(Creds))
_TIMERS = "timers"  # key of Process.data, see handlers/timers.py
#: Devices without a state.
_DEVICES = (os.makedev(1, 3), os.makedev(1, 5), os.makedev(1, 7), os.makedev(1, 8), os.makedev(1, 9))


@record
class Inherited:
    """The descriptors that a program gets.

    ``foreign``: (real device, inode) of what others can use as well, with a word for people.
    ``numbers``: descriptors by (real device, inode), of what has no name.
    ``pipes``: those of ``foreign`` that are pipes with one side here.
    ``files``: number and path of regular files.
    """

    rows: list[tuple[object, ...]] = field(default_factory=list)
    foreign: dict[tuple[int, int], str] = field(default_factory=dict)
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)
    pipes: dict[tuple[int, int], Pipe] = field(default_factory=dict)


def inherited(m: Machine, t: Task) -> Inherited:
    """Look at a stopped program's descriptors; nothing gets a number by that."""
    found = Inherited()
    for row in sorted(_native.descriptors(m.proc_fd, t.tid)):
        _look(m, t, found, *row)
    return found


def _look(
    m: Machine, t: Task, found: Inherited, number: int, dev: int, ino: int, mode: int, rdev: int, flags: int, at: int
) -> None:
    """One descriptor of what is ``dev``, ``ino``, ``mode`` and ``rdev``; status flags, and position in it."""
    identity = (dev, ino)
    console = _CONSOLE.get(m.stdio[identity]) if identity in m.stdio else None
    if S_ISREG(mode):
        found.files[number] = os.fsencode(_link(m, t, number))
        found.rows.append((number, "file", found.files[number], flags, at))
    elif S_ISDIR(mode):
        found.rows.append((number, "directory", _link(m, t, number), flags, at))
        if at:
            found.foreign[identity] = "a directory that is being read"
    elif S_ISCHR(mode) and rdev in _DEVICES:
        found.rows.append((number, "device", rdev, flags))
    else:
        seen = m.inodes.known_as(identity, S_IFMT(mode))
        first = found.numbers.setdefault(identity, number)
        kind = console or f"{S_IFMT(mode):o}:{rdev}"
        found.rows.append((number, kind, flags, seen.ino if seen is not None else None, first))
        if console is None or console == "stdin":
            _from_outside(m, t, found, identity, (number, flags, _link(m, t, number)))


def _link(m: Machine, t: Task, number: int) -> str:
    return os.readlink(f"{t.tid}/fd/{number}", dir_fd=m.proc_fd)


def _from_outside(
    m: Machine, t: Task, found: Inherited, identity: tuple[int, int], given: tuple[int, int, str]
) -> None:
    """A descriptor of something that others may use as well; ``given``: its number, flags, and what procfs calls it."""
    number, flags, name = given
    writes = bool(flags & os.O_ACCMODE)
    pipe = found.pipes.get(identity)
    if identity in found.foreign:
        if pipe is not None and (pipe.writes != writes or flags & os.O_ACCMODE == os.O_RDWR):
            del found.pipes[identity]
            found.foreign[identity] = "both ends of a pipe that others have"
        return
    if not name.startswith("pipe:"):
        found.foreign[identity] = "a socket that others have" if name.startswith("socket:") else f"{name}, inherited"
    elif identity in m.stdio and not m.console.input_closed:
        found.foreign[identity] = "standard input"
    else:
        found.foreign[identity] = "a pipe that others have"
        pipe = found.pipes[identity] = pipes.look(t, number, writes)
        found.rows.append((number, pipe.ended))


def obstacle(m: Machine, t: Task, given: Inherited) -> str:
    """Why what this program does cannot be told from its start; "" if it can."""
    process = t.process
    if is_traced(t):
        return "is traced"
    if any(path.endswith(b" (deleted)") or made(path) for path in given.files.values()):
        return "inherits a file without a name"
    if process.fs.special or process.namespaces:
        return "has namespaces of its own"
    if DEVICES_MADE in m.data:
        return "devices have been made"
    state = process.data.get(_TIMERS)
    if state is not None and state.intervals:
        return "inherits a timer"
    if limits_of(process)[RLIMIT_CPU][0] != INFINITY:
        return "inherits a limit of processor time"
    if process.job_stop:
        return "is stopped"
    if process.children:
        return "has children of the program before it"
    if any(other.fs is process.fs for other in m.processes.values() if other is not process):
        return "shares its directory with another process"
    if RECHECK in m.scheduler.waiting:
        return "others wait for a lock"
    if any("spin" in task.park.extra for task in m.scheduler.parked if task.park is not None):
        return "others wait in a loop"
    return ""


def key_of(
    m: Machine, t: Task, base: str, counters: tuple[int, ...], given: Inherited, lines: list[bytes]
) -> str:
    """The key of an execution: all that is known before its first instruction.

    ``counters``: last process, next inode, controlling terminal.  ``lines``: of its signals.
    """
    process = t.process
    parts = (
        base, process.program.name, process.exe, process.comm, process.fs.cwd_path(), process.fs.umask,
        _credentials(process.creds), limits_of(process), lines, process.pid, process.ppid, os.getpgid(process.pid),
        os.getsid(process.pid), m.clock.now, counters, process.cpu.ns, process.cpu.children_ns,
        process.start_ns // _TICK_NS, t.cpu.ns, t.turns, t.cpu.looks, _adopter(process),
        [(name, repr(t.data[name])) for name in INHERITED if name in t.data], given.rows,
    )  # fmt: skip
    known = repr(parts)
    # The address of an object would be another one in each run.
    assert " object at 0x" not in known, known
    return hashlib.sha256(known.encode()).hexdigest()


def _adopter(process: Process) -> int:
    """Who gets orphans, if it is not PID 1."""
    at = process.parent
    while at is not None and not at.data.get("subreaper"):
        at = at.parent
    return at.pid if at is not None else 1


def held(lines: list[bytes]) -> int:
    """The signals that are blocked or ignored."""
    return functools.reduce(operator.or_, (int(line[8:], 16) for line in lines[2:]), 0)


def signal_lines(m: Machine, t: Task) -> list[bytes]:
    """Pending, blocked and ignored signals, as procfs has them."""
    fd = os.open(f"{t.tid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    lines = text[text.index(_SIGNALS[0]) :].split(b"\n", len(_SIGNALS))[: len(_SIGNALS)]
    assert all(map(bytes.startswith, lines, _SIGNALS)), lines
    return lines
