"""Go's threads that compute for long without a call: where the turns of their loops are counted.

At exec those pages of a Go program's code are mapped that have its loops counted (cpu/goloops.py).  A thread comes to
a breakpoint after a number of turns.  If it has made no call for :data:`LONG` turns, and others wait, the process is
counted from there on like those of other languages (giving_way.py), within a budget, and its code is made what it was.
All that depends on the guest alone: on the turns, on calls, and on what others of its executable have been allowed.
"""

from __future__ import annotations

import mmap
import os
import signal
import struct
from typing import TYPE_CHECKING

from detbox.cpu import auxv, goloops
from detbox.cpu.edits import Edit
from detbox.cpu.goloops import BODY, BREAKPOINT, COUNTER, STUB, STUBS, GoLoops, Site
from detbox.cpu.stub import Call, Result
from detbox.errors import InternalError
from detbox.handlers.limits import may_refuse_mappings
from detbox.kernel import _native, registers
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_MAPPING
from detbox.machine.constants import LOOPS_MAPPING
from detbox.records import field, record
from detbox.spin import PtraceStepper
from detbox.spin.stepper import RIP, register
from detbox.supervisor import injection, memory
from detbox.supervisor.stretch import LOOPED

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: Instructions of counted loops up to the first breakpoint of a process, twice as many up to each further one, and at
#: most: it takes some 30 us.
FIRST, MOST = 1 << 18, 1 << 24
#: After so many without a call a thread's loop is long; if nobody waits it is looked at again after twice as many.
LONG = 1 << 26
#: What a process may spend (see giving_way.py) whose loop is long, in us, and at least; all of the same executable
#: together, and how much more with each start of it.
ALLOWED, LEAST, TOGETHER, STARTED = 80_000, 30_000, 240_000, 10_000
#: Executables whose code is kept in memory for the next process.
KEPT = 8
_GIVEN = "long_loops_given"  # in a process's data: what it was allowed to spend
_PAGE = 4096
_READ_EXECUTE, _READ_WRITE = 5, 3
# MAP_PRIVATE with MAP_FIXED_NOREPLACE, or with MAP_FIXED.
_NEW, _OVER = 0x100002, 0x12
#: An executable: its file's device, number, size and times.
_Key = tuple[int, int, int, int, int]
_WORD = struct.Struct("<q")


@record
class _Program:
    """An executable.

    ``fd`` is open on ``size`` bytes of its code, where they are in its file, and behind them on a page for the counter
    and the stubs.
    """

    key: _Key
    loops: GoLoops
    size: int
    fd: int
    _pages: dict[int, list[Site]] = field(default_factory=dict)

    def without(self, address: int, held: bytes) -> bytes:
        """What some bytes of memory would be if no loops were counted."""
        if not self._pages:
            for site in self.loops.sites():
                for page in {site.place // _PAGE, (site.place + len(site.old) - 1) // _PAGE}:
                    self._pages.setdefault(page, []).append(site)
        end, changed = address + len(held), bytearray(held)
        for page in range(address // _PAGE, (end - 1) // _PAGE + 1):
            for site in self._pages.get(page, ()):
                first, last = max(site.place, address), min(site.place + len(site.old), end)
                if first < last:
                    changed[first - address : last - address] = site.old[first - site.place : last - site.place]
        return bytes(changed)


@record
class _Space:
    """An address space in which loops are counted: ``period`` instructions up to the next breakpoint."""

    program: _Program
    period: int = FIRST


class LongLoops:
    """The counted loops of one run."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self._programs: dict[_Key, _Program | None] = {}
        self._allowed: dict[bytes, int] = {}  # by the executable's path, as the guest sees it
        self._spaces: dict[object, _Space] = {}
        sup.fork_hooks.append(self._on_fork)
        sup.exit_hooks.append(self._on_exit)

    def _on_fork(self, m: Machine, parent: Process, child: Process) -> None:
        space = self._spaces.get(parent.mm)
        if space is not None and child.mm is not parent.mm:
            self._spaces[child.mm] = _Space(space.program, space.period)

    def _on_exit(self, m: Machine, process: Process) -> None:
        if given := process.data.get(_GIVEN, 0):
            self._add(process.exe, min(self.sup.counting.giving_way.left_of_long_loops(process), given))
        if self._spaces:
            living = m.other_spaces(process)
            self._spaces = {mm: space for mm, space in self._spaces.items() if mm in living}

    def _add(self, exe: bytes, allowed: int) -> None:
        """Let an executable's processes spend more, or less."""
        self._allowed[exe] = min(self._allowed.get(exe, TOGETHER) + allowed, TOGETHER)

    # -- at exec ------------------------------------------------------------------------

    def prepare(self, task: Task, st: os.stat_result, found: dict[int, int]) -> None:
        """In a PTRACE_EVENT_EXEC stop: have the loops of a Go program counted.  ``found``: its auxiliary vector."""
        process = task.process
        process.data.pop(_GIVEN, None)
        key = st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns
        if found.get(auxv.AT_BASE) or may_refuse_mappings(process) or (program := self._program(task, key)) is None:
            return
        self._add(process.exe, STARTED)
        if self._allowed[process.exe] < LEAST:
            return
        loops, fd, size = program.loops, Result(0, OWN_MAPPING), program.size
        stubs = -(-len(loops.stubs) // _PAGE) * _PAGE
        # The calls are made from the page of the entry, which has to stay meanwhile.
        entry = min(max(registers.get(task.tid).rip // _PAGE * _PAGE - loops.address, 0), size)
        behind = min(entry + _PAGE, size)
        calls: list[Call] = [
            (NUMBERS["openat"],),
            (NUMBERS["mmap"], COUNTER, _PAGE, _READ_WRITE, _NEW, fd, loops.offset + size),
            (NUMBERS["mmap"], STUBS, stubs, _READ_EXECUTE, _NEW, fd, loops.offset + size + _PAGE),
        ]
        for first, last in (0, entry), (behind, size):
            if first < last:
                place, offset = loops.address + first, loops.offset + first
                calls.append((NUMBERS["mmap"], place, last - first, _READ_EXECUTE, _OVER, fd, offset))
        results = injection.at_exec(task, [*calls, (NUMBERS["close"], Result(0))], self.sup.m.listener, program.fd)
        if results[1:-1] != [call[1] for call in calls[1:]]:
            raise InternalError(f"the code of a program cannot be mapped: {results}")
        if entry < behind:
            memory.poke(task.tid, loops.address + entry, os.pread(program.fd, behind - entry, loops.offset + entry))
        self._spaces[process.mm] = space = _Space(program)
        self._set(task, space.period)

    def _program(self, task: Task, key: _Key) -> _Program | None:
        if key in self._programs:
            self._programs[key] = program = self._programs.pop(key)  # the last in their order
            return program
        opened = [other for other in self._programs.values() if other is not None]
        if len(opened) >= KEPT:
            os.close(opened[0].fd)
            del self._programs[opened[0].key]
        self._programs[key] = program = self._new_program(task, key)
        return program

    def _new_program(self, task: Task, key: _Key) -> _Program | None:
        fd = os.open(f"{task.tid}/exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.sup.m.proc_fd)
        with open(fd, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            loops = goloops.find(data)
        if loops is None:
            return None
        size, end = len(loops.text), loops.offset + len(loops.text) + _PAGE
        mine = os.memfd_create(os.fsdecode(os.path.basename(LOOPS_MAPPING)).removeprefix("memfd:"))
        os.pwrite(mine, loops.text, loops.offset)
        os.pwrite(mine, loops.stubs, end)
        os.ftruncate(mine, end + -(-len(loops.stubs) // _PAGE) * _PAGE)
        return _Program(key, loops._replace(text=b""), size, mine)

    # -- at a breakpoint ----------------------------------------------------------------

    def on_trap(self, task: Task) -> bool:
        """A SIGTRAP stop; True if it was at the breakpoint of a stub, and has been dealt with."""
        space = self._spaces.get(task.process.mm)
        if space is None:
            return False
        index, at = divmod(register(_native.get_regs(task.tid), RIP) - 1 - STUBS, STUB)
        if at != BREAKPOINT or not 0 <= index < space.program.loops.number:
            return False
        self.sup.image.undo_force(task, signal.SIGTRAP)
        regs = registers.get(task.tid)
        regs.rip = space.program.loops.site(index).target
        registers.put(task.tid, regs)
        counted, due = task.data.get(LOOPED, (0, LONG))
        if counted:
            counted += space.period
        if counted >= due:
            if self._is_long(task):
                return True
            due *= 2
        task.data[LOOPED] = counted or 1, due
        space.period = min(2 * space.period, MOST)
        self._set(task, space.period)
        self.sup.proceed(task)
        return True

    def _is_long(self, task: Task) -> bool:
        """A thread's loop is long: whether others wait, so that it is counted."""
        counting, exe = self.sup.counting, task.process.exe
        allowed = min(self._allowed[exe], ALLOWED)
        if allowed < LEAST or not counting.giving_way.long_loop(task, allowed):
            return False
        self._add(exe, -allowed)
        task.process.data[_GIVEN] = allowed
        counting.others.heard(task)  # what later ones may spend depends on it
        self.restore(task)
        return counting.go_on_counted(task)

    def restore(self, task: Task) -> None:
        """Make the code of a stopped thread's process what it was: its loops are not counted any more."""
        space = self._spaces.pop(task.process.mm, None)
        if space is None:
            return
        # Breakpoints at what is overwritten, or in stubs, would put back what was there.
        loops, stepper, mm = self.sup.spinning.loops, PtraceStepper(task.tid), task.process.mm
        loops.disarm(mm, stepper)
        memory.apply(task.tid, [Edit(site.place, b"", site.old) for site in space.program.loops.sites()])
        loops.arm(mm, stepper)

    def before_signal(self, task: Task) -> None:
        """A signal is about to be delivered: what was overwritten may have caused it, in a stub."""
        space = self._spaces.get(task.process.mm)
        if space is None:
            return
        regs = registers.get(task.tid)
        index, at = divmod(regs.rip - STUBS, STUB)
        if 0 <= index < space.program.loops.number and at <= BODY:
            regs.rip = space.program.loops.site(index).target
            registers.put(task.tid, regs)

    @staticmethod
    def _set(task: Task, instructions: int) -> None:
        _native.write_places(task.tid, [(COUNTER, _WORD.pack(instructions))])

    # -- what the code was --------------------------------------------------------------

    def original(self, mm: object, address: int, held: bytes) -> bytes:
        """What the memory at an address, which holds something, would be without the counted loops."""
        space = self._spaces.get(mm)
        if space is None:
            return held
        return space.program.without(address, held)
