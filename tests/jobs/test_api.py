"""The Python interface with real containers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import detbox
from detbox import errors


def test_result(tmp_path: Path) -> None:
    (tmp_path / "kept").write_text("x")
    (tmp_path / "gone").write_text("x")
    script = "cat; echo made > new; rm gone; echo problem >&2; exit 7"
    result = detbox.run(["sh", "-c", script], workdir=tmp_path, stdin=b"input\n", timeout=30)
    assert (result.status, result.stdout, result.stderr) == (7, b"input\n", b"problem\n")
    assert result.changed_files == (f"{tmp_path}/gone", f"{tmp_path}/new")
    assert result.doubts == ()


def test_environment_and_inputs(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.write_text("content\n")
    work = tmp_path / "work"
    work.mkdir()
    result = detbox.run(
        ["sh", "-c", "echo $A; cat /input; pwd"],
        workdir=work,
        env={"A": "1 2"},
        ro=[f"{data}:/input"],
        timeout=30,
    )
    assert result.stdout == b"1 2\ncontent\n/work\n"
    assert result.changed_files == ()


def test_a_directory_kept_as_tmp_has_virtual_times(tmp_path: Path) -> None:
    """It lies in the same file system of the host's as the work directory."""
    results, times = [], []
    for name in ("one", "two"):
        work, kept = tmp_path / name / "work", tmp_path / name / "kept"
        work.mkdir(parents=True)
        kept.mkdir()
        command = ["sh", "-c", "echo a > in-work; echo b > /tmp/in-tmp; stat -c '%n %d %y' . /tmp in-work /tmp/in-tmp"]
        results.append(detbox.run(command, workdir=work, rw=[f"{kept}:/tmp"], timeout=30).stdout)
        times.append([path.stat().st_mtime_ns for path in (work, kept, work / "in-work", kept / "in-tmp")])
    assert results[0] == results[1]
    assert times[0] == times[1]
    assert len({line.split()[1] for line in results[0].splitlines()}) == 1


SPIN = """
#include <pthread.h>
static volatile int over;
static void *work(void *unused) { for (volatile long i = 0; i < 100000000; i++); over = 1; return 0; }
int main(void) { pthread_t thread; pthread_create(&thread, 0, work, 0); while (!over); return 3; }
"""


def test_what_is_looked_at_closely_needs_no_library_of_the_image(tmp_path: Path) -> None:
    image, work = tmp_path / "image", tmp_path / "work"
    for place in (work, image / "bin"):
        place.mkdir(parents=True)
    (tmp_path / "spin.c").write_text(SPIN)
    subprocess.run(["gcc", "-static", "-pthread", "-o", image / "bin/spin", tmp_path / "spin.c"], check=True)
    assert detbox.run(["/bin/spin"], image=image, workdir=work, timeout=60).status == 3


def test_status_of_a_signal(tmp_path: Path) -> None:
    assert detbox.run(["sh", "-c", "kill -TERM $$"], workdir=tmp_path, timeout=30).status == 128 + 15


@pytest.mark.parametrize(
    ("command", "options", "error"),
    [
        (["no-such-command"], {}, errors.CommandNotFound),
        (["/etc/passwd"], {}, errors.CommandNotInvocable),
        (["sh", "-c", "while :; do :; done"], {"timeout": 1}, errors.TimedOut),
    ],
)
def test_typed_errors(
    tmp_path: Path, command: list[str], options: dict[str, float], error: type[errors.DetboxError]
) -> None:
    with pytest.raises(error):
        detbox.run(command, workdir=tmp_path, timeout=options.get("timeout", 30))


def test_threads_get_equal_results(tmp_path: Path) -> None:
    results: list[detbox.Result] = []

    def body(number: int) -> None:
        work = tmp_path / str(number)
        work.mkdir()
        results.append(
            detbox.run(
                ["sh", "-c", "date +%s.%N; echo $$; od -An -N8 -tx8 /dev/urandom"], workdir=work, timeout=30
            )
        )

    threads = [threading.Thread(target=body, args=(number,), daemon=True) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({(result.status, result.stdout) for result in results}) == 1
    assert results[0].status == 0 and len(results) == 4


_FOUND_BY_A_HOOK = """
import os, sys
import detbox
here = os.path.dirname(detbox.__path__[0])
sys.path[:] = [path for path in sys.path if os.path.abspath(path) != here]
from detbox.cli.main import main
sys.exit(main(["run", "-C", sys.argv[1], "--", "cat", "/proc/self/status"]))
"""


def test_a_package_outside_of_sys_path(tmp_path: Path) -> None:
    """As with an editable installation; what reads /proc is imported after the root has changed."""
    # A directory below /tmp is not in the guest, whatever directory this test is run from.
    shutil.copytree(detbox.__path__[0], tmp_path / "elsewhere" / "detbox")
    (tmp_path / "work").mkdir()
    command = [sys.executable, "-c", _FOUND_BY_A_HOOK, str(tmp_path / "work")]
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "elsewhere")}
    done = subprocess.run(command, env=env, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(b"Name:\tcat\n")
