"""Directories made again for an overlay: by one thread and by several the same, all or those alone that are hidden."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from detbox.kernel import _native


def listed(top: Path) -> list[tuple[str, int]]:
    return sorted((os.path.relpath(path, top), os.stat(path).st_mode) for path, _, _ in os.walk(top))


def test_any_number_of_makers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for number in range(40):
        (source / f"a{number % 3}" / f"b{number % 7}" / f"c{number}" / "d" / "e").mkdir(parents=True)
    (source / "file").write_text("x")
    (source / "link").symlink_to("a0")
    (source / "a0").chmod(0o2775)
    (source / "a1" / "b1").chmod(0o1777)
    (source / "a2" / "b2").chmod(0o711)
    (source / "a2" / "b5").chmod(0o700)
    mask = os.umask(0)
    found = []
    try:
        for makers, everything in ((1, True), (4, True), (1, False)):
            target = tmp_path / f"{makers}{everything}"
            target.mkdir(source.stat().st_mode & 0o7777)
            fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY) for path in (source, target)]
            found.append((_native.make_directories(*fds, 1 << 20, 0o5, makers, everything), listed(target)))
            for fd in fds:
                os.close(fd)
    finally:
        os.umask(mask)
    assert found[0] == found[1]
    assert found[2][0] == found[0][0]
    hidden = [".", "a2", "a2/b2", "a2/b5"]
    assert found[2][1] == [entry for entry in found[0][1] if entry[0] in hidden]
    refused, made = found[0]
    assert refused == [b"/a2/b2", b"/a2/b5"]
    inside = [entry for entry in listed(source) if not entry[0].startswith(("a2/b2/", "a2/b5/"))]
    assert made == inside


def test_a_tree_of_small_files(tmp_path: Path) -> None:
    top = os.open(tmp_path, os.O_PATH)
    entries = [("a/b/file", "f", b"text\0"), ("a/link", "l", b"b/file"), ("a/b", "d", b""), ("c/d", "d", b"")]
    entries.append(("e", "f", b""))
    try:
        _native.make_tree(top, entries, 0o444)
        assert (tmp_path / "a/link").read_bytes() == b"text\0" and (tmp_path / "a/b/file").stat().st_mode == 0o100444
        assert (tmp_path / "c/d").is_dir() and (tmp_path / "e").read_bytes() == b""
        with pytest.raises(FileExistsError, match="'e'"):
            _native.make_tree(top, [("e", "f", b"")], 0o444)
        with pytest.raises(NotADirectoryError):
            _native.make_tree(top, [("e/f", "f", b"")], 0o444)
    finally:
        os.close(top)
