"""The places at which runs differ."""

from __future__ import annotations

from detbox.report.perturb import Observed
from detbox.report.spots import WHOLE, Spot, spots


def seen(stdout: bytes, status: int = 0) -> Observed:
    return Observed(status, stdout, b"", {})


def test_lines_of_a_text() -> None:
    found = spots(seen(b"a\nb\nc\n"), seen(b"a\nB\nc\n"))
    assert found == {Spot("stdout", line=2): (b"b", b"B")}
    assert str(next(iter(found))) == "stdout line 2"


def test_the_whole_where_lines_cannot_be_paired() -> None:
    for other in (b"a\n", b"b\na\n", b"\0\n\n"):
        assert [spot.line for spot in spots(seen(b"a\nb\n"), seen(other))] == [WHOLE]


def test_status() -> None:
    assert spots(seen(b""), seen(b"", 3)) == {Spot("status"): (b"0", b"3")}


def test_a_part_and_its_whole() -> None:
    line, whole = Spot("stdout", line=2), Spot("stdout")
    pair = (b"", b"")
    assert line.within({whole: pair}) and whole.within({line: pair})
    assert not line.within({Spot("stdout", line=3): pair})
    assert Spot("tree", "a", "presence").within({Spot("tree", "b", "presence"): pair})
