"""`detbox verify` and `detbox trace` as commands: identical where they should be, and planted bugs are named."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from verifying import ROOT, fill, run_detbox, state, verify


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return fill(tmp_path / "work")


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that every user may enter, as the other user of a verification must."""
    with tempfile.TemporaryDirectory(prefix="detbox-test-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def test_identical_and_the_own_directory_is_not_touched(work: Path) -> None:
    before = state(work)
    status, answer = verify("--", "sh", "-c", "cat; date; echo new > file; rm m", cwd=work, stdin=b"input")
    assert (status, answer["identical"], answer["differences"]) == (0, True, [])
    assert state(work) == before
    terminal = next(row for row in answer["perturbations"] if row["name"] == "terminal")
    assert not terminal["applied"] and terminal["why"]


@pytest.mark.parametrize(
    "call, cause, script",
    [
        ("getrandom", "random", "import random; print(random.random())"),
        ("getdents64", "readdir order", "import os; print(os.listdir())"),
        ("clock_gettime", "time", "import time; print(time.clock_gettime(time.CLOCK_REALTIME))"),
    ],
)
def test_a_planted_bug_is_found_and_named(call: str, cause: str, script: str, work: Path) -> None:
    status, answer = verify("--leak", call, "--", "python3", "-c", script, cwd=work)
    assert status == 1
    assert not answer["identical"]
    assert "stdout" in [found["what"] for found in answer["differences"]]
    assert (answer["divergence"]["call"], answer["divergence"]["cause"]) == (call, cause)
    assert answer["divergence"]["before"] and answer["divergence"]["runs"][0] != answer["divergence"]["runs"][1]
    assert answer["divergence"]["stack"][0][1].startswith("python3 -c import")


def test_the_native_run_cannot_change_the_host(work: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir(mode=0o777)
    status, answer = verify("--native", "--", "sh", "-c", f"touch {outside}/x 2>&1 | wc -l; touch /tmp/y", cwd=work)
    assert status == 0 and answer["native"]["differences"] is not None
    assert not list(outside.iterdir())


def test_text_for_people(work: Path) -> None:
    done = run_detbox("verify", "--native", "--perturb=process-numbers", "--", "sh", "-c", "echo $$", cwd=work)
    text = done.stdout.decode()
    assert done.returncode == 0
    assert done.stderr == b""
    assert "perturbed: process numbers\n" in text
    assert "natively: 1 difference\n" in text
    assert text.endswith("under detbox: identical\n")


@pytest.mark.parametrize(
    "words, status",
    [
        (["-n", "1", "--", "true"], 125),
        (["--perturb", "nonsense", "--", "true"], 125),
        (["--html", "/nowhere/page", "--", "true"], 125),
        (["--keep", "/proc/self", "--", "true"], 125),
        (["--leak", "nonsense", "--", "true"], 125),
        (["--native", "--perturb", "umask", "--", "no-such-command"], 127),
        (["--", "no-such-command"], 127),
        (["--perturb", "umask", "--timeout", "1", "--", "sh", "-c", "while :; do :; done"], 124),
    ],
)
def test_failures_are_no_verdicts(words: list[str], status: int, work: Path) -> None:
    done = run_detbox("verify", *words, cwd=work)
    assert done.returncode == status
    assert done.stdout == b""
    assert b"Traceback" not in done.stderr


def test_writable_mounts_are_copied_too(work: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "f").write_text("x")
    status, answer = verify("--rw", f"{kept}:/kept", "--", "sh", "-c", "date > /kept/g; rm /kept/f", cwd=work)
    assert status == 0, answer["differences"]
    assert [path.name for path in kept.iterdir()] == ["f"]


def test_natively_with_the_same_mounts(work: Path, public: Path) -> None:
    given = public
    for name in ("in", "out"):
        (given / name).mkdir()
    (given / "in" / "f").write_text("text")
    script = "cat /in/f; echo $$ > /out/pid; echo x > /in/g; ls /in"
    mounts = ["--ro", f"{given}/in:/in", "--rw", f"{given}/out:/out"]
    status, answer = verify("--native", "--perturb=process-numbers", *mounts, "--", "sh", "-c", script, cwd=work)
    assert status == 0, answer["differences"]
    assert {d["path"] for d in answer["native"]["differences"]} >= {"/out/pid"}
    assert not list((given / "out").iterdir())
    assert [path.name for path in (given / "in").iterdir()] == ["f"]


def test_natively_in_an_image(work: Path, public: Path) -> None:
    image = public
    for name in ("bin", "tmp", "proc", "dev", "sys", "run", "etc"):
        (image / name).mkdir()
    (image / "etc" / "mark").write_text("of the image")
    source = image / "show.c"
    source.write_text(
        "#include <stdio.h>\n#include <unistd.h>\n"
        'int main(void) { int c; FILE *f = fopen("/etc/mark", "r"); while ((c = getc(f)) >= 0) putchar(c);\n'
        ' printf(" %d %d\\n", access("/usr", 0), getpid()); return 0; }\n'
    )
    subprocess.run(["gcc", "-static", "-o", image / "bin" / "show", source], check=True)
    words = ["--native", "--perturb=process-numbers", "--image", str(image), "--", "show"]
    status, answer = verify(*words, cwd=work)
    assert status == 0, answer["differences"]
    assert [d["where"] for d in answer["native"]["differences"]] == ["line 1"]
    assert answer["native"]["differences"][0]["left"].startswith("'of the image -1 ")
    assert [cause["name"] for cause in answer["native"]["causes"]] == ["PID"]


def test_the_page(work: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    words = ["--native", "--perturb=process-numbers", "--html", str(page), "--", "sh", "-c", "echo $$"]
    done = run_detbox("verify", *words, cwd=work)
    assert done.returncode == 0, done.stderr.decode()
    text = page.read_text()
    assert "natively 1 difference; under detbox identical" in text
    assert "<b>PID</b>" in text


@pytest.mark.parametrize("status, shown", [(1, True), (0, False), (2, False), (None, False)])
def test_diffoscope_is_used_where_it_is_installed(status: int | None, shown: bool, work: Path, tmp_path: Path) -> None:
    program = tmp_path / "bin" / "diffoscope"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho said by diffoscope\n{'kill -9 $$' if status is None else f'exit {status}'}\n")
    program.chmod(0o755)
    path = f"{program.parent}{os.pathsep}{os.environ['PATH']}"
    words = ["verify", "--native", "--perturb=process-numbers", "--", "sh", "-c", "echo $$ > pid"]
    done = run_detbox(*words, cwd=work, env={"PATH": path})
    text = done.stdout.decode()
    assert done.returncode == 0
    assert ("said by diffoscope" in text) is shown
    assert ("+++ run 2" in text) is not shown


@pytest.mark.parametrize("no_color", ["", "1"])
def test_colours_and_progress_are_for_terminals(no_color: str, work: Path) -> None:
    variables, coloured = {"TERM": "xterm", "NO_COLOR": no_color}, not no_color
    master, slave = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "detbox", "verify", "--perturb=umask", "--", "sleep", "1"], cwd=work,
        stdin=subprocess.DEVNULL, stdout=slave, stderr=slave, env={**os.environ, "PYTHONPATH": str(ROOT), **variables},
    )  # fmt: skip
    os.close(slave)
    text = b""
    with contextlib.suppress(OSError):  # EIO: everybody has closed the other side
        while part := os.read(master, 65536):
            text += part
    os.close(master)
    assert child.wait() == 0
    assert (b"\033[32;1midentical\033[0m" in text) is coloured
    assert re.search(rb"\runder detbox, run \d of 2, \d+ s", text.replace(b"\033[K", b""))
    assert text.rstrip().endswith((b"identical", b"identical\033[0m"))
