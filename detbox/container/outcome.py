"""What a finished run reports."""

from __future__ import annotations

from typing import Any

from detbox.records import field, record


@record
class Outcome:
    """What a finished run reports."""

    status: int  # the guest's exit status, or 128+N for signal N
    stats: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    unknown_calls: dict[str, int] = field(default_factory=dict)
    interleaving: dict[str, Any] = field(default_factory=dict)  # of stdout and stderr, see Interleaving.summary
    trouble: str = ""  # what could not be written of a trace
