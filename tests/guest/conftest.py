"""Makes the harness importable, and names the marks of these tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: a representative part that takes seconds")
