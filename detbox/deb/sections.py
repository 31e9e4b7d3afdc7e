"""What two ELF files differ in: their sections by name, as far as a cause can be read from them."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable

MAGIC = b"\x7fELF"
_COMPRESSED, _NOBITS = 0x800, 8  # SHF_COMPRESSED, SHT_NOBITS
_CHDR_BYTES = 24
#: They depend on everything else: a difference in them alone is one of what was stripped.
_DERIVED = (".note.gnu.build-id", ".gnu_debuglink")


def of(data: bytes) -> dict[str, bytes]:
    """The sections of a 64-bit little-endian ELF file, uncompressed; nothing of any other file."""
    if not data.startswith(MAGIC + b"\x02\x01"):
        return {}
    try:
        start, size, count, names = struct.unpack_from("<Q", data, 0x28) + struct.unpack_from("<3H", data, 0x3A)
        headers = [struct.unpack_from("<IIQQQQ", data, start + n * size) for n in range(count)]
        table = headers[names][4]
        found = {}
        for name, kind, flags, _, offset, length in headers:
            content = b"" if kind == _NOBITS else data[offset : offset + length]
            if flags & _COMPRESSED:
                content = zlib.decompress(content[_CHDR_BYTES:])
            found[data[table + name : data.index(b"\0", table + name)].decode("ascii", "replace")] = content
    except (struct.error, IndexError, ValueError, zlib.error):
        return {}
    return found


def contents(data: bytes) -> bytes:
    """A file as bytes that can be searched: with compressed sections as they were before."""
    return b"\0".join(of(data).values()) or data


def causes(left: bytes, right: bytes) -> Iterable[str]:
    """Causes that show in the structure of two ELF files and not in their text."""
    one, other = of(left), of(right)
    if not one or not other:
        return
    differing = {name for name in one.keys() | other.keys() if one.get(name) != other.get(name)}
    if differing <= {*_DERIVED, ".shstrtab"}:
        yield "what was stripped"
        return
    names = [set(found.get(".dynstr", b"").split(b"\0")) - {b""} for found in (one, other)]
    if ".dynstr" in differing and names[0] == names[1]:
        yield "build path (removed run path)"  # CMake overwrites it with zeros when it installs
    elif any(_years(one.get(name, b""), other.get(name, b"")) for name in (".text", ".rodata", ".data")):
        yield "date"


def _years(left: bytes, right: bytes) -> bool:
    """Whether contents of one length differ in nothing but a year, as a number of the code."""
    if len(left) != len(right):
        return False
    places = [place for place, (x, y) in enumerate(zip(left, right, strict=True)) if x != y]
    for place in places:
        values = [int.from_bytes(content[place : place + 2], "little") for content in (left, right)]
        if not (2020 < values[0] < values[1] < 2100 and values[1] - values[0] <= 2):
            return False
    return bool(places)
