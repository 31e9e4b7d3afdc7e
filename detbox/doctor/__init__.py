"""Says what this host offers, what follows from it, and how to mend what is missing.

Depends on nothing of the engine: it has to work where the engine does not.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict

from detbox.doctor import features, host
from detbox.doctor.child import try_out
from detbox.doctor.features import FEATURES, Feature
from detbox.doctor.finding import Finding

__all__ = ["Finding", "as_json", "as_table", "examine"]


def examine() -> list[Finding]:
    """Everything that there is to know about this host, in the order in which it is printed."""
    return [host.kernel(), *_probed(FEATURES), *host.facts()]


def _probed(table: Sequence[Feature]) -> Iterator[Finding]:
    for feature in table:
        worked, text = try_out(feature.probe)
        if worked:
            yield Finding(feature.name, text, True)
            continue
        mend = _mend(feature.mend)
        yield Finding(feature.name, f"no: {text}", not feature.needed, feature.without, mend)


def _mend(mend: str | Callable[[], str]) -> str:
    return mend if isinstance(mend, str) else mend()


def as_json(findings: Sequence[Finding]) -> str:
    """The findings as JSON: a list of objects and the verdict."""
    usable = all(finding.usable for finding in findings)
    return (
        json.dumps({"usable": usable, "findings": [asdict(finding) for finding in findings]}, indent=1) + "\n"
    )


def as_table(findings: Sequence[Finding]) -> str:
    """The findings as text: name and state, below it what follows and how to mend it; the verdict last."""
    width = max(len(finding.name) for finding in findings)
    lines = []
    for finding in findings:
        mark = " " if not finding.follows else "-" if finding.usable else "!"
        lines.append(f"{mark} {finding.name:<{width}}  {finding.state}")
        for label, text in (("follows", finding.follows), ("mend", finding.mend)):
            if text:
                lines += _indented(f"{label}: {text}", width + 4)
    missing = [finding.name for finding in findings if not finding.usable]
    lines.append("")
    lines.append(f"runs are not possible here: {', '.join(missing)}" if missing else "runs are possible here")
    return "\n".join(lines) + "\n"


def _indented(text: str, indent: int) -> list[str]:
    first = " " * indent
    return textwrap.wrap(text, 105, initial_indent=first, subsequent_indent=first + "  ")


def feature_table() -> str:
    """The Markdown table of what detbox uses and what it does without, for the documentation."""
    rows = ["| feature | needed | without it |", "| --- | --- | --- |"]
    rows += [f"| {f.name} | {'yes' if f.needed else 'no'} | {f.without} |" for f in features.FEATURES]
    return "\n".join(rows) + "\n"
