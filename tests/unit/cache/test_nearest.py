"""What is said of an execution that was not found: the difference to the nearest one before."""

from __future__ import annotations

from typing import Any

import pytest

from detbox.cache.nearest import UNKNOWN, explained

Log = dict[str, Any]
SAME = "run before with the same arguments"


def execution(number: int, parent: int, command: str, environment: int = 0, **more: Any) -> Log:
    return {"number": number, "parent": parent, "command": command.split(), "environment": environment,
            "directory": "/work", "result": "miss", "why": UNKNOWN, **more}  # fmt: skip


def run(*executions: Log, environments: tuple[dict[str, str], ...] = ({"CFLAGS": "1"}, {"CFLAGS": "2"})) -> Log:
    return {"command": ["sh", "job"], "workdir": "/w", "executions": list(executions),
            "environments": list(environments)}  # fmt: skip


OLD = run(
    execution(1, 0, "sh job"), execution(2, 1, "gcc -c -O2 a.c"), execution(3, 1, "gcc -c -O2 b.c"),
    execution(4, 3, "as b.s"), execution(5, 1, "ls"), execution(6, 1, "cat x", arguments=["cat", "x" * 300]),
)  # fmt: skip


def why(*executions: Log) -> str:
    told = explained(run(*executions), [OLD])["executions"]
    return str(told[-1]["why"])


@pytest.mark.parametrize(
    ("one", "reason"),
    [
        (execution(2, 1, "gcc -c -O3 b.c"), "argument 2: -O2 -> -O3"),
        (execution(2, 1, "gcc -c -O3 c.c"), "argument 2: -O2 -> -O3, argument 3: a.c -> c.c"),
        (execution(2, 1, "gcc -c -O2 -g b.c"), "argument 3: -g is new"),
        (execution(2, 1, "gcc -c b.c"), "argument 2: -O2 is gone"),
        (execution(2, 1, "gcc b.c"), "argument 1: -c is gone, argument 2: -O2 is gone"),
        (execution(2, 1, "gcc b.c -S"), "3 arguments instead of 4, from argument 1 on"),
        (execution(2, 1, "gcc -c -O2 b.c", 1), "environment CFLAGS"),
        (execution(2, 1, "gcc -c -O2 b.c", directory="/work/d"), "directory: /work -> /work/d"),
        (execution(2, 1, "cat x", arguments=["cat", "y" * 300]), f"argument 1: {'x' * 57}... -> {'y' * 57}..."),
        (execution(2, 1, "ls"), SAME),
        (execution(2, 1, "rm a"), UNKNOWN),
        (execution(2, 0, "gcc -c -O2 b.c"), UNKNOWN),
        (execution(2, 1, "ls", why="a: content"), "a: content"),
    ],
    ids=str,
)
def test_the_difference_is_named(one: Log, reason: str) -> None:
    assert why(execution(1, 0, "sh job", why="job: content"), one).startswith(reason)


def test_what_is_the_same_was_started_by_another() -> None:
    known = execution(1, 0, "sh job", why="job: content")
    told = why(known, execution(2, 1, "gcc -c -O2 b.c", 1), execution(4, 2, "as b.s"))
    assert told == "started by gcc: environment CFLAGS"


def test_runs_of_something_else_do_not_count() -> None:
    new = run(execution(1, 0, "sh job"))
    for other in ({**OLD, "command": ["make"], "workdir": "/v"}, {"command": ["sh", "job"], "workdir": "/w"}):
        assert explained(new, [other])["executions"][0]["why"] == UNKNOWN
    assert explained(new, [other, OLD])["executions"][0]["why"].startswith(SAME)
