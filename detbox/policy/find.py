"""Finds a row's handler by name while the handler modules are still being written."""

from __future__ import annotations

import importlib
import pkgutil
from functools import cache
from types import ModuleType
from typing import Any

import detbox.handlers
from detbox.policy.row import Handler

#: Set to make a handler that does not exist an error when the table is built.
strict = False
#: Names that were looked for in vain, and modules that could not be imported.
missing: list[str] = []
broken: dict[str, str] = {}


@cache
def _modules() -> tuple[ModuleType, ...]:
    found = []
    for info in pkgutil.iter_modules(detbox.handlers.__path__):
        try:
            found.append(importlib.import_module(f"detbox.handlers.{info.name}"))
        except Exception as error:  # a module that somebody is editing just now
            broken[info.name] = repr(error)
    return tuple(found)


def h(name: str) -> Handler:
    """The function ``name`` (or ``name_``) of the handler module that defines it."""
    for spelling in (name, name + "_"):
        for module in _modules():
            function = getattr(module, spelling, None)
            if callable(function) and getattr(function, "__module__", "") == module.__name__:
                return function  # type: ignore[no-any-return]
    if strict:
        raise LookupError(f"no handler module defines {name}")
    missing.append(name)

    def absent(m: Any, t: Any, a: tuple[int, ...]) -> int:
        raise NotImplementedError(f"the handler of {name} does not exist")

    return absent
