"""Reads ``--config FILE``: TOML with the same names as the command line's options."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

from detbox.errors import UserError
from detbox.options import BY_NAME, WORDS, Kind, Option
from detbox.values import suggestion


def read_config(path: str) -> dict[str, Any]:
    """The options that the file sets, by identifier, as ``make_spec`` takes them.

    Relative paths in it become relative to the file's directory.  Raises
    UserError for a file that cannot be read, an unknown name or a wrong type.
    """
    import tomllib

    try:
        with open(path, "rb") as file:
            raw = tomllib.load(file)
    except OSError as error:
        raise UserError(f"--config {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path}: not TOML: {error}") from None
    base = os.path.dirname(os.path.abspath(path))
    options: dict[str, Any] = {}
    for name, value in raw.items():
        option = BY_NAME.get(name.replace("_", "-"))
        if option is None:
            hint = suggestion(name, tuple(BY_NAME))
            raise UserError(f"--config {path}: unknown option {name!r}", f"known: {', '.join(BY_NAME)}{hint}")
        options[option.key] = _value(option, value, base, path)
    return options


def merge(config: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """The command line's options over the file's: lists add up, anything else is replaced."""
    merged = dict(config)
    for key, value in given.items():
        if value is None or value is False:
            continue
        if isinstance(value, list) and key in merged:
            value = [*merged[key], *value]
        merged[key] = value
    return merged


def _value(option: Option, value: Any, base: str, path: str) -> Any:
    if option.kind is Kind.ENV and isinstance(value, dict):
        value = [f"{name}={text}" for name, text in value.items()]
    if option.kind in (Kind.PATHS, Kind.ENV) and isinstance(value, str):
        value = [value]
    if not _has_type(option.kind, value):
        raise UserError(f"--config {path}: {option.name} = {value!r}: {_EXPECTED[option.kind]} is expected")
    if option.kind in WORDS and isinstance(value, bool):
        words, alone = WORDS[option.kind]
        return alone if value else words[-1] if option.kind is Kind.MODE else words[0]
    if option.key == "cache_remote" and "://" not in value:
        return os.path.join(base, value)
    if option.kind is Kind.PATH or option.kind is Kind.IMAGE and "/" in value:
        return os.path.join(base, value)
    if option.kind is Kind.PATHS:
        return [os.path.join(base, entry) for entry in value]
    return value


_EXPECTED = {
    Kind.TEXT: "text or a number",
    Kind.NUMBER: "a whole number",
    Kind.PATH: "text",
    Kind.IMAGE: "text",
    Kind.PATHS: "a list of texts",
    Kind.ENV: "a table, or a list of texts",
    Kind.SWITCH: "true or false",
    Kind.MODE: "text, true or false",
    Kind.PERCENT: "a whole number, true or false",
    Kind.COUNT: "a whole number",
}


def _has_type(kind: Kind, value: Any) -> bool:
    if kind is Kind.SWITCH:
        return isinstance(value, bool)
    if kind in WORDS:
        return isinstance(value, (bool, str if kind is Kind.MODE else int))
    if isinstance(value, bool):
        return False
    if kind in (Kind.NUMBER, Kind.COUNT):
        return isinstance(value, int)
    if kind is Kind.TEXT:
        # A TOML date (of class datetime) is accepted as the text that it prints as.
        return isinstance(value, (str, int, float)) or hasattr(value, "isoformat")
    if kind in (Kind.PATH, Kind.IMAGE):
        return isinstance(value, str)
    return isinstance(value, list) and all(isinstance(entry, str) for entry in value)
