"""Overwrites ``rdtsc`` instructions that a program executes again and again, so that it looks at the clock by itself.

A trap costs some 20 µs.  The jump leads to code that does what the trap does (``cpu/hot.py``), with the same result: it
makes no difference when an instruction is overwritten, and that moment is the guest's own doing, since it counts traps.

The instruction and those behind it make room for the jump.  Nobody may come back into the middle of it: a thread that
has just executed the instruction is taken to the same place in the new code, others are waited for, and an
instruction behind which a signal was delivered once is left as it is, since the handler will return there.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from detbox.cpu import hot
from detbox.cpu.edits import Edit
from detbox.cpu.trampoline import CLOCKS
from detbox.kernel import _native
from detbox.kernel.mappings import CODE, mapping_at
from detbox.machine.constants import LOOPS_MAPPING
from detbox.records import NamedTuple, field, record
from detbox.spin import PtraceStepper
from detbox.spin.stepper import RIP, register
from detbox.supervisor import memory
from detbox.supervisor.patching import ORIGINALS

if TYPE_CHECKING:
    from detbox.cpu.trampoline import Displacement
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.patching import Patching
    from detbox.supervisor.task import Process, Task

#: Traps of an instruction before it is overwritten.
OFTEN = 100
#: Key of Process.data: the address of the code that stands for rdtsc, 0 if there is none.
ROUTINE = "clock code"
_PAGE = 4096
# More than an instruction, and those that make room for a jump, are long.
_LONGEST = 32


@record
class _Space:
    """The instructions of one address space, by address: how often each has trapped, what is left as it is, and the
    lengths of what has been overwritten."""

    traps: dict[int, int] = field(default_factory=dict)
    refused: set[int] = field(default_factory=set)
    written: dict[int, int] = field(default_factory=dict)


class _Mapping(NamedTuple):
    """A file that is mapped as code; ``fd`` is the holder's."""

    start: int
    end: int
    offset: int
    fd: int


class HotSites:
    """The instructions of one run that look at the clock."""

    def __init__(self, sup: Supervisor, patching: Patching) -> None:
        self.sup = sup
        self.patching = patching
        self.rewritten = 0
        self._spaces: dict[object, _Space] = {}
        sup.fork_hooks.append(self._on_fork)
        sup.exit_hooks.append(self._on_exit)

    def _on_fork(self, m: Machine, parent: Process, child: Process) -> None:
        space = self._spaces.get(parent.mm)
        if space is not None and child.mm is not parent.mm:
            self._spaces[child.mm] = _Space(space.traps.copy(), space.refused.copy(), space.written.copy())

    def _on_exit(self, m: Machine, process: Process) -> None:
        if self._spaces:
            living = m.other_spaces(process)
            self._spaces = {mm: space for mm, space in self._spaces.items() if mm in living}

    # -- what happens -------------------------------------------------------------------

    def trapped(self, task: Task, address: int) -> int | None:
        """A thread has got its answer for the instruction at an address; where it goes on if not behind that."""
        space = self._spaces.setdefault(task.process.mm, _Space())
        if address in space.refused:
            return None
        space.traps[address] = traps = space.traps.get(address, 0) + 1
        if traps < OFTEN or self._others_between(task, address):
            return None
        resume = self._rewrite(task, space, address)
        if resume is None:
            space.refused.add(address)
        else:
            del space.traps[address]
            self.rewritten += 1
        return resume

    def before_signal(self, task: Task) -> None:
        """A signal is about to be delivered to a stopped thread: its handler returns to where the thread is."""
        space = self._spaces.get(task.process.mm)
        if space is None:
            return
        rip = register(_native.get_regs(task.tid), RIP)
        space.refused.update(at for at in space.traps if at < rip < at + _LONGEST)

    # -- overwriting --------------------------------------------------------------------

    def _others_between(self, task: Task, address: int) -> bool:
        """Whether another thread is stopped behind the instruction."""
        for other in self.sup.m.tasks.values():
            if other is task or other.process.mm is not task.process.mm:
                continue
            try:
                rip = register(_native.get_regs(other.tid), RIP)
            except OSError:
                continue  # in a call
            if address < rip < address + _LONGEST:
                return True
        return False

    def _rewrite(self, task: Task, space: _Space, address: int) -> int | None:
        routine = task.process.data.get(ROUTINE, 0)
        mapping = self._mapping(task, address) if routine else None
        if mapping is None:
            return None
        # Which breakpoints there are depends on the machine.
        loops, stepper = self.sup.spinning.loops, PtraceStepper(task.tid)
        loops.disarm(task.process.mm, stepper)
        try:
            moved = self._moved(task, space, mapping, address)
            return None if moved is None else self._write(task, space, mapping, moved, address, routine)
        except (OSError, ValueError):
            return None
        finally:
            os.close(mapping.fd)
            loops.arm(task.process.mm, stepper)

    def _mapping(self, task: Task, address: int) -> _Mapping | None:
        found = mapping_at(self.sup.m.proc_fd, task.tid, address)
        if found is None or not found.is_code or found.perms != CODE:
            return None
        name = task.process.exe if found.name.startswith(LOOPS_MAPPING) else found.name
        try:
            return _Mapping(found.start, found.end, found.offset, self.patching.open_code(task, name))
        except OSError:
            return None

    def _moved(self, task: Task, space: _Space, mapping: _Mapping, address: int) -> Displacement | None:
        """What makes room for the jump, if the file is the one that is mapped."""
        page = address - address % _PAGE
        found = bytearray(memory.peek(task.tid, page, _PAGE))
        held = bytearray(os.pread(mapping.fd, _PAGE, page - mapping.start + mapping.offset))
        originals = {at: len(old) for at, old in task.process.data.get(ORIGINALS, {}).items()}
        for at, length in (originals | space.written).items():
            if page - _PAGE < at < page + _PAGE:
                first, last = max(at - page, 0), max(at + length - page, 0)
                found[first:last] = held[first:last]
        # The end of the code is in the page, and behind it there may be code of ours.
        offset = address - mapping.start + mapping.offset
        sites = self.patching.finder.sites(mapping.fd)
        site = next((site for site in sites if site.offset == offset and site.kind in CLOCKS), None)
        if site is None:
            return None
        moves = self.patching.finder.displacements(mapping.fd)
        moved = next((item for item in moves if item.vaddr == site.vaddr and item.kind in CLOCKS), None)
        if moved is None or not moved.spare:
            return None
        code_end = moved.spare + address - site.vaddr - page
        return moved if found[:code_end] == held[:code_end] else None

    def _write(
        self, task: Task, space: _Space, mapping: _Mapping, moved: Displacement, address: int, routine: int
    ) -> int | None:
        behind = address - moved.vaddr + moved.spare
        page = behind - behind % _PAGE
        if behind % _PAGE == 0 or not mapping.start <= page < mapping.end:
            return None
        size = hot.size(moved)
        at = hot.room(memory.peek(task.tid, page, _PAGE), behind - page, size)
        if at is None:
            return None
        made = hot.detour(moved, address, page + at, routine)
        old = memory.peek(task.tid, address, moved.length)
        edits = [Edit(page + at, bytes(len(made.code)), made.code), Edit(address, old, made.jump)]
        if not old.endswith(moved.after) or not memory.apply(task.tid, edits):
            return None
        space.written[address] = moved.length
        self.sup.counting.copying.changed(task.process.mm)
        return made.resume
