"""What a program inside of a run starts with: the key of its result, or why it can have none."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass, field
from stat import S_IFMT, S_ISCHR, S_ISDIR, S_ISREG
from typing import TYPE_CHECKING

from detbox.cache.world import made
from detbox.handlers.limits import limits_of
from detbox.machine.files import Kind
from detbox.supervisor.task import INHERITED

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

#: Lines of /proc/PID/status that a program inherits.
_SIGNALS = (b"SigPnd:", b"ShdPnd:", b"SigBlk:", b"SigIgn:")
_CONSOLE = {Kind.STDIN: "stdin", Kind.STDOUT: "stdout", Kind.STDERR: "stderr"}
_TICK_NS = 10_000_000  # /proc/PID/stat shows when a process was forked, in such steps
_TIMERS = "timers"  # key of Process.data, see handlers/timers.py
#: Devices without a state.
_DEVICES = (os.makedev(1, 3), os.makedev(1, 5), os.makedev(1, 7), os.makedev(1, 8), os.makedev(1, 9))


@dataclass
class Inherited:
    """The descriptors that a program gets.

    ``foreign``: (real device, inode) of what others can use as well, with a word for people.
    ``numbers``: descriptors by (real device, inode), of what has no name.
    ``files``: number and path of regular files.
    """

    rows: list[tuple[object, ...]] = field(default_factory=list)
    foreign: dict[tuple[int, int], str] = field(default_factory=dict)
    numbers: dict[tuple[int, int], int] = field(default_factory=dict)
    files: dict[int, bytes] = field(default_factory=dict)


def inherited(m: Machine, t: Task) -> Inherited:
    """Look at a stopped program's descriptors; nothing gets a number by that."""
    found = Inherited()
    for number in sorted(map(int, os.listdir(f"/proc/{t.tid}/fd"))):
        place = f"/proc/{t.tid}/fd/{number}"
        st = os.stat(place)
        flags, position = _description(m, t, number)
        identity = (st.st_dev, st.st_ino)
        console = _CONSOLE.get(m.stdio[identity]) if identity in m.stdio else None
        if S_ISREG(st.st_mode):
            found.files[number] = os.fsencode(os.readlink(place))
            found.rows.append((number, "file", found.files[number], flags, position))
        elif S_ISDIR(st.st_mode):
            found.rows.append((number, "directory", os.readlink(place), flags, position))
            if position:
                found.foreign[identity] = "a directory that is being read"
        elif S_ISCHR(st.st_mode) and st.st_rdev in _DEVICES:
            found.rows.append((number, "device", st.st_rdev, flags))
        else:
            seen = m.inodes.known(st)
            found.numbers[identity] = number
            kind = console or f"{S_IFMT(st.st_mode):o}:{st.st_rdev}"
            found.rows.append((number, kind, flags, seen.ino if seen is not None else None))
            if console is None:
                found.foreign[identity] = "an inherited pipe, socket or terminal"
            elif console == "stdin":
                found.foreign[identity] = "standard input"
    return found


def _description(m: Machine, t: Task, number: int) -> tuple[int, int]:
    """Status flags and position of an open file description."""
    fd = os.open(f"{t.tid}/fdinfo/{number}", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        words = os.read(fd, 128).split()
    finally:
        os.close(fd)
    return int(words[3], 8), int(words[1])


def obstacle(m: Machine, t: Task, given: Inherited) -> str:
    """Why what this program does cannot be told from its start; "" if it can."""
    process = t.process
    if any(path.endswith(b" (deleted)") or made(path) for path in given.files.values()):
        return "inherits a file without a name"
    if process.fs.special or process.namespaces:
        return "has namespaces of its own"
    state = process.data.get(_TIMERS)
    if state is not None and state.intervals:
        return "inherits a timer"
    if process.job_stop:
        return "is stopped"
    return ""


def key_of(m: Machine, t: Task, base: str, next_process: int, next_inode: int, given: Inherited) -> str:
    """The key of an execution: all that is known before its first instruction."""
    process = t.process
    parts = (
        base, process.program.name, process.exe, process.fs.cwd_path(), process.fs.umask, repr(process.creds),
        limits_of(process), _signal_lines(m, t), process.pid, process.ppid, os.getpgid(process.pid),
        os.getsid(process.pid), m.clock.now, next_process, next_inode, process.cpu.ns, process.cpu.children_ns,
        process.start_ns // _TICK_NS,
        t.cpu.ns, [(name, repr(t.data[name])) for name in INHERITED if name in t.data], given.rows,
    )  # fmt: skip
    return hashlib.sha256(repr(parts).encode()).hexdigest()


def _signal_lines(m: Machine, t: Task) -> list[bytes]:
    fd = os.open(f"{t.tid}/status", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        text = os.read(fd, 4096)
    finally:
        os.close(fd)
    return [line for line in text.split(b"\n") if line.startswith(_SIGNALS)]
