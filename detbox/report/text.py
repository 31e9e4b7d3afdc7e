"""The report of a verification as text for people, with colours for a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from detbox.report.differ import explain, text_first
from detbox.report.perturb import Difference
from detbox.report.shown import command_line, shortened, shown
from detbox.report.verdict import Verdict, count, failures, label, ranked
from detbox.report.verify import Comparison

#: Differences that are listed (the JSON has all), and how much of each.
_LISTED, _WIDTH = 12, 160
_SGR = {"good": "32;1", "bad": "31;1", "name": "1", "dim": "2", "left": "31", "right": "32", "cause": "33"}
_INDENT = re.compile(r"\s*")


@dataclass(frozen=True)
class Paint:
    """Marks words with a style, if ``on``; what it is given cannot steer the terminal in any case."""

    on: bool = False

    def __call__(self, style: str, text: str) -> str:
        text = shown(text)
        return f"\033[{_SGR[style]}m{text}\033[0m" if self.on and text and style else text


def lines(verdict: Verdict, paint: Paint) -> Iterator[str]:
    """The report, line by line."""
    yield paint("name", f"{len(verdict.boxed.runs)} runs of: {command_line(verdict.spec.command)}")
    applied = [row.name for row in verdict.rows if row.applied]
    yield paint("dim", "perturbed: " + (", ".join(applied) or "nothing"))
    for why in dict.fromkeys(row.why for row in verdict.rows if not row.applied):
        names = ", ".join(row.name for row in verdict.rows if row.why == why)
        yield paint("dim", f"not perturbed ({why}): {names}")
    if verdict.native is not None:
        yield ""
        yield from _comparison("natively", verdict.native, paint)
        for cause in verdict.causes:
            yield "  cause: " + paint("cause", cause.name) + f" ({paint('dim', cause.text())})"
    yield ""
    yield from _comparison("under detbox", verdict.boxed, paint)
    doubts = verdict.doubts
    for text in doubts[:_LISTED]:
        yield f"  not promised to be deterministic: {shown(text)}"
    if verdict.divergence is not None:
        yield ""
        yield from _event(verdict, paint)
    for note in verdict.notes:
        yield ""
        yield shown(note)


def _comparison(title: str, comparison: Comparison, paint: Paint) -> Iterator[str]:
    """The verdict on some runs, the list of differences, and the first one that can be shown."""
    good = not comparison.differences
    yield paint("name", f"{title}:") + " " + paint("good" if good else "bad", count(comparison))
    for sentence in failures(comparison):
        yield "  " + paint("bad", sentence)
    for difference in ranked(comparison.differences)[:_LISTED]:
        yield "  " + _difference(difference, paint)
    if len(comparison.differences) > _LISTED:
        yield f"  … and {len(comparison.differences) - _LISTED} more (--json and --html have all)"
    left, right = comparison.runs[0].observed, comparison.runs[comparison.other].observed
    for difference in text_first(comparison.differences, left, right):
        found = explain(difference, left, right)
        if found:
            yield f"  the first content that differs, {paint('name', difference.path or difference.what)}:"
            yield from (f"    {_diff_line(text, paint)}" for text in found)
            return


def _difference(difference: Difference, paint: Paint) -> str:
    if difference.where.endswith(" sha256"):
        return shown(label(difference))
    return (
        f"{shown(label(difference))} {paint('left', shortened(difference.left, _WIDTH // 2))} | "
        f"{paint('right', shortened(difference.right, _WIDTH // 2))}"
    )


def _diff_line(text: str, paint: Paint) -> str:
    style = {"-": "left", "+": "right", "@": "dim"}.get(text[:1])
    return paint(style, text) if style else shown(text)


def _event(verdict: Verdict, paint: Paint) -> Iterator[str]:
    event = verdict.divergence
    assert event is not None
    yield paint("name", "first divergent event") + f" (number {event.index}), thread {shown(event.thread)}:"
    yield "  run 1: " + paint("left", event.texts[0])
    yield "  run 2: " + paint("right", event.texts[1])
    if verdict.cause:
        yield "  cause: " + paint("cause", verdict.cause)
    yield "  processes, outermost first:"
    yield from (f"    {shown(lineage)}: {shown(command)}" for lineage, command in event.stack)
    yield "  events before it:"
    yield from ("    " + paint("dim", _INDENT.sub("", text, count=1)) for text in event.before)
