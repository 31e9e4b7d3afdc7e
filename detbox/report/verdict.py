"""What `detbox verify` found, as text for people and as JSON."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from detbox.recorder.compare import Divergence
from detbox.report.causes import Cause
from detbox.report.differ import explain
from detbox.report.perturb import Difference
from detbox.report.verify import Comparison, Row
from detbox.spec import RunSpec

JSON_VERSION = 1
#: Differences that are listed; the JSON has all.
_LISTED, _WIDTH = 12, 160


@dataclass(frozen=True)
class Verdict:
    """Everything that is reported.  ``kept`` names the directory with the outputs of both runs, if they differ.

    ``divergence``: where the runs under detbox part, if they could be recorded parting; ``note`` says why not.
    """

    spec: RunSpec
    rows: Sequence[Row]
    boxed: Comparison
    native: Comparison | None = None
    causes: Sequence[Cause] = ()
    divergence: Divergence | None = None
    note: str = ""

    @property
    def identical(self) -> bool:
        """Whether all runs under detbox gave the same."""
        return not self.boxed.differences

    def lines(self) -> list[str]:
        """The report for people."""
        command = " ".join(os.fsdecode(word) for word in self.spec.command)
        found = [f"{len(self.boxed.runs)} runs of: {command}"]
        applied = [row.name for row in self.rows if row.applied]
        found.append("perturbed: " + (", ".join(applied) or "nothing"))
        for why in dict.fromkeys(row.why for row in self.rows if not row.applied):
            names = ", ".join(row.name for row in self.rows if row.why == why)
            found.append(f"not perturbed ({why}): {names}")
        if self.native is not None:
            found += ["", f"natively: {_count(self.native)}", *_details(self.native)]
            found += [f"  cause: {cause}" for cause in self.causes]
        found += ["", f"under detbox: {_count(self.boxed)}", *_details(self.boxed)]
        doubts = list(dict.fromkeys(text for run in self.boxed.runs for text in run.answer.get("doubts", ())))
        found += [f"  not promised to be deterministic: {text}" for text in doubts[:_LISTED]]
        if self.divergence is not None:
            found += ["", *self.divergence.lines()]
        if self.note:
            found += ["", self.note]
        return found

    def as_json(self) -> dict[str, Any]:
        """The same for programs."""
        answer: dict[str, Any] = {
            "version": JSON_VERSION,
            "command": [os.fsdecode(word) for word in self.spec.command],
            "runs": len(self.boxed.runs),
            "identical": self.identical,
            "perturbations": [vars(row) for row in self.rows],
            "differences": [vars(d) for d in self.boxed.differences],
            "statuses": [run.observed.status for run in self.boxed.runs],
            "seconds": [round(run.observed.seconds, 3) for run in self.boxed.runs],
            "doubts": sorted({text for run in self.boxed.runs for text in run.answer.get("doubts", ())}),
            "note": self.note,
        }
        if self.native is not None:
            answer["native"] = {
                "identical": not self.native.differences,
                "differences": [vars(d) for d in self.native.differences],
                "causes": [vars(cause) for cause in self.causes],
            }
        if self.divergence is not None:
            event = self.divergence
            answer["divergence"] = {
                "index": event.index, "call": event.call, "cause": event.cause, "thread": event.thread,
                "runs": list(event.texts), "stack": [list(level) for level in event.stack],
                "before": list(event.before),
            }  # fmt: skip
        return answer


def _count(comparison: Comparison) -> str:
    count = len(comparison.differences)
    if not count:
        return "identical"
    which = f" (run 1 and run {comparison.other + 1})" if len(comparison.runs) > 2 else ""
    return f"{count} difference{'s' if count > 1 else ''}{which}"


def _details(comparison: Comparison) -> list[str]:
    """The list of differences, and the first one that can be shown."""
    found = [f"  {_short(difference)}" for difference in comparison.differences[:_LISTED]]
    if len(comparison.differences) > _LISTED:
        found.append(f"  … and {len(comparison.differences) - _LISTED} more (--json has all)")
    left, right = comparison.runs[0].observed, comparison.runs[comparison.other].observed
    for difference in comparison.differences:
        shown = explain(difference, left, right)
        if shown:
            name = difference.path or difference.what
            return [*found, f"  the first content that differs, {name}:", *(f"    {text}" for text in shown)]
    return found


def _short(difference: Difference) -> str:
    text = str(difference)
    return text if len(text) <= _WIDTH else text[: _WIDTH - 1] + "…"
