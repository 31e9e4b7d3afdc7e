"""Tarballs and OCI layouts: what goes out comes back, and hostile ones are refused."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import tarfile
from pathlib import Path
from typing import Any

import pytest

from detbox.errors import UserError
from detbox.images import check, inside, manifest, oci, tarball
from detbox.images.manifest import Entry
from detbox.images.store import Image, Store
from tests.unit.images import trees


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def image(store: Store, tmp_path: Path) -> Image:
    return store.import_tar(str(trees.small(tmp_path / "small.tar")), "small")


def test_everything_is_unpacked(image: Image) -> None:
    entries = {entry.path: entry for entry in image.entries}
    assert entries[b"bin/tool"].kind == "h" and entries[b"bin/tool"].detail == b"bin/same"
    assert entries[b"bin/same"].mode == 0o4755 and entries[b"bin/same"].mtime == 1_000_000_000
    assert entries[b"etc/link"].detail == b"../../../outside"
    assert entries[b"etc/shut"].mode == 0 and entries[b"etc/shut"].uid == 7
    assert entries[b"pipe"].kind == "p"
    assert entries["später é".encode() + b"\xff"].size == 4
    assert b"dev/null" not in entries
    assert stat.S_IMODE((image.root / "bin/tool").stat().st_mode) == 0o4755
    assert (image.root / "bin/tool").stat().st_uid == os.geteuid()


def test_the_manifest_can_be_read_back(image: Image) -> None:
    text = (image.place / "manifest").read_bytes()
    assert manifest.render(manifest.parse(text, "here")) == text
    odd = Entry(b"a\tb\n%;=\xff", "l", 0o777, detail=b"\t", xattrs=((b"user.x", b"=;"), (b"user.a", b"")))
    assert Entry.parse(odd.line()) == Entry(
        odd.path, "l", 0o777, detail=b"\t", xattrs=((b"user.a", b""), (b"user.x", b"=;"))
    )


@pytest.mark.parametrize("name", ["out.tar", "out.tar.gz"])
def test_an_export_is_the_same_each_time_and_the_same_image(
    store: Store, image: Image, tmp_path: Path, name: str
) -> None:
    first, second = tmp_path / name, tmp_path / ("2" + name)
    for target in (first, second):
        inside.as_owner(lambda target=target: tarball.write_file(image.entries, str(image.root), target))
    assert first.read_bytes() == second.read_bytes()
    assert store.import_tar(str(first), "again").digest == image.digest


@pytest.mark.parametrize("mode", ["w:bz2", "w:xz"])
def test_other_compressions_are_understood(store: Store, image: Image, tmp_path: Path, mode: str) -> None:
    assert store.import_tar(str(trees.small(tmp_path / "x", mode)), "x").digest == image.digest


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
def test_a_layout_comes_back(store: Store, image: Image, tmp_path: Path, name: str) -> None:
    target = tmp_path / name
    inside.as_owner(lambda: oci.write(image.entries, str(image.root), target, "small", lambda done: None))
    assert store.import_tar(str(target), "again").digest == image.digest


@pytest.mark.parametrize(("members", "complaint"), [
    ([("/etc/passwd", {"content": b""})], "absolute path"),
    ([("../x", {"content": b""})], "leads out"),
    ([("a/../../x", {"content": b""})], "leads out"),
    ([("a", {"link": "/etc"}), ("a/x", {"content": b""})], "below a, which is not a directory"),
    ([("a", {"link": "/etc/passwd"}), ("b", {"hard": "a"})], "no file of the archive"),
    ([("b", {"hard": "/etc/passwd"})], "absolute path"),
    ([("b", {"hard": "../../etc/passwd"})], "leads out"),
    ([("b", {"hard": "missing"})], "no file of the archive"),
    ([("disk", {"type": tarfile.BLKTYPE})], "device node"),
    ([("tty", {"type": tarfile.CHRTYPE})], "device node"),
    ([(".", {"content": b"x"})], "root is not a directory"),
])  # fmt: skip
def test_hostile_tarballs_are_refused(
    store: Store, tmp_path: Path, members: list[tuple[str, Any]], complaint: str
) -> None:
    source = trees.tarball(tmp_path / "bad.tar", *members)
    with pytest.raises(UserError, match=complaint):
        store.import_tar(str(source), "bad")
    assert store.images() == [] and list((store.path / "tmp").iterdir()) == []


def test_a_link_is_replaced_and_not_followed(store: Store, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("untouched")
    source = trees.tarball(
        tmp_path / "bad.tar", ("a", {"link": str(victim)}), ("a", {"content": b"mine", "mode": 0o600})
    )
    image = store.import_tar(str(source), "x")
    assert victim.read_text() == "untouched"
    assert (image.root / "a").read_text() == "mine"


@pytest.mark.parametrize("content", [b"", b"not a tarball at all", b"\x1f\x8b\x08\x00 no gzip", b"\x00" * 10240])
def test_what_is_no_tarball_is_refused(store: Store, tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad").write_bytes(content)
    with pytest.raises(UserError):
        store.import_tar(str(tmp_path / "bad"), "bad")


def test_a_cut_tarball_is_refused(store: Store, tmp_path: Path) -> None:
    whole = trees.tarball(tmp_path / "a.tar", ("big", {"content": bytes(100_000)})).read_bytes()
    (tmp_path / "cut.tar").write_bytes(whole[:50_000])
    with pytest.raises(UserError, match="not a complete tarball"):
        store.import_tar(str(tmp_path / "cut.tar"), "cut")


def _layout(place: Path, *layers: Path) -> Path:
    blobs = place / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(content: bytes) -> str:
        digest = hashlib.sha256(content).hexdigest()
        (blobs / digest).write_bytes(content)
        return f"sha256:{digest}"

    kind = "application/vnd.oci.image.layer.v1.tar"
    listed = [{"mediaType": kind, "digest": put(path.read_bytes())} for path in layers]
    inner = put(json.dumps({"layers": listed}).encode())
    (place / "index.json").write_text(json.dumps({"manifests": [{"digest": inner}]}))
    (place / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return place


def test_layers_are_laid_on_top_of_each_other(store: Store, tmp_path: Path) -> None:
    lower = trees.tarball(
        tmp_path / "1.tar", ("d", {}), ("d/a", {"content": b"a"}), ("d/b", {"hard": "d/a"}), ("e", {}),
        ("e/old", {"content": b"old"}), ("f", {"link": "/x"}),
    )  # fmt: skip
    upper = trees.tarball(
        tmp_path / "2.tar", ("d/.wh.a", {"content": b""}), ("e", {}), ("e/.wh..wh..opq", {"content": b""}),
        ("e/new", {"content": b"new"}), ("f", {}), ("f/in", {"content": b"in"}), (".wh.none", {"content": b""}),
    )  # fmt: skip
    image = store.import_tar(str(_layout(tmp_path / "layout", lower, upper)), "x")
    assert [entry.path for entry in image.entries] == [b".", b"d", b"d/b", b"e", b"e/new", b"f", b"f/in"]
    assert (image.root / "d/b").read_text() == "a"


def test_an_altered_blob_is_refused(store: Store, tmp_path: Path) -> None:
    place = _layout(tmp_path / "layout", trees.tarball(tmp_path / "1.tar", ("a", {"content": b"a"})))
    for path in (place / "blobs/sha256").iterdir():
        if path.stat().st_size > 5000:
            path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match="another content"):
        store.import_tar(str(place), "x")


def test_a_blob_that_is_missing_or_named_badly_is_refused(store: Store, tmp_path: Path) -> None:
    place = _layout(tmp_path / "layout", trees.tarball(tmp_path / "1.tar", ("a", {"content": b"a"})))
    (place / "index.json").write_text('{"manifests": [{"digest": "sha256:../../etc/passwd"}]}')
    with pytest.raises(UserError, match="no digest"):
        store.import_tar(str(place), "x")
    (place / "index.json").write_text('{"manifests": [{"digest": "sha256:%s"}]}' % ("0" * 64))
    with pytest.raises(UserError, match="lacks the blob"):
        store.import_tar(str(place), "x")


def test_a_sound_store_has_no_problems(store: Store, image: Image) -> None:
    assert list(check.problems(store)) == []


def test_every_damage_is_found(store: Store, image: Image) -> None:
    before = (image.root / "bin/tool").stat()
    (image.root / "bin/tool").write_bytes(b"#!/bin/no\n")
    os.chmod(image.root / "bin/tool", 0o4755)
    os.utime(image.root / "bin/tool", ns=(before.st_atime_ns, before.st_mtime_ns))
    (image.root / "pipe").unlink()
    (image.root / "more").touch()
    os.utime(image.root, (0, 0))
    store.set_name("lost", "0" * 64)
    assert [problem.partition(": ")[2] for problem in check.problems(store)] == [
        "! /bin/same: content (10 and 10 bytes)", "+ /more", "- /pipe",
        f"its image {'0' * 64} is missing",
    ]  # fmt: skip


def test_a_changed_manifest_is_found(store: Store, image: Image) -> None:
    path = image.place / "manifest"
    path.write_bytes(path.read_bytes().replace(b"4755", b"0755"))
    assert "not the one that the digest names" in next(check.problems(store))


def test_differences_are_told() -> None:
    a = [Entry(b"x", "f", 0o644, size=1, detail=b"1"), Entry(b"y", "d", 0o755), Entry(b"z", "p", 0o600)]
    b = [Entry(b"w", "d", 0o755), Entry(b"x", "f", 0o600, 1, 2, size=3, detail=b"2"), Entry(b"y", "l", 0o777)]
    assert list(manifest.differences(a, b)) == [
        "+ /w",
        "! /x: content (1 and 3 bytes), mode 0644 became 0600, owner 0:0 became 1:2",
        "! /y: directory became symbolic link",
        "- /z",
    ]
