"""Classes of named fields."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from detbox.records import Alike, NamedTuple, field, names, record, replace


@record
class _Point:
    x: int
    y: int = 2
    seen: list[int] = field(default_factory=list)


@record
class _Named(_Point):
    name: str = ""
    checked: bool = False

    def __post_init__(self) -> None:
        self.checked = True

    def shown(self) -> str:
        return f"{self.name} {self.x},{self.y}"


def test_defaults_are_made_anew_for_each_object() -> None:
    one, other = _Point(1), _Point(1)
    one.seen.append(5)
    assert (one.x, one.y, one.seen, other.seen) == (1, 2, [5], [])
    assert _Point(1, seen=one.seen).seen is one.seen


def test_all_objects_of_a_class_are_made_alike() -> None:
    """The first few without a compiled method."""

    @record
    class Made(_Named):
        own: str = "o"

    class Pair(_Pair):
        pass

    for _ in range(6):
        made = Made(1, name="n")
        assert [getattr(made, name) for name in names(Made)] == [1, 2, [], "n", True, "o"]
        made.seen.append(1)
        assert Pair(1) == (1, "r") and type(Pair(right="x", left=2)) is Pair
        for wrong in (lambda: Made(), lambda: Made(1, x=2), lambda: Pair(1, left=2), lambda: Pair(nothing=1)):
            with pytest.raises(TypeError):
                wrong()


def test_fields_of_a_base_come_first() -> None:
    made = _Named(1, 3, name="a")
    assert names(_Named) == ("x", "y", "seen", "name", "checked")
    assert made.checked and made.shown() == "a 1,3" and isinstance(made, _Point)
    # Each class has its own way to be made, whichever was used first.
    assert _Point(7).x == 7


@pytest.mark.parametrize("arguments", [(), (1, 2, [], 4)])
def test_missing_and_excess_arguments_are_errors(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError):
        _Point(*arguments)


def test_only_fields_can_be_set() -> None:
    with pytest.raises(AttributeError):
        _Point(1).z = 3  # type: ignore[attr-defined]


def test_a_subclass_that_is_no_record_is_made_as_its_base() -> None:
    class Plain(_Point):
        def twice(self) -> int:
            return 2 * self.x

    assert Plain(4).twice() == 8


def test_replace_leaves_the_given_object() -> None:
    one = _Named(1, name="a")
    other = replace(one, x=5)
    assert (one.x, other.x, other.name, other.seen is one.seen) == (1, 5, "a", True)
    with pytest.raises(TypeError):
        replace(one, w=5)


def test_objects_are_equal_only_to_themselves() -> None:
    one = _Point(1)
    assert one == one and one != replace(one) and len({one, replace(one)}) == 2


def test_objects_without_fields_are_alike_in_their_class() -> None:
    class One(Alike):
        __slots__ = ()

    class Other(Alike):
        __slots__ = ()

    assert One() == One() and One() != Other() and len({One(), One(), Other()}) == 2


class _Pair(NamedTuple):
    """Two."""

    left: int
    right: str = "r"

    def both(self) -> str:
        return f"{self.left}{self.right}"


class _Other(NamedTuple):
    left: int


def test_named_tuples_are_tuples() -> None:
    made = _Pair(1)
    assert made == (1, "r") and hash(made) == hash((1, "r")) and isinstance(made, tuple)
    assert (made.left, made.right, made.both(), made[1]) == (1, "r", "1r", "r")
    assert repr(made) == "_Pair(left=1, right='r')" and _Pair.__doc__ == "Two."
    match made:
        case _Pair(left, right):
            assert (left, right) == made
    # Each class has its own way to be made, whichever was used first.
    assert _Other(7) == (7,) and _Pair(right="x", left=2) == (2, "x")


def test_changed_and_copied_named_tuples() -> None:
    made = _Pair(1, "a")
    assert made._replace(right="b") == _Pair(1, "b") and made._asdict() == {"left": 1, "right": "a"}
    again = copy.copy(made)
    assert type(again) is _Pair and again == made


@pytest.mark.parametrize("arguments", [(), (1, "a", 2)])
def test_missing_and_excess_values_are_errors(arguments: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="_Pair.__new__"):
        _Pair(*arguments)


def test_named_tuples_have_their_fields_and_no_more() -> None:
    made: Any = _Pair(1)
    with pytest.raises(TypeError):
        made._replace(middle=1)
    for name in ("left", "middle"):
        with pytest.raises(AttributeError):
            setattr(made, name, 3)
    assert not hasattr(made, "__dict__")
