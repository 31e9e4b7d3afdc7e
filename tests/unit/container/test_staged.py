"""Paths in a container that is being assembled: an image's links do not lead to the host."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbox.container import operations
from detbox.container.operations import staged
from detbox.errors import UserError


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    top = tmp_path / "stage"
    (top / "usr/bin").mkdir(parents=True)
    monkeypatch.setattr(operations, "STAGE", str(top))
    return top


@pytest.mark.parametrize(("link", "target", "asked", "found"), [
    ("bin", "usr/bin", "/bin/sh", "usr/bin/sh"),
    ("etc", "/usr", "/etc/passwd", "usr/passwd"),
    ("etc", "../../../../usr", "/etc/passwd", "usr/passwd"),
    ("etc", "usr/./bin/../x", "/etc", "usr/x"),
    ("etc", "/missing/place", "/etc/a/b", "missing/place/a/b"),
    ("etc", "/", "/etc/usr", "usr"),
])  # fmt: skip
def test_links_are_followed_within_the_image(stage: Path, link: str, target: str, asked: str, found: str) -> None:
    (stage / link).symlink_to(target)
    assert staged(asked) == f"{stage}/{found}"


def test_the_last_link_may_be_what_is_meant(stage: Path) -> None:
    (stage / "etc").symlink_to("/usr")
    (stage / "usr/mtab").symlink_to("/proc/mounts")
    assert staged("/etc/mtab", last=False) == f"{stage}/usr/mtab"
    assert staged("/etc/mtab") == f"{stage}/proc/mounts"
    assert staged("/") == str(stage)


def test_a_circle_is_refused(stage: Path) -> None:
    (stage / "etc").symlink_to("/etc")
    with pytest.raises(UserError, match="too many"):
        staged("/etc/passwd")


def test_a_file_is_never_written_through_a_link(stage: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "passwd").write_text("secret")
    (stage / "etc").symlink_to(outside)
    (stage / "usr/passwd").symlink_to(outside / "passwd")
    operations.File("/etc/passwd", b"new").execute()
    operations.File("/usr/passwd", b"new").execute()
    operations.Remove("/etc/passwd").execute()
    assert (outside / "passwd").read_text() == "secret"
    assert (stage / "usr/passwd").read_text() == "new" and not (stage / "usr/passwd").is_symlink()
