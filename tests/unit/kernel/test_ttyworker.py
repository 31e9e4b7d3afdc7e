"""The wait for workers that carry what is written to terminals."""

from __future__ import annotations

import os

from detbox.kernel import ttyworker


def test_it_returns_wherever_it_is_called_and_leaves_no_name() -> None:
    names = sorted(os.listdir("/dev/pts"))
    for _ in range(3):
        ttyworker.wait_for_earlier()
    assert sorted(os.listdir("/dev/pts")) == names
