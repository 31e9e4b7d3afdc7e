"""The result of an execution inside of a run, in the form in which it is stored."""

from __future__ import annotations

import binascii
import json
import zlib
from typing import Any

from detbox.records import as_dict, record

FORMAT = 7
#: Fields of a result that do not tell what it left.
CIRCUMSTANCES = ("facts", "common", "format", "key", "pipes", "turns_taken", "jumps")
#: Contents up to this size are part of the result itself: a blob is a file, which costs more than most executions.
SMALL = 2048
_INLINE = "="
_encoded = json.JSONEncoder(separators=(",", ":")).encode


@record
class Record:
    """The result of one execution.

    ``facts``: lines, see ``cache.common``.  ``common``: digest and size of the blob that has the rest of them, which
    other results have as well; ("", 0) for none.  ``changes``: as in ``summary``, each with the guest's view of the
    inode.  ``marks``: aspects that it has changed, by path.
    ``numbered``: inode numbers that it has given to others' files, in order: ``[path or descriptor, number]``.
    ``positions``: of inherited files, by descriptor.  ``output``, ``moved`` and what files hold: see :func:`inlined`.
    ``turns_taken``: of the scheduler; ``jumps``: whether nobody
    was ready meanwhile.  ``pipes``, ``moves``: see ``cache.pipes``; ``moved``: the blob of what was written.
    ``flags``: of the standard streams, as it has left them.
    The rest are the values that the run's counters have at its end.
    """

    key: str
    facts: list[str]
    common: tuple[str, int]
    changes: list[dict[str, Any]]
    marks: dict[str, int]
    numbered: list[tuple[str | int, int]]
    output: str
    turns: list[list[int]]
    positions: list[tuple[int, int]]
    status: int
    clock: int
    next_inode: int
    last_process: int
    cpu_ns: int
    children_ns: int
    turns_taken: int
    jumps: bool
    pipes: list[list[Any]]
    moves: list[tuple[int, int]]
    moved: str
    flags: list[tuple[int, int]]
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """For the store: lines of text, compressed.

        The first one has what is needed to look at the facts, which follow the second one, with the rest.
        """
        rest = {name: value for name, value in as_dict(self).items() if name not in ("facts", "common", "format")}
        lines = (_encoded([self.format, *self.common]), _encoded(rest), *self.facts)
        return zlib.compress("\n".join(lines).encode(), 1)

    @classmethod
    def from_bytes(cls, data: bytes) -> Record | None:
        """The inverse; None if it is not one, or of another format."""
        stored = Stored.from_bytes(data)
        return stored.record() if stored is not None else None

    def blobs(self) -> list[str]:
        """Every blob that the result needs."""
        return [digest for digest, _ in self.sized_blobs()]

    def changed_paths(self) -> list[str]:
        """Every path that it changes."""
        return [change[name] for change in self.changes for name in ("path", "to") if name in change]

    def sized_contents(self) -> list[tuple[str, int]]:
        """Whatever it writes, see :func:`inlined`, with sizes in bytes."""
        written = sum(count for _, count in self.moves if count > 0)
        found = [(self.output, sum(size for _, size in self.turns)), (self.moved, written)]
        found += [(change["blob"], change["size"]) for change in self.changes if change.get("blob")]
        return [(content, size) for content, size in found if content]

    def sized_blobs(self) -> list[tuple[str, int]]:
        """Every blob that the result needs, with its size in bytes."""
        found = [(content, size) for content, size in self.sized_contents() if content[0] != _INLINE]
        digest, size = self.common
        return [*found, (digest, size)] if digest else found


@record
class Stored:
    """A result of which only the facts have been taken apart; see :class:`Record`."""

    facts: list[str]
    common: tuple[str, int]
    rest: str

    @classmethod
    def from_bytes(cls, data: bytes) -> Stored | None:
        """None if it is not one, or of another format."""
        try:
            head, rest, *facts = zlib.decompress(data).decode().split("\n")
            found, digest, size = json.loads(head)
        except (ValueError, TypeError, zlib.error, RecursionError):
            return None
        return cls(facts, (digest, size), rest) if found == FORMAT else None

    def record(self) -> Record | None:
        """All of it; None if it does not have the right form."""
        try:
            return Record(**json.loads(self.rest), facts=self.facts, common=self.common)
        except (ValueError, TypeError, RecursionError):
            return None


def inline(data: bytes) -> str:
    """A small content as a result has it, where larger ones have the digest of a blob."""
    return _INLINE + binascii.b2a_base64(data, newline=False).decode("ascii")


def inlined(content: str) -> bytes | None:
    """The inverse of :func:`inline`; None for the digest of a blob.  Raises ValueError."""
    return binascii.a2b_base64(content[1:], strict_mode=True) if content[:1] == _INLINE else None
