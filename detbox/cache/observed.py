"""A run that is being noted down: its files, its output and its input."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import xxhash

from detbox.cache import summary
from detbox.cache.nested import Nested
from detbox.cache.tracker import Tracker

if TYPE_CHECKING:
    from detbox.cache.store import Store
    from detbox.supervisor.machine import Machine

#: More output than this is not kept.
_MOST_OUTPUT = 256 << 20


class Observed:
    """Notes of one run, for the process that started it."""

    def __init__(self, m: Machine, store: Store | None) -> None:
        """``store``: where results of executions inside of the run are; None: they are not noted."""
        self._m = m
        self.tracker = Tracker(m, store is not None)
        self.nested: Nested | None = None
        self._output = bytearray()
        self._turns: list[tuple[int, int]] = []  # stream and position where it begins
        self._input = xxhash.xxh3_128()

        if store is not None:
            self.nested = Nested(self, store, m.spec.cache_base, m.spec.cache)

    def wrap(self, handlers: dict[int, Any]) -> dict[int, Any]:
        """The handlers, each of which tells about its call first."""
        handlers = self.tracker.wrap(handlers)
        return handlers if self.nested is None else self.nested.wrap(handlers)

    def connect(self, sup: Any) -> None:
        """Hear of output, input and exits.  ``sup``: the supervisor."""
        if self.nested is not None:
            self.nested.connect(sup)
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
        if not self._turns or self._turns[-1][0] != stream:
            self._turns.append((stream, len(self._output)))
        self._output += data

    def position(self) -> int:
        """How many bytes have been written until now."""
        return len(self._output)

    def since(self, position: int) -> tuple[bytes, list[list[int]]]:
        """What has been written from ``position`` on: the bytes, and ``[stream, bytes]`` in their order."""
        found: list[list[int]] = []
        end = len(self._output)
        for stream, begin in reversed(self._turns):
            if end > position:
                found.append([stream, end - max(begin, position)])
            if begin <= position:
                break
            end = begin
        return bytes(self._output[position:]), found[::-1]

    def tell(self, fd: int, tops: Iterable[str]) -> None:
        """Write all of it to ``fd``: the length of a JSON text, the text, and the output's bytes."""
        console = self._m.console
        told = summary.describe(self.tracker, tops)
        told["turns"] = self.since(0)[1]
        told["executions"], told["records"], told["used"], told["mismatch"] = [], [], [], None
        told["environments"] = []
        records: list[bytes] = []
        if self.nested is not None:
            told["executions"] = self.nested.log
            told["environments"] = self.nested.environments()
            told["mismatch"] = self.nested.mismatch
            # What has met a full disk may be any of them.
            kept = self.nested.records if summary.DISK_FULL not in told["reasons"] else []
            records = [record.to_bytes() for record in kept]
            told["records"] = [
                [record.key, len(data), record.sized_blobs()] for record, data in zip(kept, records, strict=True)
            ]
            told["used"] = [(key, hashlib.sha256(data).hexdigest()) for key, data in self.nested.used]
        told["stdin"] = {"taken": console.consumed, "content": self._input.hexdigest(), "ended": console.ended}
        text = summary.dump(told)
        with open(os.dup(fd), "wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for data in records:
                file.write(data)
            file.write(self._output)
