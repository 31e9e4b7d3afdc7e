"""Rebuilds what a .buildinfo file describes, with the packages that it lists, and compares the checksums."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from detbox.deb import build, control
from detbox.deb.apt import Apt, Package
from detbox.deb.build import Job
from detbox.deb.plan import BuildOptions
from detbox.deb.root import exact_root
from detbox.errors import UserError
from detbox.images.store import Image, Store
from detbox.report.verify import Progress

_NEEDED = ("format", "source", "version", "architecture", "checksums-sha256", "installed-build-depends")
_DEPENDENCY = re.compile(r"([a-z0-9][a-z0-9+.-]*)(?::(\w+))? \(= ([^)\s]+)\)")
_SOURCE = re.compile(r"(\S+)(?: \(([^)]+)\))?")
_VARIABLE = re.compile(r'^(\w+)="(.*)"$', re.MULTILINE)


@dataclass(frozen=True)
class Record:
    """What a .buildinfo says."""

    source: str
    version: str  # of the source
    installed: tuple[Package, ...]
    checksums: dict[str, str]  # SHA-256 by name
    parallel: int
    flags: tuple[str, ...]
    kind: str


@dataclass(frozen=True)
class Compared:
    """Names of results by how they compare with the record."""

    same: tuple[str, ...]
    different: tuple[str, ...]
    missing: tuple[str, ...]

    @property
    def identical(self) -> bool:
        """Whether everything recorded was made again, bit for bit."""
        return not self.different and not self.missing

    def lines(self) -> list[str]:
        """The result as text."""
        found = [f"identical: {name}" for name in self.same]
        found += [f"DIFFERENT: {name}" for name in self.different]
        return found + [f"not built: {name}" for name in self.missing]


def read(path: Path) -> Record:
    """Read a .buildinfo of format 1.0.  Raises UserError."""
    fields = control.first_stanza(path, *_NEEDED)
    if not fields["format"].startswith("1."):
        raise UserError(f"{path}: format {fields['format']}, expected 1.0")
    named = _SOURCE.match(fields["source"])
    assert named is not None  # first_stanza has seen to it that the field exists; \S+ matches any word
    dependencies = _DEPENDENCY.findall(fields["installed-build-depends"])
    installed = tuple(Package(name, version, arch or "") for name, arch, version in dependencies)
    words = dict(_VARIABLE.findall(fields.get("environment", ""))).get("DEB_BUILD_OPTIONS", "").split()
    parallel = [int(word.removeprefix("parallel=")) for word in words if re.fullmatch(r"parallel=\d+", word)]
    architectures = fields["architecture"].split()
    kind = "all" if architectures == ["all"] else "binary" if "all" in architectures else "any"
    if "source" in architectures and len(architectures) == 1:
        raise UserError(f"{path} describes a source package only", "there is nothing to rebuild")
    listed = control.listed_files(fields, path)
    return Record(
        named[1], named[2] or fields["version"], installed,
        {entry.name: entry.sha256 for entry in listed if not entry.name.endswith(".dsc")},
        (parallel or [4])[0], tuple(word for word in words if not word.startswith("parallel=")), kind,
    )  # fmt: skip


def job(record: Record, store: Store, image: Image, apt: Apt, work: Path, progress: Progress) -> Job:
    """Source and build root as they were.  Raises UserError if the archive has other versions by now."""
    progress("fetching the source")
    source = build.fetch(f"{record.source}={record.version}", work, apt)
    progress("preparing the build root")
    root = exact_root(store, image, apt, list(record.installed))
    options = BuildOptions(parallel=record.parallel, flags=record.flags, kind=record.kind)
    return Job(source, work, root, options)


def compare(record: Record, artefacts: dict[str, str]) -> Compared:
    """What was built against what was recorded."""
    same: list[str] = []
    different: list[str] = []
    missing: list[str] = []
    for name, digest in sorted(record.checksums.items()):
        bucket = missing if name not in artefacts else same if artefacts[name] == digest else different
        bucket.append(name)
    return Compared(tuple(same), tuple(different), tuple(missing))
