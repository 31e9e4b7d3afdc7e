"""Recipes: what a root file system is made of, in TOML.

::

    suite = "bookworm"
    variant = "minbase"          # as mmdebstrap(1) has it
    components = ["main"]
    packages = ["python3-numpy"]
    run = ["ldconfig"]           # shell commands inside, without network
    [[files]]
    path = "/etc/motd"
    content = "hello\\n"          # or: source = "file beside the recipe"
    mode = "0644"
    owner = "0:0"

A recipe never names a mirror: that belongs to the machine.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
import sysconfig
import tomllib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from detbox.errors import UserError
from detbox.values import suggestion

VARIANTS = ("minbase", "buildd", "apt", "required", "important", "standard", "essential", "custom", "extract")
_SUITE = re.compile(r"[a-z0-9][a-z0-9./-]*")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9-]+)?")
_MODE = re.compile(r"[0-7]{3,4}")
_OWNER = re.compile(r"\d{1,9}:\d{1,9}")


@dataclass(frozen=True)
class ExtraFile:
    """A file that is put into the image; ``path`` is relative to the root."""

    path: str
    content: bytes
    mode: int = 0o644
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class Recipe:
    """A validated recipe."""

    name: str
    suite: str
    variant: str = "minbase"
    components: tuple[str, ...] = ("main",)
    packages: tuple[str, ...] = ()
    run: tuple[str, ...] = ()
    files: tuple[ExtraFile, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of everything that the recipe says, in hex; its name and layout do not count."""
        said = asdict(self)
        del said["name"]
        for file in said["files"]:
            file["content"] = hashlib.sha256(file["content"]).hexdigest()
        return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def folders() -> list[Path]:
    """Where recipes that come with detbox are: a checkout's, or an installation's."""
    checkout = Path(__file__).parents[2] / "rootfs-builder"
    return [checkout, Path(sysconfig.get_path("data")) / "share/detbox/rootfs-builder"]


def shipped() -> dict[str, Path]:
    """The recipes that come with detbox, by name."""
    return {path.stem: path for folder in reversed(folders()) for path in sorted(folder.glob("*.toml"))}


def default_suite() -> str:
    """The system's own release, if a recipe for its build root comes with detbox, else Debian 12: a suite's name."""
    try:
        own = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    except OSError:
        own = ""
    return own if f"{own}-buildd" in shipped() else "bookworm"


def load(given: str) -> Recipe:
    """The recipe in a file, or the one of this name that comes with detbox.  Raises UserError."""
    known = shipped()
    path = Path(given)
    if "/" not in given and not given.endswith(".toml"):
        if given not in known:
            names = ", ".join(known) or "none"
            raise UserError(
                f"there is no recipe {given!r}{suggestion(given, tuple(known))}",
                f"name a file, or one of these: {names}",
            )
        path = known[given]
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"the recipe {given}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"the recipe {given} is not TOML: {error}") from None
    return _Reader(given, path.parent).recipe(path.stem, raw)


class _Reader:
    """Checks what a recipe says; complaints name the recipe."""

    def __init__(self, given: str, folder: Path) -> None:
        self.given = given
        self.folder = folder

    def recipe(self, name: str, raw: dict[str, Any]) -> Recipe:
        self._known(raw, Recipe.__dataclass_fields__.keys() - {"name"}, "")
        variant = raw.get("variant", "minbase")
        if variant not in VARIANTS:
            raise self._wrong(f"variant = {variant!r}", f"one of: {', '.join(VARIANTS)}")
        return Recipe(
            name,
            self._text(raw, "suite", _SUITE),
            variant,
            self._texts(raw, "components", re.compile(r"[a-z-]+")) or ("main",),
            tuple(sorted(set(self._texts(raw, "packages", _PACKAGE)))),
            self._texts(raw, "run", re.compile(r"[^\0]+")),
            tuple(self._file(entry) for entry in raw.get("files", ())),
        )

    def _file(self, raw: Any) -> ExtraFile:
        if not isinstance(raw, dict):
            raise self._wrong("files", "write [[files]] with path and content")
        self._known(raw, {"path", "content", "source", "mode", "owner"}, "files: ")
        path = self._text(raw, "path", re.compile(r"/[^\0]+"))
        parts = path.split("/")[1:]
        if any(part in ("", ".", "..") for part in parts):
            raise self._wrong(f"path = {path!r}", "write an absolute path without . and ..")
        if ("content" in raw) == ("source" in raw):
            raise self._wrong(f"the file {path}", "give either its content or its source")
        uid, gid = self._text(raw, "owner", _OWNER, "0:0").split(":")
        mode = int(self._text(raw, "mode", _MODE, "0644"), 8)
        return ExtraFile("/".join(parts), self._content(raw), mode, int(uid), int(gid))

    def _content(self, raw: dict[str, Any]) -> bytes:
        if "content" in raw:
            return self._text(raw, "content", re.compile(r"(?s).*")).encode()
        try:
            return (self.folder / self._text(raw, "source", re.compile(r"[^\0]+"))).read_bytes()
        except OSError as error:
            raise self._wrong(f"source = {raw['source']!r}: {error.strerror}", "name a file beside the recipe")

    def _known(self, raw: dict[str, Any], names: set[str], where: str) -> None:
        for name in raw:
            if name not in names:
                hint = suggestion(name, tuple(sorted(names)))
                raise self._wrong(f"{where}unknown key {name!r}{hint}", f"known: {', '.join(sorted(names))}")

    def _text(self, raw: dict[str, Any], key: str, pattern: re.Pattern[str], default: str | None = None) -> str:
        value = raw.get(key, default)
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise self._wrong(f"{key} = {value!r}" if key in raw else f"no {key}", f"{key}: {_EXPECTED[key]}")
        return value

    def _texts(self, raw: dict[str, Any], key: str, pattern: re.Pattern[str]) -> tuple[str, ...]:
        value = raw.get(key, [])
        if not isinstance(value, list) or any(not isinstance(v, str) or not pattern.fullmatch(v) for v in value):
            raise self._wrong(f"{key} = {value!r}", f"{key}: {_EXPECTED[key]}")
        return tuple(value)

    def _wrong(self, what: str, remedy: str) -> UserError:
        return UserError(f"the recipe {self.given}: {what}", remedy)


_EXPECTED = {
    "suite": 'a release, such as "bookworm"',
    "components": 'a list such as ["main", "contrib"]',
    "packages": "a list of package names",
    "run": "a list of shell commands",
    "path": 'an absolute path in the image, such as "/etc/motd"',
    "content": "text",
    "source": "the name of a file beside the recipe",
    "mode": 'text such as "0644"',
    "owner": 'text such as "0:0"',
}

