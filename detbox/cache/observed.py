"""A run that is being noted down: its files, its output and its input."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import xxhash

from detbox.cache import summary
from detbox.cache.tracker import Tracker

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine

#: More output than this is not kept.
_MOST_OUTPUT = 256 << 20


class Observed:
    """Notes of one run, for the process that started it."""

    def __init__(self, m: Machine) -> None:
        self._m = m
        self.tracker = Tracker(m)
        self._output = bytearray()
        self._turns: list[list[int]] = []
        self._input = xxhash.xxh3_128()

    def connect(self, sup: Any) -> None:
        """Hear of output, input and exits.  ``sup``: the supervisor."""
        sup.exit_hooks.append(self.tracker.on_exit)
        console = self._m.console
        before = console.observer

        def on_output(stream: int, data: bytes) -> None:
            if before is not None:
                before(stream, data)
            self._on_output(stream, data)

        console.observer = on_output
        console.input_observer = self._input.update

    def _on_output(self, stream: int, data: bytes) -> None:
        if len(self._output) + len(data) > _MOST_OUTPUT:
            self.tracker.ledger.unable(self.tracker.root, "writes very much output")
            return
        self._output += data
        if self._turns and self._turns[-1][0] == stream:
            self._turns[-1][1] += len(data)
        else:
            self._turns.append([stream, len(data)])

    def tell(self, fd: int, tops: Iterable[str]) -> None:
        """Write all of it to ``fd``: the length of a JSON text, the text, and the output's bytes."""
        console = self._m.console
        told = summary.describe(self.tracker, tops)
        told["turns"] = self._turns
        told["stdin"] = {"taken": console.consumed, "content": self._input.hexdigest(), "ended": console.ended}
        text = summary.dump(told)
        with open(os.dup(fd), "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.write(self._output)
