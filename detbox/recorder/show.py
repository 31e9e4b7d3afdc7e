"""Events as lines for people, in the manner of strace."""

from __future__ import annotations

import errno
import os

from detbox.kernel.numbers import NAMES
from detbox.recorder.calls import parameters
from detbox.recorder.format import Event, Kind, Verdict
from detbox.recorder.read import Threads

_NS = 1_000_000_000
_MAX_ERRNO = 4095
_RESTART = {512: "ERESTARTSYS", 513: "ERESTARTNOINTR", 514: "ERESTARTNOHAND", 516: "ERESTART_RESTARTBLOCK"}
_STREAMS = {1: "standard output", 2: "standard error"}


def line(event: Event, threads: Threads) -> str:
    """One event: virtual seconds, lineage of the thread, and what happened."""
    if event.kind is Kind.OUTPUT:
        name = _STREAMS.get(event.other, str(event.other))
        return f"{'':>14} {'':10} +++ {event.result} bytes to {name} (crc {event.digest:08x})"
    when = f"{event.time_ns / _NS:14.9f}" if event.time_ns else f"{'':>14}"
    return f"{when} {threads.of(event).lineage:10} {what(event, threads)}"


def what(event: Event, threads: Threads) -> str:
    """What happened, without when and to whom."""
    if event.kind is Kind.CALL:
        return f"{call(event)} = {answer(event)}"
    if event.kind is Kind.RESULT:
        return f"<… {NAMES.get(event.nr, event.nr)}> = {number(event.result)}{_digest(event)}"
    if event.kind is Kind.EXEC:
        return "+++ executes " + " ".join(os.fsdecode(word) for word in event.argv)
    if event.kind is Kind.EXIT:
        return f"+++ {_end(event.status)}"
    if event.kind is Kind.FORK:
        child = threads.by_number.get(event.other)
        return f"+++ created process {child.lineage if child else '?'}"
    if event.kind is Kind.TASK:
        return f"+++ appears: process {event.pid}"
    return f"+++ {event.result} bytes to {_STREAMS.get(event.other, event.other)} (crc {event.digest:08x})"


def call(event: Event) -> str:
    """A call with its arguments."""
    labels = parameters().get(event.nr, tuple(("", f"arg{place}") for place in range(6)))
    words, path = [], event.path
    for (kind, label), value in zip(labels, event.args, strict=False):
        if path and "char" in kind:
            words.append(f"{label}={os.fsdecode(path)!r}")
            path = b""
        elif label in ("dirfd", "dfd") and value & 0xFFFFFFFF == 0xFFFFFF9C:
            words.append(f"{label}=AT_FDCWD")
        else:
            words.append(f"{label}={value if value < 10_000 else hex(value)}")
    return f"{NAMES.get(event.nr, event.nr)}({', '.join(words)})"


def answer(event: Event) -> str:
    """What became of a call."""
    if event.verdict is Verdict.REPLY:
        return number(event.result) + _digest(event)
    words = {
        Verdict.CONTINUE: "left to the kernel", Verdict.WATCH: "left to the kernel, watched",
        Verdict.PARK: "waits", Verdict.INSTALL: "a new descriptor",
    }  # fmt: skip
    return words[event.verdict] + _digest(event)


def number(result: int) -> str:
    """A result, an error by its name."""
    if -_MAX_ERRNO <= result < 0:
        return f"-1 {errno.errorcode.get(-result) or _RESTART.get(-result, -result)}"
    return str(result) if result < 10_000 else hex(result)


def _digest(event: Event) -> str:
    return f" (data crc {event.digest:08x})" if event.digest else ""


def _end(status: int) -> str:
    if os.WIFSIGNALED(status):
        return f"killed by signal {os.WTERMSIG(status)}"
    return f"exited with {os.WEXITSTATUS(status)}"
