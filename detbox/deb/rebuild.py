"""Rebuilds what a .buildinfo file describes, with the packages that it lists, and compares the checksums."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from detbox.deb import build, control, plan
from detbox.deb.apt import Apt, Package
from detbox.deb.build import Job
from detbox.deb.plan import BuildOptions
from detbox.deb.root import BUILD_DIR, exact_root
from detbox.deb.source import Source
from detbox.errors import UserError
from detbox.images.store import Image, Store
from detbox.report.verify import Progress

_NEEDED = ("format", "source", "version", "architecture", "checksums-sha256", "installed-build-depends")
_DEPENDENCY = re.compile(r"([a-z0-9][a-z0-9+.-]*)(?::(\w+))? \(= ([^)\s]+)\)")
_SOURCE = re.compile(r"(\S+)(?: \(([^)]+)\))?")
_ENTRY = re.compile(r"^Binary-Only-Changes:[ ]*\n((?:[ ].*\n)+)", re.MULTILINE)
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
    architectures: tuple[str, ...]
    path: str = ""  # where the source was unpacked, if it was where build machines have it
    variables: tuple[tuple[str, str], ...] = ()
    entry: str = ""  # of the changelog, of a build that only changes the version


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


#: What dpkg-buildpackage of Build-Origin sets by itself, and will set again.
_SET_BY_DPKG = {"Ubuntu": (("DEB_BUILD_PROFILES", "noudeb"), ("LANG", "C.UTF-8"))}


def read(record: Path) -> Record:
    """Read a .buildinfo of format 1.0.  Raises UserError."""
    fields = control.first_stanza(record, *_NEEDED)
    if not fields["format"].startswith("1."):
        raise UserError(f"{record}: format {fields['format']}, expected 1.0")
    named = _SOURCE.match(fields["source"])
    assert named is not None  # first_stanza has seen to it that the field exists; \S+ matches any word
    dependencies = _DEPENDENCY.findall(fields["installed-build-depends"])
    installed = tuple(Package(name, version, arch or "") for name, arch, version in dependencies)
    environment = dict(_VARIABLE.findall(fields.get("environment", "")))
    for name, value in _SET_BY_DPKG.get(fields.get("build-origin", ""), ()):
        if environment.get(name) == value:
            del environment[name]
    words = environment.pop("DEB_BUILD_OPTIONS", "").split()
    parallel = [int(word.removeprefix("parallel=")) for word in words if re.fullmatch(r"parallel=\d+", word)]
    architectures = tuple(fields["architecture"].split())
    if architectures == ("source",):
        raise UserError(f"{record} describes a source package only", "there is nothing to rebuild")
    path = fields.get("build-path", "")
    listed = control.listed_files(fields, record)
    return Record(
        named[1], named[2] or fields["version"], installed,
        {entry.name: entry.sha256 for entry in listed if not entry.name.endswith(".dsc")},
        (parallel or [4])[0], tuple(word for word in words if not word.startswith("parallel=")), architectures,
        path if plan.PATH.fullmatch(path) else "", tuple(environment.items()), _entry(record),
    )  # fmt: skip


def kind_of(record: Record, source: Collection[str]) -> str:
    """What was built, by the record's architectures and those of the source.

    A build of everything that there is looks the same in a record as one of some packages where there are no others.
    """
    if "all" in source and "all" not in record.architectures:
        return "any"
    return "all" if record.architectures == ("all",) and set(source) != {"all"} else "binary"


def _entry(record: Path) -> str:
    """The field Binary-Only-Changes as it is in a changelog, with the white space that begins its lines."""
    found = _ENTRY.search(record.read_text(encoding="utf-8"))
    lines = found[1].splitlines() if found else []
    return "".join(("" if line == " ." else line[1:]) + "\n" for line in lines)


def job(record: Record, beside: Path, store: Store, image: Image, apt: Apt, work: Path, progress: Progress) -> Job:
    """Source and build root as they were.

    ``beside``: a directory that may have the source.  Raises UserError if the archive has other versions by now.
    """
    progress("fetching the source")
    dsc = beside / f"{record.source}_{control.without_epoch(record.version)}.dsc"
    source = build.fetch(str(dsc) if dsc.is_file() else f"{record.source}={record.version}", work, apt)
    progress("preparing the build root")
    root = exact_root(store, image, apt, list(record.installed))
    return Job(source, work, root, _options(record, source))


def _options(record: Record, source: Source) -> BuildOptions:
    """What differs from how detbox builds.  The rest is left out, since random numbers depend on the environment."""
    fields = control.first_stanza(source.place / source.dsc)
    upstream = control.without_epoch(source.version).rpartition("-")
    usual = f"{BUILD_DIR}/{source.name}/{source.name}-{upstream[0] or upstream[2]}"
    known = ("SOURCE_DATE_EPOCH", str(source.epoch_s))
    return BuildOptions(
        parallel=record.parallel,
        flags=record.flags,
        kind=kind_of(record, fields.get("architecture", "any").split()),
        path="" if record.path == usual else record.path,
        variables=tuple(pair for pair in record.variables if pair != known),
        entry=record.entry,
    )


def compare(record: Record, artefacts: dict[str, str]) -> Compared:
    """What was built against what was recorded."""
    same: list[str] = []
    different: list[str] = []
    missing: list[str] = []
    for name, digest in sorted(record.checksums.items()):
        bucket = missing if name not in artefacts else same if artefacts[name] == digest else different
        bucket.append(name)
    return Compared(tuple(same), tuple(different), tuple(missing))
