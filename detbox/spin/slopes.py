"""How the values of a loop change from turn to turn, and when a branch will go the other way.

A *slope* says how a value differs between the same instant of two successive
turns: by a constant (0: it is invariant), or unclearly.  ``Compare`` stands for
flags: what they will say is known for every turn, since both sides are.
"""

from __future__ import annotations

from enum import Enum

from detbox.records import NamedTuple


class Unclear(Enum):
    """No constant slope."""

    DERIVED = "derived"  # a function of values with constant slopes
    UNKNOWN = "unknown"  # may depend on what it was a turn before


class Compare(NamedTuple):
    """Flags of ``left - right``, of which each side has a value now and a slope; ``bits`` wide.

    ``conditions``: names for which the flags of the actual instruction agree with that.
    """

    left: int
    left_slope: int
    right: int
    right_slope: int
    bits: int
    conditions: frozenset[str]


Slope = int | Unclear | Compare

_EQUALITY = frozenset(("e", "ne"))
_SIGN = frozenset(("s", "ns"))
# True: it is "less" or its opposite; False: "less or equal" or its opposite.
_UNSIGNED = {"b": True, "ae": True, "be": False, "a": False}
_SIGNED = {"l": True, "ge": True, "le": False, "g": False}
#: After a subtraction or comparison.
ALL_CONDITIONS = _EQUALITY | _SIGN | _UNSIGNED.keys() | _SIGNED.keys()
#: ``dec`` leaves the carry alone.
WITHOUT_CARRY = _EQUALITY | _SIGN | _SIGNED.keys()
#: For a result that is compared with zero, without regard to overflow.
OF_RESULT = _EQUALITY | _SIGN

#: A turn that never comes.
NEVER = 1 << 200


def merged(slopes: list[Slope]) -> Slope:
    """The slope of an unspecified function of these values."""
    if all(slope == 0 for slope in slopes):
        return 0
    return Unclear.UNKNOWN if Unclear.UNKNOWN in slopes else Unclear.DERIVED


def turns_within(value: int, slope: int, low: int, high: int) -> int:
    """For how many further turns the value stays in ``low <= value < high``; -1 if it is outside."""
    if not low <= value < high:
        return -1
    if slope > 0:
        return (high - 1 - value) // slope
    return (value - low) // -slope if slope < 0 else NEVER


def signed(value: int, bits: int) -> int:
    """An unsigned value, read as two's complement."""
    return value - (1 << bits) if value >> (bits - 1) else value


def flip(flags: Compare, condition: str) -> tuple[int, int] | None:
    """When a condition changes: (first turn, turns up to which this was computed).

    The second number limits the first: beyond it, a side has left the range in
    which its order is that of the integers.  None if the condition is not known.
    """
    if condition not in flags.conditions:
        return None
    slope = flags.left_slope - flags.right_slope
    if condition in _EQUALITY:
        return _equality(flags.left - flags.right, slope, flags.bits), NEVER
    half = 1 << (flags.bits - 1)
    if condition in _SIGN:
        result = (flags.left - flags.right) % (2 * half)
        low = 0 if result < half else half
        return turns_within(result, slope, low, low + half) + 1, NEVER
    left, right, low, high = flags.left, flags.right, 0, 2 * half
    if condition in _SIGNED:
        left, right, low, high = signed(left, flags.bits), signed(right, flags.bits), -half, half
    strict = (_SIGNED | _UNSIGNED)[condition]
    valid = min(
        turns_within(left, flags.left_slope, low, high), turns_within(right, flags.right_slope, low, high)
    )
    return _order(left - right - (0 if strict else 1), slope), valid


def _equality(difference: int, slope: int, bits: int) -> int:
    """The first later turn in which "difference == 0 modulo 2**bits" is not what it is now."""
    modulus = 1 << bits
    difference, slope = difference % modulus, slope % modulus
    if not slope:
        return NEVER
    if not difference:
        return 1
    common = slope & -slope
    if difference % common:
        return NEVER
    modulus //= common
    return -(difference // common) * pow(slope // common, -1, modulus) % modulus or modulus


def _order(difference: int, slope: int) -> int:
    """The first later turn in which the sign of ``difference`` has changed (zero counts as positive)."""
    if difference < 0:
        return -(difference // slope) if slope > 0 else NEVER
    return difference // -slope + 1 if slope < 0 else NEVER
