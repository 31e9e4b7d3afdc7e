"""What all tests share: a limit of real time, a umask, and for a failure its directory and how to repeat it."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

import hypothesis
import pytest

#: Real seconds that one test may take unless it is marked `@pytest.mark.limit(seconds)`.
LIMIT_S = 180

# Generated cases are the same on each run, so that a failure can be repeated.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None)
hypothesis.settings.load_profile("repeatable")


class OutOfTime(Exception):
    """The test took longer than it may."""


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "limit(seconds): real time that this test may take")
    # Shells ignore both for jobs in the background, and a command that is started so goes on when it is interrupted.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)
    os.umask(0o022)  # modes are compared with what programs do natively


@pytest.fixture(autouse=True)
def _time_limit(request: pytest.FixtureRequest) -> Iterator[None]:
    marker = request.node.get_closest_marker("limit")
    seconds = int(marker.args[0]) if marker else LIMIT_S

    def stop(_signal: int, _frame: FrameType | None) -> None:
        raise OutOfTime(f"more than {seconds} s")

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)
    # Parts of the supervisor, when they are tested in this process, block what the next test's programs would inherit.
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    outcome = yield
    report = outcome.get_result()  # type: ignore[attr-defined]
    if not report.failed:
        return
    lines = [f"to repeat: {sys.executable} -m pytest '{item.nodeid}'"]
    directory = getattr(item, "funcargs", {}).get("tmp_path")
    if directory is not None:
        lines.append(f"directory kept: {directory}")
    report.sections.append(("how to look into this", "\n".join(lines)))
