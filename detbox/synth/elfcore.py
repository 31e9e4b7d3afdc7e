"""What a process leaves in a core file (core(5)), as fs/binfmt_elf.c of Linux 6.1 has it: no kernel is asked here.

The numbers, times and users are the guest's.  A few fields have one value always: flags of the kernel's, which differ
from version to version, and the state of the process, which counts as running.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence

from detbox.machine.constants import PAGE_SIZE
from detbox.records import NamedTuple
from detbox.synth.maps import Detail, Mapping, is_written

# include/uapi/linux/elf.h
MAGIC = b"\x7fELF"
_ET_CORE, _EM_X86_64, _PT_LOAD, _PT_NOTE = 4, 62, 1, 4
_NT_PRSTATUS, _NT_PRFPREG, _NT_PRPSINFO, _NT_AUXV = 1, 2, 3, 6
_NT_X86_XSTATE, _NT_FILE, _NT_SIGINFO = 0x202, 0x46494C45, 0x53494749
_RIGHTS = ((b"r", 4), (b"w", 2), (b"x", 1))
_EHDR, _PHDR, _NOTE = struct.Struct("<4s5B7x2HI3QI6H"), struct.Struct("<2I6Q"), struct.Struct("<3I")
#: struct elf_prstatus: the signal (signo, code, errno; the one that it stands at), pending and blocked signals,
#: process, parent, group, session; four times; behind the registers, whether there are those of the x87.
_PRSTATUS, _FPVALID = struct.Struct("<3ih2x2Q4i8q"), struct.Struct("<i4x")
#: struct elf_prpsinfo: state, its letter, zombie, nice value; flags; user, group, process, parent, group, session;
#: name and arguments.
_PRPSINFO = struct.Struct("<bcbb4xQ2I4i16s80s")
#: PF_DUMPCORE, PF_SIGNALED and PF_RANDOMIZE.
_FLAGS = 0x400600
_ARGUMENTS = 79

#: Of /proc/PID/coredump_filter: which kinds of memory go into the file.
ANON_PRIVATE, ANON_SHARED, MAPPED_PRIVATE, MAPPED_SHARED, ELF_HEADERS, HUGETLB_PRIVATE, HUGETLB_SHARED = range(7)
#: A page that is in memory, or in swap: the highest byte of its entry in /proc/PID/pagemap.
_PRESENT = re.compile(rb"[\x40-\xff]+")
#: Of /proc/PID/pagemap, in bytes.
ENTRY = 8
_AT_ONCE = 1 << 14  # pages that are looked for at once
_READ = 256  # pages that are read at once
_ZEROS = bytes(PAGE_SIZE)


class Thread(NamedTuple):
    """A thread: its number, its signals, its times in us (user, system), and its registers.

    ``xstate`` is empty for a processor without XSAVE.
    """

    tid: int
    pending: int
    blocked: int
    times: tuple[int, int]
    registers: bytes
    fpregs: bytes
    xstate: bytes


class Dying(NamedTuple):
    """A process.  ``threads``: the one that takes the signal comes first.  ``children``: their times in us."""

    pid: int
    ppid: int
    pgrp: int
    sid: int
    uid: int
    gid: int
    nice: int
    name: bytes
    arguments: bytes
    children: tuple[int, int]
    info: bytes
    auxv: bytes
    threads: Sequence[Thread]


class Segment(NamedTuple):
    """A mapping, and how many bytes of it are in the file."""

    mapping: Mapping
    size: int


def dumped(mapping: Mapping, detail: Detail, kinds: int, is_elf: Callable[[], bool]) -> int:
    """How many bytes of a mapping go into the file (vma_dump_size()).

    ``kinds``: the process's filter.  ``is_elf()``: whether the mapping begins as a program or library does.
    """

    def chosen(kind: int) -> bool:
        return bool(kinds >> kind & 1)

    whole, shared = mapping.end - mapping.start, mapping.perms.endswith(b"s")
    if detail.flags & {b"dd", b"io"}:
        return 0
    if b"ht" in detail.flags:
        return whole if chosen(HUGETLB_SHARED if shared else HUGETLB_PRIVATE) else 0
    if shared:
        return whole if chosen(ANON_SHARED if mapping.name.endswith(b" (deleted)") else MAPPED_SHARED) else 0
    if chosen(ANON_PRIVATE) and (is_written(mapping, detail) or detail.anonymous and not mapping.is_file):
        return whole
    if not mapping.is_file:
        return 0
    if chosen(MAPPED_PRIVATE):
        return whole
    begins = not mapping.offset and mapping.perms.startswith(b"r")
    return PAGE_SIZE if chosen(ELF_HEADERS) and begins and is_elf() else 0


def head(process: Dying, signo: int, segments: Sequence[Segment]) -> Iterator[bytes]:
    """What comes before the memory, in the pieces in which the kernel writes it."""
    notes = list(_notes(process, signo, segments))
    count = len(segments) + 1
    at = _EHDR.size + count * _PHDR.size
    length = sum(map(len, notes))
    yield _EHDR.pack(MAGIC, 2, 1, 1, 0, 0, _ET_CORE, _EM_X86_64, 1, 0, _EHDR.size, 0, 0,
                     _EHDR.size, _PHDR.size, count, 0, 0, 0)  # fmt: skip
    yield _PHDR.pack(_PT_NOTE, 0, at, 0, 0, length, 0, 0)
    at = page_above(at + length)
    for mapping, size in segments:
        rights = sum(bit for letter, bit in _RIGHTS if letter in mapping.perms)
        yield _PHDR.pack(_PT_LOAD, rights, at, mapping.start, 0, size, mapping.end - mapping.start, PAGE_SIZE)
        at += size
    yield from notes


def page_above(at: int) -> int:
    """The first page that begins there or later."""
    return -(-at // PAGE_SIZE) * PAGE_SIZE


def _note(kind: int, content: bytes, name: bytes = b"CORE\0") -> bytes:
    return _NOTE.pack(len(name), len(content), kind) + _padded(name) + _padded(content)


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % 4)


def _notes(process: Dying, signo: int, segments: Sequence[Segment]) -> Iterator[bytes]:
    for number, thread in enumerate(process.threads):
        yield _note(_NT_PRSTATUS, _status(process, thread, signo))
        if not number:
            yield _note(_NT_PRPSINFO, _who(process))
            yield _note(_NT_SIGINFO, process.info)
            yield _note(_NT_AUXV, process.auxv)
            files = [mapping for mapping, _ in segments if mapping.is_file]
            if files:
                yield _note(_NT_FILE, _files(files))
        yield _note(_NT_PRFPREG, thread.fpregs)
        if thread.xstate:
            yield _note(_NT_X86_XSTATE, thread.xstate, b"LINUX\0")


def _status(process: Dying, thread: Thread, signo: int) -> bytes:
    times = [part for us in (*thread.times, *process.children) for part in divmod(us, 1_000_000)]
    numbers = thread.tid, process.ppid, process.pgrp, process.sid
    head = _PRSTATUS.pack(signo, 0, 0, signo, thread.pending, thread.blocked, *numbers, *times)
    return head + thread.registers + _FPVALID.pack(1)


def _who(process: Dying) -> bytes:
    arguments = process.arguments[:_ARGUMENTS].replace(b"\0", b" ")
    return _PRPSINFO.pack(
        0, b"R", 0, process.nice, _FLAGS, process.uid, process.gid,
        process.pid, process.ppid, process.pgrp, process.sid, process.name[:15], arguments,
    )  # fmt: skip


def _files(files: Sequence[Mapping]) -> bytes:
    places = b"".join(struct.pack("<3Q", each.start, each.end, each.offset // PAGE_SIZE) for each in files)
    return struct.pack("<2Q", len(files), PAGE_SIZE) + places + b"".join(each.name + b"\0" for each in files)


# -- memory --------------------------------------------------------------------------------------

#: (address, length) -> the bytes; OSError where there are none.
Read = Callable[[int, int], bytes]


def pieces(start: int, end: int, read: Read, entries: Read | None) -> Iterator[tuple[int, bytes]]:
    """(distance, bytes) of the pages from ``start`` to ``end`` that are not all zeros, neighbours together.

    ``entries(address, length)``: of the pages from there on in /proc/PID/pagemap, for memory without a file, of which
    what has never been touched is not looked at; None: every page is.
    """
    for first in range(start, end, _AT_ONCE * PAGE_SIZE):
        last = min(first + _AT_ONCE * PAGE_SIZE, end)
        if entries is None:
            runs = [(first, last)]
        else:
            found = entries(first, (last - first) // PAGE_SIZE * ENTRY)[ENTRY - 1 :: ENTRY]
            spans = [run.span() for run in _PRESENT.finditer(found)]
            runs = [(first + begin * PAGE_SIZE, first + stop * PAGE_SIZE) for begin, stop in spans]
        for begin, stop in runs:
            for at in range(begin, stop, _READ * PAGE_SIZE):
                for place, data in _without_holes(at, _readable(at, min(at + _READ * PAGE_SIZE, stop), read)):
                    yield place - start, data


def _readable(at: int, end: int, read: Read) -> bytes:
    """The memory there; pages that cannot be read, behind the end of a file, are zeros."""
    try:
        return read(at, end - at)
    except OSError:
        if end - at <= PAGE_SIZE:
            return bytes(end - at)
    return b"".join(_readable(page, page + PAGE_SIZE, read) for page in range(at, end, PAGE_SIZE))


def _without_holes(at: int, data: bytes) -> Iterator[tuple[int, bytes]]:
    begin: int | None = None
    for place in range(0, len(data), PAGE_SIZE):
        if data.startswith(_ZEROS, place):
            if begin is not None:
                yield at + begin, data[begin:place]
            begin = None
        elif begin is None:
            begin = place
    if begin is not None:
        yield at + begin, data[begin:]
