"""The store: images by their digest, names for them, and layers by their key.

::

    images/DIGEST/{root,manifest,owners,info.json}    flat trees, see detbox.images.tree
    names/NAME.json                                   what a name means, and how the image was made
    layers/SHA256-OF-KEY.json                         the image that a layer is
    locks/, tmp/                                      of makers at work

What is in ``images`` is complete: it is made in ``tmp`` and then renamed.  Whoever uses an image holds a shared
lock on its directory; it is removed only under an exclusive one.  Only the user may enter the store, so a
set-user-id file in it serves nobody else.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from detbox.errors import HostError, UserError, is_full_disk
from detbox.images import dpkg, inside, manifest, tidy, tree
from detbox.images.manifest import Entry
from detbox.values import own_directory

if TYPE_CHECKING:
    from detbox.images.recipe import Recipe

FORMAT = "detbox store 1\n"
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_DIGEST = re.compile(r"(sha256:)?[0-9a-f]{12,64}")


def default_path(env: Mapping[bytes, bytes]) -> Path:
    """Where the store is unless told otherwise: DETBOX_STORE, or in the user's data directory."""
    given = env.get(b"DETBOX_STORE")
    return Path(os.fsdecode(given)) if given else Path(own_directory("data", env), "store")


@dataclass(frozen=True)
class Image:
    """A complete image in a store.  ``name`` is "" if it was asked for otherwise; ``digest`` is hex."""

    name: str
    digest: str
    place: Path

    @property
    def root(self) -> Path:
        """The unpacked directory, for ``detbox run --image``.  It must not be changed."""
        return self.place / "root"

    @cached_property
    def entries(self) -> list[Entry]:
        """The manifest."""
        path = self.place / "manifest"
        return manifest.parse(path.read_bytes(), str(path))

    @cached_property
    def info(self) -> dict[str, Any]:
        """What is derived from the content: ``size`` in bytes, ``files``, ``packages``."""
        info: dict[str, Any] = json.loads((self.place / "info.json").read_text())
        return info

    @property
    def packages(self) -> list[tuple[str, str, str]]:
        """(name, version, architecture) of every installed Debian package."""
        return [(name, version, arch) for name, version, arch in self.info["packages"]]


class Store:
    """A store in a directory, made when something is first added.  Raises HostError for another format."""

    def __init__(self, path: Path | None = None) -> None:
        self.path = (path or default_path(os.environb)).absolute()
        marker = self.path / "FORMAT"
        if marker.exists() and marker.read_text() != FORMAT:
            found = marker.read_text()[:60].strip()
            raise HostError(
                f"{self.path} is a store of format {found!r}, expected {FORMAT.strip()!r}",
                "give another directory with --store",
            )

    # ----------------------------------------------------------------- look up

    def resolve(self, name: str) -> Image:
        """The image with this name or digest (at least 12 digits of it).  Raises UserError."""
        found = self.find(name)
        if found is None:
            known = ", ".join(sorted(self.names())) or "none yet"
            raise UserError(
                f"there is no image {name!r} in the store {self.path} (there are: {known})",
                "see `detbox image build --help`",
            )
        return found

    def find(self, name: str) -> Image | None:
        """The same; None if there is none."""
        if _NAME.fullmatch(name) and (record := self.record(name)) is not None:
            image = self._at(name, record["digest"])
            if image is None:
                raise HostError(f"the image {name} has lost its files", "run: detbox image check")
            return image
        if _DIGEST.fullmatch(name):
            wanted = name.removeprefix("sha256:")
            places = [entry.name for entry in self._entries("images") if entry.name.startswith(wanted)]
            if len(places) == 1:
                return self._at("", places[0])
        return None

    def names(self) -> list[str]:
        """All names."""
        return sorted(entry.name.removesuffix(".json") for entry in self._entries("names"))

    def record(self, name: str) -> dict[str, Any] | None:
        """What is known about a name: ``digest``, ``made`` (how), ``lock`` (text of the lock file or None)."""
        try:
            record: dict[str, Any] = json.loads((self.path / "names" / f"{name}.json").read_text())
        except FileNotFoundError:
            return None
        return record

    def images(self) -> list[Image]:
        """All images, with or without names, by digest."""
        found = (self._at("", entry.name) for entry in self._entries("images"))
        return sorted((image for image in found if image), key=lambda image: image.digest)

    def layer(self, key: str) -> Path | None:
        """The root of the layer with this key; None if it has not been made."""
        image = self.layer_image(key)
        return image.root if image else None

    def layer_image(self, key: str) -> Image | None:
        """The same as an image."""
        path = self._layer_record(key)
        try:
            digest = json.loads(path.read_text())["digest"]
        except FileNotFoundError:
            return None
        with contextlib.suppress(OSError):
            os.utime(path)  # for gc: when it was last used
        return self._at("", digest)

    def _at(self, name: str, digest: str) -> Image | None:
        place = self.path / "images" / digest
        return Image(name, digest, place) if (place / "manifest").exists() else None

    def _entries(self, kind: str) -> list[os.DirEntry[str]]:
        try:
            with os.scandir(self.path / kind) as listing:
                return [entry for entry in listing if not entry.name.startswith(".")]
        except FileNotFoundError:
            return []

    def _layer_record(self, key: str) -> Path:
        return self.path / "layers" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"

    # --------------------------------------------------------------------- add

    def add_tree(self, name: str | None, fill: Callable[[Path], list[Entry]], **record: Any) -> Image:
        """Adds the image that ``fill`` makes in an empty directory: a flat tree, with its entries returned.

        ``record``: kept with the name.  Raises UserError for a bad name, and what ``fill`` raises.
        """
        if name is not None:
            self.check_name(name)
        with self.workplace() as place:
            root = place / "root"
            root.mkdir()
            image = self._complete(place, fill(root))
            if name is None:
                return image
            self.set_name(name, image.digest, **record)
            return Image(name, image.digest, image.place)

    def import_tar(self, source: str, name: str, notice: Callable[[int], None] = lambda done: None) -> Image:
        """Adds the content of a tarball or an OCI layout under a name.

        ``notice`` hears how many bytes of a tarball have been read.  Raises UserError for what is no root file
        system, or tries to be more than one.
        """
        from detbox.images import oci, tarball

        if oci.is_layout(source):
            return self.add_tree(name, lambda root: oci.unpack(source, str(root)), made="import")
        return self.add_tree(name, lambda root: tarball.unpack_file(source, str(root), notice), made="import")

    def build(self, recipe: Recipe | str, name: str = "", **options: Any) -> Image:
        """Makes a recipe's image (a recipe, its file, or the name of one that comes with detbox).

        See :func:`detbox.images.bootstrap.build` for ``options``; ``name`` is the recipe's unless given.
        """
        from detbox.images import bootstrap
        from detbox.images import recipe as recipes

        wanted = recipes.load(recipe) if isinstance(recipe, str) else recipe
        return bootstrap.build(self, wanted, name or wanted.name, **options)

    def check_name(self, name: str) -> None:
        """UserError unless ``name`` can be an image's name."""
        if not _NAME.fullmatch(name) or _DIGEST.fullmatch(name):
            raise UserError(
                f"{name!r} cannot be an image's name", "use lower-case letters, digits, dots, - and _ (no digest)"
            )

    def set_name(self, name: str, digest: str, **record: Any) -> None:
        """From now on ``name`` means this image."""
        text = json.dumps({"version": 1, "digest": digest, **record}, indent=1, sort_keys=True)
        self._write(self.path / "names" / f"{name}.json", text)

    def make_layer(self, key: str, base: Image, fill: Callable[[Path], None]) -> Path:
        """The root of the layer with this key; if there is none yet, ``fill`` makes it out of a copy of ``base``.

        ``fill`` gets the copy's path.  It works in it with :func:`detbox.images.inside.run` or ``as_root``.  Two
        makers of one key do not work twice: the second one waits.  Nothing is kept of a failure.
        """
        lock = self._directory("locks") / f"{hashlib.sha256(key.encode()).hexdigest()}"
        with _locked(lock):
            known = self.layer(key)
            if known is not None:
                return known
            image = self.derive(base, fill)
            self._write(self._layer_record(key), json.dumps({"version": 1, "key": key, "digest": image.digest}))
            return image.root

    def derive(self, base: Image, fill: Callable[[Path], None]) -> Image:
        """The image that ``fill`` makes out of a copy of ``base``."""
        inside.check_subids()
        with self.hold(base), self.workplace() as place:
            root, source = place / "root", base.root
            owners = manifest.foreign_owners(base.entries)
            copied = inside.as_root(lambda: tree.copy(str(source), str(root), owners))
            fill(root)
            digests = {entry.path: entry.detail for entry in base.entries if entry.kind == "f"}

            def seal() -> list[Entry]:
                tidy.tidy(str(root))
                entries = tree.read(str(root), lambda st: digests.get(
                    copied.get((st.st_dev, st.st_ino, st.st_ctime_ns), b"")))  # fmt: skip
                tree.flatten(str(root), entries)
                return entries

            return self._complete(place, inside.as_root(seal))

    def _complete(self, place: Path, entries: Iterable[Entry]) -> Image:
        """Gives a finished tree in a work place its manifest, and moves it to where it belongs."""
        listed = list(entries)
        text = manifest.render(listed)
        digest = manifest.digest_of(text)
        made = Path(tempfile.mkdtemp(prefix="image-", dir=place))
        os.rename(place / "root", made / "root")
        (made / "manifest").write_bytes(text)
        owners = manifest.foreign_owners(listed)
        (made / "owners").write_text(
            json.dumps([[os.fsdecode(path), uid, gid] for path, (uid, gid) in sorted(owners.items())])
        )
        info = {
            "version": 1,
            "size": sum(entry.size for entry in listed),
            "files": len(listed),
            "packages": dpkg.installed(made / "root"),
        }
        (made / "info.json").write_text(json.dumps(info))
        target = self._directory("images") / digest
        with self._exclusive():
            if not (target / "manifest").exists():
                os.rename(made, target)
        return Image("", digest, target)

    # ------------------------------------------------------------------ places

    @contextlib.contextmanager
    def workplace(self) -> Iterator[Path]:
        """A directory for something unfinished.  It vanishes at the end, at the latest when the store is next
        used after its maker was killed."""
        top = self._directory("tmp")
        with self._exclusive():
            self._sweep(top)
            place = Path(tempfile.mkdtemp(dir=top))
            held = _lock_directory(place, fcntl.LOCK_EX)
        try:
            yield place
        except OSError as error:
            if is_full_disk(error):
                raise HostError(f"the disk is full: {error}", "make room, or give another --store") from error
            raise
        finally:
            remove_all(str(place))
            os.close(held)

    def _sweep(self, top: Path) -> None:
        """Removes what killed makers have left."""
        for entry in os.scandir(top):
            try:
                held = _lock_directory(Path(entry.path), fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                continue  # its maker is at work
            outside = Path(entry.path) / "outside"
            if outside.is_symlink():
                remove_all(os.readlink(outside))
            remove_all(entry.path)
            os.close(held)

    @contextlib.contextmanager
    def hold(self, image: Image) -> Iterator[None]:
        """Keeps an image from being removed meanwhile.  Raises UserError if that has happened already."""
        try:
            held = _lock_directory(image.place, fcntl.LOCK_SH)
        except FileNotFoundError:
            raise UserError(f"the image {image.name or image.digest} has been removed") from None
        try:
            yield
        finally:
            os.close(held)

    def _exclusive(self) -> contextlib.AbstractContextManager[None]:
        return _locked(self._directory("locks") / "store")

    def _directory(self, name: str) -> Path:
        place = self.path / name
        if not place.is_dir():
            try:
                self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
                self._write(self.path / "FORMAT", FORMAT)
                place.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                raise HostError(
                    f"the store {self.path} cannot be made: {error.strerror}", "give another one with --store"
                ) from error
        return place

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        fd, temporary = tempfile.mkstemp(prefix=".", dir=path.parent)
        with open(fd, "w", encoding="utf-8") as file:
            file.write(text)
        os.rename(temporary, path)

    # ------------------------------------------------------------------ remove

    def remove_name(self, name: str) -> None:
        """Forgets a name.  Raises UserError if there is none."""
        try:
            (self.path / "names" / f"{name}.json").unlink()
        except FileNotFoundError:
            raise UserError(f"there is no image {name!r} in the store") from None

    def collect(self, layers_unused_s: float) -> tuple[list[str], list[str]]:
        """Removes images that have no name and are no layer, and layers that were not used for so many seconds.

        Returns the digests of what was removed, and of what had to stay because something uses it.
        """
        removed: list[str] = []
        busy: list[str] = []
        with self._exclusive():
            self._sweep(self._directory("tmp"))
            needed = {record["digest"] for name in self.names() if (record := self.record(name)) is not None}
            for entry in self._entries("layers"):
                if time.time() - entry.stat().st_mtime >= layers_unused_s:
                    os.unlink(entry.path)
                else:
                    needed.add(json.loads(Path(entry.path).read_text())["digest"])
            for image in self.images():
                if image.digest not in needed:
                    (removed if self._remove_image(image) else busy).append(image.digest)
        return removed, busy

    def discard(self, image: Image) -> bool:
        """Removes an image unless a name, a layer or a run needs it; says whether it is gone."""
        with self._exclusive():
            records = [self.record(name) for name in self.names()]
            records += [json.loads(Path(entry.path).read_text()) for entry in self._entries("layers")]
            needed = image.digest in [record["digest"] for record in records if record]
            return not needed and self._remove_image(image)

    def _remove_image(self, image: Image) -> bool:
        try:
            held = _lock_directory(image.place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        gone = Path(tempfile.mkdtemp(dir=self._directory("tmp")))
        os.rename(image.place, gone / "image")
        remove_all(str(gone))
        os.close(held)
        return True


def remove_all(place: str) -> None:
    """Removes a directory of the store, or a work space outside of it, whoever its files belong to."""
    try:
        inside.as_owner(lambda: tree.remove(place))
    except OSError:  # files of other owners: a tree in the making
        inside.as_root(lambda: tree.remove(place))


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _lock_directory(place: Path, how: int) -> int:
    fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, how)
        os.stat(place)  # it may have been moved away while this waited
    except OSError:
        os.close(fd)
        raise
    return fd
