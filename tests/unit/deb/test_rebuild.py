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
 LANG="C.UTF-8"
Build-Path: {path}
Binary-Only-Changes:
 x (1.0-1+b1) sid; urgency=low, binary-only=yes
 .
   * Rebuild.
 .
  -- A B <a@b.example>  Sun, 01 Jan 2023 00:00:00 +0000
"""


def test_a_record(tmp_path: Path) -> None:
    path = tmp_path / "x.buildinfo"
    path.write_text(_TEXT.format(architecture="amd64", path="/build/x-AbC1/x-1.0"))
    record = rebuild.read(path)
    assert (record.source, record.version, record.architectures) == ("x", "1.0-1", ("amd64",))
    assert record.installed == (Package("gcc", "4:12.2.0-3", ""), Package("libc6", "2.36-9", "amd64"))
    assert (record.parallel, record.flags) == (3, ("nocheck",))
    assert (record.path, record.variables) == ("/build/x-AbC1/x-1.0", (("LANG", "C.UTF-8"),))
    assert record.entry.splitlines()[1:3] == ["", "  * Rebuild."]
    assert rebuild.compare(record, {"x_1.0-1+b1_amd64.deb": "aa"}).identical
    assert rebuild.compare(record, {"x_1.0-1+b1_amd64.deb": "bb"}).different == ("x_1.0-1+b1_amd64.deb",)
    assert not rebuild.compare(record, {}).identical


def test_what_ubuntus_dpkg_sets_by_itself_is_no_variable(tmp_path: Path) -> None:
    path, text = tmp_path / "x.buildinfo", _TEXT.format(architecture="amd64", path="")
    text = text.replace("Environment:\n", 'Environment:\n DEB_BUILD_PROFILES="noudeb"\n A="b"\n')
    path.write_text("Build-Origin: Ubuntu\n" + text)
    assert rebuild.read(path).variables == (("A", "b"),)


def test_a_place_that_only_the_maker_has(tmp_path: Path) -> None:
    path = tmp_path / "x.buildinfo"
    for elsewhere in ("/home/me/x", "/build/../etc", "/build/a b"):
        path.write_text(_TEXT.format(architecture="amd64", path=elsewhere))
        assert rebuild.read(path).path == ""


@pytest.mark.parametrize(
    ("built", "source", "kind"),
    [("amd64", "any", "binary"), ("amd64", "any all", "any"), ("all", "all", "binary"), ("all", "any all", "all"),
     ("all amd64", "any all", "binary")],
)  # fmt: skip
def test_what_was_built(tmp_path: Path, built: str, source: str, kind: str) -> None:
    path = tmp_path / "x.buildinfo"
    path.write_text(_TEXT.format(architecture=built, path=""))
    assert rebuild.kind_of(rebuild.read(path), source.split()) == kind


def test_a_record_of_sources_only(tmp_path: Path) -> None:
    path = tmp_path / "x.buildinfo"
    path.write_text(_TEXT.format(architecture="source", path="/build/x"))
    with pytest.raises(UserError):
        rebuild.read(path)
