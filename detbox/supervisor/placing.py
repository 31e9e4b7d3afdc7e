"""Moves a large program that the kernel has placed to where it lies on every host.

A position-independent program without an interpreter, and an interpreter, come to where a mapping of the file
comes (load_elf_binary, elf_load).  From PMD_SIZE on that depends on the file system: ext4, XFS and others lay the
file so that huge pages fit (thp_get_unmapped_area), tmpfs and overlays as high as possible.  The former place is the
next below the latter where huge pages fit, so that it can be found on all hosts, and it is taken on all.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from detbox.cpu import auxv
from detbox.errors import InternalError
from detbox.handlers.mapping import LARGE, MMAP_BASE, MREMAP_FIXED, MREMAP_MAYMOVE
from detbox.kernel import registers
from detbox.kernel.mappings import Mapping, mappings
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_MAPPING
from detbox.supervisor import injection

if TYPE_CHECKING:
    from detbox.cpu.stub import Call
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

#: Key of Process.data: how far below the addresses that the kernel notes its program lies.
MOVED_DOWN = "moved down"
#: Below the lowest mmap_base that there can be, with the largest stack.
_LOWEST = 0x100000000000
_PAGE = 4096
_ET_DYN = 3
_NOT_OF_FILES = (b"[stack", b"[vdso", b"[vvar", b"[vsyscall")
_MOVE = MREMAP_MAYMOVE | MREMAP_FIXED
_CALLS_AT_ONCE = 7
#: PROT_READ | PROT_WRITE | PROT_EXEC; MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
_SCRATCH_PROTECTION, _SCRATCH_FLAGS = 7, 0x100022


def place(m: Machine, task: Task, found: dict[int, int], vdso: tuple[int, int]) -> int:
    """In a PTRACE_EVENT_EXEC stop: the address of what is large and was placed by the kernel, after it has been
    moved if need be; 0 if there is nothing large.

    ``found``: the auxiliary vector, which is corrected.  ``vdso``: start and length of the kernel's own pages, which
    are unmapped if something is moved (AT_SYSINFO_EHDR vanishes then).
    """
    task.process.data.pop(MOVED_DOWN, None)
    interpreter = found.get(auxv.AT_BASE, 0)
    if not _LOWEST <= (interpreter or found[auxv.AT_PHDR]) < MMAP_BASE - LARGE:
        return 0
    if not interpreter and not _is_position_independent(m, task):
        return 0
    parts = list(_parts(m, task, interpreter, found[auxv.AT_PHDR]))
    start, offset, length = parts[0].start, parts[0].offset, parts[-1].end - parts[0].start
    if offset + length - -(-offset // LARGE) * LARGE < LARGE:
        return 0
    down = (start - offset) % LARGE
    if down:
        _move(m, task, parts, down, vdso)
        found.pop(auxv.AT_SYSINFO_EHDR, None)
        if interpreter:
            found[auxv.AT_BASE] -= down
        else:
            task.process.data[MOVED_DOWN] = down
            found[auxv.AT_PHDR] -= down
            found[auxv.AT_ENTRY] -= down
    return start - down


def _is_position_independent(m: Machine, task: Task) -> bool:
    fd = os.open(f"{task.tid}/exe", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    with open(fd, "rb", buffering=0) as file:
        return int.from_bytes(file.read(18)[16:], "little") == _ET_DYN


def _parts(m: Machine, task: Task, interpreter: int, headers: int) -> Iterator[Mapping]:
    """The mappings of the program, or of the interpreter; ``headers``: address of the program's headers."""
    for part in mappings(m.proc_fd, task.tid):
        others = interpreter and (part.start < interpreter or interpreter < headers < part.end)
        if not others and not part.name.startswith(_NOT_OF_FILES):
            yield part


def _move(m: Machine, task: Task, parts: Sequence[Mapping], down: int, vdso: tuple[int, int]) -> None:
    """Move mappings ``down`` by some bytes, by way of a place that overlaps with neither, and the program counter."""
    start, length = parts[0].start, parts[-1].end - parts[0].start
    aside = start - 2 * LARGE - length
    scratch = aside - _PAGE
    first: list[Call] = [(NUMBERS["munmap"], *vdso)] if vdso[1] else []
    no_file = OWN_MAPPING | 0xFFFFFFFF
    page = NUMBERS["mmap"], scratch, _PAGE, _SCRATCH_PROTECTION, _SCRATCH_FLAGS, no_file, 0
    _run(m, task, [*first, page], None)
    calls: list[Call] = []
    for origin, target in (start, aside), (aside, start - down):
        for part in parts:
            size, into = part.end - part.start, part.start - start
            calls.append((NUMBERS["mremap"], origin + into, size, size, _MOVE, target + into))
    for index in range(0, len(calls), _CALLS_AT_ONCE):
        _run(m, task, calls[index : index + _CALLS_AT_ONCE], scratch)
    regs = registers.get(task.tid)
    regs.rip -= down
    registers.put(task.tid, regs)
    _run(m, task, [(NUMBERS["munmap"], scratch, _PAGE)], None)


def _run(m: Machine, task: Task, calls: Sequence[Call], code_at: int | None) -> None:
    results = injection.at_exec(task, calls, m.listener, -1, code_at)
    for call, result in zip(calls, results, strict=True):
        if -_PAGE < result < 0:
            raise InternalError(f"call {call} at the start of a program: {os.strerror(-result)}")
