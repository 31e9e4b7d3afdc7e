"""What is mapped in a process's memory, as the kernel lists it (proc_pid_maps(5))."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import struct
from bisect import bisect_right
from collections.abc import Iterable, Iterator

from detbox.records import NamedTuple

_LINE = re.compile(rb"([0-9a-f]+)-([0-9a-f]+) (\S{4}) ([0-9a-f]+) ([0-9a-f]+):([0-9a-f]+) (\d+)(?: +(.*))?\n?")
# How lines of memory without a file or a name end; with one they are longer, since it begins in column 73.
_NOTHING, _NAMED = b"p 00000000 00:00 0 ", 73
_EXECUTABLE = re.compile(rb"\S+ ..x")

# include/uapi/linux/fs.h: size, flags, address asked for; start, end, flags, page size, offset, inode, major, minor;
# no name and no build ID are asked for.
_PROCMAP_QUERY = 0xC0686611
_QUERY = struct.Struct("<3Q 6Q 2I 8x 16x")
_SHARED = 8

#: Rights of code that does not change.
CODE = b"r-xp"


class Mapping(NamedTuple):
    """One line: addresses from ``start`` to before ``end``, rights as ``rwxp``, the offset in the file in bytes, the
    file's device and inode number (0 without a file), and its path or what the kernel calls the memory."""

    start: int
    end: int
    perms: bytes
    offset: int
    dev: int
    ino: int
    name: bytes

    @property
    def is_code(self) -> bool:
        """Whether it is a file that can be executed."""
        return self.perms[2:3] == b"x" and self.ino != 0 and self.name.startswith(b"/")


def parse(lines: Iterable[bytes]) -> Iterator[Mapping]:
    """The mappings of a listing, in order of address."""
    for line in lines:
        # A thread's stack makes two of these, and there may be thousands.
        if line.endswith(_NOTHING) and len(line) < _NAMED:
            dash, space = line.index(b"-"), line.index(b" ")
            addresses = int(line[:dash], 16), int(line[dash + 1 : space], 16)
            yield Mapping(*addresses, line[space + 1 : space + 5], 0, 0, 0, b"")
            continue
        match = _LINE.fullmatch(line)
        if match is None:
            continue
        start, end, perms, offset, major, minor, ino, name = match.groups()
        device = os.makedev(int(major, 16), int(minor, 16))
        yield Mapping(int(start, 16), int(end, 16), perms, int(offset, 16), device, int(ino), name or b"")


def mappings(proc_fd: int, tid: int) -> Iterator[Mapping]:
    """The mappings of a thread, for which procfs's ``tid`` stands below ``proc_fd``.  Raises OSError.

    It is asked by thread: a leader that has exited has none.
    """
    return parse(_lines(proc_fd, tid))


def executable_mappings(proc_fd: int, tid: int) -> Iterator[Mapping]:
    """Those that can be executed: to parse them all takes five times as long.  Raises OSError."""
    return parse(filter(_EXECUTABLE.match, _lines(proc_fd, tid)))


def _lines(proc_fd: int, tid: int) -> list[bytes]:
    """The lines of a listing, and an empty one."""
    fd = os.open(f"{tid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    with open(fd, "rb") as file:
        return file.read().split(b"\n")  # a name may have a carriage return


def mapping_at(proc_fd: int, tid: int, address: int) -> Mapping | None:
    """The mapping that an address is in.  Raises OSError."""
    lines = _lines(proc_fd, tid)
    # They are in order, and to parse one takes 5 us.
    below = bisect_right(lines, address, hi=len(lines) - 1, key=lambda line: int(line[: line.index(b"-")], 16))
    return next((found for found in parse(lines[max(below - 1, 0) : below]) if address < found.end), None)


def shared_at(proc_fd: int, tid: int, address: int) -> tuple[int, int, int] | None:
    """The object in memory that is shared: device, inode number, and offset of the address; None where it is private.

    To ask for one mapping (Linux 6.11) takes 10 us, to read the list 100 and more.  Raises OSError, EFAULT where
    nothing is mapped.
    """
    fd = os.open(f"{tid}/maps", os.O_RDONLY | os.O_CLOEXEC, dir_fd=proc_fd)
    try:
        answer = fcntl.ioctl(fd, _PROCMAP_QUERY, _QUERY.pack(_QUERY.size, 0, address, *(0,) * 8))
    except OSError as error:
        if error.errno == errno.ENOTTY:
            return _shared_at(proc_fd, tid, address)
        raise OSError(errno.EFAULT, "unmapped memory") if error.errno == errno.ENOENT else error from None
    finally:
        os.close(fd)
    _, _, _, start, _, flags, _, offset, ino, major, minor = _QUERY.unpack(answer)
    return (os.makedev(major, minor), ino, offset + address - start) if flags & _SHARED else None


def _shared_at(proc_fd: int, tid: int, address: int) -> tuple[int, int, int] | None:
    """The same by the list."""
    found = mapping_at(proc_fd, tid, address)
    if found is None:
        raise OSError(errno.EFAULT, "unmapped memory")
    return (found.dev, found.ino, found.offset + address - found.start) if found.perms[3:] == b"s" else None


def place_below(occupied: Iterable[tuple[int, int]], length: int, top: int) -> int | None:
    """Where ``length`` bytes fit directly below one of the ``occupied`` ranges (start, end), as high as possible.

    Only ranges that start at ``top`` or lower have something put below them.  None: there is no room.
    """
    below = None
    for start, end in sorted(occupied, reverse=True):
        if start <= top:
            if below is not None and below - end >= length:
                return below - length
            below = start
    return None
