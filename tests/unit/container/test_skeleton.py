"""The directories that are kept for an ordinary user's runs: always what making them anew would give."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from detbox.container import skeleton
from detbox.errors import HostError
from detbox.images.inside import as_owner
from detbox.kernel import _native
from detbox.report.scratch import remove_tree

TOPS = ["a", "b"]
_TICK_S = 0.02  # longer than a tick of the kernel's clock, which times of change are taken from


class Place:
    """A system, and the place of its tree."""

    def __init__(self, base: Path) -> None:
        self.system, self.place = base / "system", base / "place"
        for top in TOPS:
            (self.system / top).mkdir(parents=True)
        self.place.mkdir()
        self.tree = Path(skeleton.tree(str(self.place)))
        self.lock = os.open(self.place, os.O_RDONLY)
        fcntl.flock(self.lock, fcntl.LOCK_SH)

    def look(self) -> skeleton.Kept | None:
        """What a run gets."""
        root = os.open(self.system, os.O_PATH)
        try:
            return skeleton.renew(str(self.place), self.lock, TOPS, root)
        finally:
            os.close(root)

    @contextlib.contextmanager
    def writes_list(self, expected: bool) -> Iterator[None]:
        """Whether the list is written within; the old one stays open, so that no other gets its inode number."""
        with (self.place / "list").open() as before:
            yield
            same = os.path.samestat(os.fstat(before.fileno()), (self.place / "list").stat())
            assert same is not expected

    def renew(self) -> list[bytes] | None:
        """The hidden directories, sorted."""
        kept = self.look()
        return None if kept is None else sorted(kept.hidden)

    def merged(self, kept: skeleton.Kept, upper: Path) -> list[tuple[str, int, list[str]]]:
        """The directories of the tree with what is above them, as an overlay shows them."""
        system = os.open(self.system, os.O_PATH)
        upper.mkdir()
        skeleton.lay(str(upper), system, kept.above)
        os.close(system)
        shown = {path: (mode, attributes) for path, mode, attributes in listed(self.tree)}
        for where, _, files in os.walk(upper):
            directory = os.path.relpath(where, upper)
            if directory != ".":
                shown[directory] = (os.stat(where).st_mode, os.listxattr(where))
            for name in files:
                assert os.lstat(f"{where}/{name}").st_rdev == 0
                gone = f"{directory}/{name}"
                shown = {path: of for path, of in shown.items() if path != gone and not path.startswith(gone + "/")}
        return sorted((path, mode, attributes) for path, (mode, attributes) in shown.items())

    def anew(self, target: Path) -> list[bytes]:
        """The same made in the other way, below ``target``, with the rights that a container has."""
        return as_owner(lambda: self._anew(target))

    def _anew(self, target: Path) -> list[bytes]:
        hidden = []
        mask = os.umask(0)
        for top in TOPS:
            (target / top).mkdir(parents=True)
            (target / top).chmod((self.system / top).stat().st_mode & 0o7777)
            fds = [os.open(path / top, os.O_RDONLY | os.O_DIRECTORY) for path in (self.system, target)]
            hidden += [os.fsencode(top) + path for path in _native.make_directories(*fds, 1 << 20, 0o5, 1, True)]
            for fd in fds:
                os.close(fd)
        os.umask(mask)
        return sorted(hidden)


def listed(top: Path) -> list[tuple[str, int, list[str]]]:
    """All directories below the tops: their paths, modes and attributes."""
    return sorted(
        (os.path.relpath(path, top), os.stat(path).st_mode, os.listxattr(path))
        for name in TOPS
        for path, _, _ in os.walk(top / name)
    )


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    """Where a directory counts as unchanged soon after a change."""
    monkeypatch.setattr(skeleton, "_FRESH_NS", 0)
    made = Place(tmp_path)
    yield made
    os.close(made.lock)


def populate(system: Path) -> None:
    for number in range(40):
        (system / f"a/a{number % 3}/b{number % 7}/c{number}/d/e").mkdir(parents=True)
    (system / "a/file").write_text("x")
    (system / "b/link").symlink_to("../a")
    (system / "a/a0").chmod(0o2775)
    (system / "a/a1/b1").chmod(0o1777)
    (system / "a/a2/b2").chmod(0o711)
    (system / "a/a2/b5").chmod(0o700)
    (system / "a/a0/b0").chmod(0o555)


def test_the_tree_is_what_would_be_made(place: Place, tmp_path: Path) -> None:
    populate(place.system)
    assert place.renew() == place.anew(tmp_path / "made") == [b"a/a2/b2", b"a/a2/b5"]
    assert listed(place.tree) == listed(tmp_path / "made")


_PATHS = st.sampled_from([f"{top}{one}{two}" for top in TOPS for one in ("", "/x", "/y") for two in ("", "/p", "/q")])
_STEPS = st.lists(
    st.tuples(st.sampled_from(["make", "remove", "file", "mode", "rename"]), _PATHS, _PATHS), min_size=1, max_size=6
)


def _step(system: Path, what: str, path: str, other: str) -> None:
    one, two = system / path, system / other
    try:
        if what == "make":
            one.mkdir(parents=True)
        elif what == "remove":
            shutil.rmtree(one) if one.is_dir() else one.unlink()
        elif what == "file":
            one.write_text("")
        elif what == "mode":
            one.chmod({"x": 0o700, "y": 0o711, "p": 0o1777, "q": 0o555}.get(other[-1] if "/" in path else "", 0o755))
        else:
            one.rename(two)
    except OSError:
        pass


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(_STEPS, min_size=1, max_size=4), st.sampled_from([0, 3, 64]), st.booleans())
def test_any_change_is_noticed(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, str, str]]], few: int, in_use: bool
) -> None:
    """``few``: as many changes are laid above the tree; so are all while another run uses it."""
    base = tmp_path_factory.mktemp("changes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(skeleton, "_FRESH_NS", 0)
        patch.setattr(skeleton, "_FEW", few)
        place = Place(base)
        place.renew()
        other = os.open(place.place, os.O_RDONLY)
        if in_use:
            fcntl.flock(other, fcntl.LOCK_SH)
        for number, steps in enumerate(rounds):
            for step in steps:
                _step(place.system, *step)
            for top in TOPS:
                if (place.system / top).is_file():
                    (place.system / top).unlink()
                (place.system / top).mkdir(exist_ok=True)
            kept, target = place.look(), base / f"made{number}"
            hidden = place.anew(target)
            if kept is None:
                assert in_use
            else:
                assert sorted(kept.hidden) == hidden
                assert place.merged(kept, base / f"upper{number}") == listed(target)
                assert few or in_use or not kept.above
            time.sleep(_TICK_S)
        os.close(place.lock)
        os.close(other)


def test_what_was_noted_in_the_moment_of_its_change_is_looked_at_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(skeleton, "_FEW", 0)  # so that it shows
    place = Place(tmp_path)
    place.renew()
    with place.writes_list(True):
        place.renew()
    os.close(place.lock)


def test_nothing_is_written_if_nothing_has_changed(place: Place) -> None:
    populate(place.system)
    time.sleep(_TICK_S)
    first = place.renew()
    with place.writes_list(False):
        assert place.renew() == first


def test_a_tree_in_use_is_not_changed(place: Place, tmp_path: Path) -> None:
    populate(place.system)
    place.renew()
    other = os.open(place.place, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_SH)
    time.sleep(_TICK_S)
    (place.system / "b/file").write_text("")
    assert place.renew() is not None  # what the tree does not show may change
    (place.system / "b/new").mkdir()
    (place.system / "b/shut").mkdir(0o700)
    assert place.renew() is None  # a layer above cannot show it empty
    assert not (place.tree / "b/new").exists()
    os.close(other)
    assert place.look() == ([*place.anew(tmp_path / "made")], [])
    assert (place.tree / "b/new").exists()


@pytest.mark.parametrize("few", [0, 64])
def test_a_few_changes_are_laid_above(place: Place, monkeypatch: pytest.MonkeyPatch, few: int) -> None:
    populate(place.system)
    place.renew()
    monkeypatch.setattr(skeleton, "_FEW", few)
    time.sleep(_TICK_S)
    (place.system / "b/file").write_text("")
    (place.system / "b/new").mkdir(0o750)
    (place.system / "b/new").chmod(0o755)
    (place.system / "a/a0/b0").chmod(0o755)
    shutil.rmtree(place.system / "a/a1")
    with place.writes_list(not few):
        kept = place.look()
    assert kept is not None
    assert bool(kept.above) is bool(few)
    assert (place.tree / "b/new").exists() is not bool(few)


def test_what_cannot_be_laid_above_is_written_down(place: Place) -> None:
    populate(place.system)
    (place.system / "a/x").mkdir()
    place.renew()
    time.sleep(_TICK_S)
    (place.system / "a/x").rmdir()
    (place.system / "a/x").write_text("what a directory was")
    assert place.look() == ([b"a/a2/b2", b"a/a2/b5"], [])
    assert not (place.tree / "a/x").exists()
    time.sleep(_TICK_S)
    (place.system / "a/a2/b5").chmod(0o755)
    assert place.look() == ([b"a/a2/b2"], [])


@pytest.mark.parametrize("damage", ["cut", "changed", "removed", "no tree"])
def test_damage_makes_it_anew(place: Place, tmp_path: Path, damage: str) -> None:
    populate(place.system)
    hidden = place.renew()
    path = place.place / "list"
    data = path.read_bytes()
    if damage == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "changed":
        path.write_bytes(data[:200] + bytes([data[200] ^ 1]) + data[201:])
    elif damage == "removed":
        path.unlink()
    else:
        remove_tree(place.tree)
    (place.tree / "a/a0/left").mkdir(parents=True)
    assert place.renew() == hidden
    place.anew(tmp_path / "made")
    assert listed(place.tree) == listed(tmp_path / "made")


def test_too_many_are_not_kept(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skeleton, "_MOST", 10)
    populate(place.system)
    assert place.renew() is None
    assert place.renew() is None
    assert not list(place.tree.iterdir())
    monkeypatch.setattr(skeleton, "_MOST", 1000)
    old = time.time() - 8 * 86400
    os.utime(place.place / "list", (old, old))
    assert place.renew() is not None


def test_what_cannot_be_made_is_not_tried_each_time(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    populate(place.system)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "setxattr", full)
        assert place.renew() is None
    assert place.renew() is None
    assert not place.tree.exists()


def test_a_tree_that_lacks_something_is_found_out(place: Place) -> None:
    populate(place.system)
    place.renew()
    skeleton.Wholeness(place.lock).demand()
    (place.tree / "a/a1/b1/c1/d/e").rmdir()
    whole = skeleton.Wholeness(place.lock)
    with pytest.raises(HostError, match="a/a1/b1/c1/d/e"):
        whole.demand()
    whole.demand()  # who has been told once is not told again
    assert place.renew() is not None
    assert (place.tree / "a/a1/b1/c1/d/e").is_dir()


@pytest.mark.parametrize("what", ["list", "tree", "place"])
def test_a_tree_that_is_removed_while_it_is_used_is_missed(place: Place, what: str) -> None:
    populate(place.system)
    place.renew()
    path = place.place if what == "place" else place.place / what
    for directory, _, _ in os.walk(path):
        os.chmod(directory, 0o700)
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(HostError, match="gone from detbox's cache"):
        skeleton.Wholeness(place.lock).demand()
