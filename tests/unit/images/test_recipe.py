"""Recipes, apt sources and lock files."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from detbox.errors import HostError, UserError
from detbox.images import lock, recipe, sources


def test_the_recipes_that_come_with_detbox_can_be_read() -> None:
    known = recipe.shipped()
    assert {"bookworm-minbase", "bookworm-buildd", "trixie-buildd", "bookworm-python-data"} <= known.keys()
    assert all(recipe.load(name).name == name for name in known)
    text = "".join(path.read_text() for path in known.values())
    assert "://" not in text


@pytest.mark.parametrize(
    ("codename", "suite"), [("trixie", "trixie"), ("noble", "noble"), ("sid", "bookworm"), ("", "bookworm")]
)
def test_packages_are_of_the_systems_release(codename: str, suite: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "freedesktop_os_release", lambda: {"VERSION_CODENAME": codename})
    assert recipe.default_suite() == suite


def test_a_recipe_is_read(tmp_path: Path) -> None:
    (tmp_path / "beside").write_bytes(b"\x00\xff")
    path = tmp_path / "mine.toml"
    path.write_text(
        'suite = "bookworm"\npackages = ["bb", "aa", "aa"]\nrun = ["true"]\n'
        '[[files]]\npath = "/etc/x"\nsource = "beside"\nmode = "4755"\nowner = "1:2"\n'
    )
    read = recipe.load(str(path))
    assert read.packages == ("aa", "bb")
    assert read.files == (recipe.ExtraFile("etc/x", b"\x00\xff", 0o4755, 1, 2),)
    digest = read.digest
    path.write_text(path.read_text().replace('["true"]', '[ "true" ] # the same'))
    assert recipe.load(str(path)).digest == digest
    (tmp_path / "beside").write_bytes(b"other")
    assert recipe.load(str(path)).digest != digest


@pytest.mark.parametrize(("text", "complaint"), [
    ("suite = ", "not TOML"),
    ("", "no suite"),
    ("suite = 3", "suite = 3"),
    ('suite = "x"\nvariant = "fat"', "variant = 'fat'"),
    ('suite = "x"\nmirror = "y"', "unknown key 'mirror'"),
    ('suite = "x"\npackages = ["A b"]', "packages"),
    ('suite = "x"\n[[files]]\npath = "/../etc"\ncontent = ""', "path = '/../etc'"),
    ('suite = "x"\n[[files]]\npath = "/a"', "the file /a"),
    ('suite = "x"\n[[files]]\npath = "/a"\nsource = "nowhere"', "nowhere.*No such file"),
])  # fmt: skip
def test_bad_recipes_are_refused(tmp_path: Path, text: str, complaint: str) -> None:
    (tmp_path / "bad.toml").write_text(text)
    with pytest.raises(UserError, match=complaint):
        recipe.load(str(tmp_path / "bad.toml"))


def test_an_unknown_recipe_is_told_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="bookworm-minbas") as caught:
        recipe.load("bookworm-minbas")
    assert "bookworm-buildd" in caught.value.remedy


_DEB822 = """\
Types: deb deb-src
URIs: http://a.example/debian
Suites: bookworm bookworm-updates bookworm-backports
Components: main contrib
# a comment
Signed-By: /usr/share/keyrings/k.gpg

Types: deb
URIs: http://a.example/security
Suites: bookworm-security
Components: main

Types: deb
Enabled: no
URIs: http://a.example/off
Suites: bookworm
Components: main
"""


def test_the_systems_sources_become_those_of_a_suite(tmp_path: Path) -> None:
    (tmp_path / "sources.list").write_text(
        "# deb http://old.example x main\ndeb-src http://b.example bookworm main\n"
        "deb [arch=amd64 signed-by=/k.gpg] http://b.example bookworm main non-free # comment\n"
    )
    assert sources.for_suite("bookworm", ["main"], [], tmp_path) == [
        "deb [signed-by=/k.gpg] http://b.example bookworm main"
    ]
    (tmp_path / "sources.list").unlink()
    (tmp_path / "sources.list.d").mkdir()
    (tmp_path / "sources.list.d/debian.sources").write_text(_DEB822)
    assert sources.for_suite("bookworm", ["main"], [], tmp_path) == [
        "deb [signed-by=/usr/share/keyrings/k.gpg] http://a.example/debian bookworm main",
        "deb [signed-by=/usr/share/keyrings/k.gpg] http://a.example/debian bookworm-updates main",
        "deb http://a.example/security bookworm-security main",
    ]
    trixie = sources.for_suite("trixie", ["main"], [], tmp_path)
    assert "deb http://a.example/security trixie-security main" in trixie
    assert not any("bookworm" in line for line in trixie)


def test_mirrors_replace_the_systems_sources(tmp_path: Path) -> None:
    lines = sources.for_suite("sid", ["main", "contrib"], ["http://m.example/debian", "deb http://x y z"], tmp_path)
    assert lines == ["deb http://m.example/debian sid main contrib", "deb http://x y z"]
    with pytest.raises(UserError, match="not a URI"):
        sources.for_suite("sid", ["main"], ["m.example"], tmp_path)
    with pytest.raises(HostError, match="no apt source"):
        sources.for_suite("sid", ["main"], [], tmp_path)


def test_a_lock_file_comes_back_as_it_was(tmp_path: Path) -> None:
    packages = (lock.Locked("b", "1:2~x+y", "all", "ab" * 32, 7), lock.Locked("a", "1", "amd64", "cd" * 32, 8))
    path = tmp_path / "lock"
    path.write_text(lock.Lock("r", "i", packages).text())
    read = lock.load(path)
    assert (read.recipe, read.image, set(read.packages)) == ("r", "i", set(packages))
    assert [package.wanted for package in sorted(packages)] == ["a:amd64=1", "b=1:2~x+y"]


@pytest.mark.parametrize("text", ["version = 1", "x", "version = 1\nrecipe = ''\nimage = ''\npackage = [{name = 1}]"])
def test_what_is_no_lock_file_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "lock").write_text(text)
    with pytest.raises(UserError, match="not a lock file"):
        lock.load(tmp_path / "lock")


def test_a_lock_file_of_another_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "lock").write_text("version = 2\n")
    with pytest.raises(UserError, match="version 2, expected 1"):
        lock.load(tmp_path / "lock")
