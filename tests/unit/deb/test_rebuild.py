"""What a .buildinfo says, and how results compare with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbox.deb import rebuild
from detbox.deb.apt import Package
from detbox.errors import UserError

_TEXT = """\
Format: 1.0
Source: x (1.0-1)
Architecture: {architecture}
Version: 1.0-1+b1
Checksums-Sha256:
 aa 10 x_1.0-1+b1_amd64.deb
Installed-Build-Depends:
 gcc (= 4:12.2.0-3),
 libc6:amd64 (= 2.36-9)
Environment:
 DEB_BUILD_OPTIONS="parallel=3 nocheck"
"""


def test_a_record(tmp_path: Path) -> None:
    path = tmp_path / "x.buildinfo"
    path.write_text(_TEXT.format(architecture="amd64"))
    record = rebuild.read(path)
    assert (record.source, record.version, record.kind) == ("x", "1.0-1", "any")
    assert record.installed == (Package("gcc", "4:12.2.0-3", ""), Package("libc6", "2.36-9", "amd64"))
    assert (record.parallel, record.flags) == (3, ("nocheck",))
    assert rebuild.compare(record, {"x_1.0-1+b1_amd64.deb": "aa"}).identical
    assert rebuild.compare(record, {"x_1.0-1+b1_amd64.deb": "bb"}).different == ("x_1.0-1+b1_amd64.deb",)
    assert not rebuild.compare(record, {}).identical


def test_a_record_of_sources_only(tmp_path: Path) -> None:
    path = tmp_path / "x.buildinfo"
    path.write_text(_TEXT.format(architecture="source"))
    with pytest.raises(UserError):
        rebuild.read(path)
