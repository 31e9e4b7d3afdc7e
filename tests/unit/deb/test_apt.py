"""The system's sources, and what apt says that it would install."""

from __future__ import annotations

import subprocess
from pathlib import Path

from detbox.deb.apt import Package, parse_simulation, system_sources
from detbox.deb.programs import complaints


def test_sources_of_both_formats(tmp_path: Path) -> None:
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list").write_text(
        "deb [signed-by=/k.gpg] http://a.example/debian bookworm main  # comment\ndeb http://b.example/x trixie main\n"
    )
    (tmp_path / "sources.list.d/debian.sources").write_text(
        "Types: deb\nURIs: http://c.example/debian\nSuites: bookworm bookworm-updates other\nComponents: main\n"
    )
    text = system_sources("bookworm", tmp_path)
    assert text.count("Types: deb deb-src") == 2
    assert "Signed-By: /k.gpg" in text
    assert "Suites: bookworm bookworm-updates\n" in text
    assert "b.example" not in text


def test_simulation() -> None:
    text = (
        "Inst libx1 (1.0-1 Debian:12/stable [amd64]) []\n"
        "Inst y [1] (2:3~4 Debian:12/stable [all])\nConf y (2:3~4 x)\n"
    )
    assert parse_simulation(text) == [Package("libx1", "1.0-1", "amd64"), Package("y", "2:3~4", "all")]


def test_complaints_do_not_name_the_mirror() -> None:
    said = (
        "Err:1 http://mirror.example/debian bookworm/main\n"
        "E: Failed to fetch http://mirror.example/x  404  Not Found\n"
    )
    lines = complaints(subprocess.CompletedProcess([], 100, "", said))
    assert lines == ["Err:1 the archive bookworm/main", "Failed to fetch the archive  404  Not Found"]
