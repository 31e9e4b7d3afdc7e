"""Source packages: where they come from, what was checked, and what a build must know of them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from dataclasses import dataclass, field, replace
from pathlib import Path

from detbox.deb import control, programs
from detbox.deb.apt import Apt
from detbox.errors import HostError, UserError

_KEYRINGS = Path("/usr/share/keyrings")
_NAMED = re.compile(r"([a-z0-9][a-z0-9+.-]+)(?:=(\S+))?")
#: What precedes a source package whose unpatched upstream release is meant.
UPSTREAM = "upstream:"
_RELEASE = re.compile(r"\.orig\.tar\.[a-z0-9]+")


@dataclass(frozen=True)
class Source:
    """A source package in ``place``: ``files`` beside each other, or an unpacked ``tree``.

    ``release``: name of the upstream tarball, if that is to be built as it is, without Debian's changes.
    ``epoch_s``: the changelog's date, in seconds since 1970.  ``checked``: how authenticity was checked, as text.
    ``digests``: SHA-256 of every input by its name.
    """

    name: str
    version: str
    place: Path
    dsc: str = ""  # name of the .dsc in ``place``; "" for an unpacked tree
    tree: str = ""  # name of the unpacked tree in ``place``
    release: str = ""
    epoch_s: int = 0
    needs_root: str = "binary-targets"  # Rules-Requires-Root
    checked: str = ""
    digests: dict[str, str] = field(default_factory=dict)

    @property
    def control(self) -> Path:
        """What apt is asked for the build dependencies of."""
        return self.place / (self.dsc or self.tree)

    @property
    def label(self) -> str:
        """Name and version for people."""
        return f"{self.name} {self.version}"


def obtain(what: str, place: Path, apt: Apt) -> Source:
    """The source package that ``what`` names: PKG[=VERSION], a .dsc file or a directory; copied into ``place``.

    After ``upstream:`` a package or .dsc stands for the release that it was made of.  Raises UserError or HostError.
    """
    if what.startswith(UPSTREAM):
        return _release_of(obtain(what.removeprefix(UPSTREAM), place, apt))
    if what.endswith(".dsc") or os.path.isfile(what):
        return _from_dsc(Path(what), place)
    if os.path.isdir(what) and (os.sep in what or not _NAMED.fullmatch(what) or _is_source(Path(what))):
        return _from_tree(Path(what), place)
    match = _NAMED.fullmatch(what)
    if match is None:
        raise UserError(f"{what!r} is neither a source package, a .dsc file nor a directory")
    apt.prepare()
    dsc = apt.fetch_source(match[1], match[2], place)
    return _described(dsc, place, "by the archive's signature")


def _release_of(source: Source) -> Source:
    found = [name for name in source.digests if _RELEASE.search(name) and not name.endswith(".asc")]
    if not found:
        raise UserError(f"{source.label} has no upstream release beside Debian's changes")
    version = control.without_epoch(source.version).rpartition("-")[0]
    return replace(source, version=version, release=found[0])


def _is_source(path: Path) -> bool:
    return (path / "debian/changelog").exists()


def _from_dsc(dsc: Path, place: Path) -> Source:
    fields = control.first_stanza(dsc, "source", "version", "checksums-sha256")
    checked = _signature(dsc)
    for entry in control.listed_files(fields, dsc):
        path = dsc.parent / entry.name
        try:
            shutil.copy(path, place / entry.name)
        except OSError as error:
            raise UserError(f"{dsc} lists {entry.name}: {error.strerror}") from None
        found = _sha256(place / entry.name)
        if found != entry.sha256:
            raise UserError(
                f"{path} is not what {dsc.name} lists: SHA-256 {found}, expected {entry.sha256}",
                "fetch the source again",
            )
    shutil.copy(dsc, place / dsc.name)
    return _described(place / dsc.name, place, checked)


def _described(dsc: Path, place: Path, checked: str) -> Source:
    fields = control.first_stanza(dsc, "source", "version", "checksums-sha256")
    files = [place / entry.name for entry in control.listed_files(fields, dsc)]
    text = control.debian_file(files, "changelog")
    epoch = control.changelog_date(text)
    if epoch is None:
        raise UserError(f"{dsc.name}: the newest entry of debian/changelog has no readable date")
    digests = {path.name: _sha256(path) for path in sorted([dsc, *files])}
    described = next(control.stanzas(control.debian_file(files, "control")), {})
    return Source(
        fields["source"], fields["version"], place, dsc=dsc.name, epoch_s=epoch, needs_root=_root(described),
        checked=checked, digests=digests,
    )  # fmt: skip


def _root(fields: control.Fields) -> str:
    """Rules-Requires-Root, with its default (where newer dpkg has "no" for it, nobody asks for root)."""
    return fields.get("rules-requires-root", "binary-targets").strip()


def _from_tree(path: Path, place: Path) -> Source:
    for name in ("debian/control", "debian/changelog", "debian/rules"):
        if not (path / name).is_file():
            raise UserError(f"{path} is not a Debian source tree: no {name}", "name a source package or a .dsc file")
    text = (path / "debian/changelog").read_text(encoding="utf-8", errors="replace")
    head = re.match(r"\s*(\S+) \(([^)\s]+)\)", text)
    epoch = control.changelog_date(text)
    if head is None or epoch is None:
        raise UserError(f"{path}/debian/changelog: the newest entry cannot be read")
    name = f"{head[1]}-{control.without_epoch(head[2]).rpartition('-')[0] or control.without_epoch(head[2])}"
    shutil.copytree(path, place / name, symlinks=True)
    fields = control.first_stanza(path / "debian/control", "source")
    digest = tree_digest(place / name)
    return Source(
        head[1], head[2], place, tree=name, epoch_s=epoch, checked="an unsigned directory",
        needs_root=_root(fields), digests={name + "/": digest},
    )  # fmt: skip


def _signature(dsc: Path) -> str:
    """Check the signature of a .dsc with the keys that the system has.  Raises UserError for a wrong one."""
    if not dsc.read_bytes().startswith(b"-----BEGIN PGP SIGNED MESSAGE-----"):
        return "digests; the .dsc is not signed"
    rings = [*sorted(_KEYRINGS.glob("debian-*.gpg"))]
    keyrings = [word for ring in rings for word in ("--keyring", str(ring))]
    try:
        done = programs.call(["gpgv", "--quiet", "--status-fd=1", *keyrings, str(dsc)])
    except HostError:
        return "digests; the signature was not checked (no gpgv)"
    if " BADSIG " in done.stdout:
        raise UserError(f"{dsc}: wrong signature", "the file was altered after it was signed")
    if " GOODSIG " in done.stdout:
        return "digests and signature"
    if " ERRSIG " in done.stdout or " EXPKEYSIG " in done.stdout:
        return "digests; the key of the signature is not known here, or has expired"
    raise UserError(f"{dsc}: the signature cannot be read", "fetch the source again")


def tree_digest(top: Path) -> str:
    """A digest of names, kinds, executable bits and contents below a directory."""
    total = hashlib.sha256()
    for directory, below, names in os.walk(top):
        below.sort()
        for name in sorted([*names, *(sub for sub in below if os.path.islink(os.path.join(directory, sub)))]):
            path = Path(directory) / name
            kind = "l" if path.is_symlink() else "f" if path.is_file() else "o"
            content = os.readlink(path) if kind == "l" else _sha256(path) if kind == "f" else ""
            mark = "x" if kind == "f" and os.access(path, os.X_OK) else "-"
            total.update(f"{kind}{mark} {path.relative_to(top)} {content}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
