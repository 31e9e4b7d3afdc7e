"""Calls by which an execution reaches what is not its own: noted down, or a reason why it cannot be cached."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable
from fcntl import F_GETFL, F_GETPIPE_SZ, F_SETFL, F_SETPIPE_SZ, fcntl
from functools import partial
from resource import RLIMIT_CPU
from termios import FIONBIO, FIONREAD
from typing import TYPE_CHECKING, Any

from detbox.cache import calls, pipes
from detbox.decision import Park
from detbox.handlers.waiting import fd_of, gather, iovec, total
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from detbox.cache.execution import Execution
    from detbox.cache.nested import Nested
    from detbox.handlers.waiting import Segments
    from detbox.supervisor.task import Args, Process, Task

#: Calls whose first argument is a descriptor that others may use as well.
_BY_DESCRIPTOR = (
    "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "sendfile",
    "copy_file_range", "splice", "tee", "vmsplice", "flock", "getdents", "getdents64", "sendto", "sendmsg",
    "recvfrom", "recvmsg", "sendmmsg", "recvmmsg", "accept", "accept4", "shutdown", "getsockopt", "setsockopt",
    "epoll_wait", "epoll_pwait", "epoll_pwait2", "timerfd_settime", "timerfd_gettime",
)  # fmt: skip
#: Others of them have a second one.
_SECOND = {NUMBERS["sendfile"]: 1, NUMBERS["copy_file_range"]: 2, NUMBERS["splice"]: 2, NUMBERS["tee"]: 1}
#: Calls that make pipes whose pages hold less than their room: see pipes.Pipe.fits().
_ODD_PIPES = frozenset(NUMBERS[name] for name in ("splice", "tee", "vmsplice"))
#: Calls that reach beyond the execution, and what to call that.
_REACHING = {
    "bind": "binds a socket", "listen": "listens", "flock": "locks a file",
    "shmget": "uses System V shared memory", "semget": "uses System V semaphores", "msgget": "uses System V queues",
    "mq_open": "uses a message queue",
    "pidfd_open": "uses process descriptors", "sched_setaffinity": "sets affinity", "setpriority": "sets priority",
    "process_vm_readv": "reads other memory", "process_vm_writev": "writes other memory",
    "ptrace": "traces another process", "setns": "joins a namespace", "unshare": "makes namespaces",
    # Until its signal comes the program's instructions take time, and how many they are depends on times and numbers.
    "alarm": "sets a timer", "setitimer": "sets a timer", "timer_settime": "sets a timer",
}  # fmt: skip
#: Calls whose first argument is a process or a thread.
_BY_PROCESS = (
    "kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "prlimit64", "sched_getaffinity",
    "sched_getparam", "sched_setparam", "sched_getscheduler", "sched_setscheduler", "sched_getattr", "sched_setattr",
    "sched_rr_get_interval", "get_robust_list",
)  # fmt: skip
_F_LOCKS = frozenset((5, 6, 7, 36, 37, 38))  # F_GETLK, F_SETLK, F_SETLKW, and those of open file descriptions
_SETTABLE = os.O_APPEND | os.O_NONBLOCK | os.O_DIRECT | os.O_NOATIME | 0o20000  # fs/fcntl.c, SETFL_MASK
_AF_UNIX = 1
_KCMP_FILE = 0
_ASKS_FOR_TERMINAL = (0x5401, 0x5413)  # TCGETS, TIOCGWINSZ
_FDS_AT_MOST = 4096
_REG = Kind.REG
_READ, _READV, _WRITE = NUMBERS["read"], NUMBERS["readv"], NUMBERS["write"]


class Reach:
    """Of the executions of one run."""

    def __init__(self, nested: Nested) -> None:
        self._nested = nested
        self._m = nested.m
        self._ledger = nested.tracker.ledger
        self.odd_pipes = False
        self.watching = False  # somebody is told of changes to files

    def wrap(self, handlers: dict[int, Any]) -> dict[int, Any]:
        """The handlers, those that reach beyond an execution telling so."""
        for name in _BY_DESCRIPTOR:
            self._before(handlers, name, self._uses)
        for name, reason in _REACHING.items():
            self._before(handlers, name, partial(self._unable, reason=reason))
        for name in _BY_PROCESS:
            self._before(handlers, name, self._asks_process)
        for name, look in (
            ("ioctl", self._ioctl), ("socket", self._socket), ("connect", self._connects), ("fcntl", self._fcntl),
            ("pipe2", self._makes_pipe),
            ("poll", self._polls), ("ppoll", self._polls), ("select", self._selects), ("pselect6", self._selects),
            ("setrlimit", self._limits), ("prlimit64", self._limits),
            ("inotify_init", self._watches), ("inotify_init1", self._watches),
            ("epoll_ctl", self._watches_descriptor),
        ):  # fmt: skip
            self._before(handlers, name, look)
        for name in ("read", "readv", "write", "writev"):
            self._around(handlers, NUMBERS[name])
        return handlers

    @staticmethod
    def _before(handlers: dict[int, Any], name: str, look: Callable[[Task, Args], None]) -> None:
        handler = handlers.get(NUMBERS[name])
        if handler is None:
            return

        def watching(m: Any, t: Task, a: Args) -> Any:
            look(t, a)
            return handler(m, t, a)

        handlers[NUMBERS[name]] = watching

    def _around(self, handlers: dict[int, Any], nr: int) -> None:
        handler, of, move = handlers[nr], self._nested.of, self._moves

        def moving(m: Any, t: Task, a: Args) -> Any:
            entry = t.process.files.known(a[0])
            if entry is not None and entry.kind is _REG:
                return handler(m, t, a)  # has no content that others put in meanwhile
            mine = of(t)
            if not mine.foreign:
                return handler(m, t, a)
            users = move(t, mine, a)
            decision = handler(m, t, a)
            if users and isinstance(decision, Park):
                _reason(users, "waits for another program at a pipe")
            return decision

        handlers[nr] = moving

    def _unable(self, t: Task, _arguments: Args, reason: str) -> None:
        if self._nested.of(t) is not self._nested.tracker.root:
            self._ledger.unable(self._nested.of(t), reason, whole=False)

    # -- by descriptor ------------------------------------------------------------------

    def _identity(self, t: Task, fd: int) -> tuple[int, int] | None:
        try:
            entry = t.process.files.known(fd)
            if entry is not None:
                return entry.dev, entry.ino
            st = os.stat(b"%d/fd/%d" % (t.tid, fd & 0xFFFFFFFF), dir_fd=self._m.proc_fd)
        except OSError:
            return None
        return st.st_dev, st.st_ino

    def _users(self, t: Task, fd: int, use: str = "") -> list[tuple[Execution, pipes.Pipe]]:
        entry = t.process.files.known(fd)
        if entry is not None and entry.kind is _REG:
            return []
        mine = self._nested.of(t)
        identity = self._identity(t, fd) if mine.foreign else None
        return pipes.users_of(mine.line(), identity, use) if identity is not None else []

    def _ioctl(self, t: Task, a: Args) -> None:
        command = a[1] & 0xFFFFFFFF
        if command == FIONBIO:
            with contextlib.suppress(OSError):  # the kernel says what is wrong
                self._flags(t, a, os.O_NONBLOCK if t.u32(a[2]) else 0, os.O_NONBLOCK)
            return
        users = self._users(t, a[0]) if command not in _ASKS_FOR_TERMINAL else []
        if users and command == FIONREAD and not users[0][1].writes:
            pipes.observe(t, fd_of(a[0]), users)
        else:
            _reason(users, "asks the kernel about a pipe (ioctl)")

    def _uses(self, t: Task, a: Args) -> None:
        self.odd_pipes = self.odd_pipes or t.nr in _ODD_PIPES
        _reason(self._users(t, a[0]), "moves data between a pipe and other files")
        if t.nr in _SECOND:
            _reason(self._users(t, a[_SECOND[t.nr]]), "moves data between a pipe and other files")

    def _moves(self, t: Task, mine: Execution, a: Args) -> list[tuple[Execution, pipes.Pipe]]:
        """A read or write; those who note it down."""
        users = self._users(t, a[0])
        if not users:
            return users
        reads = t.nr in (_READ, _READV)
        if reads == users[0][1].writes:
            return []  # EBADF
        try:
            segments = [(a[1], a[2])] if t.nr in (_READ, _WRITE) else iovec(t, a[1], a[2])
            wanted = total(segments)
            if reads:
                _must_be_writable(t, segments)
                why = pipes.take(t, fd_of(a[0]), users, wanted) if wanted else ""
            else:
                why = pipes.put(t, fd_of(a[0]), users, gather(t, segments, 0, wanted)) if wanted else ""
        except OSError:
            why = "gives a bad address"
        _reason(users, why)
        return users

    def _makes_pipe(self, t: Task, a: Args) -> None:
        self.odd_pipes = self.odd_pipes or bool(a[1] & os.O_DIRECT)

    def _fcntl(self, t: Task, a: Args) -> None:
        command = a[1] & 0xFFFFFFFF
        if command in _F_LOCKS:
            self._unable(t, a, "locks a file")
        elif command in (F_SETPIPE_SZ, F_GETPIPE_SZ):
            self._users(t, a[0], "asks for or sets the size of a pipe")
        elif command == F_SETFL:
            self._flags(t, a, a[2], _SETTABLE)

    def _flags(self, t: Task, a: Args, flags: int, settable: int) -> None:
        """``flags`` are set of a descriptor; the others that are not ``settable`` stay."""
        identity = self._identity(t, a[0])
        mine = self._nested.of(t)
        if identity is None or not any(identity in one.numbers for one in mine.line()):
            return
        with pipes.borrowed(t, fd_of(a[0])) as fd:
            before = fcntl(fd, F_GETFL)
            if not (before ^ flags) & settable:
                return
            stream = next((n for n, own in enumerate(self._m.console.guest_fds()) if _is_same(fd, own)), None)
        for one in mine.line():
            if identity not in one.numbers:
                continue
            if stream is None:
                one.reasons.setdefault("changes the flags of a descriptor that others have")
            else:
                one.flags[stream] = before & ~settable | flags & settable

    def _polls(self, t: Task, a: Args) -> None:
        if self._nested.of(t).foreign:
            count = min(a[1], _FDS_AT_MOST)
            table = t.read(a[0], 8 * count) if count else b""
            self._waits(t, (int.from_bytes(table[at : at + 4], "little", signed=True) for at in range(0, 8 * count, 8)))

    def _selects(self, t: Task, a: Args) -> None:
        if self._nested.of(t).foreign:
            size = (min(a[0], _FDS_AT_MOST) + 63) // 64 * 8
            sets = [int.from_bytes(t.read(place, size), "little") for place in a[1:4] if place and size]
            self._waits(t, (fd for fd in range(8 * size) if any(each >> fd & 1 for each in sets)))

    def _watches_descriptor(self, t: Task, a: Args) -> None:
        self._users(t, a[2], "waits for a descriptor that others have")

    def _waits(self, t: Task, descriptors: Iterable[int]) -> None:
        for fd in descriptors:
            users = self._users(t, fd) if fd >= 0 else []
            if users and users[0][1].writes:
                _reason(users, pipes.may_write(users))
            elif users:
                pipes.observe(t, fd, users)

    def _limits(self, t: Task, a: Args) -> None:
        resource, given = (a[1], a[2]) if t.nr == NUMBERS["prlimit64"] else (a[0], a[1])
        if given and resource & 0xFFFFFFFF == RLIMIT_CPU:
            self._unable(t, a, "limits its processor time")

    def _watches(self, t: Task, a: Args) -> None:
        self.watching = True
        for one in self._nested.open:
            one.reasons.setdefault("files are being watched")

    # -- by what is named ---------------------------------------------------------------

    def _socket(self, t: Task, a: Args) -> None:
        if a[0] & 0xFFFFFFFF != _AF_UNIX:
            self._unable(t, a, "uses a network socket")

    def _connects(self, t: Task, a: Args) -> None:
        path = calls.socket_path(t, a)
        found = self._nested.tracker.find(t, calls.CWD, path, True) if path is not None else None
        if path is None or (found is not None and self._nested.tracker.now(found) != "-"):
            self._unable(t, a, "connects a socket")

    def _asks_process(self, t: Task, a: Args) -> None:
        number = fd_of(a[0])
        if number == t.process.pid or (number == 0 and t.nr not in (NUMBERS["kill"],)):
            return
        for one in self._nested.of(t).line():
            if one.parent is not None and not self._inside(number, one):
                one.reasons.setdefault("signals or looks at another process")

    def _inside(self, number: int, one: Execution) -> bool:
        """Whether a process, thread or group belongs to an execution."""
        if number > 0:
            task = self._m.tasks.get(number)
            process = task.process if task is not None else self._m.processes.get(number)
            return process is not None and self._nested.belongs(process, one)
        group = -number
        return group > 1 and all(
            self._nested.belongs(process, one) for process in self._m.processes.values() if _group(process) == group
        ) and any(_group(process) == group for process in self._m.processes.values())


def _is_same(fd: int, other: int) -> bool:
    """Whether two of the supervisor's descriptors are one open file description."""
    here = os.getpid()
    return bool(_native.raw_syscall(NUMBERS["kcmp"], here, here, _KCMP_FILE, fd, other) == 0)


def _group(process: Process) -> int:
    try:
        return os.getpgid(process.pid)
    except ProcessLookupError:
        return -1


def _reason(users: list[tuple[Execution, pipes.Pipe]], why: str) -> None:
    if why:
        for one, _ in users:
            one.reasons.setdefault(why)


def _must_be_writable(t: Task, segments: Segments) -> None:
    """The kernel takes as much from a pipe as it can put into memory.  Raises OSError."""
    for address, length in segments:
        if length:
            for place in (address, address + length - 1):
                t.write(place, t.read(place, 1))
