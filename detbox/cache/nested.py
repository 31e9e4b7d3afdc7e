"""Executions inside of a run: each is noted down, and answered from the cache when all it looks at is the same.

An execution can be told from its start and from its facts only if nobody else ran meanwhile.  That is so for a
shell's commands and for what a compiler driver or `make` starts one after the other: whoever is around
them waits.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from detbox.cache import calls, start
from detbox.cache.effects import Effects
from detbox.cache.execution import Execution
from detbox.cache.inherited import InheritedFiles
from detbox.cache.recall import Recall, Record
from detbox.handlers.waiting import fd_of
from detbox.kernel.numbers import NUMBERS

if TYPE_CHECKING:
    from detbox.cache.observed import Observed
    from detbox.cache.store import Store
    from detbox.machine.program import Program
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

#: Calls whose first argument is a descriptor that others may use as well.
_BY_DESCRIPTOR = (
    "read", "write", "readv", "writev", "pread64", "pwrite64", "preadv", "pwritev", "preadv2", "pwritev2", "sendfile",
    "copy_file_range", "splice", "tee", "vmsplice", "ioctl", "flock", "getdents", "getdents64", "sendto", "sendmsg",
    "recvfrom", "recvmsg", "sendmmsg", "recvmmsg", "accept", "accept4", "shutdown", "getsockopt", "setsockopt",
    "epoll_wait", "epoll_pwait", "epoll_pwait2", "timerfd_settime", "timerfd_gettime",
)  # fmt: skip
#: Calls that reach beyond the execution, and what to call that.
_REACHING = {
    "poll": "waits for descriptors", "ppoll": "waits for descriptors", "select": "waits for descriptors",
    "pselect6": "waits for descriptors", "epoll_ctl": "waits for descriptors", "bind": "binds a socket",
    "listen": "listens", "flock": "locks a file",
    "shmget": "uses System V shared memory", "semget": "uses System V semaphores", "msgget": "uses System V queues",
    "mq_open": "uses a message queue", "inotify_init": "watches files", "inotify_init1": "watches files",
    "pidfd_open": "uses process descriptors", "sched_setaffinity": "sets affinity", "setpriority": "sets priority",
    "process_vm_readv": "reads other memory", "process_vm_writev": "writes other memory",
    "prlimit64": "", "setns": "joins a namespace", "unshare": "makes namespaces",
}  # fmt: skip
_F_LOCKS = frozenset((5, 6, 7, 36, 37, 38))  # F_GETLK, F_SETLK, F_SETLKW, and those of open file descriptions
_AF_UNIX = 1
_IOCTL = NUMBERS["ioctl"]
_ASKS_FOR_TERMINAL = (0x5401, 0x5413)  # TCGETS, TIOCGWINSZ


class Nested:
    """The executions of one run."""

    def __init__(self, observed: Observed, store: Store, base: str, mode: str) -> None:
        """``base``: what the whole run's configuration adds to each key.  ``mode``: as of ``--cache``."""
        self.observed = observed
        self.tracker = observed.tracker
        self.m: Machine = observed.tracker.m
        self.store = store
        self.base = base
        self.mode = mode
        self.open: list[Execution] = []
        self.records: list[Record] = []
        self.log: list[dict[str, Any]] = []
        self._of: dict[Program, Execution] = {}
        self._last: Execution | None = None
        self._recalled: dict[int, Record] = {}  # by process: what its end has to set
        self.effects = Effects(self.tracker, store)
        self.files = InheritedFiles(self.tracker)
        self._recall = Recall(self)
        self.tracker.of = self.of  # type: ignore[method-assign]

    def connect(self, sup: Any) -> None:
        """Hear of programs that start, of turns and of ends."""
        self.sup = sup
        sup.answer = self.begins
        sup.exit_hooks.append(self.on_exit)
        scheduler = sup.m.scheduler
        plain = scheduler.next

        def following() -> Any:
            task = plain()
            if task is not None:
                self._turn(task)
            return task

        scheduler.next = following

    def wrap(self, handlers: dict[int, Any]) -> dict[int, Any]:
        """The handlers, those that reach beyond an execution telling so."""
        for name in _BY_DESCRIPTOR:
            self._before(handlers, NUMBERS[name], self._uses)
        for name in (*_REACHING, "socket", "fcntl", "connect"):
            self._before(handlers, NUMBERS[name], self._reaches)
        return handlers

    @staticmethod
    def _before(handlers: dict[int, Any], nr: int, look: Callable[[Task, Args], None]) -> None:
        handler = handlers.get(nr)
        if handler is None:
            return

        def watching(m: Machine, t: Task, a: Args) -> Any:
            look(t, a)
            return handler(m, t, a)

        handlers[nr] = watching

    # -- who is who ---------------------------------------------------------------------

    def of(self, t: Task) -> Execution:
        """The execution that a thread belongs to."""
        return self._of.get(t.process.program, self.tracker.root)

    def _turn(self, t: Task) -> None:
        """A thread goes on that was not the last one."""
        mine = self._of.get(t.process.program, self.tracker.root)
        if mine is self._last:
            return
        self._last = mine
        if self.open:
            line = set(mine.line())
            for one in self.open:
                if one not in line:
                    one.reasons.setdefault("another process ran meanwhile")

    def _uses(self, t: Task, a: Args) -> None:
        mine = self.of(t)
        if mine.foreign and not (t.nr == _IOCTL and a[1] & 0xFFFFFFFF in _ASKS_FOR_TERMINAL):
            self._use(t, mine, a[0])

    def _use(self, t: Task, mine: Execution, fd: int) -> None:
        try:
            entry = t.process.files.known(fd) or os.stat(b"%d/fd/%d" % (t.tid, fd & 0xFFFFFFFF), dir_fd=self.m.proc_fd)
        except OSError:
            return
        identity = (entry.st_dev, entry.st_ino) if isinstance(entry, os.stat_result) else (entry.dev, entry.ino)
        for one in mine.line():
            what = one.foreign.get(identity)
            if what is not None:
                one.reasons.setdefault(f"uses {what}")

    def _reaches(self, t: Task, a: Args) -> None:
        mine = self.of(t)
        if mine is self.tracker.root:
            return
        if t.nr == NUMBERS["fcntl"]:
            reason = "locks a file" if a[1] & 0xFFFFFFFF in _F_LOCKS else ""
        elif t.nr == NUMBERS["socket"]:
            reason = "" if a[0] & 0xFFFFFFFF == _AF_UNIX else "uses a network socket"
        elif t.nr == NUMBERS["connect"]:
            reason = self._connects(t, a)
        elif t.nr == NUMBERS["prlimit64"]:
            reason = "" if fd_of(a[0]) in (0, t.process.pid) else "changes another process's limits"
        else:
            reason = next(why for name, why in _REACHING.items() if NUMBERS[name] == t.nr)
        if reason:
            self.tracker.ledger.unable(mine, reason, whole=False)

    def _connects(self, t: Task, a: Args) -> str:
        path = calls.socket_path(t, a)
        if path is None:
            return "connects a socket"
        found = self.tracker.find(t, calls.CWD, path, True)
        return "connects a socket" if found is None or self.tracker.now(found) != "-" else ""

    # -- a program starts ---------------------------------------------------------------------

    def begins(self, t: Task, begin: Any) -> int | None:
        """A program is about to run its first instruction; its exit status if its work has been done for it."""
        process = t.process
        outer = process.program.parent
        parent = self._of.get(outer, self.tracker.root) if outer is not None else self.tracker.root
        numbering, inodes = self.sup.numbering, self.m.inodes
        given = start.inherited(self.m, t)
        mine = Execution(parent, process.program.name)
        mine.process, mine.words = process.pid, begin.words
        mine.foreign, mine.numbers = given.foreign, given.numbers
        why = start.obstacle(self.m, t, given)
        if self.m.scheduler.ready:
            why = why or "others were ready to run"
        if why:
            mine.reasons.setdefault(why)
        else:
            mine.key = start.key_of(self.m, t, self.base, numbering.last_process, inodes.next_number, given)
            if self.mode in ("read", "both"):
                record = self._recall.find(t, mine)
                if record is not None:
                    self._recalled[process.pid] = record
                    self._note(mine, "hit")
                    return os.waitstatus_to_exitcode(record.status)
        mine.first_inode = inodes.next_number
        mine.output_from = self.observed.position()
        inodes.log = [] if inodes.log is None else inodes.log
        mine.inodes_from = len(inodes.log)
        self._of[process.program] = mine
        self._last = mine
        self.open.append(mine)
        if not mine.reasons:
            self.files.begins(t, mine, given.files)
        self.tracker.executes(t, calls.CWD, begin.words.rstrip(b"\0").rpartition(b"\0")[2])
        return None

    # -- a program ends -------------------------------------------------------------------------

    def on_exit(self, m: Machine, process: Process) -> None:
        """A process is gone, and with it perhaps an execution; the counters have been rounded."""
        if process.path != "1":
            return
        record = self._recalled.pop(process.pid, None)
        if record is not None:
            self._set_counters(process, record)
        mine = self._of.pop(process.program, None)
        if mine is None:
            program = process.program.parent
            mine = self._of.get(program) if program is not None else None
        while mine is not None and mine.process == process.pid:
            self._ended(mine, process)
            mine = mine.parent

    def _set_counters(self, process: Process, record: Record) -> None:
        m = self.m
        m.clock.now = record.clock
        m.inodes.next_number = record.next_inode
        self.sup.numbering.set_last_process(record.last_process)
        process.cpu.ns, process.cpu.children_ns = record.cpu_ns, record.children_ns

    def _ended(self, mine: Execution, process: Process) -> None:
        if mine in self.open:
            self.open.remove(mine)
        self.files.ended(mine)
        status = process.status or 0
        if not os.WIFEXITED(status):
            mine.reasons.setdefault("was ended by a signal")
        for other in self.m.processes.values():
            if other is not process and other.status is None and self._belongs(other, mine):
                mine.reasons.setdefault("leaves a process behind")
        if not mine.reasons and self.mode in ("write", "both"):
            record = self.effects.record(mine, process, self.sup.numbering.last_process, self.observed)
            if record is not None:
                self.records.append(record)
        self._note(mine, "miss" if not mine.reasons else "not cacheable")

    def _belongs(self, process: Process, mine: Execution) -> bool:
        program: Program | None = process.program
        while program is not None:
            if program.name == mine.name:
                return True
            program = program.parent
        return False

    def _note(self, mine: Execution, result: str, seconds: float = 0.0) -> None:
        words = mine.words[8:].split(b"\0")[: int.from_bytes(mine.words[:8], "little")]
        self.log.append({
            "command": [word.decode("utf-8", "replace")[:200] for word in words[:12]],
            "result": result, "why": "; ".join(mine.reasons) or mine.why,
        })  # fmt: skip
