"""The generated parts of the documentation are current, and its links lead somewhere."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]


def test_generated_parts_are_current() -> None:
    stale = [
        path.name
        for path, text in runpy.run_path(str(ROOT / "tools/make_docs.py"))["pages"]().items()
        if not path.exists() or path.read_text() != text
    ]
    assert not stale, "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links(page: Path) -> None:
    targets = re.findall(r"\]\((?!http)([^)#]+)", page.read_text())
    missing = [target for target in targets if not (page.parent / target).exists()]
    assert not missing


def test_help_shows_every_status() -> None:
    from detbox import errors
    from detbox.cli.run_cmd import _EXAMPLES

    for status in {cls.status for cls in errors.all_errors()}:
        assert str(status) in _EXAMPLES
