"""Debian's control format: .dsc, .changes and .buildinfo files, and the changelog's date."""

from __future__ import annotations

import email.utils
import gzip
import lzma
import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from detbox.errors import UserError

Fields = dict[str, str]

#: A changelog longer than this is nobody's: the newest entry is at its start.
_MOST_BYTES = 1 << 20
_TRAILER = re.compile(r"^ -- .* <.*>  (.*)$", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9+.~_:-]*")


def stanzas(text: str) -> Iterator[Fields]:
    """The stanzas of a control file.  Names of fields are in lower case; lines of a value are joined by newlines."""
    fields: Fields = {}
    name = ""
    for line in _without_signature(text).splitlines():
        if not line.strip():
            if fields:
                yield fields
            fields, name = {}, ""
        elif line.startswith("#"):
            continue
        elif line[0].isspace():
            if name:
                fields[name] += "\n" + line.strip()
        else:
            name, _, value = line.partition(":")
            name = name.strip().lower()
            fields[name] = value.strip()
    if fields:
        yield fields


def _without_signature(text: str) -> str:
    """The body of a clear-signed text (RFC 4880, section 7); any other text as it is."""
    if not text.startswith("-----BEGIN PGP SIGNED MESSAGE-----"):
        return text
    body = text.partition("\n\n")[2].partition("\n-----BEGIN PGP SIGNATURE-----")[0]
    return re.sub(r"^- ", "", body, flags=re.MULTILINE)


def first_stanza(path: Path, *needed: str) -> Fields:
    """The first stanza of a file, which has the ``needed`` fields.  Raises UserError."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a Debian control file") from None
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    fields = next(stanzas(text), {})
    missing = [name for name in needed if name not in fields]
    if missing:
        raise UserError(f"{path}: no field {', '.join(name.title() for name in missing)}", "is it the right file?")
    return fields


@dataclass(frozen=True)
class Listed:
    """A file as a control file lists it: ``size`` in bytes, ``sha256`` in hex."""

    name: str
    size: int
    sha256: str


def listed_files(fields: Fields, path: Path) -> list[Listed]:
    """The field Checksums-Sha256.  Raises UserError for names that are no plain file names."""
    found = []
    for line in fields.get("checksums-sha256", "").splitlines():
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not words[1].isdigit() or not _NAME.fullmatch(words[2]):
            raise UserError(f"{path}: a line of Checksums-Sha256 cannot be read: {line!r}")
        found.append(Listed(words[2], int(words[1]), words[0]))
    if not found:
        raise UserError(f"{path}: no checksums (field Checksums-Sha256)")
    return found


def without_epoch(version: str) -> str:
    """A version as it is in file names."""
    return version.partition(":")[2] if ":" in version else version


def changelog_date(text: str) -> int | None:
    """The date of the newest entry of a changelog, in seconds since 1970; None if there is none."""
    found = _TRAILER.search(text)
    if found is None:
        return None
    try:
        return int(email.utils.parsedate_to_datetime(found[1]).timestamp())
    except (ValueError, TypeError):
        return None


def debian_file(files: list[Path], wanted: str) -> str:
    """The start of a file of debian/ out of a source package's files; nothing is unpacked.

    "" if there is none.  Raises UserError.
    """
    for path in files:
        name = path.name
        try:
            if ".debian.tar" in name or (".tar" in name and ".orig" not in name and not name.endswith(".asc")):
                text = _in_tar(path, wanted)
            elif name.endswith(".diff.gz"):
                text = _in_diff(path, wanted)
            else:
                continue
        except (OSError, EOFError, tarfile.TarError, lzma.LZMAError) as error:
            raise UserError(f"{path} cannot be read: {error}") from None
        if text:
            return text
    return ""


def _in_tar(path: Path, wanted: str) -> str:
    with tarfile.open(path) as archive:
        for member in archive:
            parts = member.name.removeprefix("./").split("/")
            if parts[-2:] == ["debian", wanted] and len(parts) <= 3 and member.isfile():
                content = archive.extractfile(member)
                assert content is not None  # it is a regular file
                return content.read(_MOST_BYTES).decode("utf-8", "replace")
    return ""


def _in_diff(path: Path, wanted: str) -> str:
    lines: list[str] = []
    inside, room = False, _MOST_BYTES
    with gzip.open(path, "rt", encoding="utf-8", errors="replace") as diff:
        while line := diff.readline(_MOST_BYTES):
            if line.startswith("+++ "):
                inside = line.split()[1].endswith(f"/debian/{wanted}")
            elif inside and line.startswith("--- "):
                break
            elif inside and line.startswith("+"):
                lines.append(line[1:])
                room -= len(line)
                if room <= 0:
                    break
    return "".join(lines)
