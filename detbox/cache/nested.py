"""Executions inside of a run: each is noted down, and answered from the cache when all it looks at is the same.

An execution can be told from its start and from its facts only if nobody else ran meanwhile.  That is so for a
shell's commands and for what a compiler driver or `make` starts one after the other: whoever is around
them waits.
"""

from __future__ import annotations

import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import xxhash

from detbox.cache import calls, mismatch, start
from detbox.cache.common import Common
from detbox.cache.contents import Contents, Known
from detbox.cache.effects import Effects
from detbox.cache.execution import Execution
from detbox.cache.inherited import InheritedFiles
from detbox.cache.reach import Reach
from detbox.cache.recall import Recall
from detbox.cache.record import CIRCUMSTANCES, Record
from detbox.cache.redo import Redo
from detbox.records import as_dict

if TYPE_CHECKING:
    from detbox.cache.observed import Observed
    from detbox.cache.store import Store
    from detbox.machine.program import Program
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

OTHERS_WAIT = "others wait for a time to come"


class Nested:
    """The executions of one run."""

    def __init__(self, observed: Observed, store: Store, base: str, mode: str) -> None:
        """``base``: what the whole run's configuration adds to each key.  ``mode``: as of ``--cache``."""
        self.observed = observed
        self.tracker = observed.tracker
        self.m: Machine = observed.tracker.m
        self.m.inodes.log = []
        self.store = store
        self.base = base
        self.mode = mode
        self.open: list[Execution] = []
        self.records: list[Record] = []
        self.used: list[tuple[str, bytes]] = []  # stored results that fitted, by key
        self.log: list[dict[str, Any]] = []
        self._environments: dict[tuple[bytes, ...], int] = {}
        self._begun = 0
        self._last: Execution | None = None
        self.mismatch: Any = None  # the first stored result that is not what the run gave
        self._recalled: dict[int, Record] = {}  # by process: what its end has to set
        self.common = Common(store)
        self.contents = Contents(self.m.inodes, self.tracker.root.changed, Known(store))
        self.effects = Effects(self.tracker, store, self.common, self.contents)
        self.redo = Redo(self.tracker, store, self.common, self.contents)
        self.files = InheritedFiles(self.tracker)
        self.reach = Reach(self)
        self._recall = Recall(self)
        self.tracker.of = self.of  # type: ignore[method-assign]

    def connect(self, sup: Any) -> None:
        """Hear of programs that start, of turns and of ends."""
        self.sup = sup
        sup.answer = self.begins
        sup.counting.others.heard = self._computes
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
        return self.reach.wrap(handlers)

    # -- who is who ---------------------------------------------------------------------

    def of(self, t: Task) -> Execution:
        """The execution that a thread belongs to."""
        found: Execution = t.process.program.execution or self.tracker.root
        return found

    def _turn(self, t: Task) -> None:
        """A thread goes on that was not the last one."""
        mine = self.of(t)
        if mine is self._last:
            return
        self._last = mine
        if self.open:
            line = set(mine.line())
            for one in self.open:
                if one not in line:
                    one.reasons.setdefault("another process ran meanwhile")

    def _computes(self, t: Task) -> None:
        """What a thread computes takes time, since others wait for a time to come or for their turns."""
        for one in self.of(t).line():
            if one is not self.tracker.root:
                one.reasons.setdefault(OTHERS_WAIT)

    def _others(self) -> tuple[list[Task], list[Task]]:
        return list(self.m.scheduler.ready), list(self.m.scheduler.deferred)

    # -- a program starts ---------------------------------------------------------------------

    def begins(self, t: Task, begin: Any) -> int | None:
        """A program is about to run its first instruction; its wait status if its work has been done for it."""
        process = t.process
        outer = process.program.parent
        parent = (outer.execution if outer is not None else None) or self.tracker.root
        given = start.inherited(self.m, t)
        mine = Execution(parent, process.program.name)
        self._begun += 1
        mine.process, mine.words, mine.number = process.pid, begin.words, self._begun
        mine.directory = process.fs.cwd_path().decode("utf-8", "replace")
        mine.foreign, mine.numbers, mine.pipes = given.foreign, given.numbers, given.pipes
        why = "files are being watched" if self.reach.watching else start.obstacle(self.m, t, given)
        if not why and self.sup.counting.others.waits(t):
            why = OTHERS_WAIT
        if why:
            mine.reasons.setdefault(why)
        else:
            record = self._look_up(t, mine, given)
            if record is not None:
                self._recalled[process.pid] = record
                self._note(mine, "hit")
                return record.status
        self._start(t, mine)
        if not mine.reasons:
            self.files.begins(t, mine, given.files)
        self.tracker.executes(t, calls.CWD, begin.words.rstrip(b"\0").rpartition(b"\0")[2])
        return None

    def _look_up(self, t: Task, mine: Execution, given: start.Inherited) -> Record | None:
        """The result of an execution, which has been put in place."""
        lines = start.signal_lines(self.m, t)
        mine.held = start.held(lines)
        counters = (self.sup.numbering.last_process, self.m.inodes.next_number, self.tracker.terminal(t))
        mine.key = start.key_of(self.m, t, self.base, counters, given, lines)
        if self.mode not in ("read", "both"):
            return None
        record = self._recall.find(t, mine)
        if record is None or not {number for number, _ in record.positions} <= given.files.keys():
            return None
        if mismatch.chosen(self.m.spec.cache_verify):
            mine.expected = record
            mine.why = "compared with the stored result"
            return None
        if not self.redo.apply(t, mine, record, self.observed):
            mine.why = "the result could not be put in place"
            return None
        self.files.move(t, record.positions)
        if os.WIFSIGNALED(record.status) and os.WTERMSIG(record.status) == signal.SIGKILL:
            self.tracker.kills()
        return record

    def _start(self, t: Task, mine: Execution) -> None:
        inodes, scheduler = self.m.inodes, self.m.scheduler
        mine.first_inode = inodes.next_number
        mine.output_from = self.observed.position()
        mine.inodes_from = len(inodes.log or ())
        mine.queue, mine.turns, mine.jumps = self._others(), scheduler.turns, scheduler.jumps
        mine.group = os.getpgid(t.process.pid)
        t.process.program.execution = mine
        self._last = mine
        self.open.append(mine)

    # -- a program ends -------------------------------------------------------------------------

    def on_exit(self, m: Machine, process: Process) -> None:
        """A process is gone, and with it perhaps an execution; the counters have been rounded."""
        if process.path != "1":
            return
        record = self._recalled.pop(process.pid, None)
        if record is not None:
            self._set_counters(process, record)
        program = process.program
        mine = program.execution
        program.execution = None
        if mine is None and program.parent is not None:
            mine = program.parent.execution
        while mine is not None and mine.process == process.pid:
            self._ended(mine, process)
            mine = mine.parent

    def _set_counters(self, process: Process, record: Record) -> None:
        m = self.m
        m.clock.now = record.clock
        m.inodes.next_number = record.next_inode
        self.sup.numbering.set_last_process(record.last_process)
        m.scheduler.turns += record.turns_taken
        process.cpu.ns, process.cpu.children_ns = record.cpu_ns, record.children_ns

    def _ended(self, mine: Execution, process: Process) -> None:
        if mine in self.open:
            self.open.remove(mine)
        self.files.ended(mine)
        if self._others() != mine.queue:
            mine.reasons.setdefault("made another process ready to run")
        self._look_at_end(mine, process)
        for other in self.m.processes.values():
            if other is not process and other.status is None and self.belongs(other, mine):
                mine.reasons.setdefault("leaves a process behind")
        if not mine.reasons and (self.mode in ("write", "both") or mine.expected is not None):
            self._keep(mine, process)
        self._note(mine, "miss" if not mine.reasons else "not cacheable")

    def _keep(self, mine: Execution, process: Process) -> None:
        record = self.effects.record(mine, process, self.sup.numbering.last_process, self.observed)
        if record is None:
            return
        if mine.expected is not None:
            stored, rerun = as_dict(mine.expected), as_dict(record)
            found = mismatch.difference(" ".join(mine.arguments()), stored, rerun, lambda n: n not in CIRCUMSTANCES)
            self.mismatch = self.mismatch or found
        if self.mode in ("write", "both"):
            self.records.append(record)

    def _look_at_end(self, mine: Execution, process: Process) -> None:
        """What its parent may see of how it ended."""
        status = process.status or 0
        if os.WIFSIGNALED(status):
            signo = os.WTERMSIG(status)
            if os.WCOREDUMP(status) or mine.held >> (signo - 1) & 1:
                mine.reasons.setdefault("was ended by a signal that it had got blocked or ignored, or left a core")
            elif signo == signal.SIGKILL and not self.tracker.killed:
                mine.reasons.setdefault("was killed from outside")
        with contextlib.suppress(ProcessLookupError):
            if os.getpgid(process.pid) != mine.group:
                mine.reasons.setdefault("leaves its process group")

    def belongs(self, process: Process, mine: Execution) -> bool:
        """Whether a process is part of an execution."""
        program: Program | None = process.program
        while program is not None:
            if program.name == mine.name:
                return True
            program = program.parent
        return False

    def _note(self, mine: Execution, result: str) -> None:
        self.log.append(mine.log(result, self._environments))

    def environments(self) -> list[dict[str, str]]:
        """The variables that executions in the log have got, with digests of their values."""
        return [
            {name.decode("utf-8", "replace"): xxhash.xxh3_64_hexdigest(value)
             for name, _, value in (one.partition(b"=") for one in variables)}
            for variables in self._environments
        ]  # fmt: skip
