"""Events as lines for people, in the manner of strace."""

from __future__ import annotations

import os

from detbox.kernel.numbers import NAMES
from detbox.recorder import decode
from detbox.recorder.format import Event, Kind
from detbox.recorder.read import Threads

NS = 1_000_000_000
_TIMED = (Kind.CALL, Kind.EXEC, Kind.EXIT)
_STREAMS = {1: "standard output", 2: "standard error"}


def line(event: Event, threads: Threads) -> str:
    """One event: virtual seconds since the run began, lineage of the thread, and what happened."""
    if event.kind is Kind.OUTPUT:
        return f"{'':>14} {'':10} {what(event, threads)}"
    when = f"{event.time_ns / NS:14.9f}" if event.kind in _TIMED else f"{'':>14}"
    return f"{when} {threads.of(event).lineage:10} {what(event, threads)}"


def what(event: Event, threads: Threads) -> str:
    """What happened, without when and to whom."""
    name = NAMES.get(event.nr, f"call_{event.nr}")
    if event.kind is Kind.CALL:
        text = decode.arguments(event.nr, event.args, event.path, event.path2)
        return f"{name}({text}) = {decode.answer(event)}{' (new file)' if event.created else ''}"
    if event.kind is Kind.RESULT:
        return f"<… {name}> = {decode.number(event.nr, event.result)}{decode.data(event)}"
    if event.kind is Kind.EXEC:
        return "+++ executes " + " ".join(os.fsdecode(word) for word in event.argv)
    if event.kind is Kind.EXIT:
        return f"+++ {decode.ending(event.status)}"
    if event.kind is Kind.FORK:
        child = threads.by_number.get(event.other)
        kind = "process" if child is None or child.is_first else "thread"
        return f"+++ created {kind} {child.lineage if child else '?'}"
    if event.kind is Kind.TASK:
        who = f"process {event.pid}" if event.pid == event.other else f"thread {event.other} of process {event.pid}"
        return f"+++ appears: {who}"
    return f"+++ {event.result} bytes to {_STREAMS.get(event.other, event.other)} (crc {event.digest:08x})"
