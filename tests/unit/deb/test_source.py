"""Local sources: what is checked before anything is unpacked."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from detbox.deb.apt import Apt
from detbox.deb.plan import BuildOptions, script
from detbox.deb.source import obtain
from detbox.errors import UserError

_CHANGELOG = b"x (1.0) unstable; urgency=low\n\n  * New.\n\n -- A B <a@b.example>  Sun, 01 Jan 2023 00:00:00 +0000\n"


def make_source(place: Path) -> Path:
    """A .dsc of a native source package with nothing but a changelog."""
    with tarfile.open(place / "x_1.0.tar.xz", "w:xz") as archive:
        member = tarfile.TarInfo("x-1.0/debian/changelog")
        member.size = len(_CHANGELOG)
        archive.addfile(member, io.BytesIO(_CHANGELOG))
    data = (place / "x_1.0.tar.xz").read_bytes()
    dsc = place / "x_1.0.dsc"
    digest = hashlib.sha256(data).hexdigest()
    dsc.write_text(f"Source: x\nVersion: 1.0\nChecksums-Sha256:\n {digest} {len(data)} x_1.0.tar.xz\n")
    return dsc


def test_a_dsc(tmp_path: Path) -> None:
    there = tmp_path / "work"
    there.mkdir()
    source = obtain(str(make_source(tmp_path)), there, Apt("bookworm", tmp_path / "apt"))
    assert (source.name, source.version, source.epoch_s) == ("x", "1.0", 1_672_531_200)
    assert "dpkg-source --no-check -x /work/source/x_1.0.dsc" in script(source, BuildOptions())


def test_an_altered_file(tmp_path: Path) -> None:
    dsc = make_source(tmp_path)
    there = tmp_path / "work"
    there.mkdir()
    (tmp_path / "x_1.0.tar.xz").write_bytes(b"altered")
    with pytest.raises(UserError, match="is not what"):
        obtain(str(dsc), there, Apt("bookworm", tmp_path / "apt"))


@pytest.mark.parametrize("what", ["Not A Package", "./nowhere", "missing.dsc", "x=1 2"])
def test_what_is_no_source(tmp_path: Path, what: str) -> None:
    with pytest.raises(UserError):
        obtain(what, tmp_path, Apt("bookworm", tmp_path / "apt"))


def test_a_directory_without_rules(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    with pytest.raises(UserError, match="debian/control"):
        obtain(str(tmp_path / "tree"), tmp_path, Apt("bookworm", tmp_path / "apt"))


def test_a_kind_of_build_that_does_not_exist() -> None:
    with pytest.raises(UserError):
        BuildOptions(kind="source")
