"""Finds out where native differences come from: by changing one thing alone, and looking which of them it brings about.

Three kinds of experiment: native runs on hosts that differ from the first one in a single row of the table of
perturbations; native runs on equal hosts, which show what varies by itself; and runs under detbox, where everything
else is fixed, with another epoch, seed, number of processors or processor model.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from detbox.errors import DetboxError
from detbox.report import causes
from detbox.report.causes import BY_ROW, Cause
from detbox.report.perturb import PERTURBATIONS, Host, Observed
from detbox.report.spots import WHOLE, Pair, Spot, spots
from detbox.report.verify import Comparison, Progress, Verification
from detbox.spec import CPU_MODELS

#: Real seconds after which no further experiment is begun: so many, or so many times what the comparison took.
_BUDGET_S, _BUDGET_FACTOR = 60.0, 4.0
_YEARS_NS = 1234 * 86_400 * 10**9 + 12_345_678_901_234  # moves every digit of a date
#: Rows in the order in which they are tried if nothing speaks for one of them.
_ORDER = (
    "environment", "path", "locale", "time zone", "umask", "user", "hostname", "kernel release", "mtimes",
    "file system", "creation order", "processors", "process numbers", "limits", "terminal", "descriptors", "signals",
    "inodes", "nice", "memory", "load",
)  # fmt: skip
_PLACES = {"file system", "creation order", "inodes"}  # rows that change how files lie on the disk
_HINTS = {"mode": "umask", "owner": "user"}  # rows that a field of a file's metadata speaks for
_THREADS = {"futex", "clone", "clone3", "fork", "vfork"}
_CLOCKS = {"clock_gettime", "gettimeofday", "time", "times", "getrusage", "wait4"}
_CHECKSUM = re.compile(rb"\b[0-9a-f]{32,}\b")


def _is_opaque(spot: Spot, pair: Pair) -> bool:
    if spot.name != "content" or causes.same_pieces(*pair):
        return False
    return spot.line == WHOLE or bool(_CHECKSUM.search(pair[0]))


class Investigation:
    """The causes of one native difference.

    ``differences``: places and values that are not explained yet.  ``note`` says why the work was ended early, if
    it was.
    """

    def __init__(self, verification: Verification, plain: Comparison, boxed: Comparison, progress: Progress) -> None:
        self._verification, self._progress = verification, progress
        self._runs = (plain.runs[0].observed, plain.runs[plain.other].observed)
        self._hosts = (plain.runs[0].host, plain.runs[plain.other].host)
        self._boxed = boxed.runs[0].observed
        stats = boxed.runs[0].answer.get("stats", {})
        self._calls: frozenset[str] = frozenset(stats.get("calls", {}))
        self.differences: dict[Spot, Pair] = spots(*self._runs)
        self.note = ""
        self._shows: set[str] = set()
        # What is no text, or a checksum, may have several causes that do not show.
        self._opaque = {spot: pair for spot, pair in self.differences.items() if _is_opaque(spot, pair)}
        self._found: dict[str, tuple[str, set[Spot]]] = {}
        took = sum(run.observed.seconds for run in (*plain.runs, *boxed.runs))
        self._end = time.monotonic() + max(_BUDGET_S, _BUDGET_FACTOR * took)

    def causes(self) -> list[Cause]:
        """All that can be found out, the causes of most differences first."""
        self._explain("time", "it is the time of the change", lambda spot, pair: spot.name == "mtime_ns")
        steps = (self._visible, self._order_of_rows, self._knobs, self._layout, self._race, self._rest)
        try:
            for step in steps:
                if self.differences or self._opaque and step in steps[:3]:
                    step()
        except TimeoutError:
            self.note = "the search for causes was ended: each native run takes long"
        except DetboxError as error:
            self.note = f"the search for causes was ended: {error.message}"
        if self.differences:
            self._explain("unknown", "nothing that was changed alone brings it about", lambda spot, pair: True)
        found = [Cause(name, why, len(places)) for name, (why, places) in self._found.items()]
        return sorted(found, key=lambda cause: (cause.name == "unknown", -cause.count, cause.name))

    def _note(self, name: str, spot: Spot, why: str) -> None:
        """Something of the class ``name`` shows at a place, which may have other causes as well."""
        self._found.setdefault(name, (f"{spot}: {why}", set()))[1].add(spot)

    def _explain(self, name: str, why: str, test: Callable[[Spot, Pair], bool]) -> None:
        """Move every difference that passes the test to the class ``name``."""
        for spot, pair in list(self.differences.items()):
            if test(spot, pair):
                del self.differences[spot]
                self._note(name, spot, why)

    def _native(self, what: str, **settings: Any) -> Observed:
        """One native run on the first host with some settings changed.  Raises TimeoutError."""
        if time.monotonic() > self._end:
            raise TimeoutError
        host = Host("probe", {**self._hosts[0].settings, **settings})
        observed = self._verification.natively(lambda _: self._progress(f"looking for causes: {what}"), [host])
        return observed[0].observed

    def _under_detbox(self, what: str, **changes: Any) -> dict[Spot, Pair]:
        """What one changed option of a run under detbox changes."""
        if time.monotonic() > self._end:
            raise TimeoutError
        says = f"looking for causes: {what} under detbox"
        runs = self._verification.under_detbox(lambda _: self._progress(says), [self._hosts[0]], **changes)
        return spots(self._boxed, runs[0].observed)

    @cached_property
    def _again(self) -> Observed:
        return self._native("the same again")

    @cached_property
    def _noise(self) -> dict[Spot, Pair]:
        """What differs between two runs on equal hosts."""
        return spots(self._runs[0], self._again)

    # Rows of the table, one at a time.

    def _order_of_rows(self) -> None:
        """Change one row after the other until each difference that does not vary by itself is explained."""
        self._explain("inode", "it shows the inode number of a file", self._shows_inodes)
        rows = [row for row in (*self._hints(), *_ORDER) if self._values(row)[0] != self._values(row)[1]]
        in_memory: Observed | None = None
        for row in dict.fromkeys(rows):
            if all(spot.within(self._noise) for spot in (*self.differences, *self._opaque)):
                return
            before, setting = self._runs[0], {row: self._values(row)[1]}
            if row == "creation order":  # on a disk the order is another matter
                if in_memory is None:
                    continue
                before, setting = in_memory, setting | {"file system": "memory"}
            after = self._native(f"{row} alone", **setting)
            if row == "file system":
                in_memory = after
            self._explain_by_row(row, spots(before, after))

    def _values(self, row: str) -> tuple[Any, Any]:
        first, other = (host.settings[row] for host in self._hosts)
        values = next(item.values for item in PERTURBATIONS if item.name == row)
        applied = any(item.name == row and item.applied for item in self._verification.rows)
        return first, values[1] if applied and first == other else other

    def _visible(self) -> None:
        """Say where values of the second host show, even beside something else that differs."""
        for row in _ORDER:
            value = self._hosts[1].settings[row]
            words = [*value.values()] if isinstance(value, dict) else [value]
            shown = [str(word).encode() for word in words if isinstance(word, str) and len(word) > 4]
            for spot, pair in self.differences.items():
                if any(word in pair[1] and word not in pair[0] for word in shown):
                    self._shows.add(row)
                    self._note(BY_ROW[row], spot, f"it shows the {row}")

    def _hints(self) -> Sequence[str]:
        """Rows that something speaks for."""
        found = [_HINTS[spot.name] for spot in self.differences if spot.name in _HINTS]
        found += [row for row in _ORDER if row in self._shows]
        if any(causes.same_pieces(*pair) for pair in self.differences.values()):
            found += ["file system", "creation order"]
        return found

    def _explain_by_row(self, row: str, found: dict[Spot, Pair]) -> None:
        new = {spot: pair for spot, pair in found.items() if not spot.within(self._noise)}
        if not new:
            return
        for spot, pair in {**self._opaque, **self.differences}.items():
            if spot.within(new):
                name, why = self._class_of_row(row, spot, pair)
                self._note(name, spot, why)
                self.differences.pop(spot, None)

    def _class_of_row(self, row: str, spot: Spot, pair: Pair) -> tuple[str, str]:
        if row == "processors":
            if spot.within(self._by_model):
                return "cpuid", "the processor that it runs on changes it, and under detbox --cpu-model"
            if spot.within(self._by_count):
                return "CPU count", "under detbox --cpus changes it"
            if self._calls & _THREADS:
                return "thread race", "it is another on a single processor"
        if row in _PLACES and not self._shows_inodes(spot, pair):
            same = causes.same_pieces(*pair)
            if same or self._calls & {"getdents64", "getdents"} and not self._calls & {"statfs", "fstatfs"}:
                return "readdir order", "the same words in another order" if same else f"it follows the {row}"
        return BY_ROW[row], f"changing the {row} alone changes it"

    def _shows_inodes(self, spot: Spot, pair: Pair) -> bool:
        return spot.name == "content" and causes.are_inodes(*pair, self._runs)

    # Options of a run under detbox, one at a time.

    @cached_property
    def _by_count(self) -> dict[Spot, Pair]:
        return self._under_detbox("--cpus", cpus=self._verification.spec.cpus + 1)

    @cached_property
    def _by_model(self) -> dict[Spot, Pair]:
        others = [model for model in CPU_MODELS if model != self._verification.spec.cpu_model]
        return self._under_detbox("--cpu-model", cpu_model=others[0])

    def _knobs(self) -> None:
        spec = self._verification.spec
        options: tuple[tuple[str, str, dict[str, int]], ...] = (
            ("time", "--epoch", {"epoch_ns": spec.epoch_ns + _YEARS_NS}),
            ("random", "--seed", {"seed": spec.seed ^ 0x5EED}),
        )
        for name, option, change in options:
            found = self._under_detbox(option, **change)
            for spot in {**self._opaque, **self.differences}:
                if spot.within(found):
                    self._note(name, spot, f"under detbox {option} changes it")
                    self.differences.pop(spot, None)
            if not self.differences and not self._opaque:
                return

    # What varies by itself.

    def _layout(self) -> None:
        """Without address randomisation: what stays the same now was an address."""
        if self._hosts[0].settings["address randomisation"]:
            return
        hidden = self._calls & _THREADS  # a race may end in the same way by chance
        likely = {s for s, pair in self.differences.items() if causes.are_addresses(*pair) or not hidden}
        if not likely:
            return
        fixed = {"address randomisation": True}
        one, other, third = (self._native("no address randomisation", **fixed) for _ in range(3))
        vary = spots(one, other) | spots(one, third)
        why = "without address randomisation it is the same each time"
        self._explain("address", why, lambda spot, _: spot in likely and not spot.within(vary))

    def _race(self) -> None:
        """On a single processor: what stays the same now was a race; what grows is a clock's reading."""
        first, second = (self._native("one processor", processors=1, nice=0) for _ in range(2))
        vary = spots(first, second)
        readings = [spots(self._runs[0], run) for run in (self._runs[1], self._again, first, second)]

        def is_clock(spot: Spot, pair: Pair) -> bool:
            later = [found[spot][1] for found in readings if spot in found]
            return len(later) == len(readings) and causes.grows([pair[0], *later])

        if self._calls & _THREADS and any(is_clock(*item) for item in self.differences.items()):
            # What threads lose to a race is less on a single processor: that grows, too.
            readings.append(spots(self._runs[0], self._native("once more")))
        self._explain("time", "it grows from each run to the next", is_clock)
        if self._calls & _THREADS:
            why = "on a single processor it is the same each time"
            self._explain("thread race", why, lambda spot, _: not spot.within(vary))

    def _rest(self) -> None:
        if self._calls & {"futex"} and self._calls & {"clone", "clone3"}:
            self._explain("thread race", "it varies by itself, and there are several threads", lambda *_: True)
        elif self._calls & _CLOCKS:
            numbers = "numbers vary by themselves, and the command reads clocks"
            self._explain("time", numbers, lambda _, pair: any(causes.differing_numbers(*pair)))
