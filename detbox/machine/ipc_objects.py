"""What the run knows of System V IPC objects beyond what the kernel keeps.

The kernel stamps them with the host's clock and the guest's one real user;
virtual times and owners are remembered here and put into the ``*_ds``
structures that the guest reads.
"""

from __future__ import annotations

import struct

from detbox.machine.userspaces import TOP, UserSpace
from detbox.records import NamedTuple, field, record


class Layout(NamedTuple):
    """A ``struct semid64_ds`` and its kin (include/uapi/asm-generic): size and offsets of time fields.

    ``change`` is the field that creation and IPC_SET stamp.
    """

    kind: str
    size: int
    times: tuple[int, ...]
    change: int


SEM = Layout("sem", 104, (48, 64), 64)
SHM = Layout("shm", 112, (56, 64, 72), 72)
MSG = Layout("msg", 120, (48, 56, 64), 64)

# The other time fields: semop; shmat, shmdt; msgsnd, msgrcv.
SEM_OTIME = 48
SHM_ATIME, SHM_DTIME = 56, 64
MSG_STIME, MSG_RTIME = 48, 56

# struct ipc64_perm: key, uid, gid, cuid, cgid, mode.
_OWNERS = struct.Struct("<4I")
_OWNERS_AT = 4


@record
class IpcObject:
    """One semaphore set, shared memory segment or message queue; owners: uid, gid, cuid, cgid."""

    owners: tuple[int, int, int, int]
    created: int
    times: dict[int, int] = field(default_factory=dict)


@record
class IpcTable:
    """All objects of a run, and who waits for semaphores or has promised to undo."""

    objects: dict[tuple[str, int], IpcObject] = field(default_factory=dict)
    # Parked semop calls, in order: thread id -> (set, semaphore, whether it waits for zero).
    waiting: dict[int, tuple[int, int, bool]] = field(default_factory=dict)
    # Sets on which a process has used SEM_UNDO, by process id.
    undo: dict[int, dict[int, None]] = field(default_factory=dict)

    def create(self, layout: Layout, number: int, owner: tuple[int, int], now: int) -> None:
        """Note a new object; without effect for one that is known.  ``now``: seconds since 1970."""
        self.objects.setdefault((layout.kind, number), IpcObject((*owner, *owner), now))

    def stamp(self, layout: Layout, number: int, offset: int, now: int) -> None:
        """Note the time of an operation."""
        known = self.objects.get((layout.kind, number))
        if known is not None:
            known.times[offset] = now

    def give(self, layout: Layout, number: int, uid: int, gid: int) -> None:
        """IPC_SET has changed the owner."""
        known = self.objects.get((layout.kind, number))
        if known is not None:
            known.owners = (uid, gid, *known.owners[2:])

    def forget(self, layout: Layout, number: int) -> None:
        """The object has been removed."""
        self.objects.pop((layout.kind, number), None)

    def virtualise(self, layout: Layout, number: int, data: bytes, space: UserSpace = TOP) -> bytes:
        """The structure that the kernel has filled in, with virtual owners (called as in ``space``) and times."""
        known = self.objects.get((layout.kind, number))
        if known is None:
            return data
        out = bytearray(data)
        owners = known.owners
        _OWNERS.pack_into(out, _OWNERS_AT, *space.shown(*owners[:2]), *space.shown(*owners[2:]))
        for offset in layout.times:
            # Zero means "never"; a time without a stamp is a detach at the end of a process.
            if any(out[offset : offset + 8]):
                struct.pack_into("<q", out, offset, known.times.get(offset, known.created))
        return bytes(out)
