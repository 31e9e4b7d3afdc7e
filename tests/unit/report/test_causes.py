"""Guesses at causes."""

from __future__ import annotations

import pytest

from detbox.report.causes import guess
from detbox.report.perturb import Observed, variants

HOSTS = variants(2, without=["user"])


@pytest.mark.parametrize(
    "left, right, calls, cause",
    [
        (b"built 2026-01-02 10:11:12", b"built 2026-01-02 10:11:13", ["clock_gettime"], "clock"),
        (b"at 1767225600", b"at 1767225601", [], "clock"),
        (b"a\nb\nc\n", b"c\na\nb\n", ["getdents64"], "order of directory entries"),
        (b"a\nb\n", b"b\na\n", [], "order"),
        (b"a b c", b"c a b", ["getdents64"], "order of directory entries"),
        (b"<object at 0x7f1234567890>", b"<object at 0x7f0987654320>", ["getrandom"], "address"),
        (b"I am 1234", b"I am 1277", ["getpid"], "process number"),
        (b"0.123", b"0.456", ["getrandom"], "random"),
        (b"on C", b"on et_EE.UTF-8", [], "locale"),
        (b"UTC", b"Pacific/Chatham", [], "time zone"),
    ],
)
def test_classes(left: bytes, right: bytes, calls: list[str], cause: str) -> None:
    found = guess(Observed(0, left, b"", {}), Observed(0, right, b"", {}), HOSTS, calls)
    assert [item.name for item in found] == [cause]


def test_nothing_to_guess() -> None:
    seen = Observed(0, b"x", b"", {})
    assert guess(seen, seen, HOSTS, []) == []
