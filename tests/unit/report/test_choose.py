"""The choice of perturbations."""

from __future__ import annotations

import pytest

from detbox.errors import UserError
from detbox.report.perturb import PERTURBATIONS, variants
from detbox.report.verify import choose


def applied(**more: list[str]) -> set[str]:
    rows, _ = choose(more.get("only", []), more.get("without", []), b"")
    return {row.name for row in rows if row.applied}


def test_only_what_is_named() -> None:
    assert applied(only=["umask", "time-zone"]) == {"umask", "time zone"}


def test_all_but_what_is_named() -> None:
    assert {"load", "umask"} & applied(without=["load"]) == {"umask"}


def test_every_row_that_is_left_out_says_why() -> None:
    rows, _ = choose(["umask"], [], b"")
    assert len(rows) == len(PERTURBATIONS)
    assert all(row.applied != bool(row.why) for row in rows)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(UserError, match="nonsense") as caught:
        choose([], ["nonsense"], b"")
    assert "time-of-run" in caught.value.remedy


def test_input_keeps_the_terminal_away() -> None:
    rows, _ = choose([], [], b"some input")
    assert not next(row for row in rows if row.name == "terminal").applied


def test_hosts_differ_in_what_is_applied_alone() -> None:
    first, second = variants(2, without=[row.name for row in PERTURBATIONS if row.name != "umask"])
    differing = {name for name in first.settings if first.settings[name] != second.settings[name]}
    assert differing == {"umask"}
