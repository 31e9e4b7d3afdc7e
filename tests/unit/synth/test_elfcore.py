"""What goes into a core file, and how it begins."""

from __future__ import annotations

import struct

import pytest

from detbox.synth import elfcore, maps
from detbox.synth.elfcore import Dying, Segment, Thread
from detbox.synth.maps import PLAIN, Detail, Mapping

PAGE = 4096
USUAL = 0x33
WRITTEN = Detail(frozenset(), anonymous=True)
RELOCATED = Detail(frozenset({b"ac"}), anonymous=True)
FILE = (0, 8, 7, b"/usr/bin/x")
NOTHING = (0, 0, 0, b"")


def mapping(perms: bytes, offset: int = 0, dev: int = 0, ino: int = 0, name: bytes = b"", pages: int = 4) -> Mapping:
    return Mapping(0x10000, 0x10000 + pages * PAGE, perms, offset, dev, ino, name)


@pytest.mark.parametrize(("perms", "rest", "detail", "kinds", "is_elf", "pages"), [
    (b"rw-p", NOTHING, WRITTEN, USUAL, False, 4),
    (b"rw-p", NOTHING, PLAIN, USUAL, False, 4),
    (b"---p", NOTHING, PLAIN, USUAL, False, 0),
    (b"---p", NOTHING, WRITTEN, USUAL, False, 4),
    (b"rw-p", NOTHING, WRITTEN, 0, False, 0),
    (b"rw-p", NOTHING, Detail(frozenset({b"dd"}), anonymous=True), USUAL, False, 0),
    (b"rw-p", NOTHING, Detail(frozenset({b"io"}), anonymous=True), USUAL, False, 0),
    (b"rw-p", NOTHING, Detail(frozenset({b"ht"}), anonymous=True), USUAL, False, 4),
    (b"rw-p", NOTHING, Detail(frozenset({b"ht"}), anonymous=True), 1, False, 0),
    (b"r-xp", FILE, PLAIN, USUAL, True, 1),
    (b"r-xp", FILE, WRITTEN, USUAL, True, 1),  # what the supervisor has overwritten
    (b"r-xp", FILE, PLAIN, USUAL, False, 0),
    (b"--xp", FILE, PLAIN, USUAL, True, 0),
    (b"r-xp", (PAGE, *FILE[1:]), PLAIN, USUAL, True, 0),
    (b"r-xp", FILE, PLAIN, 1 << elfcore.MAPPED_PRIVATE, True, 4),
    (b"r--p", FILE, RELOCATED, USUAL, True, 4),
    (b"rw-p", FILE, PLAIN, USUAL, True, 4),
    (b"rw-s", FILE, PLAIN, USUAL, True, 0),
    (b"rw-s", FILE, PLAIN, 1 << elfcore.MAPPED_SHARED, True, 4),
    (b"rw-s", (*FILE[:3], b"/dev/zero (deleted)"), PLAIN, USUAL, False, 4),
])  # fmt: skip
def test_what_is_in_it(
    perms: bytes, rest: tuple[int, int, int, bytes], detail: Detail, kinds: int, is_elf: bool, pages: int
) -> None:
    assert elfcore.dumped(mapping(perms, *rest), detail, kinds, lambda: is_elf) == pages * PAGE


def test_neighbours_are_joined_around_our_pages_alone() -> None:
    def line(start: int, offset: int, name: str = "/usr/bin/x", ino: int = 7) -> str:
        return f"{start:08x}-{start + PAGE:08x} r-xp {offset:08x} 08:01 {ino} {name}\n"

    own = line(0x11000, 0, "/memfd:detbox-loops (deleted)", 9)
    text = line(0x10000, 0) + own + line(0x12000, 2 * PAGE) + line(0x13000, 3 * PAGE)
    found = [(each[0], each[1]) for each in maps._visible(text.encode(), (0, 0))]
    assert found == [(0x10000, 0x13000), (0x13000, 0x14000)]


def process(threads: int) -> Dying:
    found = [
        Thread(10 + n, 0, 1 << n, (1_500_000, 7), bytes([n + 1]) * 216, b"f" * 512, b"x" * 832 if n else b"")
        for n in range(threads)
    ]
    return Dying(10, 2, 3, 4, 5, 6, -7, b"a name that is too long", b"./a\0b" + b"c" * 100, (0, 2_000_001), b"i" * 128,
                 b"v" * 32, found)  # fmt: skip


def notes(data: bytes) -> list[tuple[bytes, int, bytes]]:
    found, at = [], 0
    while at < len(data):
        name, size, kind = struct.unpack_from("<3I", data, at)
        begin = at + 12 + (name + 3) // 4 * 4
        found.append((data[at + 12 : at + 12 + name], kind, data[begin : begin + size]))
        at = begin + (size + 3) // 4 * 4
    assert at == len(data)
    return found


def test_how_it_begins() -> None:
    sizes = (mapping(b"r-xp", *FILE), PAGE), (mapping(b"rw-p"), 4 * PAGE), (mapping(b"---p"), 0)
    segments = [Segment(*each) for each in sizes]
    pieces = list(elfcore.head(process(2), 11, segments))
    head = b"".join(pieces)
    assert head[:8] == b"\x7fELF\2\1\1\0" and struct.unpack_from("<2H", head, 16) == (4, 62)
    assert struct.unpack_from("<Q", head, 32) == (64,) and struct.unpack_from("<2H", head, 54) == (56, 4)
    parts = [struct.unpack_from("<2I6Q", head, 64 + 56 * n) for n in range(4)]
    begin = 64 + 4 * 56
    assert parts[0] == (4, 0, begin, 0, 0, len(head) - begin, 0, 0)
    first = elfcore.page_above(len(head))
    assert parts[1] == (1, 5, first, 0x10000, 0, PAGE, 4 * PAGE, PAGE)
    assert parts[2] == (1, 6, first + PAGE, 0x10000, 0, 4 * PAGE, 4 * PAGE, PAGE)
    assert parts[3] == (1, 0, first + 5 * PAGE, 0x10000, 0, 0, 4 * PAGE, PAGE)
    found = notes(head[begin:])
    kinds = [(name, kind) for name, kind, _ in found]
    core, linux = b"CORE\0", b"LINUX\0"
    assert kinds == [(core, 1), (core, 3), (core, 0x53494749), (core, 6), (core, 0x46494C45), (core, 2), (core, 1),
                     (core, 2), (linux, 0x202)]  # fmt: skip
    status = found[6][2]
    assert len(status) == 336 and struct.unpack_from("<3ih", status) == (11, 0, 0, 11)
    assert struct.unpack_from("<2Q4i8q", status, 16) == (0, 2, 11, 2, 3, 4, 1, 500_000, 0, 7, 0, 0, 2, 1)
    assert status[112:328] == b"\2" * 216 and status[328:] == b"\1" + bytes(7)
    who = found[1][2]
    assert len(who) == 136 and who[:4] == b"\0R\0\xf9" and struct.unpack_from("<2I4i", who, 16) == (5, 6, 10, 2, 3, 4)
    assert who[40:56] == b"a name that is \0" and who[56:] == b"./a b" + b"c" * 74 + b"\0"
    files = found[4][2]
    assert files == struct.pack("<5Q", 1, PAGE, 0x10000, 0x10000 + 4 * PAGE, 0) + b"/usr/bin/x\0"


def test_memory_without_its_holes() -> None:
    pages = [b"a" * PAGE, b"b" * PAGE, bytes(PAGE), None, b"c" * PAGE, bytes(PAGE - 1) + b"d"]

    def read(address: int, length: int) -> bytes:
        chosen = pages[address // PAGE - 16 : (address + length) // PAGE - 16]
        if None in chosen:
            raise OSError
        return b"".join(page for page in chosen if page)

    found = list(elfcore.pieces(0x10000, 0x10000 + len(pages) * PAGE, read, None))
    assert found == [(0, b"a" * PAGE + b"b" * PAGE), (4 * PAGE, b"c" * PAGE + bytes(PAGE - 1) + b"d")]

    def entries(address: int, length: int) -> bytes:
        assert (address, length) == (0x10000, 8 * len(pages))
        return b"".join(bytes(7) + bytes([top]) for top in (0x80, 0, 0, 0x20, 0x40, 0))

    found = list(elfcore.pieces(0x10000, 0x10000 + len(pages) * PAGE, read, entries))
    assert found == [(0, b"a" * PAGE), (4 * PAGE, b"c" * PAGE)]
