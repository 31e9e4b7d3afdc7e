"""What bytes say about the class of a cause, and the table of classes."""

from __future__ import annotations

import pytest

from detbox.kernel.numbers import NUMBERS
from detbox.report import causes
from detbox.report.perturb import PERTURBATIONS


def test_the_table_speaks_of_rows_and_calls_that_exist() -> None:
    rows = [row for cls in causes.CLASSES for row in cls.rows]
    calls = [call for cls in causes.CLASSES for call in cls.calls]
    assert set(rows) == {row.name for row in PERTURBATIONS}
    assert set(calls) <= set(NUMBERS)
    assert len(set(rows)) == len(rows) and len(set(calls)) == len(calls)


@pytest.mark.parametrize(
    "left, right, same",
    [(b"a\nb\nc", b"c\na\nb", True), (b"a b c", b"b c a", True), (b"a b", b"a c", False)],
)
def test_the_same_in_another_order(left: bytes, right: bytes, same: bool) -> None:
    assert causes.same_pieces(left, right) is same


@pytest.mark.parametrize(
    "left, right, expected",
    [
        (b"<object at 0x7f1234567890>", b"<object at 0x7f0987654320>", True),
        (b"0x7f1234567890 a", b"0x7f1234567891 b", False),
        (b"12", b"13", False),
    ],
)
def test_addresses(left: bytes, right: bytes, expected: bool) -> None:
    assert causes.are_addresses(left, right) is expected


@pytest.mark.parametrize(
    "texts, expected",
    [
        ([b"at 15", b"at 17", b"at 18"], True),
        ([b"at 15", b"at 17", b"at 16"], False),
        ([b"1 2", b"1"], False),
        ([b"x", b"x"], False),
    ],
)
def test_what_grows_is_a_clock(texts: list[bytes], expected: bool) -> None:
    assert causes.grows(texts) is expected
