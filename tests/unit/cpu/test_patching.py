"""What is overwritten when code is mapped, and what is not."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from detbox.supervisor.patching import Patching


class _Borrowed(Exception):
    """The mapped file is looked at."""


def _mapping(exe: bytes) -> object:
    def borrow(task: object, fd: int) -> int:
        raise _Borrowed

    anything: Any = None
    task: Any = SimpleNamespace(tid=2, process=SimpleNamespace(pid=1, exe=exe, files=SimpleNamespace(borrow=borrow)))
    return Patching(anything, anything, ()).mapping(task, 3, 4096, 0)


def test_a_translator_is_shown_the_code_as_it_is() -> None:
    assert _mapping(b"/usr/libexec/valgrind/memcheck-amd64-linux") is None
    for exe in (b"/usr/bin/valgrind", b"/usr/bin/python3"):
        with pytest.raises(_Borrowed):
            _mapping(exe)
