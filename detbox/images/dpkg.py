"""What dpkg's data base in a tree says."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path


def installed(root: Path) -> list[tuple[str, str, str]]:
    """(name, version, architecture) of each installed package, sorted; empty without a data base."""
    try:
        text = (root / "var/lib/dpkg/status").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(
        (fields["Package"], fields["Version"], fields.get("Architecture", ""))
        for fields in stanzas(text)
        if fields.get("Status", "").endswith(" installed")
    )


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The stanzas of a Debian control file; continuation lines are left out."""
    for block in text.split("\n\n"):
        fields = {}
        for line in block.splitlines():
            name, colon, value = line.partition(":")
            if colon and not line[:1].isspace():
                fields[name] = value.strip()
        if fields:
            yield fields
