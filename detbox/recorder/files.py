"""Which files a run's processes use, followed through the calls of its trace.

Descriptors, current directories and pipes are followed as the kernel would; symbolic links are not resolved, so a
path is what the program named.  Pipes are called ``pipe:N``, and the ends of a pair of sockets ``socket:Na`` and
``socket:Nb``, in order of their creation.
"""

from __future__ import annotations

import os
import posixpath
from dataclasses import dataclass, field
from functools import lru_cache

from detbox.kernel.numbers import NUMBERS
from detbox.recorder.calls import OPENING, path_arguments
from detbox.recorder.format import Event, Kind
from detbox.recorder.read import Threads


def _numbers(*names: str) -> frozenset[int]:
    return frozenset(NUMBERS[name] for name in names)


#: Calls with a descriptor first, by what they do to its file.
_READS = _numbers("read", "pread64", "readv", "preadv", "preadv2", "recvfrom", "recvmsg", "getdents64")
_WRITES = _numbers("write", "pwrite64", "writev", "pwritev", "pwritev2", "sendto", "sendmsg")
_BY_FD = _READS | _WRITES | _numbers("fstat", "lseek", "ftruncate", "fchmod", "fchown", "fsync", "fdatasync", "ioctl",
                                     "fcntl", "fchdir", "fstatfs", "fallocate", "flock", "fsetxattr",
                                     "newfstatat", "statx", "fchownat", "utimensat")  # fmt: skip
_PIPES, _PAIRS = _numbers("pipe", "pipe2"), _numbers("socketpair")
_ANONYMOUS = _numbers("socket", "accept", "accept4", "epoll_create", "epoll_create1", "eventfd", "eventfd2", "signalfd",
                      "signalfd4", "timerfd_create", "memfd_create", "inotify_init", "inotify_init1", "pidfd_open",
                      "mq_open")  # fmt: skip
_DUPLICATES = _numbers("dup", "dup2", "dup3")
_FCNTL, _MMAP, _CHDIR, _FCHDIR = (NUMBERS[name] for name in ("fcntl", "mmap", "chdir", "fchdir"))
_F_DUPFD = (0, 1030)  # F_DUPFD, F_DUPFD_CLOEXEC
_UNLINKS = _numbers("unlink", "unlinkat", "rmdir")
_RENAMES = _numbers("rename", "renameat", "renameat2")
_MAKES = _numbers("mkdir", "mkdirat", "mknod", "mknodat")
_LINKS = _numbers("link", "linkat", "symlink", "symlinkat")
#: By call: which argument names the output, which the input.
_COPIES = {NUMBERS["copy_file_range"]: (2, 0), NUMBERS["sendfile"]: (0, 1), NUMBERS["splice"]: (2, 0),
           NUMBERS["tee"]: (1, 0)}  # fmt: skip
_O_TRUNC, _O_ACCMODE = os.O_TRUNC, os.O_ACCMODE
_MAP_SHARED, _PROT_WRITE = 1, 2
_AT_FDCWD = 0xFFFFFF9C
_START = b"/work"
#: How the names of pipes, and of the ends of pairs of sockets, begin.
PIPE, PAIR = b"pipe:", b"socket:"


@dataclass(slots=True)
class Use:
    """What one process did with one file.  ``first_…`` and ``last_…``: numbers of events, -1 for none."""

    opened: int = 0
    bytes_read: int = 0
    bytes_written: int = 0
    created: bool = False
    removed: bool = False
    executed: bool = False
    mapped: bool = False
    written: bool = False
    first_read: int = -1
    last_read: int = -1
    first_written: int = -1

    @property
    def read(self) -> bool:
        """Whether its content has come into the process."""
        return self.first_read >= 0


@dataclass(slots=True)
class _Process:
    """Descriptors and current directory.  A descriptor without a name is "" (closing is not seen)."""

    cwd: bytes = _START
    names: dict[int, bytes] = field(default_factory=dict)

    def copy(self) -> _Process:
        return _Process(self.cwd, dict(self.names))


class Files:
    """Fed with a trace's joined events in order; ``uses`` tells by (process, path) what was done."""

    def __init__(self) -> None:
        self.uses: dict[tuple[str, bytes], Use] = {}
        first = _Process(names={0: b"stdin", 1: b"stdout", 2: b"stderr"})
        self._processes: dict[str, _Process] = {"1": first}
        self._paths = path_arguments()
        self._count = self._anonymous = 0

    def learn(self, event: Event, threads: Threads) -> tuple[bytes, ...]:
        """Take note of an event.  Returns the absolute paths that it is about."""
        self._count += 1
        if event.kind is Kind.FORK:
            parent = self._processes.get(threads.of(event).process)
            child = threads.by_number.get(event.other)
            if parent is not None and child is not None:
                self._processes[child.process] = parent.copy()
            return ()
        if event.kind not in (Kind.CALL, Kind.EXEC):
            return ()
        lineage = threads.of(event).process
        process = self._processes.setdefault(lineage, _Process())
        if event.kind is Kind.EXEC:
            use = self._use(lineage, event.path)
            use.executed = True
            self._reads(use, 0)
            return (event.path,)
        if event.path:
            return self._by_path(event, lineage, process)
        return self._by_descriptor(event, lineage, process)

    # -- calls that name paths ------------------------------------------------------

    def _by_path(self, event: Event, lineage: str, process: _Process) -> tuple[bytes, ...]:
        places = self._paths.get(event.nr, (0,))
        named = [(event.path, places[0]), (event.path2, places[-1])][: 2 if event.path2 else 1]
        found = tuple(self._absolute(event, process, text, place) for text, place in named)
        if not event.known or event.result < 0:
            return found
        use = self._use(lineage, found[-1])
        if event.nr in OPENING:
            self._open(event, use, process, found[0])
        elif event.nr in _UNLINKS:
            use.removed = True
        elif event.nr in _RENAMES:
            old = self._use(lineage, found[0])
            old.removed = True
            self._reads(old, 0)
            use.created = True
            self._writes(use, 0)
        elif event.nr in _MAKES or event.nr in _LINKS:
            use.created = True
            self._writes(use, 0)
        elif event.nr == _CHDIR:
            process.cwd = found[0]
        return found

    def _open(self, event: Event, use: Use, process: _Process, path: bytes) -> None:
        position = self._paths[event.nr][0] + 1
        flags = event.args[position] if event.nr != NUMBERS["openat2"] else 0
        use.opened += 1
        use.created |= event.created
        if event.created or (flags & _O_TRUNC and flags & _O_ACCMODE):
            self._writes(use, 0)
        process.names[event.result] = path

    @staticmethod
    def _absolute(event: Event, process: _Process, text: bytes, place: int) -> bytes:
        base = process.cwd
        if place and not text.startswith(b"/"):
            number = event.args[place - 1] & 0xFFFFFFFF
            if number != _AT_FDCWD and number in process.names and _takes_directory(event.nr, place):
                base = process.names[number]
        return _joined(base, text)

    # -- calls that name descriptors ------------------------------------------------

    def _by_descriptor(self, event: Event, lineage: str, process: _Process) -> tuple[bytes, ...]:
        nr, names, args = event.nr, process.names, event.args
        done = event.known and event.result >= 0
        number = args[0] & 0xFFFFFFFF
        name = names.get(number, b"")
        if nr in _COPIES:
            target, source = (names.get(args[place] & 0xFFFFFFFF, b"") for place in _COPIES[nr])
            if done:
                self._moved(lineage, source, target, event.result)
            return tuple(filter(None, (source, target)))
        if nr == _MMAP:
            return self._map(event, lineage, names)
        if nr in _BY_FD:
            if done and name:
                self._used(event, lineage, process, name)
            return (name,) if name else ()
        if not done:
            return ()
        if nr in _PIPES or nr in _PAIRS:
            self._anonymous += 1
            ends = (b"", b"") if nr in _PIPES else (b"a", b"b")
            start = PIPE if nr in _PIPES else PAIR
            made = tuple(b"%s%d%s" % (start, self._anonymous, end) for end in ends)
            names[event.digest & 0xFFFF], names[event.digest >> 16] = made
            return made if nr in _PAIRS else made[:1]
        if nr in _DUPLICATES:
            names[event.result] = name
        elif nr in _ANONYMOUS:
            names[event.result] = b""
        return (name,) if name and nr in _DUPLICATES else ()

    def _used(self, event: Event, lineage: str, process: _Process, name: bytes) -> None:
        if event.nr in _READS:
            self._reads(self._use(lineage, name), event.result)
        elif event.nr in _WRITES:
            self._writes(self._use(lineage, name), event.result)
        elif event.nr == _FCNTL and event.args[1] & 0xFFFFFFFF in _F_DUPFD:
            process.names[event.result] = name
        elif event.nr == _FCHDIR:
            process.cwd = name

    def _moved(self, lineage: str, source: bytes, target: bytes, count: int) -> None:
        if source:
            self._reads(self._use(lineage, source), count)
        if target:
            self._writes(self._use(lineage, target), count)

    def _map(self, event: Event, lineage: str, names: dict[int, bytes]) -> tuple[bytes, ...]:
        name = names.get(event.args[4] & 0xFFFFFFFF, b"")
        if not name:
            return ()
        use = self._use(lineage, name)
        use.mapped = True
        self._reads(use, 0)
        if event.args[2] & _PROT_WRITE and event.args[3] & _MAP_SHARED:
            self._writes(use, 0)
        return (name,)

    # -- parts ----------------------------------------------------------------------

    def _use(self, lineage: str, path: bytes) -> Use:
        key = lineage, path
        found = self.uses.get(key)
        if found is None:
            found = self.uses[key] = Use()
        return found

    def _reads(self, use: Use, count: int) -> None:
        use.bytes_read += count
        use.last_read = self._count
        if use.first_read < 0:
            use.first_read = self._count

    def _writes(self, use: Use, count: int) -> None:
        use.bytes_written += count
        use.written = True
        if use.first_written < 0:
            use.first_written = self._count


@lru_cache(maxsize=1 << 16)
def _joined(base: bytes, text: bytes) -> bytes:
    return posixpath.normpath(posixpath.join(base, text)).replace(b"//", b"/")


def other_end(name: bytes) -> bytes:
    """Where what is written to ``name`` can be read: at the other end of a pair of sockets, else there itself."""
    if not name.startswith(PAIR):
        return name
    return name[:-1] + (b"b" if name.endswith(b"a") else b"a")


_AT_CALLS = frozenset(number for name, number in NUMBERS.items() if name.endswith(("at", "at2", "statx")))


def _takes_directory(nr: int, place: int) -> bool:
    """Whether the argument before a path is a directory's descriptor."""
    return nr in _AT_CALLS and place in (1, 3) or (nr == NUMBERS["symlinkat"] and place == 2)
