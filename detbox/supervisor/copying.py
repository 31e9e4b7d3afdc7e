"""Has a thread execute counting copies of its code (see detbox/counted) instead of the code itself."""

from __future__ import annotations

import select
import signal
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.counted.store import Copies, Library
from detbox.kernel import _native, registers, siginfo
from detbox.kernel.mappings import CODE, mappings
from detbox.kernel.numbers import NUMBERS
from detbox.policy import BY_NUMBER, TABLE, Action
from detbox.spin import PtraceStepper
from detbox.spin.stepper import OFFSET, RIP, register
from detbox.supervisor.copymemory import INSIDE, TaskMemory, left_of, make_room, set_left
from detbox.supervisor.gauge import GAUGE, GAUGE_WEIGHT, Gauge
from detbox.supervisor.stretch import STRETCH, Stretch
from detbox.supervisor.task import State

if TYPE_CHECKING:
    from detbox.counted.translate import Exit, Mark
    from detbox.decision import Decision
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: Key of a task's data: instructions left of its stretch, while it is stopped.
LEFT = "counting"
#: Instructions of a process that are stepped over, since they cannot be copied; and what each of them counts, by the
#: time that it takes (some 20 us).
STEPS, STEP_WEIGHT = 300_000, 80_000
#: A timer whose signal comes again and again ends no loop: after each so many signals a step counts twice as much, in
#: both respects, up to 2^DEAREST times.  So as many signals come as would otherwise, for a tenth of the steps.
DEARER, DEAREST = 16, 4
#: In a process's data: how often a timer of its has expired behind a stretch that was counted, since it was armed.
EXPIRED = "counting_expired"
#: Copies that are made together with one that is needed, since to make one takes some 5 us, and the stop at which it is
#: found missing 60.
AHEAD = 12
#: Of a process that has executed so many instructions that cannot be copied it is assumed that it generates code.
FEW_STEPS = 100
_LEAVING = "counting_leaving"  # in a task's data: it is to go on in its own code as soon as it stops
_STEPPED = "counting_steps"  # in a process's data: steps made in its life
_WORTH = "counting_steps_worth"  # in a process's data: what they have counted of STEPS
_FAMILY = "counting_family"  # in a process's data: the library of it and of all that were forked from one another
_CALLS = "counting_calls"  # in a process's data: those of them that were calls, or popf (where a goroutine goes on)
_RETURNS = "counting_returns"  # in a process's data: those that returned from signal handlers
_UNABLE = "counting_unable"  # in a process's data: there is no room for copies
_NONE_STEPPED = (0, 0, 0)
_STEPPED_ALL, _BEFORE_CALL, _OTHER_STOP = 0, 1, 2
_CALL, _POPF, _SIGRETURN, _MMAP = b"\x0f\x05", b"\x9d", NUMBERS["rt_sigreturn"], NUMBERS["mmap"]
_ARGUMENTS = ("rdi", "rsi", "rdx", "r10", "r8", "r9")
#: Private code of a file that cannot be written to.
_PROT_EXEC = 4
_LOST = 200  # steps that a thread in a copy takes at most to a place that the original code has, too
_LIBRARIES = 8  # files whose copies are kept for processes to come


class Copying:
    """The copies of one run's programs.

    ``reached(task)``: called when a thread has done all that it was to do; ``gave_up(task, left)``: when it is
    measured (gauging.py), and that takes too long; ``too_dear(task, left)``: when it is counted for other processes,
    and there are more copies than it may have.
    """

    def __init__(
        self,
        sup: Supervisor,
        reached: Callable[[Task], None],
        gave_up: Callable[[Task, int], None],
        too_dear: Callable[[Task, int], None],
    ) -> None:
        self.sup = sup
        self._reached = reached
        self._gave_up = gave_up
        self._too_dear = too_dear
        #: What memory that holds something is without what is ours in it.
        self.original: Callable[[object, int, bytes], bytes] | None = None
        self._copies: dict[object, Copies] = {}
        self._pages: dict[bytes, bytes] = {}  # code that has been copied
        self._libraries: dict[bytes, Library] = {}  # by what has been executed, in the order of when it was last begun
        # Calls that the filter decides alone, whatever their arguments: they are stepped over.
        self._known = bytearray(max(BY_NUMBER) + 1)
        for row in TABLE:
            self._known[row.number] = not row.args and row.action in (Action.ALLOW, Action.REFUSE)
        mapped = sup.table[_MMAP]
        assert mapped is not None

        def mmap(m: Machine, task: Task, arguments: tuple[int, ...]) -> Decision:
            if arguments[2] & _PROT_EXEC:
                self.changed(task.process.mm)
            return mapped(m, task, arguments)

        sup.table[_MMAP] = mmap
        sup.fork_hooks.append(self._on_fork)
        sup.exec_hooks.append(self._on_exec)
        sup.exit_hooks.append(self._on_exit)

    def _on_fork(self, m: Machine, parent: Process, child: Process) -> None:
        # They have their copies in common, also if the parent has none itself.
        child.data[_FAMILY] = parent.data.setdefault(_FAMILY, [])
        copies = self._copies.get(parent.mm)
        if copies is not None and child.mm is not parent.mm:
            self._copies[child.mm] = copies.inherited(_Ranges(self.sup, child.mm).all)

    def _on_exit(self, m: Machine, process: Process) -> None:
        process.data.pop(_FAMILY, None)
        if not self._copies:
            return
        living = m.other_spaces(process)
        for mm in [mm for mm in self._copies if mm not in living]:
            del self._copies[mm]
        if not self._copies:
            self._pages.clear()

    @staticmethod
    def _on_exec(m: Machine, task: Task) -> None:
        for key in (INSIDE, _LEAVING):
            task.data.pop(key, None)
        task.process.data.pop(_FAMILY, None)

    def _memory(self, task: Task) -> TaskMemory:
        return TaskMemory(task, self.original)

    def changed(self, mm: object) -> None:
        """The code of an address space may be another one from now on."""
        if mm in self._copies:
            self._copies[mm].suspect = True

    # -- going on ----------------------------------------------------------------------

    @staticmethod
    def inside(task: Task) -> bool:
        """Whether a thread runs in a copy."""
        return INSIDE in task.data

    def begin(self, task: Task, left: int) -> None:
        """Let a thread go on that is stopped in its own code, for ``left`` instructions or up to its next call."""
        copies = self._of(task)
        if copies is not None:
            self._prepare(task, copies)
            self._go_on(task, left)
        elif GAUGE in task.data:
            task.data[GAUGE].steps = 0
            self._gave_up(task, left)
        else:
            self.let_go(task)

    def _prepare(self, task: Task, copies: Copies) -> None:
        """See that the code is what it was when it was copied, and that no breakpoints of ours are in it."""
        loops, mm = self.sup.spinning.loops, task.process.mm
        if loops.armed(mm):
            loops.disarm(mm, PtraceStepper(task.tid))
        if copies.suspect:
            copies.check(self._memory(task))

    def in_call(self, task: Task) -> bool:
        """Whether a thread has made its call in a copy, where it will go on."""
        if INSIDE in task.data and not Copies.inside(task.ip):
            del task.data[INSIDE]
        return INSIDE in task.data

    def before_return(self, task: Task, left: int) -> None:
        """A thread that has made its call in a copy goes on there, for so many instructions (0: it is to leave)."""
        copies = self._copies[task.process.mm]
        if copies.suspect:
            # What the call is about to map will be looked at behind it.
            left = 0 if task.nr == _MMAP or not copies.check(self._memory(task)) else left
        if not left:
            task.data[_LEAVING] = True
        set_left(task, left)

    def stays(self, task: Task, left: int) -> None:
        """A thread that is in a call that it has made in a copy goes on there after all."""
        task.data.pop(_LEAVING, None)
        set_left(task, left)

    def come_out(self, task: Task) -> None:
        """A thread is stopped at the end of a call, or is new: it is to go on in its own code, if it was in a copy."""
        inside, copies = task.data.pop(INSIDE, None), self._copies.get(task.process.mm)
        task.data.pop(_LEAVING, None)
        if copies is None:
            return
        try:
            regs = registers.get(task.tid)
        except ProcessLookupError:
            return
        mark = copies.original(regs.rip) if copies.inside(regs.rip) else None
        if mark is not None:
            self._put(task, regs, mark)
        elif inside:
            task.data[INSIDE] = True
            self.surface(task)

    @staticmethod
    def _for_others(task: Task) -> bool:
        stretch: Stretch | None = task.data.get(STRETCH)
        return stretch is not None and stretch.others

    def _library(self, task: Task) -> Library:
        """What there is of copies for a process: those of one file that are counted for others have them in common.

        What the rest may spend goes down with each copy: its times must not depend on who has run, and was not cached.
        """
        stretch: Stretch | None = task.data.get(STRETCH)
        if stretch is None or stretch.reason is None:
            return Library(self._pages)
        library = self._libraries.pop(task.process.exe, None)
        if library is None or library.worn:
            library = Library(self._pages)
        self._libraries[task.process.exe] = library
        if len(self._libraries) > _LIBRARIES:
            del self._libraries[next(iter(self._libraries))]
        return library

    @staticmethod
    def stepped(process: Process) -> tuple[int, int, int]:
        """How many instructions were stepped over: what cannot be copied, calls and `popf`, and ends of handlers."""
        data = process.data
        if _STEPPED not in data:
            return _NONE_STEPPED
        calls, returns = data.get(_CALLS, 0), data.get(_RETURNS, 0)
        return data[_STEPPED] - calls - returns, calls, returns

    def made(self, task: Task) -> int:
        """How many copies of a thread's code there have been."""
        copies = self._copies.get(task.process.mm)
        return copies.made if copies is not None else 0

    def left(self, task: Task) -> int:
        """Instructions that are left of a thread's stretch; it is not in a copy."""
        return left_of(task)

    def rearm(self, task: Task) -> None:
        """Put the breakpoints back that a thread in copies must not meet."""
        self.sup.spinning.loops.arm(task.process.mm, PtraceStepper(task.tid))

    def let_go(self, task: Task) -> None:
        """Let a thread go on in its own code, uncounted."""
        self.rearm(task)
        self.sup.cont(task, 0)

    def in_turn(self, task: Task, then: Callable[[], None]) -> None:
        """Do what comes next of a stopped thread, after others if it has used its turn up."""
        if self.sup.m.scheduler.used_up():
            self.sup.m.scheduler.make_ready(task, then)
        else:
            then()

    def let_go_in_turn(self, task: Task) -> None:
        """Let a stopped thread go on in its own code, uncounted, after others if it has used its turn up."""
        self.rearm(task)
        self.in_turn(task, lambda: self.sup.cont(task, 0))

    def _go_on(self, task: Task, left: int) -> None:
        memory, data = self._memory(task), task.process.data
        copies = self._copies[task.process.mm]
        gauge: Gauge | None = task.data.get(GAUGE)
        dear = min(data.get(EXPIRED, 0) // DEARER, DEAREST)
        while left > 0:
            if copies.full:
                self.let_go(task)
                return
            if gauge is not None and not gauge.may_go_on(copies.made, left):
                self._gave_up(task, left)
                return
            regs = _native.get_regs(task.tid)
            address = register(regs, RIP)
            returns = register(regs, OFFSET["rax"]) == _SIGRETURN and self._at_call(memory, address)
            entry = None if returns else copies.entry(memory, address, ahead=AHEAD)
            if entry is not None:
                set_left(task, left)
                self._at(task, entry)
                task.data[INSIDE] = True
                self.sup.cont(task, 0)
                return
            if gauge is not None:
                gauge.steps -= 1
            else:
                data[_STEPPED] = data.get(_STEPPED, 0) + 1
                if returns:
                    data[_RETURNS] = data.get(_RETURNS, 0) + 1
                elif self._at_call(memory, address) or self._at_call(memory, address, _POPF):
                    data[_CALLS] = data.get(_CALLS, 0) + 1
                few = self._for_others(task) and self.stepped(task.process)[0] > FEW_STEPS
                data[_WORTH] = data.get(_WORTH, 0) + (1 << dear)
                if few or data[_WORTH] > STEPS:
                    self.let_go(task)
                    return
            _, status, why = _native.step_many(task.tid, 1, self._known)
            if why == _BEFORE_CALL and self._unseen(task):
                _, status, why = _native.step_many(task.tid, 1, b"\1" * len(self._known))
            if why == _BEFORE_CALL:
                set_left(task, left)
                self.let_go(task)
                return
            left -= STEP_WEIGHT << dear if gauge is None else GAUGE_WEIGHT
            if why == _OTHER_STOP:
                task.data[LEFT] = max(left, 1)
                self.sup.on_stop(task.tid, status)
                return
            if select.select([self.sup.control], [], [], 0)[0]:
                raise KeyboardInterrupt
        self._reached(task)

    @staticmethod
    def _at_call(memory: TaskMemory, address: int, code: bytes = _CALL) -> bool:
        try:
            return memory.read(address, len(code)) == code
        except OSError:
            return False

    @staticmethod
    def _at(task: Task, address: int) -> None:
        regs = registers.get(task.tid)
        regs.rip = address
        registers.put(task.tid, regs)

    def _unseen(self, task: Task) -> bool:
        """Whether the filter lets the call that comes next pass (or refuses it) because of its arguments."""
        regs = _native.get_regs(task.tid)
        row = BY_NUMBER.get(register(regs, OFFSET["rax"]))
        if row is None or not row.args:
            return False
        arguments = tuple(register(regs, OFFSET[name]) for name in _ARGUMENTS)
        return row.verdict(arguments)[0] is not Action.WATCH

    # -- coming back -------------------------------------------------------------------

    def on_trap(self, task: Task) -> bool:
        """A SIGTRAP stop; True if it was at a breakpoint in a copy, and has been dealt with."""
        if INSIDE not in task.data:
            return False
        memory, copies = self._memory(task), self._copies[task.process.mm]
        address = register(_native.get_regs(task.tid), RIP)
        why = copies.exit(memory, address)
        if why is None:
            self.surface(task)
            return False
        self.sup.image.undo_force(task, signal.SIGTRAP)
        self._prepare(task, copies)
        left = task.data.pop(LEFT, 0)
        if task.data.pop(_LEAVING, False):
            del task.data[INSIDE]
            self._at(task, why.target)
            if left:
                self._go_on(task, left)
            else:
                self.let_go(task)
            return True
        gauge: Gauge | None = task.data.get(GAUGE)
        if gauge is not None and not gauge.may_go_on(copies.made, left_of(task)):
            del task.data[INSIDE]
            self._at(task, why.target)
            self._gave_up(task, left_of(task))
            return True
        stretch: Stretch | None = task.data.get(STRETCH)
        if stretch is not None and why.why != "counted" and copies.made > stretch.most:
            del task.data[INSIDE]
            self._at(task, why.target)
            self._too_dear(task, left_of(task))
            return True
        if why.why in ("jump", "computed") and (entry := copies.follow(memory, address, why, ahead=AHEAD)) is not None:
            self._at(task, entry)
            self.sup.cont(task, 0)
            return True
        del task.data[INSIDE]
        self._at(task, why.target)
        self._came_out(task, why, 0 if why.why == "counted" else left_of(task))
        return True

    def _came_out(self, task: Task, why: Exit, left: int) -> None:
        if why.why == "counted" or left <= 0:
            self._reached(task)
        else:
            self._go_on(task, left)

    def surface(self, task: Task) -> None:
        """Something else has stopped a thread: it is taken to where it would be in its own code."""
        if not task.data.pop(INSIDE, False):
            return
        copies = self._copies[task.process.mm]
        info = b""
        for _ in range(_LOST):
            regs = registers.get(task.tid)
            mark = copies.original(regs.rip)
            if mark is not None or not copies.inside(regs.rip):
                break
            # The step takes the signal away; put in again, it is delivered when the thread goes on.
            info = info or _native.get_siginfo(task.tid)
            _native.single_step(task.tid)
        if info:
            _native.set_siginfo(task.tid, info)
        if mark is not None:
            self._tell(task, regs.rip, mark.address)
            self._put(task, regs, mark)
        if not task.data.pop(_LEAVING, False):
            task.data[LEFT] = max(left_of(task), 1)

    @staticmethod
    def _tell(task: Task, inside: int, address: int) -> None:
        """A signal that an instruction in a copy has raised tells of the one that it stands for."""
        info = _native.get_siginfo(task.tid)
        if 0 < siginfo.code_of(info) < siginfo.SI_KERNEL and siginfo.fault_address(info) == inside:
            _native.set_siginfo(task.tid, siginfo.with_address(info, address))

    @staticmethod
    def _put(task: Task, regs: registers.Registers, mark: Mark) -> None:
        regs.rip = mark.address
        if mark.register is not None:
            setattr(regs, mark.register, Copies.put_aside(TaskMemory(task), mark))
        registers.put(task.tid, regs)

    # -- the memory --------------------------------------------------------------------

    def _of(self, task: Task) -> Copies | None:
        """The copies of a thread's code; None if there is no room for them."""
        mm, data = task.process.mm, task.process.data
        if mm not in self._copies and not data.get(_UNABLE):
            if not make_room(task):
                data[_UNABLE] = True
                return None
            family = data.setdefault(_FAMILY, [])
            if not family:
                family.append(self._library(task))
            self._copies[mm] = Copies(_Ranges(self.sup, mm).all, family[0])
        return self._copies.get(mm)


class _Ranges:
    """Where the unchanging code of an address space is."""

    def __init__(self, sup: Supervisor, mm: object) -> None:
        self._sup = sup
        self._mm = mm

    def all(self) -> list[tuple[int, int]]:
        """Start and end of each mapping."""
        tasks = self._sup.m.tasks.values()
        tid = next(task.tid for task in tasks if task.process.mm is self._mm and task.state is not State.DEAD)
        found = mappings(self._sup.m.proc_fd, tid)
        joined: list[tuple[int, int]] = []
        for each in found:
            if each.ino and each.perms == CODE:
                start = joined.pop()[0] if joined and joined[-1][1] == each.start else each.start
                joined.append((start, each.end))
        return joined
