"""The configuration file: names, types, relative paths, and the command line's precedence."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbox.config import merge, read_config
from detbox.errors import UserError
from detbox.options import OPTIONS


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "detbox.toml"
    path.write_text(text)
    return str(path)


def refusal(path: str) -> str:
    with pytest.raises(UserError) as caught:
        read_config(path)
    return "\n".join(caught.value.lines())


def test_everything_that_the_command_line_knows(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        """
        workdir = "project"
        image = "/images/base"
        ro = ["data:/data", "/usr/share/x"]
        rw = "out"
        epoch = 2026-01-02
        seed = 7
        cpus = 8
        cpu-model = "x86-64-v2"
        user = 1000
        network = "none"
        stdin = "input"
        timeout = 1.5
        memory = "2G"
        cache = true
        cache-dir = "kept"
        cache-verify = 50
        cache-remote = "http://cache/"
        cache-remote-read-only = true
        cache-remote-timeout = 2
        cache-max-size = "2G"
        strict = true
        stats = false
        dry_run = true
        verbose = 2
        [env]
        A = "1"
        """,
    )
    read = read_config(path)
    assert set(read) == {option.key for option in OPTIONS}
    assert read["workdir"] == f"{tmp_path}/project"
    assert read["image"] == "/images/base"
    assert read["ro"] == [f"{tmp_path}/data:/data", "/usr/share/x"]
    assert read["rw"] == [f"{tmp_path}/out"]
    assert str(read["epoch"]) == "2026-01-02"
    assert read["env"] == ["A=1"]


def test_a_directory_as_a_remote_cache(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, 'cache-remote = "shared"')) == {"cache_remote": f"{tmp_path}/shared"}


def test_env_as_a_list(tmp_path: Path) -> None:
    assert read_config(write(tmp_path, 'env = ["A=1", "HOME"]')) == {"env": ["A=1", "HOME"]}


def test_unknown_name_suggests_a_known_one(tmp_path: Path) -> None:
    assert "did you mean timeout?" in refusal(write(tmp_path, "timout = 3"))


@pytest.mark.parametrize(
    "line", ["seed = true", 'seed = "x"', "strict = 1", "ro = [1]", "workdir = 3", "image = true"]
)
def test_wrong_type(tmp_path: Path, line: str) -> None:
    assert line.split()[0] in refusal(write(tmp_path, line))


def test_unreadable_and_malformed(tmp_path: Path) -> None:
    assert "No such file" in refusal(str(tmp_path / "missing"))
    assert "not TOML" in refusal(write(tmp_path, "seed ="))
    (tmp_path / "binary").write_bytes(b"\xff")
    assert "not TOML" in refusal(str(tmp_path / "binary"))


def test_command_line_wins_and_lists_add_up() -> None:
    config = {"seed": 1, "cpus": 2, "ro": ["/a"], "strict": True}
    given = {"seed": "5", "cpus": None, "ro": ["/b"], "rw": ["/c"], "strict": False}
    assert merge(config, given) == {"seed": "5", "cpus": 2, "ro": ["/a", "/b"], "rw": ["/c"], "strict": True}
