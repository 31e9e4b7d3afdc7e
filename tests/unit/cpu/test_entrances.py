"""What counts as a way into the middle of a piece of code, and what does not."""

from __future__ import annotations

import struct

import pytest

from detbox.kernel import _native

#: The piece, and its function around it; what is looked at begins at this virtual address.
FIRST, LAST, START, END = 0x2001, 0x2005, 0x1FF0, 0x2010
ELSEWHERE = 0x2020


def leads_in(code: bytes, target: int, *, at: int = ELSEWHERE) -> bool:
    """Whether code at an address, with the distance to ``target`` behind it, would lead into the piece."""
    size = 1 if len(code) == 1 and (code[0] & 0xF0 == 0x70 or code[0] in (0xE0, 0xE2, 0xE3, 0xEB)) else 4
    distance = (target - at - len(code) - size).to_bytes(size, "little", signed=True)
    data = bytes(4) + code + distance + bytes(4)
    piece = struct.pack("<4q", FIRST, LAST, START, END)
    return _native.reached(data, 0, len(data), at - 4, piece, True) == b"\1"


@pytest.mark.parametrize("code", ["74", "7f", "e2", "eb", "e8", "e9", "0f84", "0f8f", "c7f8"])
def test_branches_lead_there(code: str) -> None:
    every = range(FIRST, LAST + 1)
    assert all(leads_in(bytes.fromhex(code), target) for target in every)
    assert not any(leads_in(bytes.fromhex(code), target) for target in (FIRST - 1, LAST + 1))


def test_what_the_function_itself_does_is_left_to_others() -> None:
    assert not leads_in(b"\xeb", FIRST, at=START)
    assert leads_in(b"\xeb", FIRST, at=START - 8)


@pytest.mark.parametrize("code", ["488b85", "8d8d", "c785", "0fb685", "83f8"])
def test_distances_of_other_instructions_do_not(code: str) -> None:
    """``mov rax, [rbp - 200]`` has the second byte of a conditional jump, but not its first."""
    assert not leads_in(bytes.fromhex(code), FIRST)


def test_its_address_in_a_table_leads_there() -> None:
    piece = struct.pack("<4q", FIRST, LAST, START, END)
    for address, expected in ((FIRST, b"\1"), (LAST, b"\1"), (FIRST - 1, b"\0"), (LAST + 1, b"\0")):
        data = bytes(3) + address.to_bytes(8, "little") + bytes(5)
        assert _native.reached(data, 0, len(data), 0, piece, False) == expected
