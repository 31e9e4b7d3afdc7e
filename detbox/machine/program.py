"""What a process executes, named by what it is and not by when it came.

A program's name follows from the program that started it, from its arguments and environment, and from how many
others of the same kind were started there before.  So what depends on the name, random numbers above all,
stays the same when an unrelated step is added, removed or changed.
"""

from __future__ import annotations

from typing import Any

from detbox.digests import sha256


class Program:
    """One execution of a program; the processes that it forks belong to it until they execute another."""

    __slots__ = ("name", "parent", "execution", "_started")

    def __init__(self, name: str, parent: Program | None = None) -> None:
        self.name = name
        self.parent = parent
        self.execution: Any = None  # what is noted down of it, if anything
        self._started: dict[bytes, int] = {}

    def start(self, words: bytes) -> Program:
        """A program that this one starts; ``words``: its arguments and environment."""
        what = sha256(words).digest()
        number = self._started.get(what, 0)
        self._started[what] = number + 1
        return Program(sha256(b"%s\0%s\0%d" % (self.name.encode(), what, number)).hexdigest()[:32], self)
