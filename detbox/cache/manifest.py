"""A result as it is stored: what must hold, and what it then gives."""

from __future__ import annotations

import json
from typing import Any

from detbox.records import as_dict, field, record

#: Of the manifest; another one's results are not used.
FORMAT = 1


@record
class Manifest:
    """The result of one job.

    ``facts``: rows of :class:`~detbox.cache.facts.Fact` by canonical guest path.  ``names``: files with several
    names, each with the first path of the same file.  ``changes``: what the run left, see ``summary``; files
    have the SHA-256 of their content.  ``turns``: ``[stream, bytes]`` of the output in its order, whose bytes
    are the blob ``output``.  ``seconds``: what the run took.  ``command`` is for people.
    """

    facts: dict[str, list[Any]]
    names: dict[str, str]
    changes: list[dict[str, Any]]
    status: int
    output: str
    turns: list[list[int]]
    stdin: dict[str, Any]
    interleaving: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0
    command: list[str] = field(default_factory=list)
    format: int = FORMAT

    def to_bytes(self) -> bytes:
        """For the store."""
        return as_stored(as_dict(self))

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest | None:
        """The inverse; None if it is not one, or of another format."""
        try:
            raw = json.loads(data)
            return cls(**raw) if raw.get("format") == FORMAT else None
        except (ValueError, TypeError, AttributeError):
            return None

    def blobs(self) -> list[str]:
        """Every blob that the result needs."""
        found = [self.output] if self.output else []
        return found + [change["blob"] for change in self.changes if change.get("blob")]

    def sized_blobs(self) -> list[tuple[str, int]]:
        """Every blob that the result needs, with its size in bytes."""
        found = [(self.output, sum(size for _, size in self.turns))] if self.output else []
        return found + [(change["blob"], change["size"]) for change in self.changes if change.get("blob")]

    def left(self) -> dict[str, Any]:
        """What two runs of the same job must have in common."""
        return {"changes": self.changes, "status": self.status, "output": self.output, "turns": self.turns}


def as_stored(value: dict[str, Any]) -> bytes:
    """The text of a part of a result, as it is in the text of the whole."""
    return json.dumps(value, separators=(",", ":")).encode()
