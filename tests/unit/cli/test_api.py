"""The Python interface, as far as it goes without a container: arguments, errors, threads, changed files."""

from __future__ import annotations

import inspect
import threading
from pathlib import Path

import pytest

import detbox
from detbox import api, errors
from detbox.options import OPTIONS, Kind


def test_it_has_the_options_of_the_command_line() -> None:
    parameters = set(inspect.signature(detbox.run).parameters)
    for_people = {"stats", "dry_run", "verbose"}
    assert parameters == {option.key for option in OPTIONS} - for_people | {"command", "config"}


def test_errors_arrive_typed(tmp_path: Path) -> None:
    with pytest.raises(errors.UserError) as caught:
        detbox.run(["true"], workdir=tmp_path / "missing")
    assert type(caught.value) is errors.UserError
    assert "missing" in caught.value.message and "-C DIR" in caught.value.remedy


def test_large_stdin_of_a_run_that_never_starts(tmp_path: Path) -> None:
    with pytest.raises(errors.UserError):
        detbox.run(["true"], workdir=tmp_path, seed=-1, stdin=b"x" * 10_000_000)


def test_from_several_threads_at_once(tmp_path: Path) -> None:
    caught: list[BaseException] = []

    def body() -> None:
        try:
            detbox.run(["true"], workdir=tmp_path, seed=-1)
        except errors.DetboxError as error:
            caught.append(error)

    threads = [threading.Thread(target=body) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [type(error) for error in caught] == [errors.UserError] * 6


def test_words() -> None:
    assert api._words("ro", Kind.PATHS, [Path("/a"), "/b:/c"]) == ["--ro=/a", "--ro=/b:/c"]
    assert api._words("seed", Kind.NUMBER, 0) == ["--seed=0"]
    assert api._words("strict", Kind.SWITCH, True) == ["--strict"]
    assert api._words("strict", Kind.SWITCH, False) == api._words("seed", Kind.NUMBER, None) == []


def test_changes(tmp_path: Path) -> None:
    for name in ("same", "content", "mode", "gone"):
        (tmp_path / name).write_text("x")
    (tmp_path / "dir").mkdir()
    before = api._snapshot([str(tmp_path)])
    (tmp_path / "content").write_text("y")
    (tmp_path / "mode").chmod(0o600)
    (tmp_path / "gone").unlink()
    (tmp_path / "dir" / "new").touch()
    changed = api._changes(before, api._snapshot([str(tmp_path)]))
    assert [Path(path).name for path in changed] == ["content", "dir", "new", "gone", "mode"]
