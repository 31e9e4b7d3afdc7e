"""Virtual inodes: the numbers, owners and times that the guest sees instead of the host's.

A real inode is recognised by (device, inode).  Its virtual number is the order in which the run first
observed it.  The kernel reuses inode numbers; so every creation that the supervisor performs is reported
here (:meth:`InodeTable.created`) and gets a new virtual inode even if its key was seen before.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Callable, Collection, Iterable
from stat import S_IFCHR, S_IFDIR, S_IFIFO, S_IFLNK, S_IFMT, S_IFREG, S_IFSOCK

from detbox.kernel.holes import PAGE, missing_blocks
from detbox.machine.pycache import recorded_mtime

_TIMES = struct.Struct("<6q")
_NS = 1_000_000_000

#: st_dev of the container's file systems (major << 8 | minor).
ROOT_DEV = 0x801
PROC_DEV = 0x15
SYS_DEV = 0x16
DEV_DEV = 0x5
PTS_DEV = 0x17
SHM_DEV = 0x18
TMP_DEV = 0x19
MQUEUE_DEV = 0x13
#: The first of the file systems that the guest mounts in namespaces of its own.
OWN_DEV = 0x1A
#: st_dev of the kernel's internal file systems.
MEMFD_DEV = 0x1
SOCK_DEV = 0x8
PIPE_DEV = 0xD
ANON_DEV = 0xE

#: A mount of the container and its virtual device; a point that is no mount of its own changes nothing.
MOUNT_DEVICES = (
    (b"/proc", PROC_DEV),
    (b"/sys", SYS_DEV),
    (b"/dev", DEV_DEV),
    (b"/dev/pts", PTS_DEV),
    (b"/dev/shm", SHM_DEV),
    (b"/dev/mqueue", MQUEUE_DEV),
    (b"/tmp", TMP_DEV),
)

#: So many inodes may lose their names, or never have had one, before it is looked which of them nobody can see any
#: more.  They are forgotten, so that a long run does not grow.
_NAMELESS = 8192
#: From this size on a file may have holes, as far as programs can tell without looking.
_LARGE = 1 << 30


class VInode:
    """One inode as the guest sees it.  Times are nanoseconds since 1970."""

    __slots__ = ("key", "dev", "ino", "fmt", "uid", "gid", "atime", "mtime", "ctime", "btime", "times",
                 "changed", "mode", "name", "source", "links", "missing", "looked_at",
                 "reserved", "node", "fresh")  # fmt: skip

    def __init__(
        self, key: tuple[int, int], dev: int, ino: int, fmt: int, when: int, times: bytes = b""
    ) -> None:
        """``times``: ``when`` as :func:`packed` gives it three times, if the caller has it."""
        self.key = key  # the real (device, inode)
        self.dev = dev
        self.ino = ino
        self.fmt = fmt  # S_IFREG, …
        self.uid = 0
        self.gid = 0
        self.btime = when
        self.changed = False  # times differ from those of an input: written back at the end
        self.mode = 0  # full mode of a synthetic file, 0 otherwise
        self.name = b""  # path of a synthetic file
        self.fresh: int | None = None  # until when it need not be made anew; None: it is not
        self.links = 0  # of a directory, where they count something
        self.missing: int | None = None  # blocks of a file that the run has made, see InodeTable.find_holes()
        self.looked_at: tuple[int, bytes] | None = None  # size and times of the file when these were counted
        self.reserved = False  # all of it counts as written, since blocks have been reserved for it (fallocate)
        self.node: tuple[int, int] | None = None  # type and number of the device that a regular file stands for
        self.source = False  # a Python source whose compiled file has been looked for
        self.atime = self.mtime = self.ctime = when
        self.times = times or packed(when, when, when)

    def set_times(self, atime: int, mtime: int, ctime: int) -> None:
        """Set all three, and the packed form that struct stat contains."""
        self.atime = atime
        self.mtime = mtime
        self.ctime = ctime
        self.times = packed(atime, mtime, ctime)


def packed(atime: int, mtime: int, ctime: int) -> bytes:
    """The three times in ns as struct stat contains them."""
    return _TIMES.pack(*divmod(atime, _NS), *divmod(mtime, _NS), *divmod(ctime, _NS))


class InodeTable:
    """All inodes that the run has observed.

    ``epoch_ns``: every time of a file that the run has not changed.
    ``stamp``: a new, strictly increasing time in nanoseconds since 1970.
    """

    def __init__(self, epoch_ns: int, stamp: Callable[[], int]) -> None:
        self.epoch_ns = epoch_ns
        self.stamp = stamp
        self._epoch_times = packed(epoch_ns, epoch_ns, epoch_ns)
        self.table: dict[tuple[int, int], VInode] = {}
        self._nameless: dict[tuple[int, int], VInode] = {}
        self._most_nameless = _NAMELESS
        self._owned: dict[tuple[int, int], tuple[int, int]] = {}  # (user, group) of what has not been seen yet
        self._mounters: dict[int, tuple[int, int]] = {}  # the same for all of a file system of the guest's own
        #: The keys that the guest can still see, None if that cannot be told, and what finding them has cost, in files.
        self.reachable: Callable[[], tuple[set[tuple[int, int]] | None, int]] = lambda: (None, 0)
        self.log: list[VInode] | None = None  # what has been entered, in order, if somebody wants to know
        self.next_number = 2  # the root directory's number on most file systems
        self.devices: dict[int, int] = {}  # real → virtual; all others are ROOT_DEV
        self.proc_dev = 0  # real st_dev of /proc
        #: The same, and those that the guest has mounted for PID namespaces of its own.
        self.proc_devs: frozenset[int] = frozenset()
        self.sys_dev = 0
        self.cover_dev = 0  # real st_dev of what hides the supervisor's own /proc directory
        self.pipe_dev = self.sock_dev = self.memfd_dev = self.anon_dev = 0
        self.odd_devs: set[int] = set()  # those that need more than a table look-up
        self.seen = (self.table, self._nameless, self.odd_devs, self.enter, epoch_ns)  # what kernel/shown.c uses
        self._next_dev = OWN_DEV

    def learn_devices(self, declared: Collection[bytes] = ()) -> None:
        """Look at the mounts as they are now: call it once, when the container stands.

        ``declared``: where directories of the host's are mounted.  What lies in them is where the host has it, beside
        other declared files or not, so it belongs to the root's file system wherever it is.
        """
        self.of(root := os.stat(b"/"))
        found = {}
        for point, virtual in MOUNT_DEVICES:
            if point in declared:
                continue
            try:
                real = os.stat(point).st_dev
            except OSError:
                continue
            if real != root.st_dev and real not in found:
                found[real] = virtual
        by_virtual = {virtual: real for real, virtual in found.items()}
        self.proc_dev = by_virtual.get(PROC_DEV, 0)
        self.proc_devs = frozenset((self.proc_dev,)) - {0}
        self.sys_dev = by_virtual.get(SYS_DEV, 0)
        self._learn_internal()
        found.update({self.pipe_dev: PIPE_DEV, self.sock_dev: SOCK_DEV})
        found.update({self.memfd_dev: MEMFD_DEV, self.anon_dev: ANON_DEV})
        cover = os.stat(b"/proc/1").st_dev if self.proc_dev else 0
        if cover not in (0, self.proc_dev):
            self.cover_dev = cover
            found[cover] = PROC_DEV
        self.devices = found
        self.odd_devs.update({self.proc_dev, self.sys_dev, self.cover_dev} - {0})
        for entry in self.table.values():
            entry.dev = found.get(entry.key[0], ROOT_DEV)

    def another_proc(self, dev: int) -> None:
        """The guest has mounted a procfs, whose real st_dev is ``dev``."""
        self.proc_devs |= {dev}
        self.odd_devs.add(dev)
        self.devices[dev] = PROC_DEV

    def another_file_system(self, dev: int, owner: tuple[int, int] = (0, 0)) -> None:
        """The guest has mounted a new file system, with real st_dev ``dev`` (maybe one's that is gone); whose it is."""
        self._mounters[dev] = owner
        for seen in (self.table, self._nameless) if dev in self.devices else ():
            for known in [key for key in seen if key[0] == dev]:
                del seen[known]
        self.devices[dev] = self._next_dev
        self._next_dev += 1

    def _learn_internal(self) -> None:
        import socket

        ends = os.pipe()
        self.pipe_dev = os.fstat(ends[0]).st_dev
        sock = socket.socket(socket.AF_UNIX)
        self.sock_dev = os.fstat(sock.fileno()).st_dev
        sock.close()
        memory = os.memfd_create("probe")
        self.memfd_dev = os.fstat(memory).st_dev
        event = os.eventfd(0)
        anonymous = os.fstat(event)
        self.anon_dev = anonymous.st_dev
        # One inode is behind all eventfds, epolls and their like (fs/anon_inodes.c): whoever is the first to look at
        # it is not to give it its number.
        self.of(anonymous)
        for fd in (*ends, memory, event):
            os.close(fd)

    def of(self, st: os.stat_result) -> VInode:
        """The virtual inode of what ``st`` describes."""
        return self.find((st.st_dev, st.st_ino), st.st_mode & 0o170000)

    def find(self, key: tuple[int, int], fmt: int) -> VInode:
        """The virtual inode of a real (device, inode) of type ``fmt`` (S_IFREG, …)."""
        known = self.table.get(key)
        if known is None or known.fmt != fmt:
            known = self._nameless.get(key)
            if known is None or known.fmt != fmt:
                return self.enter(key, fmt)
        return known

    def enter(self, key: tuple[int, int], fmt: int) -> VInode:
        """Enter a real inode that has not been seen yet."""
        # Device nodes are bound from the host's /dev one by one; here they belong to one file system.
        dev = self.devices.get(key[0], DEV_DEV if fmt == S_IFCHR else ROOT_DEV)
        entry = VInode(key, dev, self.next_number, fmt, self.epoch_ns, self._epoch_times)
        if self._owned or self._mounters:
            entry.uid, entry.gid = self._owned.pop(key, self._mounters.get(key[0], (0, 0)))
        self.next_number += 1
        self.table[key] = entry
        if self.log is not None:
            self.log.append(entry)
        if key[0] == self.pipe_dev or key[0] == self.sock_dev or key[0] == self.memfd_dev:
            del self.table[key]
            self._remember(entry)
        return entry

    def known(self, st: os.stat_result) -> VInode | None:
        """The virtual inode of what ``st`` describes, if it has been seen."""
        return self.known_as((st.st_dev, st.st_ino), S_IFMT(st.st_mode))

    def known_as(self, key: tuple[int, int], fmt: int) -> VInode | None:
        """The same of a real (device, inode) of type ``fmt``."""
        entry = self.table.get(key) or self._nameless.get(key)
        return entry if entry is not None and entry.fmt == fmt else None

    def round_up(self, step: int) -> None:
        """Let the next inode's number be a multiple of ``step``."""
        self.next_number += -self.next_number % step

    def put(self, st: os.stat_result, number: int) -> VInode:
        """Enter what ``st`` describes under a given number, whatever was known of it."""
        key = (st.st_dev, st.st_ino)
        self.table.pop(key, None)
        self._nameless.pop(key, None)
        following, self.next_number = self.next_number, number
        entry = self.enter(key, S_IFMT(st.st_mode))
        self.next_number = max(following, number + 1)
        return entry

    def _remember(self, entry: VInode) -> None:
        nameless = self._nameless
        nameless[entry.key] = entry
        if len(nameless) > self._most_nameless:
            self._forget(entry)

    def _forget(self, newest: VInode) -> None:
        """Drop the nameless inodes that nobody has open: when that happens cannot be seen by the guest.

        As many have to come as are left, and as were looked at, before it is done again: so each costs little.
        """
        found, looks = self.reachable()
        if found is not None:
            for key in [key for key in self._nameless if key not in found and key != newest.key]:
                del self._nameless[key]
        self._most_nameless = len(self._nameless) + max(_NAMELESS, len(self._nameless), looks)

    def created(self, st: os.stat_result, uid: int, gid: int) -> VInode:
        """A new inode that the run has just made, owned by ``uid`` and ``gid``."""
        key = (st.st_dev, st.st_ino)
        self._nameless.pop(key, None)
        entry = self.enter(key, S_IFMT(st.st_mode))
        entry.uid = uid
        entry.gid = gid
        now = self.stamp()
        entry.btime = now
        entry.changed = True
        entry.set_times(now, now, now)
        return entry

    def synthetic(self, st: os.stat_result, path: bytes, mode: int) -> VInode:
        """What the guest sees for a descriptor (real: ``st``) that stands for the procfs file ``path``."""
        key = (st.st_dev, st.st_ino)
        entry = VInode(key, PROC_DEV, procfs_ino(path), S_IFMT(st.st_mode), self.epoch_ns)
        entry.mode = mode
        entry.name = path
        self.table.pop(key, None)
        self._remember(entry)
        return entry

    def same(self, before: os.stat_result, after: os.stat_result, *, lasting: bool = False) -> VInode:
        """``after`` is the inode that was ``before`` (an overlay gives a file a new identity when it is
        first changed).

        ``lasting``: open descriptors will go on showing the old identity.
        """
        key = (after.st_dev, after.st_ino)
        known = self.table.get(key)
        if known is not None and (before.st_dev, before.st_ino) not in self.table:
            return known  # already told
        entry = self.of(before)
        if key != entry.key and self.table.get(key) is not entry:
            if not lasting:
                self.table.pop(entry.key, None)
            entry.key = key
            self.table[key] = entry
        return entry

    def python_source(self, entry: VInode, path: bytes, dir_fd: int | None, size: int) -> None:
        """Give an unchanged Python source the time that its compiled file records (see pycache)."""
        entry.source = True
        if not entry.changed:
            recorded = recorded_mtime(path, dir_fd, size)
            if recorded is not None:
                entry.set_times(entry.atime, recorded * _NS, entry.ctime)

    def find_holes(self, entry: VInode, st: os.stat_result, path: bytes, dir_fd: int | None) -> None:
        """Count the blocks that a regular file lacks, if the run has made it.

        Which of an input's pages are allocated is a matter of how it came to the host; of what has been made here it
        follows from what the guest has done.
        """
        if entry.btime == self.epoch_ns or entry.fmt != S_IFREG or entry.mode or entry.reserved:
            return
        state = st.st_size, entry.times
        if not st.st_size:
            # To open it would be an event for who watches the directory.
            entry.missing, entry.looked_at = 0, state
        elif entry.looked_at != state:
            with contextlib.suppress(OSError):  # it is as if all of it had been written
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK, dir_fd=dir_fd)
                try:
                    entry.missing, entry.looked_at = missing_blocks(fd), state
                finally:
                    os.close(fd)

    def unlinked(self, entry: VInode) -> None:
        """The last name is gone.  Descriptors may still be open."""
        if self.table.get(entry.key) is entry:
            del self.table[entry.key]
            self._remember(entry)

    def named(self, entry: VInode) -> None:
        """The inode has (again) a name: O_TMPFILE, then linkat."""
        self._nameless.pop(entry.key, None)
        self.table[entry.key] = entry

    def touch(self, entry: VInode | None) -> None:
        """The content has changed now: mtime and ctime."""
        if entry is None:
            return
        now = self.stamp()
        entry.changed = True
        entry.set_times(entry.atime, now, now)

    def touch_status(self, entry: VInode) -> None:
        """Mode, owner or link count have changed now: ctime."""
        entry.set_times(entry.atime, entry.mtime, self.stamp())

    def own_tree(self, top: bytes, uid: int, gid: int) -> None:
        """Everything at and below ``top`` belongs to this user from the start.  It gets its numbers when it is seen."""
        pending = [top]
        while pending:
            path = pending.pop()
            st = os.lstat(path)
            self._owned[st.st_dev, st.st_ino] = uid, gid
            if S_IFMT(st.st_mode) == S_IFDIR:
                with contextlib.suppress(PermissionError):  # the guest is shut out, too
                    pending += [path + b"/" + name for name in os.listdir(path)]

    def owner_of(self, key: tuple[int, int]) -> tuple[int, int]:
        """User and group of a real (device, inode) that has not been seen yet."""
        return self._owned.get(key, (0, 0))

    def finish(self, tops: Iterable[bytes], elsewhere: Iterable[int] = ()) -> None:
        """Give the changed inodes at and below the kept directories ``tops`` their virtual times for real.

        ``tops`` themselves get theirs in any case: a fresh directory's own time would be the host's.  Setting times
        moves no other time, so any order serves.  ``elsewhere``: device numbers (real st_dev) of file systems that
        nothing below ``tops`` lies in; a large tree is looked through only as far as there is something to be found.
        """
        others = {*elsewhere, *self.devices}
        left = {
            entry for key, entry in self.table.items()
            if entry.changed and entry.fmt != S_IFCHR and key[0] not in others
        }  # fmt: skip
        for top in tops:
            if left:
                for _, dirs, files, at in os.fwalk(top, follow_symlinks=False):
                    for name in (*dirs, *files):
                        self._write_back(name, at, left)
                    if not left:
                        break
            self._write_back(top, None, None)  # now that it has been read

    def _write_back(self, name: bytes, at: int | None, left: set[VInode] | None) -> None:
        """``left``: what has changed and was not found yet (None: it gets its time even if it has not changed)."""
        try:
            st = os.stat(name, dir_fd=at, follow_symlinks=False)
            entry = self.table.get((st.st_dev, st.st_ino))
            if entry is not None and entry.changed:
                os.utime(name, ns=(entry.atime, entry.mtime), dir_fd=at, follow_symlinks=False)
                if left is not None:
                    left.discard(entry)
            elif left is None:
                os.utime(name, ns=(self.epoch_ns, self.epoch_ns), dir_fd=at, follow_symlinks=False)
        except (FileNotFoundError, PermissionError):
            return  # not ours (an input owned by somebody else), so not changed either


def procfs_ino(path: bytes) -> int:
    """Inode number of a procfs path.  The kernel's own numbers change when a dentry is dropped."""
    import zlib

    return 0xF0000000 | zlib.crc32(path) & 0x0FFFFFFF


def link_name(entry: VInode, real: bytes) -> bytes:
    """Text of /proc/PID/fd/N for an object whose real link text is ``real``."""
    if entry.name:
        return entry.name
    if entry.fmt == S_IFIFO and real.startswith(b"pipe:"):
        return b"pipe:[%d]" % entry.ino
    if entry.fmt == S_IFSOCK and real.startswith(b"socket:"):
        return b"socket:[%d]" % entry.ino
    return real


def blocks_of(entry: VInode, size: int) -> int:
    """st_blocks of a regular file in units of 512 bytes.

    All of an input counts as written, since what the host has allocated says something about the host.  But who copies
    files looks for holes (SEEK_HOLE) only where blocks are missing, and would fill the disk with the zeros of a file
    of a terabyte: so a large input misses one.
    """
    blocks = (size + PAGE - 1) // PAGE * (PAGE // 512)
    if entry.missing is not None:
        return blocks - entry.missing
    return blocks if size < _LARGE else blocks - PAGE // 512


def size_and_blocks(entry: VInode, real_size: int) -> tuple[int, int]:
    """st_size in bytes and st_blocks in units of 512 bytes: functions of what the guest has been given and has done."""
    if entry.mode:
        return 0, 0
    if entry.fmt == S_IFREG:
        return real_size, blocks_of(entry, real_size)
    if entry.fmt == S_IFDIR:
        return (0, 0) if entry.dev == PROC_DEV else (4096, 8)
    return (real_size, 0) if entry.fmt == S_IFLNK else (0, 0)
