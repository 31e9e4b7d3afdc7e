"""The errors' statuses are what is documented, and survive the way to the Python interface."""

from __future__ import annotations

import pytest

from detbox import errors


def test_statuses() -> None:
    expected = {
        "UserError": 125,
        "HostError": 125,
        "InternalError": 125,
        "CommandNotInvocable": 126,
        "CommandNotFound": 127,
        "LimitExceeded": 121,
        "NotDeterministic": 122,
        "Deadlock": 123,
        "TimedOut": 124,
        "Interrupted": 130,
    }
    assert {name: errors.by_name(name).status for name in expected} == expected


@pytest.mark.parametrize("cls", list(errors.all_errors()))
def test_every_class_is_found_by_name(cls: type[errors.DetboxError]) -> None:
    assert errors.by_name(cls.__name__) is cls
    assert cls.summary and cls.__doc__


def test_unknown_name_is_the_base() -> None:
    assert errors.by_name("NoSuchError") is errors.DetboxError


def test_internal_error_asks_for_a_report_and_names_the_directory() -> None:
    text = "\n".join(errors.InternalError("oops", kept="/tmp/detbox-x").lines())
    assert "please report" in text and "/tmp/detbox-x" in text


def test_user_error_says_what_to_do() -> None:
    assert errors.UserError("wrong", "do this").lines() == ["wrong", "do this"]


def test_status_table_names_every_class() -> None:
    table = errors.status_table()
    assert all(f"`{cls.__name__}`" in table for cls in errors.all_errors())
