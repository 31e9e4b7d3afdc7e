"""mmap(2) of files: which mappings change files, which bring in code, and where large ones lie."""

from __future__ import annotations

import errno
from bisect import bisect_left, bisect_right
from operator import itemgetter
from typing import TYPE_CHECKING, TypeAlias

from detbox.decision import CONTINUE, ContinueThen
from detbox.handlers import hugepages
from detbox.kernel.mappings import mappings, place_below
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_MAPPING
from detbox.machine.files import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from detbox.decision import Decision
    from detbox.machine.inodes import VInode
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

    _Mappings: TypeAlias = list[tuple[int, int, VInode]]

#: Mappings of files of so many bytes (PMD_SIZE) are placed by the file system, unless they say where.
LARGE = 1 << 21
#: The shortest length in an argument that becomes as much: it is rounded up to whole pages.
ROUNDED_LARGE = LARGE - 4095
#: MAP_FIXED | MAP_FIXED_NOREPLACE
FIXED = 0x10 | 0x100000
MREMAP_MAYMOVE, MREMAP_FIXED, _MREMAP_DONTUNMAP = 1, 2, 4
_PROT_WRITE, _PROT_EXEC = 2, 4
_MAP_SHARED = 1  # also a bit of MAP_SHARED_VALIDATE
_MAP_PRIVATE, _MAP_FIXED, _MAP_ANONYMOUS, _MAP_NORESERVE = 0x2, 0x10, 0x20, 0x4000
_MAP_32BIT = 0x40
_PAGE = 4096
#: Above it is the stack's room: the kernel places nothing there by itself (mmap_base).
MMAP_BASE = 0x7FFFF7FFF000
_NOWHERE = 0x7FFFFFFFE000  # the last page of the address space: nothing large fits there
_PLAIN = "file systems that leave the place of a mapping to the kernel"  # key of Machine.data: set of st_dev
_SHARED = "shared file mappings"  # key of Process.data: list of (start, end, inode), by address


def mmap(m: Machine, t: Task, a: Args) -> Decision:
    """void *mmap(void *addr, size_t length, int prot, int flags, int fd, off_t offset)

    When a store through a mapping moves mtime differs from file system to file system (tmpfs: never).  Here
    it moves when a shared writable mapping is made, and at each msync.
    """
    if a[3] & _MAP_ANONYMOUS:
        return -hugepages.refusal(a[3]) if a[3] & hugepages.MAP else _shared_memory(m, a)
    writes = a[2] & _PROT_WRITE and a[3] & _MAP_SHARED
    patch = None
    if a[2] & _PROT_EXEC and not a[3] & _MAP_SHARED and m.code_mapped is not None:
        patch = m.code_mapped(t, a[4] & 0xFFFFFFFF, a[1], a[5])
    large = a[1] >= ROUNDED_LARGE and not a[3] & FIXED
    vnode, dev = None, 0
    if writes or large:
        entry = t.process.files.get(a[4] & 0xFFFFFFFF)
        vnode, dev = entry.vnode if writes and entry.kind is Kind.REG else None, entry.dev
        large = large and dev not in m.data.get(_PLAIN, ())
    if vnode is None and patch is None and not large:
        return CONTINUE

    def look(task: Task, result: int) -> int | None:
        if -4096 < result < 0:
            return None
        if large and (result := _placed(m, task, a, result, dev)) < 0:
            return result
        addr = result & 0xFFFFFFFFFFFFFFFF
        if vnode is not None:
            _remember(task, addr, a[1], vnode)
            m.inodes.touch(vnode)
        if patch is not None:
            patch(task, addr)
        return result if large else None

    return ContinueThen(look)


def _shared_memory(m: Machine, a: Args) -> Decision:
    """Memory that processes are going to share is a file of a tmpfs, which the host may have told to use huge pages."""
    dev = m.inodes.memfd_dev
    large = a[1] >= ROUNDED_LARGE and a[3] & _MAP_SHARED and not a[3] & FIXED
    if not large or dev in m.data.get(_PLAIN, ()):
        return CONTINUE
    flat = (*a[:5], 0)  # the offset has no meaning
    return ContinueThen(lambda task, result: None if -4096 < result < 0 else _placed(m, task, flat, result, dev))


def _placed(m: Machine, t: Task, a: Args, result: int, dev: int) -> int:
    """The address of a large mapping that has just been made at ``result``, after it has been moved if need be.

    ext4, XFS and others lay it so that huge pages fit (thp_get_unmapped_area), tmpfs and overlays do not.  It
    gets the place that it would have on these.
    """
    if (result - a[5]) % LARGE:
        m.data.setdefault(_PLAIN, set()).add(dev)
        return result
    m.run_call(t, NUMBERS["munmap"], result, a[1])
    # What is asked for at an impossible place comes where there is room, and huge pages are not thought of.
    flags = _MAP_PRIVATE | _MAP_ANONYMOUS | _MAP_NORESERVE | a[3] & _MAP_32BIT
    place = m.run_call(t, NUMBERS["mmap"], a[0] or _NOWHERE, a[1], 0, flags, OWN_MAPPING | 0xFFFFFFFF, 0)
    if place < 0:
        return place
    fd = a[4] & 0xFFFFFFFF | OWN_MAPPING
    return m.run_call(t, NUMBERS["mmap"], place, a[1], a[2], a[3] | _MAP_FIXED, fd, a[5])


def mremap(m: Machine, t: Task, a: Args) -> Decision:
    """void *mremap(void *old_address, size_t old_size, size_t new_size, int flags, void *new_address)"""
    old, new = (-(-size // _PAGE) * _PAGE for size in a[1:3])
    if 0 < new <= old and not a[3] & _MREMAP_DONTUNMAP:
        return CONTINUE  # it shrinks where it is

    def look(task: Task, result: int) -> int | None:
        moved = not -4096 < result < 0 and result != a[0]
        wanted = a[4] if a[3] & _MREMAP_DONTUNMAP else 0
        return settle(m, task, result, new, wanted, [(a[0], a[0] + old)]) if moved else None

    return ContinueThen(look)


def settle(
    m: Machine, t: Task, result: int, length: int, wanted: int = 0, former: Sequence[tuple[int, int]] = ()
) -> int:
    """The address of a large mapping that the kernel has just put to ``result``, after it has been moved if it is a
    file's and need be.  ``length``: of whole pages.

    File systems differ in where they put it.  It gets the place that the kernel takes for those that leave the choice
    to it: ``wanted`` if that is free, or else as high as possible, and not where its ``former`` place was (start, end).
    """
    listed = list(mappings(m.proc_fd, t.tid))
    here = next((found for found in listed if found.start <= result < found.end), None)
    if here is None or not here.ino:
        return result
    end = result + length
    others = [(found.start, min(found.end, result)) for found in listed if found.start < result]
    others += [(max(found.start, end), found.end) for found in listed if found.end > end]
    place: int | None = wanted
    if not wanted or any(start < wanted + length and wanted < stop for start, stop in others):
        place = place_below([*others, *former], length, MMAP_BASE)
    if place is None or place == result:
        return result
    stations = [place]
    if abs(place - result) < length:
        # Nothing can be moved to where a part of it is.
        both = (min(place, result), max(place, result) + length)
        stations = [between for between in [place_below([*others, both], length, MMAP_BASE)] if between] + stations
    for station in stations:
        if m.run_call(t, NUMBERS["mremap"], result, length, length, MREMAP_MAYMOVE | MREMAP_FIXED, station) < 0:
            break
        result = station
    return result


def _remember(t: Task, addr: int, length: int, vnode: VInode) -> None:
    known: _Mappings = t.process.data.setdefault(_SHARED, [])
    known[_within(known, addr, addr + length)] = [(addr, addr + length, vnode)]


def _within(known: _Mappings, start: int, end: int) -> slice:
    """Which of the mappings, that are in order and do not overlap, have a part between two addresses."""
    return slice(bisect_right(known, start, key=itemgetter(1)), bisect_left(known, end, key=itemgetter(0)))


def msync(m: Machine, t: Task, a: Args) -> Decision:
    """int msync(void *addr, size_t length, int flags)"""
    known: _Mappings = t.process.data.get(_SHARED, [])
    for _start, _end, vnode in known[_within(known, a[0], a[0] + a[1])]:
        m.inodes.touch(vnode)
    return CONTINUE


def mincore(m: Machine, t: Task, a: Args) -> Decision:
    """int mincore(void *addr, size_t length, unsigned char *vec): everything is resident"""
    if a[0] % _PAGE:
        return -errno.EINVAL

    def look(task: Task, result: int) -> int | None:
        if result == 0:
            task.write(a[2], b"\1" * -(-a[1] // _PAGE))
        return None

    return ContinueThen(look)
