"""Rewrites /proc/PID/maps and derives smaps, numa_maps and all memory sizes from it.

Addresses, sizes, permissions and names are the guest's own doing and stay.  Device and inode numbers come
from the host and are replaced.  What is resident depends on the host's memory pressure and page cache, so
resident sizes are a fixed function of the mapping.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from functools import lru_cache

from detbox.kernel import mappings as kernel
from detbox.machine.constants import COPIES, HIDDEN_MAPPING_PREFIXES, LOOPS_MAPPING
from detbox.records import NamedTuple
from detbox.synth.table import Query

#: The kernel's own pages: their number and sizes differ from one kernel version to the next.
KERNEL_MAPPINGS = frozenset((b"[vdso]", b"[vvar]", b"[vvar_vclock]", b"[vsyscall]", b"[uprobes]"))
#: A mapping counts as resident up to this size in kB (a reserved heap of gigabytes should not).
RESIDENT_CAP_KB = 1024


class Mapping(kernel.Mapping):
    """One line of maps, with the virtual device and inode."""

    __slots__ = ()

    @property
    def kb(self) -> int:
        """Size in kB."""
        return (self.end - self.start) >> 10

    @property
    def resident_kb(self) -> int:
        """Virtual resident size in kB: inaccessible reservations have none."""
        return 0 if self.perms.startswith(b"---") else min(self.kb, RESIDENT_CAP_KB)

    @property
    def is_file(self) -> bool:
        """Whether a file is behind it."""
        return self.ino != 0

    def line(self) -> bytes:
        """The line as the kernel prints it (names start in column 73)."""
        head = b"%08x-%08x %s %08x %02x:%02x %d" % (
            self.start, self.end, self.perms, self.offset, os.major(self.dev), os.minor(self.dev), self.ino,
        )  # fmt: skip
        return (head.ljust(72) + b" " + self.name if self.name else head + b" ") + b"\n"


def mappings(query: Query) -> Iterator[Mapping]:
    """The visible mappings of the query's process, in order of address; none for a zombie or hidden
    process."""
    for start, end, perms, offset, dev, ino, name in _visible(_raw(query), query.process.own_memory):
        if ino:
            dev, ino = query.view.virtual_inode(os.major(dev), os.minor(dev), ino, name)
        yield Mapping(start, end, perms, offset, dev, ino, name)


def _raw(query: Query, name: bytes = b"maps") -> bytes:
    """The kernel's own listing for the query's process; empty for a zombie or hidden process."""
    process = query.process
    if process.hidden:
        return b""
    try:
        return query.reader(b"/proc/%d/%s" % (process.pid, name))
    except OSError:
        return b""


def _visible(raw: bytes, own_memory: tuple[int, int]) -> Iterator[tuple[int, int, bytes, int, int, int, bytes]]:
    """What the guest sees of a listing, with the host's device and inode numbers."""
    for each in _without_loops(kernel.parse(raw.split(b"\n"))):
        start, end, perms, offset, dev, ino, name = each
        if name and (name in KERNEL_MAPPINGS or name.startswith(HIDDEN_MAPPING_PREFIXES)):
            continue
        if COPIES[0] <= start and end <= COPIES[1]:
            continue
        if start < own_memory[1] <= end:
            # The kernel joins it with a mapping of the guest's that it touches and that has the same rights.
            end = own_memory[0]
        if start < end:
            yield start, end, perms, offset, dev, ino, name


def _without_loops(found: Iterable[kernel.Mapping]) -> Iterator[kernel.Mapping]:
    """The mappings as if no loops were counted in a program's code (cpu.goloops): its own pages lie around others.

    Other neighbours stay apart, also if they have the same rights: data that a loader has relocated, say.
    """
    last: kernel.Mapping | None = None
    after_loops = False
    for each in found:
        loops = each.name.startswith(LOOPS_MAPPING)
        if last is not None and last.end == each.start and last.ino and last.perms == each.perms:
            same = (each.dev, each.ino, each.offset - last.offset) == (last.dev, last.ino, each.start - last.start)
            if loops or after_loops and same:
                last, after_loops = last._replace(end=each.end), loops
                continue
        after_loops = False
        if last is not None:
            yield last
        last = each
    if last is not None:
        yield last


def maps(query: Query) -> bytes:
    """/proc/PID/maps."""
    return b"".join(mapping.line() for mapping in mappings(query))


class Detail(NamedTuple):
    """What the kernel's smaps tells of a mapping: its flags, and whether a page of it is nobody else's."""

    flags: frozenset[bytes] = frozenset()
    anonymous: bool = False


PLAIN = Detail()


def _vm_flags(perms: bytes, written: bool, left_out: bool) -> str:
    flags = [name for letter, name in ((b"r", "rd"), (b"w", "wr"), (b"x", "ex")) if letter in perms]
    if b"s" in perms:
        flags.append("sh")
    flags += ["mr", "mw", "me"]
    if written:
        flags.append("ac")
    if left_out:
        flags.append("dd")
    return " ".join(flags)


def details(query: Query) -> dict[int, Detail]:
    """By the addresses at which mappings begin."""
    found: dict[int, Detail] = {}
    start, anonymous = 0, False
    for line in _raw(query, b"smaps").split(b"\n"):
        if line.startswith(b"VmFlags:"):
            found[start] = Detail(frozenset(line.split()[1:]), anonymous)
        elif line.startswith((b"Anonymous:", b"Swap:")):
            anonymous = anonymous or line.split()[1] != b"0"
        elif (mapping := next(kernel.parse((line,)), None)) is not None:
            start, anonymous = mapping.start, False
    return found


def is_written(mapping: Mapping, detail: Detail = PLAIN) -> bool:
    """Whether something else may be there than in the file: what may be written counts as written.

    So does what could be written once and cannot any more, data that a loader has relocated.  The kernel accounts it
    ever after (VM_ACCOUNT, mm/mprotect.c); debuggers take it for changed, and put it into the core files that they
    write.
    """
    return b"w" in mapping.perms or mapping.is_file and b"ac" in detail.flags


def _counters(resident: int, private_dirty: int, private_clean: int, anonymous: int) -> list[tuple[str, int]]:
    return [
        ("Rss", resident), ("Pss", resident), ("Pss_Dirty", private_dirty), ("Shared_Clean", 0),
        ("Shared_Dirty", 0), ("Private_Clean", private_clean), ("Private_Dirty", private_dirty),
        ("Referenced", resident), ("Anonymous", anonymous), ("LazyFree", 0), ("AnonHugePages", 0),
        ("ShmemPmdMapped", 0), ("FilePmdMapped", 0), ("Shared_Hugetlb", 0), ("Private_Hugetlb", 0),
        ("Swap", 0), ("SwapPss", 0), ("Locked", 0),
    ]  # fmt: skip


def _print(name: str, kb: int) -> str:
    return f"{name + ':':16s}{kb:8d} kB\n"


def _split(mapping: Mapping, written: bool) -> tuple[int, int, int]:
    """Private dirty, private clean and anonymous kB."""
    resident = mapping.resident_kb
    dirty = resident if written else 0
    anonymous = resident if not mapping.is_file or dirty else 0
    return dirty, resident - dirty, anonymous


def smaps(query: Query) -> bytes:
    """/proc/PID/smaps in the format of Linux 6.1."""
    parts, known = [], details(query)
    for mapping in mappings(query):
        detail = known.get(mapping.start, PLAIN)
        written = is_written(mapping, detail)
        text = _print("Size", mapping.kb) + _print("KernelPageSize", 4) + _print("MMUPageSize", 4)
        text += "".join(_print(*item) for item in _counters(mapping.resident_kb, *_split(mapping, written)))
        flags = _vm_flags(mapping.perms, written, b"dd" in detail.flags)
        text += f"THPeligible:    0\nVmFlags: {flags} \n"
        parts.append(mapping.line() + text.encode())
    return b"".join(parts)


def smaps_rollup(query: Query) -> bytes:
    """/proc/PID/smaps_rollup: the sums of smaps."""
    every = list(mappings(query))
    if not every:
        return b""
    known = details(query)
    split = [_split(mapping, is_written(mapping, known.get(mapping.start, PLAIN))) for mapping in every]
    dirty, clean, anonymous = (sum(part[index] for part in split) for index in range(3))
    resident = sum(mapping.resident_kb for mapping in every)
    head = b"%08x-%08x ---p 00000000 00:00 0" % (every[0].start, every[-1].end)
    text = head.ljust(72) + b" [rollup]\n"
    counters = _counters(resident, dirty, clean, anonymous)
    counters[3:3] = [("Pss_Anon", anonymous), ("Pss_File", resident - anonymous), ("Pss_Shmem", 0)]
    return text + "".join(_print(*item) for item in counters).encode()


def numa_maps(query: Query) -> bytes:
    """/proc/PID/numa_maps: everything lies on node 0 under the default policy."""
    lines = []
    for mapping in mappings(query):
        line = b"%08x default" % mapping.start
        if mapping.is_file:
            line += b" file=" + mapping.name
        elif mapping.name in (b"[heap]", b"[stack]"):
            line += b" " + mapping.name.strip(b"[]")
        pages = mapping.resident_kb // 4
        if pages:
            kind = b"anon=%d dirty=%d" if b"w" in mapping.perms else b"mapped=%d"
            line += b" " + (kind % ((pages, pages) if b"w" in mapping.perms else pages))
            line += b" N0=%d kernelpagesize_kB=4" % pages
        lines.append(line + b"\n")
    return b"".join(lines)


class Sizes(NamedTuple):
    """The totals that stat, statm and status print, in kB."""

    total: int = 0
    resident: int = 0
    resident_anonymous: int = 0
    resident_shared: int = 0
    data: int = 0
    stack: int = 0
    text: int = 0
    libraries: int = 0

    @property
    def page_tables(self) -> int:
        """One 4 kB table per 2 MiB mapped, and three upper ones."""
        return 4 * ((self.total + 2047) // 2048 + 3) if self.total else 0


def sizes(query: Query) -> Sizes:
    """Sums over the mappings; all zero where there are none."""
    return _sums(_raw(query), query.process.own_memory, query.process.exe)


@lru_cache(maxsize=2)
def _sums(raw: bytes, own_memory: tuple[int, int], exe: bytes) -> Sizes:
    """They change seldom, and a thread has two lines in a listing, which take some us each."""
    total = resident = anonymous = shared = data = stack = text = libraries = 0
    for each in _visible(raw, own_memory):
        mapping = Mapping(*each)
        total += mapping.kb
        resident += mapping.resident_kb
        anonymous += _split(mapping, is_written(mapping))[2]
        if b"s" in mapping.perms:
            shared += mapping.resident_kb
        if mapping.name == b"[stack]":
            stack += mapping.kb
        elif mapping.perms[1:2] == b"w" and mapping.perms[3:4] == b"p":
            data += mapping.kb
        if mapping.is_file and b"x" in mapping.perms:
            if mapping.name == exe:
                text += mapping.kb
            else:
                libraries += mapping.kb
    return Sizes(total, resident, anonymous, shared, data, stack, text, libraries)
