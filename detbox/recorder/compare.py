"""Finds where two traces part.

A run is one sequence of events, so the first record in which two runs differ is where they part, however the
later ones shift.  What is compared is the record's bytes; only the two that differ are decoded.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest

from detbox.kernel.numbers import NAMES
from detbox.recorder import show
from detbox.recorder.format import Event, Kind, Verdict, decode
from detbox.recorder.read import Threads, Trace, join

#: How many events before the divergence are shown.
CONTEXT = 6


@dataclass(frozen=True)
class Divergence:
    """The first event that differs.  ``left`` or ``right`` is None where that run has ended.

    ``before``: the events before it, as lines; ``stack``: lineage and command of the process and of those above.
    """

    index: int
    left: Event | None
    right: Event | None
    texts: tuple[str, str]
    thread: str
    stack: Sequence[tuple[str, str]]
    before: Sequence[str]

    @property
    def call(self) -> str:
        """Name of the call at which the runs part; "" if it is none."""
        event = self.left or self.right
        return NAMES.get(event.nr, str(event.nr)) if event is not None and event.nr >= 0 else ""

    def lines(self, cause: str = "") -> list[str]:
        """The report for people.  ``cause``: the class of what such a difference comes from."""
        found = [f"first divergent event (number {self.index}), thread {self.thread}:"]
        found += [f"  run 1: {self.texts[0]}", f"  run 2: {self.texts[1]}"]
        if cause:
            found.append(f"  cause: {cause}")
        found.append("  processes, outermost first:")
        found += [f"    {lineage}: {command}" for lineage, command in self.stack]
        found.append("  events before it:")
        found += [f"    {text}" for text in self.before]
        return found


def first_divergence(left: Trace, right: Trace) -> Divergence | None:
    """Where two traces part; None if they are the same."""
    threads, recent = Threads(), deque[bytes](maxlen=3 * CONTEXT)
    pairs = zip_longest(left.records(), right.records())
    for index, (one, other) in enumerate(pairs):
        if one == other:
            recent.append(one)
            if one[0] in (Kind.TASK, Kind.EXEC):
                threads.learn(decode(one))
            continue
        return _divergence(index, one, other, threads, recent)
    return None


def _divergence(
    index: int, one: bytes | None, other: bytes | None, threads: Threads, recent: deque[bytes]
) -> Divergence:
    left, right = (decode(raw) if raw is not None else None for raw in (one, other))
    left, right = (_with_call(event, recent) for event in (left, right))
    known = left or right
    assert known is not None
    before = [show.line(event, threads) for event in _context(known, recent, threads)]
    if known.kind is Kind.TASK:
        threads.learn(known)
    texts = ["the run has ended" if event is None else show.line(event, threads).strip() for event in (left, right)]
    who = threads.of(known)
    return Divergence(index, left, right, (texts[0], texts[1]), who.lineage, threads.ancestors(who), before)


def _context(known: Event, recent: deque[bytes], threads: Threads) -> list[Event]:
    """The last events before the one at which runs part, each call in one piece."""
    found = [event for event in join(map(decode, recent), threads) if event.verdict is not Verdict.PARK]
    if found and found[-1].kind is Kind.CALL and not found[-1].known and found[-1].args == known.args:
        found.pop()  # its end is where they part
    return found[-CONTEXT:]


def _with_call(event: Event | None, recent: deque[bytes]) -> Event | None:
    """The end of a call that the kernel executed, joined with its beginning."""
    if event is None or event.kind is not Kind.RESULT:
        return event
    for before in map(decode, reversed(recent)):
        if before.kind is Kind.CALL and before.thread == event.thread:
            return replace(before, verdict=Verdict.REPLY, result=event.result, digest=event.digest)
    return event
