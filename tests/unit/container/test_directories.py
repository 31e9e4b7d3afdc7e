"""Directories made again for an overlay: by one thread and by several the same, all or those alone that are hidden."""

from __future__ import annotations

import os
from pathlib import Path

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
