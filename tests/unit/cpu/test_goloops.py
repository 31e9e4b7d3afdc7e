"""Which loops of a Go program are counted, and what is left of its code."""

from __future__ import annotations

import ctypes
import mmap
import struct

import pytest

from detbox.cpu import goloops
from detbox.cpu.goloops import BREAKPOINT, COUNTER, STUB, STUBS, GoLoops
from detbox.kernel import _native

TEXT = 0x401000
RET = b"\xc3"
FILLER = b"\xcc" * 16
#: mov ecx, [rip + 0x1000]; test ecx, ecx; je, back to the start
WAITS = bytes.fromhex("8b0d00100000 85c9 74f6") + RET
#: The same for [rax], with nothing that there is room in.
SHORT = bytes.fromhex("8b08 85c9 74fa") + RET


def table(functions: list[tuple[int, str]]) -> bytes:
    """What Go's runtime knows of functions at these offsets."""
    names, entries, infos = b"", b"", b""
    first = 72 + 64 * len(functions)
    for offset, name in functions:
        entries += struct.pack("<II", offset, 8 * len(functions) + 8 + len(infos))
        infos += struct.pack("<Ii", offset, len(names))
        names += name.encode() + b"\0"
    names_at = first
    entries_at = names_at + len(names)
    head = b"\xf1\xff\xff\xff\0\0\1\x08" + struct.pack("<8Q", len(functions), 0, 0, names_at, 0, 0, 0, entries_at)
    return head.ljust(first, b"\0") + names + entries + b"\0" * 8 + infos


def counted(*functions: bytes, name: str = "main.f") -> tuple[bytes, GoLoops]:
    """The text, and the loops that are counted in it."""
    text, known = b"", []
    for code in functions:
        known.append((len(text), name))
        text += code + FILLER
    known.append((len(text), "main.end"))
    found = _native.count_loops(text + RET, TEXT, table(known), STUBS, COUNTER, 64)
    assert found is not None
    changed, stubs, packed = found
    return text, GoLoops(TEXT, 0, changed[: len(text)], stubs, packed)


def target(code: bytes, at: int, address: int) -> int:
    """Where a near jump leads that is at an offset in what lies at an address."""
    assert code[at] == 0xE9
    return int(address + at + 5 + struct.unpack_from("<i", code, at + 1)[0])


def restored(loops: GoLoops) -> bytes:
    text = bytearray(loops.text)
    for site in loops.sites():
        at = site.place - TEXT
        text[at : at + len(site.old)] = site.old
    return bytes(text)


def test_a_loop_that_waits_is_counted() -> None:
    text, loops = counted(WAITS)
    assert loops.number == 1
    assert loops.site(0) == (TEXT, TEXT, text[:6])
    assert target(loops.text, 0, TEXT) == STUBS
    assert loops.text[6 : len(WAITS)] == WAITS[6:]
    stub = loops.stubs
    assert stub[:3] == b"\x48\x83\x2d" and stub[BREAKPOINT] == 0xCC
    assert STUBS + 8 + struct.unpack_from("<i", stub, 3)[0] == COUNTER
    assert stub[7] == 3 and stub[8:10] == bytes((0x78, BREAKPOINT - 10))
    assert stub[10:12] == WAITS[:2]
    assert STUBS + 16 + struct.unpack_from("<i", stub, 12)[0] == TEXT + 6 + 0x1000
    assert target(stub, 16, STUBS) == TEXT + 6


def test_where_there_is_no_room_the_space_behind_a_function_is_used() -> None:
    _, loops = counted(SHORT)
    assert loops.number == 1 and loops.site(0).target == TEXT
    gap = 6 + struct.unpack_from("b", loops.text, 5)[0]
    assert gap >= len(SHORT)
    assert target(loops.text, gap, TEXT) == STUBS
    assert target(loops.stubs, 10, STUBS) == TEXT


def test_or_what_a_long_instruction_leaves() -> None:
    long = bytes.fromhex("48c744240800000000 90")  # mov qword [rsp + 8], 0: nine bytes
    longer = bytes.fromhex("48c78424000200002a000000")  # twelve
    far = b"\x90" * 130
    _, loops = counted(far + SHORT[:-1] + longer + far)
    assert [len(site.old) for site in loops.sites()] == [12, 2]
    hop = len(far) + 6 + struct.unpack_from("b", loops.text, len(far) + 5)[0]
    assert hop == len(far) + 6 + 5 and target(loops.text, hop, TEXT) == STUBS + STUB
    assert loops.text[len(far) + 6] == 0xE9 and target(loops.text, len(far) + 6, TEXT) == STUBS + 10
    assert loops.stubs[10:22] == longer
    # By way of a shorter one that is in between.
    _, loops = counted(far + SHORT[:-1] + b"\x90" * 90 + long + b"\x90" * 80 + longer + far)
    assert [len(site.old) for site in loops.sites()] == [12, 9, 2]
    assert restored(loops)[len(far) :].startswith(SHORT[:-1] + b"\x90" * 90 + long)


@pytest.mark.parametrize(
    "code",
    [
        pytest.param("488b04cb 4883c101 4839d1 7cf3 c3", id="goes through an array"),
        pytest.param("488b442418 4883c001 4839d0 7cf2 c3", id="its limit is on the stack"),
        pytest.param("8b0d00100000 7204 85c9 74f4 90 c3", id="the flags are used before they are set"),
        pytest.param("493b6610 7605 c3 9090 e800000000 ebf0", id="the stack has grown"),
    ],
)
def test_others_are_not(code: str) -> None:
    text, loops = counted(bytes.fromhex(code))
    assert loops.number == 0 and loops.text == text


def test_a_loop_without_an_end_is_counted() -> None:
    """Neither of its parts waits: a loop that counts to a hundred, over and over."""
    text, loops = counted(bytes.fromhex("31c0 4883c001 4883f864 7cf6 ebf2"))
    assert [(site.place, site.target) for site in loops.sites()] == [(TEXT + 12, TEXT)]
    assert restored(loops)[: len(text)].startswith(text[:14])
    assert counted(bytes.fromhex("31c0 4883c001 4883f864 7cf6 7102 ebf0 c3"))[1].number == 0


def test_nor_are_those_of_the_runtime() -> None:
    assert counted(WAITS, name="runtime.f")[1].number == 0
    assert counted(WAITS, name="internal/runtime/maps.f")[1].number == 0
    assert counted(WAITS, name="runtimes.f")[1].number == 1


def test_calls_and_far_branches_are_led_by_the_stub() -> None:
    call = b"\xe8" + struct.pack("<i", 0x1000)
    text, loops = counted(call + b"\xeb\xf9")
    assert loops.number == 1 and loops.text[0] == 0xE8
    assert TEXT + 5 + struct.unpack_from("<i", loops.text, 1)[0] == STUBS
    assert target(loops.stubs, 10, STUBS) == loops.site(0).target == TEXT + 0x1005
    far = bytes.fromhex("488b9c2400010000") * 18 + bytes.fromhex("8b08 85c9 0f84") + struct.pack("<i", -154) + RET
    text, loops = counted(far)
    assert loops.number == 1 and loops.site(0) == (TEXT, TEXT + 148, far[148:154])
    assert restored(loops) == text


def test_a_function_that_calls_itself_is_counted() -> None:
    _, loops = counted(b"\x90\xe8" + struct.pack("<i", -6) + RET)
    assert loops.number == 1 and loops.site(0).target == TEXT


def test_what_is_no_table_of_functions() -> None:
    assert _native.count_loops(WAITS, TEXT, b"\0" * 40, STUBS, COUNTER, 8) is None
    assert _native.count_loops(WAITS, TEXT, table([])[:64] + b"\xff" * 64, STUBS, COUNTER, 8) is None
    assert goloops.find(b"no program") is None


class _Memory:
    """Code that can be executed, and the page of the counter."""

    def __init__(self, size: int) -> None:
        self.map = mmap.mmap(-1, size, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self.at = ctypes.addressof(ctypes.c_char.from_buffer(self.map))


def test_the_code_does_the_same_and_is_counted() -> None:
    """Collatz's numbers, with a call in each turn: ``f(n)`` gives how many there are."""
    code = bytes.fromhex(
        "31c0"  # xor eax, eax
        "4883ff01 7417"  # cmp rdi, 1; je, to the end
        "e818000000"  # call, of the other function
        "40f6c701 7505"  # test dil, 1; jne
        "48d1ef ebea"  # shr rdi; jmp, back
        "488d7c7f01 ebe3"  # lea rdi, [rdi + 2 * rdi + 1]; jmp, back
        "c3"
    )
    end = bytes.fromhex("48ffc0 c3")  # inc rax; ret
    text = code.ljust(0x25, b"\x90") + end
    memory = _Memory(4 * mmap.PAGESIZE)
    stubs, counter = memory.at + mmap.PAGESIZE, memory.at + 2 * mmap.PAGESIZE
    known = table([(0, "main.f"), (0x25, "main.g"), (len(text), "main.end")])
    found = _native.count_loops(text + RET, memory.at, known, stubs, counter, 8)
    assert found is not None
    changed, made, packed = found
    assert made and changed != text + RET
    memory.map[: len(changed)] = changed
    memory.map[mmap.PAGESIZE : mmap.PAGESIZE + len(made)] = made
    place = slice(2 * mmap.PAGESIZE, 2 * mmap.PAGESIZE + 8)
    memory.map[place] = struct.pack("<q", 1 << 40)
    function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_long)(memory.at)
    expected = {1: 0, 6: 8, 27: 111, 97: 118}
    assert {n: function(n) for n in expected} == expected
    counted_by, left = sum(expected.values()), struct.unpack("<q", memory.map[place])[0]
    assert (1 << 40) - left >= counted_by
