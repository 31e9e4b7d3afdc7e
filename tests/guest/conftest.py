"""Makes the harness importable, and names the marks of these tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "quick: a representative part that takes seconds")
    config.addinivalue_line("markers", "slow: only with `-m slow`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave slow tests out unless marks were asked for."""
    if config.getoption("-m"):
        return
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.skip(reason="slow; run it with -m slow"))
