"""Sources out of an archive of one's own: what is fetched was checked, and what is wrong with it is said."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from detbox.deb import apt as module
from detbox.deb import source as sources
from detbox.deb.apt import Apt
from detbox.deb.source import obtain
from detbox.errors import HostError, SourceNotAvailable, UserError
from tests.harness.debian import make_archive, served
from tests.unit.deb.test_source import make_source

pytestmark = pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt here")


class Archive:
    """An archive that is served on the loopback device, and an apt that knows no other."""

    def __init__(self, top: Path, address: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.files, self.place, self.address = top / "archive", top / "work", address
        self.place.mkdir()
        self.apt = Apt("bookworm", top / "apt")
        self.trust = "Trusted: yes"
        monkeypatch.setattr(module, "system_sources", lambda suite: self.sources())

    def sources(self) -> str:
        return f"Types: deb deb-src\nURIs: {self.address}\nSuites: bookworm\nComponents: main\n{self.trust}\n"

    def obtain(self, what: str = "few") -> str:
        """What is said of how the source was checked."""
        return obtain(what, self.place, self.apt).checked


@pytest.fixture
def archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Archive]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "archive").mkdir()
    make_archive(tmp_path / "archive", make_source(tmp_path / "archive", name="few"))
    with served(tmp_path / "archive") as address:
        yield Archive(tmp_path, address, monkeypatch)


def test_a_source_is_fetched(archive: Archive) -> None:
    assert archive.obtain() == archive.obtain("few=1.0") == "by the archive's signature"
    assert sorted(os.listdir(archive.place)) == ["few_1.0.dsc", "few_1.0.tar.xz"]
    for unknown in ("nothing-of-this-name", "few=2.0"):
        with pytest.raises(UserError, match="has no source package"):
            archive.obtain(unknown)


def test_a_source_that_is_listed_and_not_served(archive: Archive) -> None:
    (archive.files / "few_1.0.tar.xz").unlink()
    with pytest.raises(SourceNotAvailable, match="does not serve it"):
        archive.obtain()


def test_a_file_that_was_altered_in_the_archive(archive: Archive) -> None:
    path = archive.files / "few_1.0.tar.xz"
    path.write_bytes(bytes(path.stat().st_size))
    with pytest.raises(HostError, match="Hash Sum mismatch") as caught:
        archive.obtain()
    assert archive.address not in "\n".join(caught.value.lines())


def test_a_mirror_that_cannot_be_reached(archive: Archive) -> None:
    there, archive.address = archive.address, "http://127.0.0.1:9"
    with pytest.raises(HostError, match="lists cannot be fetched") as caught:
        archive.obtain()
    assert "127.0.0.1" not in "\n".join(caught.value.lines())
    assert os.listdir(archive.place) == []
    archive.address = there
    assert archive.obtain()


@pytest.mark.skipif(shutil.which("gpg") is None, reason="nothing can be signed here")
def test_an_index_that_was_altered_after_it_was_signed(
    archive: Archive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "keys"
    home.mkdir(mode=0o700)
    gpg = ["gpg", "--homedir", str(home), "--batch", "--passphrase", ""]
    subprocess.run([*gpg, "--quick-gen-key", "T <t@example>", "ed25519", "sign"], capture_output=True, check=True)
    ring = tmp_path / "ring.gpg"
    ring.write_bytes(subprocess.run([*gpg, "--export"], capture_output=True, check=True).stdout)
    archive.trust = f"Signed-By: {ring}"
    with pytest.raises(HostError, match="not signed"):
        archive.obtain()
    make_archive(archive.files, archive.files / "few_1.0.dsc", sign=[*gpg, "--clearsign"])
    (archive.files / "dists/bookworm/Release").unlink()
    assert archive.obtain()
    signed = archive.files / "dists/bookworm/InRelease"
    signed.write_text(signed.read_text().replace("2023", "2024"))
    shutil.rmtree(archive.apt.top)
    with pytest.raises(HostError, match="not signed"):
        archive.obtain()
    # A .dsc of somebody whose key the system does not have: its digests count nevertheless.
    dsc, again = archive.files / "few_1.0.dsc", tmp_path / "again"
    done = subprocess.run([*gpg, "--clearsign"], input=dsc.read_text(), capture_output=True, text=True, check=True)
    dsc.write_text(done.stdout)
    again.mkdir()
    assert "not known" in obtain(str(dsc), again, archive.apt).checked
    monkeypatch.setattr(sources, "_KEYRINGS", tmp_path)
    ring.rename(tmp_path / "debian-people.gpg")
    assert obtain(str(dsc), again, archive.apt).checked == "digests and signature"
    dsc.write_text(done.stdout.replace("Version: 1.0", "Version: 1.1"))
    with pytest.raises(UserError, match="wrong signature"):
        obtain(str(dsc), again, archive.apt)
    dsc.write_text(done.stdout)
    (archive.files / "few_1.0.tar.xz").write_bytes(b"altered")
    with pytest.raises(UserError, match="is not what"):
        obtain(str(dsc), again, archive.apt)
    dsc.write_text(done.stdout.partition("-----BEGIN PGP SIGNATURE")[0])
    with pytest.raises(UserError, match="signature cannot be read"):
        obtain(str(dsc), again, archive.apt)
    subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False)
