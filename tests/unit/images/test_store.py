"""The store: names, layers, locks and removal."""

from __future__ import annotations

import os
import signal
import stat
import tempfile
import time
from pathlib import Path

import pytest

from detbox.errors import HostError, UserError
from detbox.images import tree
from detbox.images.store import Store
from detbox.report.leftovers import MEMORY_DIR
from tests.unit.images import trees


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_what_goes_in_can_be_found(store: Store, tmp_path: Path) -> None:
    image = store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")
    assert store.resolve("small").digest == store.resolve(image.digest[:12]).digest == image.digest
    assert os.geteuid() or (image.root / "etc/shut/in").exists()
    assert {entry.path: (entry.uid, entry.gid) for entry in image.entries}[b"etc/secret"] == (0, 42)
    assert image.packages == []
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o700


def test_the_same_content_is_kept_once(store: Store, tmp_path: Path) -> None:
    one = store.import_tar(str(trees.small(tmp_path / "a.tar")), "one")
    other = store.import_tar(str(trees.small(tmp_path / "b.tar.gz", "w:gz")), "other")
    assert one.root == other.root
    assert len(store.images()) == 1
    assert store.names() == ["one", "other"]


def test_an_unknown_name_is_told_with_the_known_ones(store: Store, tmp_path: Path) -> None:
    store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")
    with pytest.raises(UserError, match="no image 'smal'.*small"):
        store.resolve("smal")


@pytest.mark.parametrize("name", ["", "A", "../x", "a/b", "a" * 101, "0123456789abcdef"])
def test_bad_names_are_refused(store: Store, tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="cannot be an image's name"):
        store.import_tar(str(trees.small(tmp_path / "a.tar")), name)
    assert store.images() == []


def test_a_store_of_another_format_is_refused(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text("detbox store 9\n")
    with pytest.raises(HostError, match="store 9.*expected 'detbox store 1'"):
        Store(tmp_path)


def test_collection_spares_what_is_named_or_used(store: Store, tmp_path: Path) -> None:
    image = store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")
    assert store.collect(0) == ([], [])
    store.remove_name("small")
    with store.hold(image):
        assert store.collect(0) == ([], [image.digest])
    assert store.collect(0) == ([image.digest], [])
    assert not image.root.exists()
    with pytest.raises(UserError, match="removed"), store.hold(image):
        pass


def test_a_failed_addition_leaves_nothing(store: Store) -> None:
    def fill(root: Path) -> list[object]:
        (root / "half").write_text("")
        raise UserError("no")

    with pytest.raises(UserError):
        store.add_tree("x", fill)  # type: ignore[arg-type]
    assert store.names() == [] and store.images() == []
    assert list((store.path / "tmp").iterdir()) == []


def test_a_killed_maker_leaves_nothing_that_lasts(store: Store, tmp_path: Path) -> None:
    pid = os.fork()
    if pid == 0:
        def fill(root: Path) -> list[object]:
            (root / "half").mkdir()
            (root / "half" / "file").write_text("")
            (root / "half").chmod(0)
            (tmp_path / "ready").touch()
            signal.pause()
            return []

        store.add_tree("x", fill)  # type: ignore[arg-type]
        os._exit(0)
    while not (tmp_path / "ready").exists():
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert len(list((store.path / "tmp").iterdir())) == 1
    assert store.names() == [] and store.images() == []
    store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")
    assert list((store.path / "tmp").iterdir()) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="an ordinary user needs subordinate ids for a layer")
class TestLayers:
    def test_a_layer_is_made_once(self, store: Store, tmp_path: Path) -> None:
        base = store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")
        made = []

        def fill(root: Path) -> None:
            made.append(root)
            assert (root / "etc/secret").stat().st_gid == 42
            (root / "new").write_text("new")
            os.chown(root / "new", 33, 44)
            os.unlink(root / "bin/tool")
            (root / "tmp").mkdir()
            (root / "tmp/rest").touch()

        root = store.make_layer("key", base, fill)
        assert store.make_layer("key", base, fill) == root == store.layer("key")
        assert len(made) == 1
        image = store.layer_image("key")
        assert image is not None
        entries = {entry.path: entry for entry in image.entries}
        assert (entries[b"new"].uid, entries[b"new"].gid) == (33, 44)
        assert (root / "new").stat().st_uid == 0
        assert entries[b"bin/same"].kind == "f" and b"bin/tool" not in entries and b"tmp/rest" not in entries
        assert (base.root / "bin/tool").exists() and not (base.root / "new").exists()

    def test_an_unchanged_copy_is_the_same_image(self, store: Store, tmp_path: Path) -> None:
        base = store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")
        assert store.make_layer("key", base, lambda root: None) == base.root

    def test_a_changed_file_is_read_again(self, store: Store, tmp_path: Path) -> None:
        base = store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")

        def fill(root: Path) -> None:
            before = (root / "bin/tool").stat()
            (root / "bin/tool").write_bytes(b"#!/bin/no\n")
            os.utime(root / "bin/tool", ns=(before.st_atime_ns, before.st_mtime_ns))

        assert store.make_layer("key", base, fill) != base.root

    def test_unused_layers_are_collected(self, store: Store, tmp_path: Path) -> None:
        base = store.import_tar(str(trees.small(tmp_path / "a.tar")), "small")
        root = store.make_layer("key", base, lambda root: (root / "new").touch())
        assert store.collect(3600) == ([], [])
        assert store.collect(0)[0] == [root.parent.name]
        assert store.layer("key") is None


@pytest.mark.skipif(not os.access(MEMORY_DIR, os.W_OK), reason="there is one file system only")
def test_a_copy_on_another_file_system(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 999)
    with tempfile.TemporaryDirectory(dir=MEMORY_DIR) as place:
        tree.copy(str(tmp_path), place, {})
        assert Path(place, "file").read_bytes() == (tmp_path / "file").read_bytes()
