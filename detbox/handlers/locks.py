"""File locks: taken for the guest without waiting; who has to wait looks again whenever others have run.

``flock`` and open-file-description locks belong to the description, so that the supervisor takes them through
its borrowed descriptor.  POSIX record locks belong to the process: they are only looked at, and the kernel
executes the guest's own call when nothing is in the way.
"""

from __future__ import annotations

import os
import struct
from errno import EAGAIN, EBADF, EDEADLK, EINVAL
from fcntl import F_GETLK, LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, fcntl
from fcntl import flock as host_flock
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision, Park, Wake
from detbox.handlers.waiting import fd_of, own_fdinfo, proc_text
from detbox.machine.io import io_state
from detbox.records import NamedTuple

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

#: The scheduler wakes this key in every round: close and exit release locks without a call that is seen.
RECHECK = "recheck"
_F_OFD_SETLK = 37
_LOCK_MAND = 32
_FLOCK = struct.Struct("<hh4xqqi4x")
_F_RDLCK, _F_WRLCK, _F_UNLCK = 0, 1, 2
_END = (1 << 63) - 1


def flock(m: Machine, t: Task, a: Args) -> Decision:
    """``flock(fd, operation)``."""
    fd, operation = fd_of(a[0]), a[1] & 0xFFFFFFFF
    if operation & _LOCK_MAND:
        return 0  # accepted, and ignored since Linux 5.18
    if operation & ~LOCK_NB not in (LOCK_SH, LOCK_EX, LOCK_UN):
        return -EINVAL
    own = t.process.files.borrow(t, fd)
    try:
        host_flock(own, operation | LOCK_NB)
    except BlockingIOError:
        if operation & LOCK_NB:
            return -EAGAIN
    else:
        return 0
    finally:
        os.close(own)
    # A conversion drops the old lock before it waits for the new one (fs/locks.c, flock_lock_inode()), and so
    # did the attempt.
    return Park(lambda wake: flock(m, t, a), events=(RECHECK,), why=f"flock of descriptor {fd}")


def setlkw_ofd(m: Machine, t: Task, fd: int, address: int) -> Decision:
    """``fcntl(F_OFD_SETLKW)``: the description's lock, tried without waiting."""
    lock = t.read(address, _FLOCK.size)
    own = t.process.files.borrow(t, fd)
    try:
        fcntl(own, _F_OFD_SETLK, lock)
    except OSError as error:
        if error.errno != EAGAIN:
            raise
    else:
        return 0
    finally:
        os.close(own)
    return Park(
        lambda wake: setlkw_ofd(m, t, fd, address), events=(RECHECK,), why=f"lock of descriptor {fd}"
    )


def setlkw_posix(m: Machine, t: Task, fd: int, address: int) -> Decision:
    """``fcntl(F_SETLKW)``: continued when no other process is in the way, EDEADLK for a circle of waiters."""
    waits = io_state(m).lock_waits
    pid = t.process.pid

    def step(wake: Wake | None) -> Decision:
        waits.pop(pid, None)
        wanted = _FLOCK.unpack(t.read(address, _FLOCK.size))
        if wanted[0] == _F_UNLCK:
            return CONTINUE
        holders = _holders(m, t, fd, wanted)
        if not holders:
            return CONTINUE
        if _circle(waits, holders, pid):
            return -EDEADLK
        waits[pid] = holders
        return Park(step, events=(RECHECK,), interrupted=_forget, why=f"record lock of descriptor {fd}")

    def _forget() -> int:
        waits.pop(pid, None)
        return -512

    return step(None)


def _circle(waits: dict[int, frozenset[int]], holders: frozenset[int], pid: int) -> bool:
    """Whether one of the holders waits, directly or through others, for ``pid``."""
    seen: set[int] = set()
    queue = list(holders)
    while queue:
        holder = queue.pop()
        if holder == pid:
            return True
        if holder not in seen:
            seen.add(holder)
            queue.extend(waits.get(holder, ()))
    return False


class _Held(NamedTuple):
    """One line of /proc/locks: who holds which bytes, first and last."""

    pid: int
    write: bool
    first: int
    last: int


def _holders(m: Machine, t: Task, fd: int, wanted: tuple[int, ...]) -> frozenset[int]:
    """The other processes (or -1 for descriptions) whose record locks are in the way of ``wanted``."""
    kind, whence, start, length, _ = wanted
    own = t.process.files.borrow(t, fd)
    try:
        st = os.fstat(own)
        # F_GETLK sees what is in the way of the *supervisor*: nothing at all is the usual, cheap answer.
        try:
            probe = fcntl(own, F_GETLK, _FLOCK.pack(kind, whence, start, length, 0))
        except OSError as error:
            if error.errno in (EBADF, EINVAL):
                return frozenset()
            raise
        found, _, _, _, first_holder = _FLOCK.unpack(probe)
        if found == _F_UNLCK:
            return frozenset()
        name = _name_of(m, own, st)
        base = (0, os.lseek(own, 0, os.SEEK_CUR) if whence == 1 else 0, st.st_size)[whence]
    finally:
        os.close(own)
    first = base + start
    last = first + length - 1 if length > 0 else _END
    if length < 0:
        first, last = first + length, first - 1
    write = kind == _F_WRLCK
    holders = {
        held.pid for held in _locks_of(m, name)
        if held.first <= last and first <= held.last and (write or held.write)
    }  # fmt: skip
    return frozenset((holders or {first_holder}) - {t.process.pid})


def _name_of(m: Machine, own: int, st: os.stat_result) -> str:
    """What /proc/locks calls a file: the device of its mount and the number that the file system itself uses.

    ``stat`` tells others for a file on overlayfs (a layer's device) and on btrfs (a subvolume's).
    """
    info = dict(line.split(":\t", 1) for line in own_fdinfo(m, own).splitlines() if ":\t" in line)
    device = f"{os.major(st.st_dev)}:{os.minor(st.st_dev)}"
    for line in proc_text(m, f"{os.getpid()}/mountinfo").splitlines():
        fields = line.split(" ", 3)
        if fields[0] == info.get("mnt_id"):
            device = fields[2]
    major, minor = map(int, device.split(":"))
    return f"{major:02x}:{minor:02x}:{info.get('ino', st.st_ino)}"  # "ino" since Linux 5.14


def _locks_of(m: Machine, name: str) -> list[_Held]:
    """The record locks on the file of this name."""
    found = []
    for line in proc_text(m, "locks").splitlines():
        fields = line.split()
        # "1: POSIX  ADVISORY  WRITE 708 00:15:1023 0 EOF"; waiting calls have "->" as second field.
        if len(fields) == 8 and fields[1] in ("POSIX", "OFDLCK") and fields[5] == name:
            last = _END if fields[7] == "EOF" else int(fields[7])
            found.append(_Held(int(fields[4]), fields[3] == "WRITE", int(fields[6]), last))
    return found
