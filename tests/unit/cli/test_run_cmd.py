"""`detbox run` from the parsed command line to the exit status, with the engine replaced."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest

from detbox import errors
from detbox.cli.main import main
from detbox.cli.run_cmd import stats_lines
from detbox.spec import RunSpec


@dataclass
class FakeOutcome:
    status: int = 0
    stats: dict[str, Any] = field(default_factory=dict)
    doubts: list[str] = field(default_factory=list)
    unknown_calls: dict[str, int] = field(default_factory=dict)


class Engine:
    """Stands in for detbox.container: remembers the spec and answers as it is told."""

    def __init__(self) -> None:
        self.specs: list[RunSpec] = []
        self.answer: FakeOutcome | BaseException = FakeOutcome()

    def run(self, spec: RunSpec) -> FakeOutcome:
        self.specs.append(spec)
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Engine:
    engine = Engine()
    launch, plan = ModuleType("launch"), ModuleType("plan")
    launch.run = engine.run  # type: ignore[attr-defined]
    plan.describe = lambda spec: f"plan of {spec.command[0].decode()}"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "detbox.container.launch", launch)
    monkeypatch.setitem(sys.modules, "detbox.container.plan", plan)
    return engine


def test_options_reach_the_engine(engine: Engine) -> None:
    words = "run -C /usr --seed 3 --cpus=2 --ro /etc:/a --ro /bin:/b --env A=1 --strict -vv -- ls -l -- x"
    assert main(words.split()) == 0
    (spec,) = engine.specs
    assert spec.command == (b"ls", b"-l", b"--", b"x")
    assert (spec.workdir, spec.seed, spec.cpus, spec.strict, spec.verbose) == ("/usr", 3, 2, True, 2)
    assert [mount.dst for mount in spec.mounts] == ["/a", "/b"]
    assert spec.env[b"A"] == b"1"


@pytest.mark.parametrize(
    ("words", "command"),
    [
        ("run -C /usr ls --seed 5", (b"ls", b"--seed", b"5")),
        ("run -C /usr -- --odd", (b"--odd",)),
        ("run -C /usr sh -c x -- y", (b"sh", b"-c", b"x", b"--", b"y")),
    ],
)
def test_the_command_keeps_its_own_options(engine: Engine, words: str, command: tuple[bytes, ...]) -> None:
    assert main(words.split()) == 0
    assert engine.specs[0].command == command
    assert engine.specs[0].seed == 0


@pytest.mark.parametrize("status", [0, 1, 42, 125, 137])
def test_status_is_the_guests(engine: Engine, status: int, capfd: pytest.CaptureFixture[str]) -> None:
    engine.answer = FakeOutcome(status)
    assert main(["run", "-C", "/usr", "true"]) == status
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("cls", list(errors.all_errors()))
def test_errors_become_messages_and_statuses(
    engine: Engine, cls: type[errors.DetboxError], capfd: pytest.CaptureFixture[str]
) -> None:
    engine.answer = cls("what is wrong", "what to do")
    assert main(["run", "-C", "/usr", "true"]) == cls.status
    out, err = capfd.readouterr()
    assert out == ""
    assert "detbox: what is wrong\ndetbox: what to do\n" in err
    assert all(line.startswith("detbox: ") for line in err.splitlines())
    assert ("Traceback" in err) == issubclass(cls, errors.InternalError)


def test_an_unforeseen_exception_is_our_bug(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.answer = ZeroDivisionError("oops")
    assert main(["run", "-C", "/usr", "true"]) == 125
    err = capfd.readouterr().err
    assert "Traceback" in err and "please report" in err


def test_ctrl_c(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.answer = KeyboardInterrupt()
    assert main(["run", "-C", "/usr", "true"]) == 130
    assert capfd.readouterr().err == "detbox: interrupted\n"


def test_unknown_calls_are_named(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.answer = FakeOutcome(unknown_calls={"syscall_999": 2}, doubts=["a", "b", "a"])
    assert main(["run", "-C", "/usr", "true"]) == 0
    err = capfd.readouterr().err
    assert "syscall_999 (2)" in err
    assert err.count("not promised") == 2
    assert main(["run", "-C", "/usr", "--strict", "true"]) == 122


def test_many_doubts_are_cut_short(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.answer = FakeOutcome(doubts=[str(number) for number in range(30)])
    main(["run", "-C", "/usr", "true"])
    assert "and 20 more" in capfd.readouterr().err
    main(["run", "-C", "/usr", "-v", "true"])
    assert "more" not in capfd.readouterr().err


def test_stats(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    engine.answer = FakeOutcome(stats={"wall seconds": 1.5, "calls": {"read": 3, "openat": 20}})
    main(["run", "-C", "/usr", "true"])
    assert capfd.readouterr().err == ""
    main(["run", "-C", "/usr", "--stats", "true"])
    lines = capfd.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["wall", "calls:", "openat", "read"]
    assert lines[0].endswith("1.500")


def test_stats_of_mixed_tables() -> None:
    assert stats_lines({"x": {"a": "text", "b": 1}})[1].split() == ["a", "text"]


def test_dry_run(engine: Engine, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "-C", "/usr", "--dry-run", "make"]) == 0
    assert capfd.readouterr() == ("plan of make\n", "")
    assert engine.specs == []


@pytest.mark.parametrize(
    ("answer", "options", "expected"),
    [
        (FakeOutcome(3, {"calls": 1}), [], {"status": 3, "stats": {"calls": 1}}),
        (
            FakeOutcome(doubts=["d"]),
            ["--strict"],
            {"status": 122, "error": "NotDeterministic", "message": "d"},
        ),
        (errors.Deadlock("stuck"), [], {"status": 123, "error": "Deadlock", "message": "stuck"}),
        (ValueError("oops"), [], {"status": 125, "error": "InternalError"}),
    ],
)
def test_the_answer_for_programs(
    engine: Engine,
    answer: Any,
    options: list[str],
    expected: dict[str, Any],
    capfd: pytest.CaptureFixture[str],
) -> None:
    engine.answer = answer
    reader, writer = os.pipe()
    status = main(["run", "-C", "/usr", f"--result-fd={writer}", *options, "true"])
    with os.fdopen(reader) as file:
        got = json.load(file)
    assert status == got["status"]
    assert {key: got[key] for key in expected} == expected
    assert capfd.readouterr() == ("", "")
