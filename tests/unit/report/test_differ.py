"""How differences are shown."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbox.report import differ
from detbox.report.perturb import Difference, Observed, compare
from detbox.report.tree import snapshot


def test_texts_are_compared_by_line() -> None:
    shown = differ.content(b"a\nb\nc\n", b"a\nB\nc\n")
    assert shown[0] == "--- run 1"
    assert {"-b", "+B"} <= set(shown)


def test_long_diffs_are_cut() -> None:
    left, right = (b"\n".join(b"%d" % (i * k) for i in range(1, 500)) for k in (1, 2))
    shown = differ.content(left, right)
    assert len(shown) == differ.MAX_LINES + 1
    assert shown[-1].endswith("more lines")


@pytest.mark.parametrize(
    "left, right, at",
    [
        (b"\0" * 100 + b"x", b"\0" * 100 + b"y", 100),
        (b"same\0", b"same\0longer", 5),
        (b"\xff", b"", 0),
        (b"line\r\n", b"line\n", 4),
    ],
)
def test_other_contents_are_shown_as_bytes(left: bytes, right: bytes, at: int) -> None:
    shown = differ.content(left, right)
    assert f"at byte {at} " in shown[0]
    assert any(line.startswith("-") for line in shown)
    assert any(line.startswith("+") for line in shown)


def test_texts_are_shown_before_data(tmp_path: Path) -> None:
    runs = []
    for number in range(2):
        work = tmp_path / str(number)
        work.mkdir()
        (work / "a").write_bytes(b"\0%d" % number)
        (work / "b").write_text(str(number))
        runs.append(Observed(0, b"", b"", snapshot(work, (0, 0)), 0, work))
    found = compare(*runs)
    assert next(d.path for d in found if d.where.endswith(" sha256")) == "a"
    assert next(d.path for d in differ.text_first(found, *runs) if d.where.endswith(" sha256")) == "b"


def test_what_is_equal_needs_no_words() -> None:
    assert differ.content(b"a", b"a") == []


def test_a_status_says_it_all() -> None:
    seen = Observed(0, b"", b"", {})
    assert differ.explain(Difference("status", "", "0", "1"), seen, seen) == []
