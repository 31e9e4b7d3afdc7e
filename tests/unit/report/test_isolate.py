"""Causes that several processors show, on a machine that may have one: the runs are invented."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from detbox.report.isolate import Investigation
from detbox.report.perturb import Host, Observed, compare, variants
from detbox.report.verify import Comparison, Row, Run
from detbox.spec import make_spec

_ONCE = count()
#: By class of cause: what a native run prints on so many processors, and a run under detbox with these fields of
#: its description.
COMMANDS: dict[str, tuple[Callable[[int | None], str], Callable[[dict[str, Any]], str]]] = {
    "CPU count": (lambda processors: str(processors or 2), lambda spec: str(spec["cpus"])),
    "cpuid": (lambda processors: f"model {processors}", lambda spec: spec["cpu_model"]),
    "thread race": (lambda processors: "1" if processors == 1 else str(next(_ONCE)), lambda _: "1"),
}


class Invented:
    """A verification whose runs take no time."""

    def __init__(self, cause: str, workdir: Path) -> None:
        self.native, self.boxed = COMMANDS[cause]
        self.spec = make_spec(["x"], {}, {}, str(workdir))
        self.hosts = [Host(f"host{i}", {**host.settings, "processors": (None, 1)[i]})
                      for i, host in enumerate(variants(2, without=["user"]))]  # fmt: skip
        self.rows = [Row("processors", "", True)]

    def natively(self, progress: Any, hosts: Sequence[Host] | None = None) -> list[Run]:
        return [self.run(host, self.native(host.settings["processors"])) for host in hosts or self.hosts]

    def under_detbox(self, progress: Any, hosts: Sequence[Host] | None = None, **changes: Any) -> list[Run]:
        fields = {"cpus": self.spec.cpus, "cpu_model": self.spec.cpu_model, **changes}
        return [self.run(host, self.boxed(fields)) for host in hosts or self.hosts]

    @staticmethod
    def run(host: Host, text: str) -> Run:
        return Run(host, Observed(0, text.encode(), b"", {}), {"stats": {"calls": {"futex": 1, "clone3": 1}}})


@pytest.mark.parametrize("cause", COMMANDS)
def test_the_class_is_found(cause: str, tmp_path: Path) -> None:
    invented: Any = Invented(cause, tmp_path)
    plain, boxed = (
        Comparison(runs, 1, compare(runs[0].observed, runs[1].observed))
        for runs in (invented.natively(None), invented.under_detbox(None))
    )
    assert plain.differences and not boxed.differences
    found = Investigation(invented, plain, boxed, lambda _: None).causes()
    assert [found.name for found in found] == [cause]


@pytest.mark.parametrize(("last", "cause"), [("35", "thread race"), ("60", "time")])
def test_what_grows_on_a_single_processor_alone_is_no_clock(last: str, cause: str, tmp_path: Path) -> None:
    """Two native runs, the same again, two on a single processor, and one on all of them."""
    printed = iter(("10", "20", "30", "40", "50", last))
    invented: Any = Invented("thread race", tmp_path)
    invented.native, invented.hosts = lambda _: next(printed), [invented.hosts[0]] * 2
    plain, boxed = (
        Comparison(runs, 1, compare(runs[0].observed, runs[1].observed))
        for runs in (invented.natively(None), invented.under_detbox(None))
    )
    assert [found.name for found in Investigation(invented, plain, boxed, lambda _: None).causes()] == [cause]
    assert next(printed, None) is None
