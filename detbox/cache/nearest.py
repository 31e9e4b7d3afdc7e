"""Why an execution inside of a run was not found: what is not as it was when its like was run before.

Its like is the execution of the same program, started by the same programs, in an earlier run of the same command or
work directory; of several, the one whose arguments and environment differ least.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

#: What the look-up says of an execution whose key is new.
UNKNOWN = "not run before with these arguments, this environment, and at this point of the run"
_ELSEWHERE = "run before with the same arguments and environment, but at another point of the run or with other options"
_SHOWN = 3  # differences
_LONG = 60  # letters of an argument
_RUNS = 10  # that are looked at

_Execution = dict[str, Any]


def arguments_of(one: _Execution) -> list[str]:
    """All arguments of an execution, as a run's log has them."""
    found: list[str] = one["arguments"] if "arguments" in one else one["command"]
    return found


def explained(run: dict[str, Any], earlier: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """A run's log with better reasons.  ``earlier``: logs of runs before it, newest first."""
    like = [
        other for other in earlier
        if other.get("workdir") == run.get("workdir") or other.get("command") == run.get("command")
    ]  # fmt: skip
    return {**run, "executions": _Explained(run, [_Run(other) for other in like[:_RUNS]]).executions()}


class _Run:
    """The executions of one run, by what they are and who started them."""

    def __init__(self, log: dict[str, Any]) -> None:
        self.executions: list[_Execution] = log.get("executions", [])
        self.environments: list[dict[str, str]] = log.get("environments", [])
        self._by_number = {one.get("number", -1): one for one in self.executions}
        self.by_place: dict[tuple[str, ...], list[_Execution]] = {}
        for one in self.executions:
            self.by_place.setdefault(self.place_of(one), []).append(one)

    def parent_of(self, one: _Execution) -> _Execution | None:
        """Who started it; None for the run itself."""
        return self._by_number.get(one.get("parent", 0))

    def place_of(self, one: _Execution) -> tuple[str, ...]:
        """Names of the program and of those around it."""
        names = []
        at: _Execution | None = one
        while at is not None:
            names.append(os.path.basename(at["command"][0]) if at["command"] else "")
            at = self.parent_of(at)
        return tuple(names)

    def environment_of(self, one: _Execution) -> dict[str, str]:
        """Its variables with digests of their values."""
        number = one.get("environment", -1)
        return self.environments[number] if 0 <= number < len(self.environments) else {}


class _Explained:
    def __init__(self, log: dict[str, Any], earlier: list[_Run]) -> None:
        self._run = _Run(log)
        self._earlier = earlier
        self._known: dict[int, str] = {}

    def executions(self) -> list[_Execution]:
        return [{**one, "why": self._reason(one)} for one in self._run.executions]

    def _reason(self, one: _Execution) -> str:
        if one["why"] != UNKNOWN:
            return str(one["why"])
        number = one.get("number", -1)
        if number not in self._known:
            self._known[number] = self._differences(one)
        return self._known[number]

    def _differences(self, one: _Execution) -> str:
        place = self._run.place_of(one)
        for run in self._earlier:
            candidates = run.by_place.get(place)
            if candidates:
                found = self._least(one, run, candidates)
                return ", ".join(found) if found else self._around(one)
        return UNKNOWN

    def _least(self, one: _Execution, run: _Run, candidates: list[_Execution]) -> list[str]:
        """The differences to the nearest candidate."""
        mine = arguments_of(one)
        fewest = min(_count(mine, arguments_of(other)) for other in candidates)
        nearest = [other for other in candidates if _count(mine, arguments_of(other)) == fewest]
        environment = self._run.environment_of(one)
        rows = [
            [*_directory(one, other), *_arguments(mine, arguments_of(other)),
             *_environment(environment, run.environment_of(other))]
            for other in nearest[:200]
        ]  # fmt: skip
        found = min(rows, key=len)
        return found if len(found) <= _SHOWN else [*found[:_SHOWN], f"and {len(found) - _SHOWN} more"]

    def _around(self, one: _Execution) -> str:
        """It is as it was; what is around it may not be."""
        parent = self._run.parent_of(one)
        if parent is None or parent["why"] != UNKNOWN:
            return _ELSEWHERE
        reason = self._reason(parent)
        name = parent["command"][0] if parent["command"] else ""
        return reason if reason == _ELSEWHERE or reason.startswith("started by ") else f"started by {name}: {reason}"


def _count(one: list[str], other: list[str]) -> int:
    return sum(map(str.__ne__, one, other)) if len(one) == len(other) else len(set(one) ^ set(other))


def _arguments(new: list[str], old: list[str]) -> list[str]:
    if len(new) == len(old):
        pairs = enumerate(zip(old, new, strict=True))
        return [f"argument {at}: {_short(was)} -> {_short(now)}" for at, (was, now) in pairs if was != now]
    at = next((at for at, (was, now) in enumerate(zip(old, new, strict=False)) if was != now), min(len(old), len(new)))
    more = len(new) - len(old)
    if more > 0 and new[at + more :] == old[at:]:
        return [f"argument {number}: {_short(word)} is new" for number, word in enumerate(new[at : at + more], at)]
    if more < 0 and new[at:] == old[at - more :]:
        return [f"argument {number}: {_short(word)} is gone" for number, word in enumerate(old[at : at - more], at)]
    return [f"{len(new)} arguments instead of {len(old)}, from argument {at} on"]


def _environment(new: dict[str, str], old: dict[str, str]) -> list[str]:
    names = sorted(new.keys() | old.keys(), key=lambda name: (name == "_", name))  # shells set _ at each program
    return [f"environment {name}" for name in names if new.get(name) != old.get(name)]


def _directory(new: _Execution, old: _Execution) -> list[str]:
    was, now = old.get("directory"), new.get("directory")
    return [f"directory: {was} -> {now}"] if was != now else []


def _short(word: str) -> str:
    return word if len(word) <= _LONG else word[: _LONG - 3] + "..."
