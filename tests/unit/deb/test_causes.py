"""Guesses at why two native builds differ."""

from __future__ import annotations

import struct
import zlib

import pytest

from detbox.deb import causes, sections
from detbox.report.perturb import variants

HOSTS = variants(2)


def elf(compressed: str = "", **contents: bytes) -> bytes:
    """A 64-bit ELF file of sections alone; an underscore in a name stands for a dot."""
    names = b"\0.shstrtab\0"
    headers, body = struct.pack("<IIQQQQ24x", 0, 0, 0, 0, 0, 0), b""
    for name, content in contents.items():
        packed = bytes(24) + zlib.compress(content) if name == compressed else content
        flags = 0x800 if name == compressed else 0
        headers += struct.pack("<IIQQQQ24x", len(names), 1, flags, 0, 64 + len(body), len(packed))
        names += name.replace("_", ".").encode() + b"\0"
        body += packed
    headers += struct.pack("<IIQQQQ24x", 1, 3, 0, 0, 64 + len(body), len(names))
    count = len(contents) + 2
    head = b"\x7fELF\x02\x01" + bytes(34) + struct.pack("<Q", 64 + len(body) + len(names)) + bytes(10)
    return head + struct.pack("<3H", 64, count, count - 1) + body + names + headers


def guessed(left: bytes, right: bytes) -> list[str]:
    return list(causes.of_bytes(left, right, HOSTS))


@pytest.mark.parametrize(
    ("left", "right", "expected"),
    [
        (b"on Nov 21 2026", b"on Dec 26 2027", "date"),
        (b"built 2026-11-21 x", b"built 2027-12-26 x", "date"),
        (b"at /build/x/x-1", b"at /build/other-place/x/x-1", "build path"),
        (b"by builder", b"by other-builder", "user's name"),
        (b"b\na", b"a\nb", "order"),
        (b"{'a': 1, 'b': 2}", b"{'b': 2, 'a': 1}", "order"),
        (b"<f at 0x7f0011223344>", b"<f at 0x7f5566778899>", "address"),
        (b"id 1a", b"id 2b", "other"),
    ],
)
def test_texts(left: bytes, right: bytes, expected: str) -> None:
    assert guessed(left, right) == [expected]


def test_a_path_in_compressed_debugging_sections() -> None:
    sides = [elf("_debug_str", _text=b"x", _debug_str=path) for path in (b"/build/a\0", b"/build/other-place/a\0")]
    assert sections.of(sides[1])[".debug.str"] == b"/build/other-place/a\0"
    assert guessed(*sides) == ["build path"]


def test_a_run_path_that_was_overwritten() -> None:
    sides = [elf(_dynstr=b"\0libx.so\0" + bytes(room), _text=b"x") for room in (20, 32)]
    assert guessed(*sides) == ["build path (removed run path)"]


def test_a_year_in_the_code() -> None:
    sides = [elf(_text=b"\xbe" + year.to_bytes(4, "little") + b"\x90") for year in (2026, 2027)]
    assert guessed(*sides) == ["date"]
    assert guessed(elf(_text=b"ab"), elf(_text=b"ac")) == ["machine code"]


def test_files_that_are_no_elf() -> None:
    assert sections.of(b"\x7fELF\x02\x01 and no more") == {}
    assert sections.contents(b"text") == b"text"
