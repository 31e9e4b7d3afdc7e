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


def make_source(place: Path, version: str = "1.0", *others: str, name: str = "x") -> Path:
    """A .dsc with nothing but a changelog, beside tarballs of ``others``' names, which are empty."""
    changes = f"{name}_{version}.{'debian.' if others else ''}tar.xz"
    with tarfile.open(place / changes, "w:xz") as archive:
        member = tarfile.TarInfo("debian/changelog" if others else f"{name}-1.0/debian/changelog")
        member.size = len(_CHANGELOG)
        archive.addfile(member, io.BytesIO(_CHANGELOG))
    listed = ""
    for file_name in (*others, changes):
        with (place / file_name).open("ab") as file:
            size = file.tell()
        listed += f" {hashlib.sha256((place / file_name).read_bytes()).hexdigest()} {size} {file_name}\n"
    dsc = place / f"{name}_{version}.dsc"
    dsc.write_text(f"Source: {name}\nVersion: {version}\nChecksums-Sha256:\n{listed}")
    return dsc


def test_a_dsc(tmp_path: Path) -> None:
    there = tmp_path / "work"
    there.mkdir()
    source = obtain(str(make_source(tmp_path)), there, Apt("bookworm", tmp_path / "apt"))
    assert (source.name, source.version, source.epoch_s) == ("x", "1.0", 1_672_531_200)
    text = script(source, BuildOptions())
    assert "dpkg-source --no-check -x /work/source/x_1.0.dsc" in text
    assert "dpkg-buildpackage -us -uc -b -r/run/detbox/gain" in text, "it does not say that it needs no root"


def test_an_upstream_release(tmp_path: Path) -> None:
    there = tmp_path / "work"
    there.mkdir()
    dsc = make_source(tmp_path, "1.0-2", "x_1.0.orig.tar.gz", "x_1.0.orig.tar.gz.asc")
    source = obtain(f"upstream:{dsc}", there, Apt("bookworm", tmp_path / "apt"))
    assert (source.version, source.release) == ("1.0", "x_1.0.orig.tar.gz")
    text = script(source, BuildOptions(parallel=3))
    assert "tar -xf /work/source/x_1.0.orig.tar.gz" in text
    assert "dpkg" not in text


def test_a_native_package_has_no_release(tmp_path: Path) -> None:
    there = tmp_path / "work"
    there.mkdir()
    with pytest.raises(UserError, match="no upstream release"):
        obtain(f"upstream:{make_source(tmp_path)}", there, Apt("bookworm", tmp_path / "apt"))


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
