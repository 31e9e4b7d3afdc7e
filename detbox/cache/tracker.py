"""Follows a run: every call that names a path tells here what it looks at and what it changes."""

from __future__ import annotations

import os
from collections.abc import Callable
from stat import S_IFMT
from typing import TYPE_CHECKING

from detbox.cache import calls, facts
from detbox.cache.facts import CONTENT, IDENTITY, KIND, LIST, PYTIME, SIZE, TIMES, XATTR
from detbox.cache.looking import Looking
from detbox.cache.world import made, parent_of
from detbox.decision import Decision
from detbox.handlers.paths import AT_FDCWD

if TYPE_CHECKING:
    from detbox.cache.calls import Marks
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

_EVERYTHING = KIND | SIZE | CONTENT | LIST | XATTR | PYTIME | IDENTITY | TIMES
_SIGKILL = 9
Handler = Callable[..., Decision]


class Tracker(Looking):
    """Looks and changes of one run."""

    def __init__(self, m: Machine, nested: bool = False) -> None:
        """``nested``: whether the executions inside of the run are wanted too."""
        super().__init__(m, nested)
        self.origin: dict[bytes, bytes] = {}  # where what was moved or linked stood at first
        self._moved: dict[bytes, bytes] = {}  # what a call in progress adds to that
        self.killed = False  # by the guest itself

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

    def links(self, t: Task, one: bytes, other: bytes) -> Marks:
        """What is at ``one`` gets the name ``other`` as well."""
        self.names_change()
        self.ledger.settle(one)  # its time of change moves
        self._moved = {other: self.origin.get(one, one)}
        return [(one, KIND | IDENTITY | TIMES), *self.appears(t, other)]

    def _parent(self, t: Task, path: bytes) -> tuple[bytes, int]:
        """The mark of the directory in which a name changes."""
        directory = parent_of(path)
        self.touch(t, directory, KIND)
        return directory, TIMES

    # -- the end ----------------------------------------------------------------------------------

    def on_exit(self, m: Machine, process: Process) -> None:
        """A process is gone; who killed it may have been the host."""
        status = process.status or 0
        if os.WIFSIGNALED(status) and os.WTERMSIG(status) == _SIGKILL and not self.killed:
            self.ledger.unable(self.root, "a process was killed from outside")

    def kept(self, path: bytes) -> bool:
        """Whether a path lies in a directory of the user's or in one that the container has made empty."""
        return facts.below(path, self._bound) or facts.below(path, (b"/tmp", b"/run", b"/home", b"/root"))

    def times_of(self, st: os.stat_result) -> list[int] | None:
        """The times of access and modification in ns that the run has given the file, None if they are the host's."""
        entry = self.m.inodes.table.get((st.st_dev, st.st_ino))
        known = entry is not None and entry.changed and entry.fmt == S_IFMT(st.st_mode)
        return [entry.atime, entry.mtime] if entry is not None and known else None
