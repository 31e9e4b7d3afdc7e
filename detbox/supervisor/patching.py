"""Which instructions are overwritten in the guest's code, and what was there.

At exec this concerns the program and its interpreter, later each file that is mapped as code.  Addresses of
programs are not random, so what has to be done at the exec of a file is found once and then only repeated.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator
from typing import TYPE_CHECKING

from detbox.cpu import edits, sites, trampoline
from detbox.cpu.edits import Edit
from detbox.cpu.emulate import decode
from detbox.kernel import _native
from detbox.kernel.mappings import mappings
from detbox.records import NamedTuple, field, record
from detbox.supervisor import memory

if TYPE_CHECKING:
    from detbox.cpu.service import Finder
    from detbox.cpu.sites import Site
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: Room for trampolines, directly below the interpreter, where other kernels have the vDSO and its data.
AREA = 0x4000
#: Key of Process.data: the original bytes of overwritten instructions, by address.  Never changed in place.
ORIGINALS = "overwritten code"
#: Valgrind's tools translate the code that they map and never execute it; their own instructions stand for it.
_TRANSLATOR = re.compile(rb".*/valgrind/[^/]+-amd64-linux")
_FileKey = tuple[int, int, int, int, int]


class ExecPlan(NamedTuple):
    """What happens at the exec of one file: edits, the original bytes, and the trampolines' code."""

    edits: list[Edit]
    originals: dict[int, bytes]
    code: bytes = b""
    code_at: int = 0
    counter: int = 0

    def code_from(self, counter: int) -> bytes:
        """The trampolines' code; ``counter``: where those for rdtsc begin to count."""
        at = self.counter - self.code_at
        return self.code and self.code[:at] + counter.to_bytes(8, "little") + self.code[at + 8 :]


class _Part(NamedTuple):
    """What is to be overwritten where a part of a file is mapped; addresses count from the mapping's start."""

    places: dict[int, Site]
    originals: dict[int, bytes]
    edits: list[Edit]


@record
class Patching:
    """The patches of one run.  ``kinds``: the instructions that the processor does not trap by itself."""

    m: Machine
    finder: Finder
    kinds: Collection[str]
    _sites: dict[_FileKey, list[Site]] = field(default_factory=dict)
    _parts: dict[tuple[_FileKey, int, int], _Part] = field(default_factory=dict)
    _plans: dict[tuple[_FileKey, int, int], ExecPlan] = field(default_factory=dict)

    # -- at exec --------------------------------------------------------------------

    def plan(self, task: Task, st: os.stat_result, interpreter: int, entry: int) -> ExecPlan:
        """For the program that a thread has just executed; ``interpreter``: its address (AT_BASE), or 0."""
        key = (_key(st), interpreter, entry)
        if key not in self._plans:
            self._plans[key] = self._make_plan(task, interpreter)
        return self._plans[key]

    def carry_out(self, task: Task, plan: ExecPlan, has_area: bool, counter: int) -> None:
        """Write the plan's edits; ``counter``: where trampolines for rdtsc begin to count."""
        if plan.code_at and not has_area:
            return
        if plan.code:
            task.write(plan.code_at, plan.code_from(counter))
        if not memory.apply(task.tid, plan.edits):
            self.m.doubt(task, f"the code of {os.fsdecode(task.process.exe)} is not what its file says")
        task.process.data[ORIGINALS] = plan.originals

    def _make_plan(self, task: Task, interpreter: int) -> ExecPlan:
        every: list[Edit] = []
        originals: dict[int, bytes] = {}
        jumps: trampoline.Assembled | None = None
        area = interpreter - AREA
        for start, end, offset, fd in self._code(task):
            try:
                patches: list[tuple[int, bytes]] = []
                if interpreter and interpreter <= start < interpreter + (1 << 24):
                    jumps = self._trampolines(fd, interpreter, area)
                    patches += [patch for patch in jumps.patches if start <= patch[0] < end] if jumps else []
                moved = [range(at, at + len(new)) for at, new in patches]
                here = sites.sites_in_mapping(self.file_sites(fd), self.kinds, start, end - start, offset)
                for at, site in here.items():
                    if not any(at in span for span in moved):
                        originals[at] = os.pread(fd, site.length, site.offset)
                        patches.append((at, sites.trap_bytes(site.length)))
                every += edits.join(patches, _reader(fd, offset - start))
            finally:
                os.close(fd)
        if jumps is None:
            return ExecPlan(every, originals)
        return ExecPlan(every, originals | jumps.traps, jumps.code, area, jumps.counter)

    def _trampolines(self, fd: int, bias: int, area: int) -> trampoline.Assembled | None:
        moved = trampoline.of_loader(self.finder.displacements(fd), self.finder.sites(fd))
        made = trampoline.assemble(moved, bias, area, self.m.cpu_model, self.m.spec.cpus)
        return made if moved and len(made.code) <= AREA else None

    def open_code(self, task: Task, path: bytes) -> int:
        """A descriptor (the caller's) of a file that the listing of a thread's memory names.  Raises OSError."""
        # The listing names files from the supervisor's root, wherever the process has its own.
        if path == task.process.exe:
            path = b"%d/exe" % task.tid
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self.m.proc_fd)

    def _code(self, task: Task) -> Iterator[tuple[int, int, int, int]]:
        """Start, end, file offset and a descriptor (the caller's) of each file that is mapped as code."""
        for found in mappings(self.m.proc_fd, task.tid):
            if not found.is_code:
                continue
            try:
                fd = self.open_code(task, found.name)
            except OSError:
                self.m.doubt(task, f"the code of {os.fsdecode(found.name)} could not be searched")
                continue
            yield found.start, found.end, found.offset, fd

    # -- later mappings ---------------------------------------------------------------

    def file_sites(self, fd: int) -> list[Site]:
        """The sites of an open file that are to be overwritten."""
        key = _key(os.fstat(fd))
        if key not in self._sites:
            self._sites[key] = [site for site in self.finder.sites(fd) if site.kind in self.kinds]
        return self._sites[key]

    def mapping(self, task: Task, fd: int, length: int, offset: int) -> Callable[[Task, int], None] | None:
        """What to do once a part of the guest's file ``fd`` is mapped as private code; None: nothing."""
        if _TRANSLATOR.fullmatch(task.process.exe):
            return None
        part = self._known_part(task, fd, length, offset) or self._found_part(task, fd, length, offset)
        if part is None or not part.places:
            return None
        return lambda thread, address: self._overwrite(thread, address, part)

    def _known_part(self, task: Task, fd: int, length: int, offset: int) -> _Part | None:
        st = _native.stat_fd(task.tid, fd) if task.tid == task.process.pid else 0
        return None if isinstance(st, int) else self._parts.get((_key(st), length, offset))

    def _found_part(self, task: Task, fd: int, length: int, offset: int) -> _Part | None:
        mine = task.process.files.borrow(task, fd)
        try:
            return self._part(mine, length, offset)
        except OSError:
            return None  # not readable, so it cannot be mapped either
        finally:
            os.close(mine)

    def _part(self, fd: int, length: int, offset: int) -> _Part:
        key = (_key(os.fstat(fd)), length, offset)
        if key not in self._parts:
            places = sites.sites_in_mapping(self.file_sites(fd), self.kinds, 0, length, offset)
            originals = {at: os.pread(fd, site.length, site.offset) for at, site in places.items()}
            patches = [(at, sites.trap_bytes(site.length)) for at, site in places.items()]
            self._parts[key] = _Part(places, originals, edits.join(patches, _reader(fd, offset)))
        return self._parts[key]

    def _overwrite(self, task: Task, address: int, part: _Part) -> None:
        """Overwrite those sites that memory shows as the file does (it may be mapped beyond its end)."""
        if memory.apply(task.tid, part.edits, address):
            found = {address + at: old for at, old in part.originals.items()}
        else:
            found = self._overwrite_some(task, address, part)
        task.process.data[ORIGINALS] = task.process.data.get(ORIGINALS, {}) | found

    def _overwrite_some(self, task: Task, address: int, part: _Part) -> dict[int, bytes]:
        found: dict[int, bytes] = {}
        every = []
        for at, site in part.places.items():
            try:
                old = memory.peek(task.tid, address + at, site.length)
            except OSError:
                continue
            instruction = decode(old)
            if instruction is not None and (instruction.kind, instruction.length) == (site.kind, site.length):
                found[address + at] = old
                every.append(Edit(address + at, old, sites.trap_bytes(site.length)))
        memory.apply(task.tid, every)
        return found

    # -- at a trap ----------------------------------------------------------------------

    def original(self, task: Task, address: int) -> bytes | None:
        """The instruction that was overwritten at an address."""
        process = task.process
        for other in (process, *(p for p in self.m.processes.values() if p.mm is process.mm)):
            code = other.data.get(ORIGINALS, {}).get(address)
            if code is not None:
                return bytes(code)
        return None

    @staticmethod
    def after_fork(m: Machine, parent: Process, child: Process) -> None:
        """The child has the parent's memory."""
        child.data[ORIGINALS] = parent.data.get(ORIGINALS, {})


def _key(st: os.stat_result) -> _FileKey:
    return st.st_dev, st.st_ino, st.st_size, st.st_mtime_ns, st.st_ctime_ns


def _reader(fd: int, shift: int) -> Callable[[int, int], bytes]:
    return lambda address, length: os.pread(fd, length, address + shift)
