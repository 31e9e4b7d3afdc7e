"""New files get their names at the end, and leave nothing where they get none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from detbox.cache.staging import Staging


@pytest.fixture(params=["without a name", "with a name"])
def staging(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Staging:
    if request.param == "with a name":
        plain = os.open

        def refusing(path: bytes, flags: int, *more: int, **options: int) -> int:
            if flags & os.O_TMPFILE == os.O_TMPFILE:
                raise OSError(errno.EOPNOTSUPP, "as on an old NFS")
            return plain(path, flags, *more, **options)

        monkeypatch.setattr(os, "open", refusing)
    return Staging(os.open("/proc", os.O_PATH | os.O_DIRECTORY))


def test_a_file_gets_its_name_mode_and_content(staging: Staging, tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("new", "old"):
        staging.write(os.fsencode(tmp_path / name), name.encode() * 2, 0o640)
    assert (tmp_path / "old").read_text() == "old"
    assert all(staging.place(os.fsencode(tmp_path / name)) for name in ("new", "old"))
    assert not staging.place(os.fsencode(tmp_path / "other"))
    staging.close()
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"new": "newnew", "old": "oldold"}
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o640


def test_what_gets_no_name_is_gone(staging: Staging, tmp_path: Path) -> None:
    staging.write(os.fsencode(tmp_path / "new"), b"data", 0o600)
    staging.close()
    assert list(tmp_path.iterdir()) == []
