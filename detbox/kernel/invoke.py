"""System calls by their names, for which neither Python nor _native has a function."""

from __future__ import annotations

from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS


def call(name: str, *arguments: int | bytes) -> int:
    """A system call by its name; OSError."""
    result = _native.raw_syscall(NUMBERS[name], *arguments)
    if result < 0:
        raise OSError(-result, name)
    return result
