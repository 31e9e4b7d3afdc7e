"""Control files, changelogs and what is refused in them."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from detbox.deb import control
from detbox.errors import UserError

_CHANGELOG = "x (1.0-1) unstable; urgency=low\n\n  * New.\n\n -- A B <a@b.example>  Sun, 01 Jan 2023 00:00:00 +0000\n"


def test_stanzas_of_a_signed_file() -> None:
    text = (
        "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n\nSource: x\nBinary: a,\n b\n\n"
        "-----BEGIN PGP SIGNATURE-----\n\nabc\n-----END PGP SIGNATURE-----\n"
    )
    assert list(control.stanzas(text)) == [{"source": "x", "binary": "a,\nb"}]


def test_names_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    fields = {"checksums-sha256": "\nabc 12 ../../etc/passwd"}
    with pytest.raises(UserError):
        control.listed_files(fields, tmp_path / "x.dsc")


def test_a_file_without_the_fields_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.dsc"
    path.write_text("Format: 3.0\n")
    with pytest.raises(UserError, match="Source"):
        control.first_stanza(path, "source")


@pytest.mark.parametrize("name", ["x_1.0-1.debian.tar.xz", "x_1.0.tar.xz", "x_1.0-1.diff.gz"])
def test_the_date_comes_out_of_each_kind_of_source(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name.endswith(".diff.gz"):
        added = "".join(f"+{line}\n" for line in _CHANGELOG.splitlines())
        path.write_bytes(gzip.compress(f"--- x/debian/changelog\n+++ x-1.0/debian/changelog\n@@ @@\n{added}".encode()))
    else:
        top = "" if ".debian." in name else "x-1.0/"
        with tarfile.open(path, "w:xz") as archive:
            member = tarfile.TarInfo(f"{top}debian/changelog")
            member.size = len(_CHANGELOG)
            archive.addfile(member, io.BytesIO(_CHANGELOG.encode()))
    assert control.changelog_date(control.debian_file([path], "changelog")) == 1_672_531_200


def test_a_tarball_that_is_none(tmp_path: Path) -> None:
    path = tmp_path / "x_1.0.debian.tar.xz"
    path.write_bytes(b"no tarball")
    with pytest.raises(UserError):
        control.debian_file([path], "changelog")


def test_versions_in_names() -> None:
    assert control.without_epoch("2:1.0-1") == "1.0-1"
    assert control.without_epoch("1.0-1") == "1.0-1"
