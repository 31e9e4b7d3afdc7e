"""What the threads of a run look at: paths are followed to where they lead, and what is seen there becomes facts."""

from __future__ import annotations

import errno
import os
from stat import S_ISDIR, S_ISFIFO, S_ISLNK, S_ISREG
from typing import TYPE_CHECKING, Any

from detbox.cache import calls, facts
from detbox.cache.execution import OWN, Execution, Ledger
from detbox.cache.facts import CONTENT, IDENTITY, KIND, SIZE, TIMES, XATTR
from detbox.cache.world import World, interpreter_of, made, steady
from detbox.handlers.paths import AT_FDCWD

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_MADE = frozenset((b"proc", b"sys/", b"sys", b"dev/", b"dev"))
_M32 = 0xFFFFFFFF
_TERMINAL = b"/dev/tty"
_DESCRIPTOR = b"\0"  # in a question, whose path is relative to one: no directory has this name
_KNOWS_KIND = KIND | KIND << OWN

#: A path, the directory that it is relative to, and what is asked about it (bit 0: whether a link is followed).
Question = tuple[bytes, bytes, int]


class Looking:
    """The ledger of one run, and what is entered there because somebody looks."""

    def __init__(self, m: Machine, nested: bool = False) -> None:
        """``nested``: whether the executions inside of the run are wanted too."""
        self.m = m
        self.nested = nested
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
        self.world = World(m, lambda path: self.ledger.status(path)[0])
        self.of_system: dict[bytes, None] = {}  # paths of the container's own making that have been looked at
        self._interpreters: dict[bytes, bytes | None] = {}  # of programs that the run has not changed
        # Of all executions, since a name changed that ways may pass through; the last one: aspects.
        self._answers: dict[Question, tuple[bytes, tuple[bytes, ...], int]] = {}
        self._answered_at = 0
        self.terminals = False  # the guest may have made some

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
            if not have.get(step, 0) & _KNOWS_KIND and step != b"/" and (step[1:5] not in _MADE or not made(step)):
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

    def _owner(self, path: bytes, st: Any) -> str:
        """Who owns a file in the user's directories: the kernel's permissions depend on it for an ordinary user."""
        return facts.ownership(st, 0, 0) if facts.below(path, self._bound) else ""

    def status(self, path: bytes) -> os.stat_result | None:
        """What is at a path now."""
        try:
            return os.lstat(path)
        except OSError:
            return None
