"""Follows a run: every call that names a path tells here what it looks at and what it changes."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from stat import S_IFMT, S_ISDIR, S_ISFIFO, S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, Any

from detbox.cache import calls, facts
from detbox.cache.execution import OWN, Execution, Ledger
from detbox.cache.facts import CONTENT, IDENTITY, KIND, LIST, PYTIME, SIZE, TIMES, XATTR
from detbox.cache.world import World, interpreter_of, made, parent_of, steady
from detbox.decision import Decision
from detbox.handlers.paths import AT_FDCWD

if TYPE_CHECKING:
    from detbox.cache.calls import Marks
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

_EVERYTHING = KIND | SIZE | CONTENT | LIST | XATTR | PYTIME | IDENTITY | TIMES
_MADE = frozenset((b"proc", b"sys/", b"sys", b"dev/", b"dev"))
_M32 = 0xFFFFFFFF
_SIGKILL = 9
_TERMINAL = b"/dev/tty"
_DESCRIPTOR = b"\0"  # in a question, whose path is relative to one: no directory has this name
_KNOWS_KIND = KIND | KIND << OWN

#: A path, the directory that it is relative to, and what is asked about it (bit 0: whether a link is followed).
Question = tuple[bytes, bytes, int]
Handler = Callable[..., Decision]


class Tracker:
    """The ledger of one run, and who is writing into it."""

    def __init__(self, m: Machine, nested: bool = False) -> None:
        """``nested``: whether the executions inside of the run are wanted too."""
        self.m = m
        self.nested = nested
        self.world = World(m)
        self._bound = [os.fsencode(path) for path in (m.spec.guest_workdir, *(one.dst for one in m.spec.mounts))]
        #: Part of the KIND of a path, where the kernel's permissions depend on it.
        self.owner = self._owner if m.layers.limited else None
        # What comes with aspects: the inode is seen with the KIND, times with the SIZE.
        self._together = [
            aspects | ((IDENTITY if aspects & KIND else 0) | (TIMES if aspects & SIZE else 0) if nested else 0)
            for aspects in range(256)
        ]
        self.ledger = Ledger(self.owner, m.inodes if nested else None)
        self.root = self.ledger.root
        self.of_system: dict[bytes, None] = {}  # paths of the container's own making that have been looked at
        self.origin: dict[bytes, bytes] = {}  # where something that was moved stood at first
        self._moved: dict[bytes, bytes] = {}  # what a call in progress adds to that
        self._interpreters: dict[bytes, bytes | None] = {}  # of programs that the run has not changed
        # Of all executions, since a name changed that ways may pass through; the last one: aspects.
        self._answers: dict[Question, tuple[bytes, tuple[bytes, ...], int]] = {}
        self._answered_at = 0
        self.killed = False
        self.terminals = False  # the guest may have made some

    def wrap(self, handlers: dict[int, Handler]) -> dict[int, Handler]:
        """The handlers, each of which tells about its call first."""
        return {nr: self._wrapped(nr, handler) for nr, handler in handlers.items()}

    def _wrapped(self, nr: int, handler: Handler) -> Handler:
        look = calls.LOOKS.get(nr)
        if look is not None:
            return self._looking(handler, *look)
        probe = calls.PROBES.get(nr)
        if probe is None:
            return handler
        ask = probe

        def tracking(m: Machine, t: Task, a: Args) -> Decision:
            if self._moved:
                self._moved = {}  # that call is over
            marks = ask(self, t, a)
            decision = handler(m, t, a)
            if marks and (type(decision) is not int or decision >= 0):
                execution = self.of(t)
                for path, aspects in marks:
                    self.ledger.mark(execution, path, aspects)
                self.origin.update(self._moved)
            return decision

        quick = calls.QUICK.get(nr)
        return tracking if quick is None else self._quickly(handler, tracking, *quick)

    def _quickly(self, handler: Handler, tracking: Handler, place: int, ask: calls.Ask) -> Handler:
        """For the commonest calls, most of which ask what has been asked before.  ``place``: of the path's address."""
        world, root, again = self.world, self.root, self._again

        def quickly(m: Machine, t: Task, a: Args) -> Decision:
            what = ask(a)
            if not what:
                return tracking(m, t, a)
            path = t.cstr(a[place])
            t.text_at, t.text = a[place], path
            try:
                if not path:
                    return handler(m, t, a)
                execution = t.process.program.execution or root
                question = path, b"", what
                if execution.looked_at == world.changes and question in execution.looked:
                    return handler(m, t, a)
                if path[0] == 47 and again(t, execution, question):
                    return handler(m, t, a)
                return tracking(m, t, a)
            finally:
                t.text_at = -1

        return quickly

    def _looking(self, handler: Handler, follow: bool, aspects: int) -> Handler:
        """For calls that look at the path that is their first argument, and change nothing: the commonest ones."""
        world, root, what, again = self.world, self.root, aspects << 1 | follow, self._again

        def looking(m: Machine, t: Task, a: Args) -> Decision:
            path = t.cstr(a[0])
            execution = t.process.program.execution or root
            question = path, b"", what
            if (execution.looked_at != world.changes or question not in execution.looked) and (
                path[:1] != b"/" or not again(t, execution, question)
            ):
                self.look(t, AT_FDCWD, path, follow, aspects)
            t.text_at, t.text = a[0], path
            try:
                return handler(m, t, a)
            finally:
                t.text_at = -1

        return looking

    # -- what the probes ask --------------------------------------------------------------

    def of(self, t: Task) -> Execution:
        """The execution that a thread belongs to."""
        return self.root

    def look(self, t: Task, dirfd: int, path: bytes, follow: bool, aspects: int) -> None:
        """The thread looks at what a path leads to."""
        question = self._question(t, dirfd, path, aspects << 1 | follow)
        if question is not None:
            self._ask(t, dirfd, question, self._together[aspects])

    def reads(self, t: Task, dirfd: int, path: bytes, follow: bool) -> None:
        """The thread opens what a path leads to, to read it."""
        question = self._question(t, dirfd, path, calls.OPENS | follow)
        if question is not None:
            found = self._ask(t, dirfd, question, self._together[KIND | SIZE | CONTENT])
            if found is not None:
                self.opens(t, found)

    def _ask(self, t: Task, dirfd: int, question: Question, aspects: int) -> bytes | None:
        """Look at some aspects of what a path leads to; where that is."""
        execution = self.of(t)
        if self._answered_at != self.world.changes:
            self._answered_at = self.world.changes
            self._answers.clear()
        answer = self._answers.get(question)
        if answer is not None and not t.process.fs.special:
            self._answer(execution, question, answer)
            return answer[0]
        path, base, what = question
        place = self.find(t, dirfd, path, bool(what & 1))
        if place is not None:
            self.touch(t, place, aspects)
            way = self.world.found.get((base, path, bool(what & 1)))
            # The links of procfs lead everybody elsewhere.
            if way is not None:
                execution.looked.add(question)
                fact = self.root.facts.get(place)
                if not made(place) and (fact is None or (fact.kind or "-")[0] != "p"):
                    self._answers[question] = (*way, aspects)
        return place

    def _answer(self, execution: Execution, question: Question, answer: tuple[bytes, tuple[bytes, ...], int]) -> None:
        """The execution asks what is known already."""
        found, passed, aspects = answer
        if passed and passed not in execution.passed:
            self._passes(execution, passed)
        have = execution.have.get(found, 0)
        if aspects & ~(have | have >> OWN):
            self.ledger.touch(execution, found, aspects)
        execution.looked.add(question)

    def _again(self, t: Task, execution: Execution, question: Question) -> bool:
        """The execution asks for an absolute path; whether that is known from what others have asked."""
        changes = self.world.changes
        if self._answered_at != changes or t.process.fs.special:
            return False
        answer = self._answers.get(question)
        if answer is None or question[0].endswith(b".py"):
            return False  # more is asked of Python's sources
        if execution.looked_at != changes:
            execution.looked_at = changes
            execution.looked.clear()
        self._answer(execution, question, answer)
        if question[2] & calls.OPENS and answer[0] in self.root.changed:
            self.opens(t, answer[0])
        return True

    def _question(self, t: Task, dirfd: int, path: bytes, what: int) -> Question | None:
        """What is asked, by its words; None if it has been asked before by the same execution.

        Programs ask the same again and again: what is known already, and no name has changed since, is left at that.
        """
        execution = self.of(t)
        if execution.looked_at != self.world.changes:
            execution.looked_at = self.world.changes
            execution.looked.clear()
        if path[:1] == b"/":
            question = (path, b"", what)
        elif dirfd & _M32 == AT_FDCWD:
            question = (path, t.process.fs.cwd_path(), what)
        else:
            return path, _DESCRIPTOR, what  # what its number stands for is another file each time
        return None if question in execution.looked else question

    def touch(self, t: Task, path: bytes, aspects: int) -> None:
        """The thread looks at a canonical path."""
        aspects = self._together[aspects]
        execution = self.of(t)
        have = execution.have.get(path, 0)
        if not aspects & ~(have | have >> OWN) or (path[1:5] in _MADE and made(path)):
            return
        self.ledger.touch(execution, path, aspects)

    def unable(self, t: Task, reason: str, *, whole: bool = True) -> None:
        """What the thread does cannot be cached."""
        self.ledger.unable(self.of(t), reason, whole=whole)

    def find(self, t: Task, dirfd: int, path: bytes, follow: bool) -> bytes | None:
        """The canonical path, whose way there becomes facts; None if it cannot be told."""
        if not path:
            return None
        base = b"/"
        if path[:1] != b"/":
            known = self._base(t, dirfd)
            if known is None:
                return None
            base = known
        if t.process.fs.special:
            self.unable(t, "has a root directory of its own")
            return None
        found, passed = self.world.find(t, base, path, follow)
        if passed:
            execution = self.of(t)
            if passed not in execution.passed:
                self._passes(execution, passed)
        if self.nested and found[1:5] in _MADE and made(found):
            self.terminals = self.terminals or found.startswith(b"/dev/pt")
            if not steady(found, t.process.pid) or (found == _TERMINAL and self.terminal(t)):
                self.unable(t, f"looks at {os.fsdecode(found)}", whole=False)
            elif not found.startswith(b"/proc/%d/" % t.process.pid):
                self.of_system.setdefault(found)
        return found

    def _passes(self, execution: Execution, passed: tuple[bytes, ...]) -> None:
        execution.passed.add(passed)
        have = execution.have
        for step in passed:
            if not have.get(step, 0) & _KNOWS_KIND and not made(step):
                self.ledger.touch(execution, step, KIND)

    def _base(self, t: Task, dirfd: int) -> bytes | None:
        if dirfd & _M32 != AT_FDCWD:
            return self.path_of_fd(t, dirfd)
        path = t.process.fs.cwd_path()
        if path.endswith(b" (deleted)"):
            self.unable(t, "works in a directory that has been removed")
            return None
        return path

    def opens(self, t: Task, path: bytes) -> None:
        """A file is opened.  Others may have a named pipe open as well, unless it was made by the execution."""
        fact = self.root.facts.get(path)
        there = fact is not None and fact.kind is not None and fact.kind[0] == "p"
        if not self.nested or not (there or path in self.root.changed):
            return
        st = self.status(path)
        if st is not None and S_ISFIFO(st.st_mode):
            for one in self.of(t).line():
                if one.parent is not None and path not in one.changed:
                    one.reasons.setdefault("opens a pipe by its name")

    def terminal(self, t: Task) -> int:
        """Device number of the thread's controlling terminal, which is one that the guest has made; 0 for none."""
        if not self.terminals:
            return 0
        fd = os.open(b"%d/stat" % t.tid, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.m.proc_fd)
        with open(fd, "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[4])

    def path_of_fd(self, t: Task, fd: int) -> bytes | None:
        """The canonical path of an open file or directory; None if it has none."""
        if fd & _M32 == AT_FDCWD:
            return t.process.fs.cwd_path()
        try:
            path = os.readlink(b"%d/fd/%d" % (t.tid, fd & _M32), dir_fd=self.m.proc_fd)
        except OSError:
            return None
        return path if path[:1] == b"/" and not path.endswith(b" (deleted)") else None

    @staticmethod
    def now(path: bytes) -> str:
        """``f``, ``d``, ``l`` for what is there now, ``-`` for nothing, ``?`` for something else."""
        try:
            mode = os.lstat(path).st_mode
        except OSError as error:
            return "-" if error.errno == errno.ENOENT else "?"
        return "f" if S_ISREG(mode) else "d" if S_ISDIR(mode) else "l" if S_ISLNK(mode) else "?"

    # -- changes ------------------------------------------------------------------------------

    def names_change(self) -> None:
        """A name is about to change that ways may pass through."""
        self.world.changed()
        for process in self.m.processes.values():
            process.fs.forget_path()

    def kills(self) -> None:
        """The guest itself kills something."""
        self.killed = True

    def rewrites(self, t: Task, path: bytes) -> Marks | None:
        """A file's content changes."""
        if made(path):
            return None
        self.touch(t, path, XATTR)  # they stay as they are, also when a result is put in the file's place
        self.ledger.settle(path)
        self.in_place(t, path)
        return [(path, SIZE | CONTENT | PYTIME | TIMES)]

    def in_place(self, t: Task, path: bytes) -> None:
        """A file is changed that may have other names."""
        fact = self.root.facts.get(path)
        if fact is not None and fact.inode is not None and fact.kind and fact.kind[0] == "f":
            self.unable(t, "changes a file that has several names")

    def appears(self, t: Task, path: bytes) -> Marks:
        """Something new is made at ``path``."""
        if made(path):
            return []
        return [(path, _EVERYTHING), self._parent(t, path)]

    def vanishes(self, t: Task, path: bytes) -> Marks | None:
        """A name is removed."""
        if made(path):
            return None
        self.ledger.settle(path)
        if self.now(path) not in "f-":
            self.names_change()
        return [(path, _EVERYTHING), self._parent(t, path)]

    def moves(self, t: Task, one: bytes, other: bytes, *, both: bool) -> Marks | None:
        """``one`` gets the name ``other`` (``both``: and the other way round)."""
        marks: Marks = []
        moved: dict[bytes, bytes] = {}
        for source, target in ((one, other), (other, one))[: 2 if both else 1]:
            for path in (source, *(calls.below(source) if self.now(source) == "d" else ())):
                self.touch(t, path, KIND | SIZE | CONTENT | XATTR | (LIST if self.now(path) == "d" else 0))
                self.touch(t, target + path[len(source) :], KIND)
                self.ledger.settle(path)
                moved[target + path[len(source) :]] = self.origin.get(path, path)
                marks += [(path, _EVERYTHING), (target + path[len(source) :], _EVERYTHING)]
        self._moved = moved
        self.ledger.settle(other)
        if self.now(one) != "f" or self.now(other) not in "f-":
            self.names_change()
        return [*marks, self._parent(t, one), self._parent(t, other)]

    def _parent(self, t: Task, path: bytes) -> tuple[bytes, int]:
        """The mark of the directory in which a name changes."""
        directory = parent_of(path)
        self.touch(t, directory, KIND)
        return directory, TIMES

    # -- programs -------------------------------------------------------------------------------

    def executes(self, t: Task, dirfd: int, path: bytes) -> None:
        """A program is executed: it and its interpreters are read by the kernel."""
        aspects = self._together[KIND | SIZE | CONTENT | XATTR]
        for _ in range(5):  # BINPRM_MAX_RECURSION interpreters at most
            question = self._question(t, dirfd, path, calls.EXECUTES | 1)
            found = self.find(t, dirfd, path, True) if question is None else self._ask(t, dirfd, question, aspects)
            if found is None:
                return
            if found in self.root.changed:
                interpreter = interpreter_of(found)
            elif found in self._interpreters:
                interpreter = self._interpreters[found]
            else:
                interpreter = self._interpreters[found] = interpreter_of(found)
            if not interpreter:
                return
            path, dirfd = interpreter, AT_FDCWD

    # -- the end ----------------------------------------------------------------------------------

    def on_exit(self, m: Machine, process: Process) -> None:
        """A process is gone; who killed it may have been the host."""
        status = process.status or 0
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == _SIGKILL and not self.killed:
            self.ledger.unable(self.root, "a process was killed from outside")

    def _owner(self, path: bytes, st: Any) -> str:
        """Who owns a file in the user's directories: the kernel's permissions depend on it for an ordinary user."""
        return facts.ownership(st, 0, 0) if facts.below(path, self._bound) else ""

    def kept(self, path: bytes) -> bool:
        """Whether a path lies in a directory of the user's or in one that the container has made empty."""
        return facts.below(path, self._bound) or facts.below(path, (b"/tmp", b"/run", b"/home", b"/root"))

    def status(self, path: bytes) -> os.stat_result | None:
        """What is at a path now."""
        try:
            return os.lstat(path)
        except OSError:
            return None

    def changed_time(self, st: os.stat_result) -> bool:
        """Whether the run has given the file a time of its own."""
        entry = self.m.inodes.table.get((st.st_dev, st.st_ino))
        return entry is not None and entry.changed and entry.fmt == S_IFMT(st.st_mode)
