"""Lock files: every package of an image with version and digest, in TOML; nothing about where they came from."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from detbox.errors import UserError
from detbox.images.dpkg import stanzas

VERSION = 1


@dataclass(frozen=True, order=True)
class Locked:
    """One package: its file is known by its SHA-256 (hex) and size in bytes."""

    name: str
    version: str
    architecture: str
    sha256: str
    size: int

    @property
    def wanted(self) -> str:
        """As apt names it."""
        return f"{self.name}:{self.architecture}={self.version}" if self.architecture != "all" else (
            f"{self.name}={self.version}")  # fmt: skip


@dataclass(frozen=True)
class Lock:
    """A lock file's content: the recipe's digest, the image's, and the packages."""

    recipe: str
    image: str
    packages: tuple[Locked, ...]

    def text(self) -> str:
        """As a file."""
        lines = [f"version = {VERSION}", f'recipe = "{self.recipe}"', f'image = "{self.image}"']
        for package in sorted(self.packages):
            lines += ["", "[[package]]"]
            lines += [f"{name} = {json.dumps(getattr(package, name))}" for name in Locked.__dataclass_fields__]
        return "\n".join(lines) + "\n"


def load(path: Path) -> Lock:
    """Reads a lock file.  Raises UserError."""
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
        if raw.get("version") != VERSION:
            raise UserError(
                f"the lock file {path} has version {raw.get('version')}, expected {VERSION}",
                "write a new one: detbox image build RECIPE --write-lock FILE",
            )
        packages = tuple(Locked(**package) for package in raw["package"])
        return Lock(str(raw["recipe"]), str(raw["image"]), packages)
    except OSError as error:
        raise UserError(f"the lock file {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
        raise UserError(f"{path} is not a lock file: {error}") from None


def known_packages(index: str) -> dict[tuple[str, str, str], Locked]:
    """The packages of an archive's index (stanzas with at least the fields that are locked), by identity."""
    found = {}
    for fields in stanzas(index):
        key = (fields.get("Package", ""), fields.get("Version", ""), fields.get("Architecture", ""))
        if "SHA256" in fields:
            found[key] = Locked(*key, fields["SHA256"], int(fields.get("Size", 0)))
    return found


def choose(installed: Iterable[tuple[str, str, str]], known: dict[tuple[str, str, str], Locked]) -> list[Locked]:
    """What is installed, as the archive describes it; a package that it does not have is left out."""
    return [known[key] for key in installed if key in known]
