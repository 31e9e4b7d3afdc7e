"""Programs that are restless for one reason each: the reason is named, and under detbox they are identical."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
sys.path.insert(0, str(Path(__file__).parent))

from restless import PROGRAMS, SOURCES
from verifying import fill, verify


@pytest.fixture
def work(tmp_path: Path) -> Path:
    return fill(tmp_path / "work")


@pytest.fixture(scope="module", autouse=True)
def all_processors() -> Iterator[None]:
    """Whoever runs the tests may have tied them to one processor."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, range(os.cpu_count() or 1))
    yield
    os.sched_setaffinity(0, before)


@pytest.fixture(scope="session")
def tools() -> Iterator[Path]:
    """The restless programs that are written in C, where every user can execute them."""
    with tempfile.TemporaryDirectory(prefix="detbox-test-") as name:
        directory = Path(name)
        directory.chmod(0o755)
        for file, text in SOURCES.items():
            source, program = directory / file, directory / file.removesuffix(".c")
            source.write_text(text)
            subprocess.run(["gcc", "-O1", "-pthread", "-o", program, source], check=True)
        yield directory


@pytest.mark.parametrize("cause", PROGRAMS)
def test_what_differs_natively_is_identical_and_its_cause_is_named(cause: str, work: Path, tools: Path) -> None:
    words = ["--no-perturb=time-of-run", "--native", "--ro", f"{tools}:/work-tools", "--", "sh", "-c", PROGRAMS[cause]]
    for _ in range(3):
        status, answer = verify(*words, cwd=work)
        assert status == 0, answer["differences"]
        if cause != "thread race" or not answer["native"]["identical"]:
            break  # on a busy host two races may end alike
    if cause in ("CPU count", "cpuid") and len(os.sched_getaffinity(0)) < 2:
        # What one processor has is the same each time; tests/unit/report/test_isolate.py has the class.
        assert answer["native"]["identical"]
        return
    assert not answer["native"]["identical"]
    found = [found["name"] for found in answer["native"]["causes"]]
    # A file that is made has a time, whatever else is told of it.
    assert [name for name in found if name != "time" or cause == "time"] == [cause]
