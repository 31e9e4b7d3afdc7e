"""Patches of a page become one edit, and edits never overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from detbox.cpu.edits import join

MEMORY = bytes(value % 251 for value in range(5 * 4096))


def original(address: int, length: int) -> bytes:
    return MEMORY[address : address + length]


def test_neighbours_are_joined() -> None:
    (edit,) = join([(100, b"ab"), (10, b"xyz")], original)
    assert (edit.address, len(edit.new)) == (10, 92)
    assert edit.old == MEMORY[10:102] and edit.new == b"xyz" + MEMORY[13:100] + b"ab"


def test_a_patch_across_pages_joins_both() -> None:
    edits = join([(4094, b"1234"), (8190, b"z"), (16000, b"q")], original)
    assert [(edit.address, len(edit.new)) for edit in edits] == [(4094, 4097), (16000, 1)]


@given(st.lists(st.tuples(st.integers(0, 4 * 4096), st.binary(min_size=1, max_size=20)), max_size=12))
def test_the_result_is_that_of_single_writes(patches: list[tuple[int, bytes]]) -> None:
    expected, got = bytearray(MEMORY), bytearray(MEMORY)
    for address, new in sorted(patches, key=lambda patch: patch[0]):
        expected[address : address + len(new)] = new
    end = -1
    for edit in join(patches, original):
        assert edit.address > end and len(edit.old) == len(edit.new)
        end = edit.address + len(edit.new) - 1
        assert edit.old == MEMORY[edit.address : edit.address + len(edit.old)]
        got[edit.address : edit.address + len(edit.new)] = edit.new
    assert got == expected
