"""The run description: defaults, validation, and its way through JSON."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detbox import spec as spec_module
from detbox.cpu.model import DEFAULT_MODEL, MODELS
from detbox.errors import CommandNotFound, UserError
from detbox.spec import BASE_ENV, Mount, RunSpec, make_spec

NS = 1_000_000_000


def build(
    tmp_path: Path, *command: str | bytes, host_env: dict[bytes, bytes] | None = None, **options: Any
) -> RunSpec:
    return make_spec(command or ("true",), options, host_env or {}, str(tmp_path))


def refusal(tmp_path: Path, *command: str | bytes, **options: Any) -> str:
    with pytest.raises(UserError) as caught:
        build(tmp_path, *command, **options)
    assert caught.value.message
    return "\n".join(caught.value.lines())


def test_defaults_depend_on_nothing_but_the_work_directory(tmp_path: Path) -> None:
    spec = build(tmp_path)
    assert spec == RunSpec(command=(b"true",), workdir=str(tmp_path))
    assert spec.env == BASE_ENV


def test_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(AttributeError):
        build(tmp_path).seed = 1  # type: ignore[misc]


def test_the_known_models_are_those_that_exist() -> None:
    assert set(spec_module.CPU_MODELS) == set(MODELS)
    assert spec_module.CPU_MODELS[0] == DEFAULT_MODEL


def test_host_environment_is_not_seen(tmp_path: Path) -> None:
    assert build(tmp_path, host_env={b"EDITOR": b"vi", b"PATH": b"/x"}).env == BASE_ENV


def test_environment(tmp_path: Path) -> None:
    host = {b"A": b"host", b"B": b"\xff"}
    spec = build(tmp_path, host_env=host, env=["B", "C=1=2", "MISSING", "D=", "PATH=/bin"])
    declared = {b"B": b"\xff", b"C": b"1=2", b"D": b"", b"PATH": b"/bin"}
    assert spec.env == {**BASE_ENV, **declared}
    assert list(spec.env) == sorted(spec.env)


@pytest.mark.parametrize("entry", ["=x", "", "A\0=1"])
def test_bad_environment(tmp_path: Path, entry: str) -> None:
    refusal(tmp_path, env=[entry])


@pytest.mark.parametrize(
    ("given", "ns"),
    [
        ("0", 0),
        (86400, 86400 * NS),
        ("@7", 7 * NS),
        ("1.25", NS + NS // 4),
        ("2026-01-01", spec_module.DEFAULT_EPOCH_NS),
        ("2026-01-01T00:00:00Z", spec_module.DEFAULT_EPOCH_NS),
        ("2026-01-01T01:30:00+01:30", spec_module.DEFAULT_EPOCH_NS),
        ("2020-02-29 12:00:00.000001", 1582977600 * NS + 1000),
    ],
)
def test_epoch(tmp_path: Path, given: Any, ns: int) -> None:
    assert build(tmp_path, epoch=given).epoch_ns == ns


@pytest.mark.parametrize("given", ["yesterday", "", "-1", "2020-02-30", "99999999999", "1900-01-01"])
def test_bad_epoch(tmp_path: Path, given: str) -> None:
    assert "--epoch" in refusal(tmp_path, epoch=given)


def test_source_date_epoch_counts_where_it_is_declared(tmp_path: Path) -> None:
    host = {b"SOURCE_DATE_EPOCH": b"100"}
    assert build(tmp_path, host_env=host).epoch_ns == spec_module.DEFAULT_EPOCH_NS
    assert build(tmp_path, host_env=host, env=["SOURCE_DATE_EPOCH"]).epoch_ns == 100 * NS
    assert build(tmp_path, env=["SOURCE_DATE_EPOCH=5"]).epoch_ns == 5 * NS
    assert build(tmp_path, env=["SOURCE_DATE_EPOCH=5"], epoch="6").epoch_ns == 6 * NS
    assert "SOURCE_DATE_EPOCH" in refusal(tmp_path, env=["SOURCE_DATE_EPOCH=x"])


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("seed", "-1"),
        ("seed", "x"),
        ("seed", 2**64),
        ("cpus", 0),
        ("cpus", 257),
        ("cpus", "two"),
        ("cpu_model", "x86-64-v9"),
        ("network", "host"),
        ("user", "Jo Doe"),
        ("user", ":5"),
        ("user", "1:x"),
        ("user", str(2**32)),
        ("timeout", "0"),
        ("timeout", "-3"),
        ("timeout", "soon"),
        ("memory", "lots"),
        ("memory", "-1"),
        ("memory", "1"),
        ("workdir", "missing"),
        ("workdir", "/"),
        ("workdir", "/etc/passwd"),
        ("image", "missing"),
        ("image", "/dev/null"),
        ("stdin", "missing"),
        ("stdin", "."),
        ("ro", ["missing"]),
        ("ro", [":/dst"]),
        ("ro", ["/etc:relative"]),
        ("ro", ["/etc:/"]),
        ("ro", ["/etc:/work"]),
        ("ro", ["/etc:/work/missing"]),
        ("ro", ["/etc:/proc/x"]),
        ("rw", ["/etc:/dev"]),
        ("ro", ["/etc:/a", "/usr:/a"]),
        ("ro", ["/etc:/a", "/usr:/a/b"]),
        ("ro", ["/etc:/a/b", "/usr:/a"]),
    ],
)
def test_refusals(tmp_path: Path, name: str, bad: Any) -> None:
    refusal(tmp_path, **{name: bad})


def test_mounts_may_not_overlap_between_kinds(tmp_path: Path) -> None:
    assert "overlap" in refusal(tmp_path, ro=["/etc:/a"], rw=["/usr:/a/b"])


def test_mounts(tmp_path: Path) -> None:
    (tmp_path / "in:put").mkdir()
    (tmp_path / "b").mkdir()
    spec = build(tmp_path, ro=["in:put", "b:/data/x/../y"], rw=["/etc:/etc2/"])
    assert spec.mounts == (
        Mount(f"{tmp_path}/in:put", f"{tmp_path}/in:put", False),
        Mount(f"{tmp_path}/b", "/data/y", False),
        Mount("/etc", "/etc2", True),
    )


def test_a_mount_source_is_resolved_and_its_name_in_the_guest_is_not(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    assert build(tmp_path, ro=["link"]).mounts == (Mount(f"{tmp_path}/real", f"{tmp_path}/link"),)


def test_a_mount_below_the_work_directory_needs_its_place(tmp_path: Path) -> None:
    (tmp_path / "deps").mkdir()
    assert build(tmp_path, ro=["/etc:/work/deps"]).mounts == (Mount("/etc", "/work/deps"),)


@pytest.mark.parametrize(
    "options", [{"workdir": "/proc/self"}, {"workdir": "/sys"}, {"ro": ["/proc/cpuinfo"]}, {"rw": ["link:/x"]}]
)
def test_what_the_kernel_makes_up_is_no_input(tmp_path: Path, options: dict[str, Any]) -> None:
    (tmp_path / "link").symlink_to("/sys/kernel")
    assert "is no input" in refusal(tmp_path, **options)


def test_a_shut_directory_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shut").mkdir(0)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    assert build(tmp_path, workdir="shut").workdir == f"{tmp_path}/shut"  # root of the run's user namespace may
    monkeypatch.setattr("os.geteuid", lambda: 12345)
    assert refusal(tmp_path, workdir="shut").startswith(f"the work directory {tmp_path}/shut: Permission denied\n")


def test_values(tmp_path: Path) -> None:
    spec = build(
        tmp_path, timeout="1.5m", memory="2G", user="1000:1000", seed="0x10", cpus="8", stdin="/dev/null"
    )
    assert (spec.timeout_s, spec.memory_bytes, spec.user) == (90.0, 2**31, "1000:1000")
    assert (spec.seed, spec.cpus, spec.stdin) == (16, 8, "/dev/null")


def test_another_user_has_another_environment(tmp_path: Path) -> None:
    env = build(tmp_path, user="nobody").env
    assert (env[b"USER"], env[b"LOGNAME"], env[b"HOME"]) == (b"nobody", b"nobody", b"/tmp")
    assert build(tmp_path, user="nobody", env=["HOME=/h"]).env[b"HOME"] == b"/h"


def test_command(tmp_path: Path) -> None:
    with pytest.raises(UserError):
        make_spec((), {}, {}, str(tmp_path))
    with pytest.raises(CommandNotFound):
        build(tmp_path, "")
    refusal(tmp_path, "a\0b")
    assert build(tmp_path, "a", b"\xff", "\udcfe").command == (b"a", b"\xff", b"\xfe")


@pytest.mark.parametrize(
    ("argument", "named"),
    [
        ("{}", True),
        ("{}/x", True),
        ("--out={}/x", True),
        ("cd '{}' && ls", True),
        ("{}x", False),
        ("{}-old/x", False),
        ("elsewhere", False),
    ],
)
def test_alias_of_the_work_directory(tmp_path: Path, argument: str, named: bool) -> None:
    spec = build(tmp_path, "cmd", argument.format(tmp_path))
    assert spec.workdir_alias == (str(tmp_path) if named else None)


def test_alias_through_a_symbolic_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    spec = build(tmp_path, "ls", f"{tmp_path}/link", workdir="link")
    assert (spec.workdir, spec.workdir_alias) == (f"{tmp_path}/real", f"{tmp_path}/link")


def test_a_top_level_directory_has_no_alias(tmp_path: Path) -> None:
    assert build(tmp_path, "ls", "/tmp", workdir="/tmp").workdir_alias is None


def test_closed_stdin_matters_only_without_a_file(tmp_path: Path) -> None:
    assert build(tmp_path, stdin_closed=True).stdin_closed
    assert not build(tmp_path, stdin_closed=True, stdin="/dev/null").stdin_closed


_WORD = st.binary(max_size=8).map(lambda word: word.replace(b"\0", b"") or b"x")


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=50, deadline=None)
@given(command=st.lists(_WORD, min_size=1), value=_WORD, seed=st.integers(0, 2**64 - 1), name=_WORD)
def test_json_keeps_everything(
    tmp_path: Path, command: list[bytes], value: bytes, seed: int, name: bytes
) -> None:
    workdir = tmp_path / os.fsdecode(name.replace(b"/", b"_").replace(b".", b"_"))
    workdir.mkdir(exist_ok=True)
    spec = build(
        tmp_path, *command, env=[b"V=" + value], seed=seed, workdir=str(workdir), rw=["/etc:/x"], timeout="3"
    )
    text = spec.to_json()
    assert "\n" not in text and text.isascii()
    assert RunSpec.from_json(text) == spec


def test_json_of_another_version_is_refused(tmp_path: Path) -> None:
    text = build(tmp_path).to_json().replace('"version": 1', '"version": 99')
    with pytest.raises(ValueError, match="version 99, expected 1"):
        RunSpec.from_json(text)
