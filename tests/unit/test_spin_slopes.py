"""When a condition changes, compared with eight-bit arithmetic done turn by turn."""

from __future__ import annotations

import random

import pytest

from detbox.spin.slopes import ALL_CONDITIONS, NEVER, Compare, flip, signed, turns_within

BITS = 8
_TRUTH = {
    "e": lambda left, right: left == right,
    "b": lambda left, right: left < right,
    "be": lambda left, right: left <= right,
    "l": lambda left, right: signed(left, BITS) < signed(right, BITS),
    "le": lambda left, right: signed(left, BITS) <= signed(right, BITS),
    "s": lambda left, right: (left - right) % 256 >= 128,
}
_OPPOSITE = {"ne": "e", "ae": "b", "a": "be", "ge": "l", "g": "le", "ns": "s"}


@pytest.mark.parametrize("condition", sorted(ALL_CONDITIONS))
def test_flip_is_the_first_turn_that_differs(condition: str) -> None:
    chance = random.Random(condition)
    truth = _TRUTH[_OPPOSITE.get(condition, condition)]
    for _ in range(3000):
        left, right = chance.randrange(256), chance.randrange(256)
        slopes = chance.choice([0, 1, -1, 3, -7, 16]), chance.choice([0, 0, 0, 1, -2])
        found = flip(Compare(left, slopes[0], right, slopes[1], BITS, ALL_CONDITIONS), condition)
        assert found is not None
        first, valid = found
        said = truth(left, right)
        for turn in range(1, min(first, valid + 1, 600)):
            assert truth((left + turn * slopes[0]) % 256, (right + turn * slopes[1]) % 256) == said
        if first <= valid and first < NEVER:
            assert truth((left + first * slopes[0]) % 256, (right + first * slopes[1]) % 256) != said


def test_turns_within() -> None:
    assert turns_within(3, 2, 0, 10) == 3
    assert turns_within(3, -1, 0, 10) == 3
    assert turns_within(3, 0, 0, 10) == NEVER
    assert turns_within(10, 1, 0, 10) == -1
