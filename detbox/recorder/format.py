"""The trace file: a magic word, a version, a description of the run, and one compressed stream of records.

Every record begins with a byte that says its kind.  Threads are numbered in the order in which they first appear
and named by their lineage, so that two runs of the same job give the same bytes.  All numbers are little-endian.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum

MAGIC = b"detbox-trace\n"
#: Raised with each change of what follows.
VERSION = 3
#: After the magic word: version, length of the description (JSON).
HEAD = struct.Struct("<HI")


class Kind(IntEnum):
    """What a record is."""

    TASK = 1  # a thread appears: TASK, lineage
    FORK = 2  # a thread or process is created: FORK, after the child's TASK
    EXEC = 3  # EXEC, path, arguments separated by NUL
    EXIT = 4  # EXIT
    OUTPUT = 5  # OUTPUT
    CALL = 6  # CALL, then with HAS_PATH a length (PATH_LENGTH) and the path, or two with NUL between
    RESULT = 7  # RESULT: the end of a call that the kernel executed
    END = 8  # END: the last record


class Verdict(IntEnum):
    """What the supervisor decided about a call."""

    REPLY = 0  # answered, or the answer is certain; the result is known
    CONTINUE = 1  # left to the kernel; the result is not known
    WATCH = 2  # left to the kernel; a RESULT may follow
    PARK = 3  # the thread waits; the call comes again
    INSTALL = 4  # answered with a descriptor


HAS_PATH = 0x80  # in the verdict's byte
CREATED = 0x40  # the same: the call has created the file that it opens
_VERDICT = 0x3F

TASK = struct.Struct("<BIIIH")  # kind, thread, process's and thread's number in the guest, length of the lineage
FORK = struct.Struct("<BII")  # kind, thread of the parent (process: its first), thread of the child
EXEC = struct.Struct("<BIQHI")  # kind, thread, virtual ns, length of the path, length of the arguments
EXIT = struct.Struct("<BIQi")  # kind, thread, virtual ns, wait status
OUTPUT = struct.Struct("<BBII")  # kind, stream, length, CRC-32
#: kind, thread, number of the call, verdict, virtual ns, six arguments, result, CRC-32 of the data (0: none)
CALL = struct.Struct("<BIHBQ6QqI")
RESULT = struct.Struct("<BIHqI")  # kind, thread, number of the call, result, CRC-32 of the data
END = struct.Struct("<BQ")  # kind, number of records before
PATH_LENGTH = struct.Struct("<H")


@dataclass(slots=True)
class Event:
    """One decoded record; fields that its kind does not have keep their defaults.

    ``thread``: its number in the file.  ``time_ns``: virtual, since the run began.  ``status``: wait status of an EXIT.
    """

    kind: Kind
    thread: int = 0
    time_ns: int = 0
    nr: int = -1
    verdict: Verdict = Verdict.REPLY
    args: tuple[int, ...] = ()
    result: int = 0
    digest: int = 0
    path: bytes = b""
    path2: bytes = b""  # of a call that names two
    created: bool = False
    waited: bool = False  # the thread had to wait for it (joined calls only)
    argv: tuple[bytes, ...] = ()
    other: int = 0  # FORK: the child's thread; OUTPUT: the stream; TASK: the thread's number in the guest
    lineage: str = ""
    pid: int = 0
    status: int = 0

    @property
    def known(self) -> bool:
        """Whether ``result`` is the call's result."""
        return self.verdict is Verdict.REPLY


_KINDS = [None, *Kind]
_VERDICTS = list(Verdict)


def decode(raw: bytes) -> Event:
    """The meaning of one whole record."""
    kind = _KINDS[raw[0]]
    assert kind is not None
    if kind is Kind.CALL:
        _, thread, nr, verdict, now, *rest = CALL.unpack_from(raw)
        text = raw[CALL.size + PATH_LENGTH.size :] if verdict & HAS_PATH else b""
        path, _, path2 = text.partition(b"\0")
        return Event(
            kind, thread, now, nr, _VERDICTS[verdict & _VERDICT], tuple(rest[:6]), rest[6], rest[7], path, path2,
            bool(verdict & CREATED),
        )  # fmt: skip
    if kind is Kind.RESULT:
        _, thread, nr, result, digest = RESULT.unpack(raw)
        return Event(kind, thread, nr=nr, result=result, digest=digest)
    if kind is Kind.TASK:
        _, thread, pid, tid, _ = TASK.unpack_from(raw)
        return Event(kind, thread, pid=pid, other=tid, lineage=raw[TASK.size :].decode())
    if kind is Kind.FORK:
        return Event(kind, FORK.unpack(raw)[1], other=FORK.unpack(raw)[2])
    if kind is Kind.EXEC:
        _, thread, now, length, _ = EXEC.unpack_from(raw)
        words = raw[EXEC.size + length :].split(b"\0")
        return Event(kind, thread, now, path=raw[EXEC.size : EXEC.size + length], argv=tuple(words))
    if kind is Kind.EXIT:
        _, thread, now, status = EXIT.unpack(raw)
        return Event(kind, thread, now, status=status)
    if kind is Kind.OUTPUT:
        _, stream, length, digest = OUTPUT.unpack(raw)
        return Event(kind, other=stream, result=length, digest=digest)
    return Event(kind, result=END.unpack(raw)[1])
