"""Where the copies of a verification are made."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from detbox.report.scratch import temporary_directory


def test_the_place_for_temporaries_is_chosen_without_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    os.utime(tmp_path, ns=(0, 0))
    assert temporary_directory() == str(tmp_path)
    assert tmp_path.stat().st_mtime_ns == 0, "something was made there, which a kill would leave"


def test_a_directory_that_is_not_there_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "missing"))
    monkeypatch.setenv("TEMP", str(tmp_path))
    assert temporary_directory() == str(tmp_path)
