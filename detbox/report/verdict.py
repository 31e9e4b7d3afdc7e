"""What `detbox verify` found: the value that the text, the JSON and the page are made from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from detbox.recorder.compare import Divergence
from detbox.report.causes import BY_CALL, Cause
from detbox.report.perturb import Difference
from detbox.report.verify import Comparison, Row
from detbox.spec import RunSpec

#: Of ``as_json``: raised when a field changes its meaning or vanishes; new ones may come at any time.
JSON_VERSION = 1


@dataclass(frozen=True)
class Verdict:
    """Everything that is reported.

    ``divergence``: where the runs under detbox part, if they could be recorded parting.  ``trace`` is a record of
    the first run, if one was made.  ``notes`` say what could not be done.
    """

    spec: RunSpec
    rows: Sequence[Row]
    boxed: Comparison
    native: Comparison | None = None
    causes: Sequence[Cause] = ()
    divergence: Divergence | None = None
    notes: Sequence[str] = ()
    trace: Path | None = None

    @property
    def identical(self) -> bool:
        """Whether all runs under detbox gave the same."""
        return not self.boxed.differences

    @property
    def doubts(self) -> list[str]:
        """What detbox could not promise to be deterministic, each once."""
        return list(dict.fromkeys(text for run in self.boxed.runs for text in run.answer.get("doubts", ())))

    @property
    def cause(self) -> str:
        """The class of the first divergent event; "" if its call does not tell."""
        return BY_CALL.get(self.divergence.call, "") if self.divergence is not None else ""

    def summary(self) -> str:
        """One sentence: what natively differs, and what under detbox."""
        words = [] if self.native is None else [f"natively {count(self.native)}"]
        return "; ".join([*words, f"under detbox {count(self.boxed)}"])

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        answer: dict[str, Any] = {
            "version": JSON_VERSION,
            "command": [os.fsdecode(word) for word in self.spec.command],
            "runs": len(self.boxed.runs),
            "identical": self.identical,
            "summary": self.summary(),
            "perturbations": [vars(row) for row in self.rows],
            **_comparison(self.boxed),
            "doubts": self.doubts,
            "notes": list(self.notes),
            "native": None,
            "divergence": None,
        }
        if self.native is not None:
            causes = [vars(cause) for cause in self.causes]
            answer["native"] = {"identical": not self.native.differences, **_comparison(self.native), "causes": causes}
        if self.divergence is not None:
            event = self.divergence
            answer["divergence"] = {
                "index": event.index, "call": event.call, "cause": self.cause, "thread": event.thread,
                "runs": list(event.texts), "stack": [list(level) for level in event.stack],
                "before": list(event.before),
            }  # fmt: skip
        return answer


def _comparison(comparison: Comparison) -> dict[str, Any]:
    return {
        "differences": [vars(difference) for difference in comparison.differences],
        "statuses": [run.observed.status for run in comparison.runs],
        "seconds": [round(run.observed.seconds, 3) for run in comparison.runs],
    }


def count(comparison: Comparison) -> str:
    """ "identical", or how many differences there are and between which runs."""
    number = len(comparison.differences)
    if not number:
        return "identical"
    which = f" (run 1 and run {comparison.other + 1})" if len(comparison.runs) > 2 else ""
    return f"{number} difference{'s' if number > 1 else ''}{which}"


_FIELD_NAMES = {"mtime_ns": "time", "sha256": "content", "nlink": "number of links", "links": "linked names"}
#: What is told first; what is not here comes in between, and times, which differ natively always, last.
_FIRST, _LAST = ("end", "status", "interleaving", "stdout", "stderr", "sha256", ""), ("size", "mtime_ns")


def label(difference: Difference) -> str:
    """What differs, for people."""
    field = _field(difference)
    if difference.path:
        field = _FIELD_NAMES.get(field, field) or "existence"
    return " ".join(filter(None, (f"{difference.path}:" if difference.path else difference.what, field)))


def _field(difference: Difference) -> str:
    return difference.where.removeprefix(difference.path).strip()


def ranked(differences: Sequence[Difference]) -> list[Difference]:
    """The most telling differences first."""

    def rank(difference: Difference) -> int:
        name = _field(difference) if difference.path else difference.what
        if name in _FIRST:
            return _FIRST.index(name)
        return len(_FIRST) + (1 + _LAST.index(name) if name in _LAST else 0)

    return sorted(differences, key=rank)


def failures(comparison: Comparison) -> list[str]:
    """Sentences about a command that failed in some of its runs, or in all."""
    statuses = [run.observed.status for run in comparison.runs]
    if len(set(statuses)) == 1:
        return [f"the command failed in every run ({_status(statuses[0])})"] if statuses[0] else []
    bad = [f"run {number} ({_status(status)})" for number, status in enumerate(statuses, 1) if status]
    good = [f"run {number}" for number, status in enumerate(statuses, 1) if not status]
    return [f"the command failed in {', '.join(bad)}" + (f" and not in {', '.join(good)}" if good else "")]


def _status(status: int) -> str:
    return f"status {status}" if status >= 0 else f"killed by signal {-status}"
