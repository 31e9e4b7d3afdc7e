"""Copies of code that count: what is rewritten, how they lead to each other, and the way back to the original."""

from __future__ import annotations

import struct
from copy import deepcopy
from typing import NamedTuple

import pytest

from detbox.counted import slots
from detbox.counted.slots import INDEX_BITS, LOOKUP
from detbox.counted.store import PLACE, Copies, Library
from detbox.counted.translate import AFTER_CALL, CALL_WEIGHT, Copy, Exit, Mark
from detbox.kernel import _native

HERE, SLOTS = 0x401000, PLACE
AT = SLOTS + 0x500000
INDEX = (1 << INDEX_BITS) - 1
ENTRY_WEIGHT = 8  # as in kernel/translate.c


class Whole(NamedTuple):
    """A copy, its code, and how far the plain entry is behind the counted one."""

    copy: Copy
    code: bytes
    plain: int

    @property
    def exits(self) -> dict[int, Exit]:
        return self.copy.exits

    @property
    def marks(self) -> list[Mark]:
        return self.copy.marks


def translate(code: bytes, address: int, at: int, slots: int) -> Whole | None:
    text, made, _, _, plain = _native.make_copies(lambda place: code, {}, {}, {}, address, at, slots, CALL_WEIGHT, 0)
    return Whole(Copy(*made[0]), text, plain) if made else None


class FakeMemory:
    """A program's code, and the copies' memory."""

    def __init__(self, code: bytes) -> None:
        self.pages = {HERE: bytearray(code.ljust(4096, b"\xcc"))}

    def read(self, address: int, length: int) -> bytes:
        pages = range(address & ~4095, address + length, 4096)
        held = b"".join(self.pages.setdefault(page, bytearray(4096)) for page in pages)
        return held[address & 4095 : (address & 4095) + length]

    def write(self, address: int, data: bytes) -> None:
        for offset, byte in enumerate(data):
            page = self.pages.setdefault((address + offset) & ~4095, bytearray(4096))
            page[(address + offset) & 4095] = byte

    def occupied(self) -> int:
        return AT

    def write_all(self, pieces: list[tuple[int, bytes]]) -> None:
        for address, data in pieces:
            self.write(address, data)


def copies() -> Copies:
    return Copies(lambda: [(HERE, HERE + 4096)])


def test_plain_instructions_are_copied_and_counted() -> None:
    code = bytes.fromhex("4801d8 ffc1 ebf9")  # add rax, rbx; inc ecx; jmp, to the start
    copy = translate(code, HERE, AT, SLOTS)
    assert copy is not None
    assert bytes.fromhex("4801d8ffc1e9") in copy.code[copy.plain :]
    assert struct.pack("<i", -(ENTRY_WEIGHT + 3)) in copy.code[: copy.plain]
    counted, back = copy.exits.values()
    assert (counted.why, counted.target) == ("counted", HERE)
    assert (back.why, back.target, back.counted) == ("jump", HERE, True)


@pytest.mark.parametrize("code", ["0fa2", "0f31", "0f0b", "cc", "0fc7f0", "c7f800000000", "9d"])
def test_what_traps_is_left_to_the_original(code: str) -> None:
    assert translate(bytes.fromhex(code), HERE, AT, SLOTS) is None
    copy = translate(b"\x90" + bytes.fromhex(code), HERE, AT, SLOTS)
    assert copy is not None
    assert [why.target for why in copy.exits.values() if why.why == "native"] == [HERE + 1]


def test_calls_are_made_from_the_copy() -> None:
    copy = translate(bytes.fromhex("ffc0 0f05 c3"), HERE, AT, SLOTS)  # inc eax; syscall; ret
    assert copy is not None
    assert struct.pack("<i", -(ENTRY_WEIGHT + 3 + CALL_WEIGHT)) in copy.code[: copy.plain]
    behind = copy.code.index(b"\x0f\x05") + 2
    assert copy.code[behind : behind + 10] == b"\x48\xb9" + struct.pack("<Q", HERE + 4)
    assert (behind, HERE + 4, "rcx", AFTER_CALL) in copy.marks


@pytest.mark.parametrize("number", ["b80f000000", "48c7c00f000000"])
def test_a_handler_returns_by_the_original(number: str) -> None:
    copy = translate(bytes.fromhex(number + "0f05"), HERE, AT, SLOTS)
    assert copy is not None
    assert [why.target for why in copy.exits.values() if why.why == "native"] == [HERE + len(number) // 2]


@pytest.mark.parametrize("prefix", ["", "666648"])  # the latter is how a thread's variables are asked for
def test_return_addresses_are_the_original_ones(prefix: str) -> None:
    copy, length = translate(bytes.fromhex(prefix + "e810000000"), HERE, AT, SLOTS), 5 + len(prefix) // 2
    assert copy is not None
    assert b"\x68" + struct.pack("<I", HERE + length) in copy.code
    assert [why.target for why in copy.exits.values() if why.why == "jump"] == [HERE + length + 0x10]


def test_a_branch_to_16_bits_is_left_to_the_original() -> None:
    assert translate(bytes.fromhex("66e81000"), HERE, AT, SLOTS) is None


@pytest.mark.parametrize("code", ["c3", "c21000", "ffe0", "ff142500000000", "41ffd2", "ff6008", "ff2510000000"])
def test_computed_branches_are_looked_up(code: str) -> None:
    copy = translate(bytes.fromhex(code), HERE, AT, SLOTS)
    assert copy is not None
    leads = [
        AT + end + struct.unpack("<i", copy.code[end - 4 : end])[0] == SLOTS + LOOKUP
        for end in range(len(copy.code) - 15, len(copy.code) + 1)
    ]
    assert leads.count(True) == 1


def test_addresses_relative_to_the_instruction_stay() -> None:
    copy = translate(bytes.fromhex("488d0510000000 c3"), HERE, AT, SLOTS)  # lea rax, [rip + 16]
    assert copy is not None
    assert b"\x48\xb8" + struct.pack("<Q", HERE + 0x17) in copy.code
    # add [rip + 16], rdi: another register holds the address, and a fault there can be told.
    copy = translate(bytes.fromhex("48013d10000000 c3"), HERE, AT, SLOTS)
    assert copy is not None
    assert b"\x48\xbe" + struct.pack("<Q", HERE + 0x17) + bytes.fromhex("48013e") in copy.code
    assert [mark[2] for mark in copy.marks if mark[2]] == ["rsi"]


@pytest.mark.parametrize(
    ("instruction", "changed"),
    [
        ("c5f92805 10000000", "c5f92807"),  # vmovapd xmm0, [rip + 16]
        ("c4420500 0d 10000000", "c4620500 0f"),  # vpshufb ymm9, ymm15, [rip + 16]: another base register's bit
        ("62f17c48280510000000", "62f17c482807"),  # vmovaps zmm0, [rip + 16]
        ("48813d10000000 78563412", "48813f78563412"),  # cmp qword [rip + 16], 0x12345678
        ("664c0f6e0510000000", "664c0f6e07"),  # movq xmm8, [rip + 16]
        ("410fb705 10000000", "400fb707"),  # movzx eax, word [rip + 16], with a bit that means nothing here
    ],
)
def test_forms_of_relative_operands(instruction: str, changed: str) -> None:
    copy = translate(bytes.fromhex(instruction + "c3"), HERE, AT, SLOTS)
    assert copy is not None
    assert bytes.fromhex(changed) in copy.code
    length = len(bytes.fromhex(instruction))
    assert HERE + length in [mark[1] for mark in copy.marks]
    assert struct.pack("<Q", HERE + 16 + length) in copy.code


@pytest.mark.parametrize(
    "instruction",
    ["90", "4889e5", "c8100000", "66b83412", "48b88877665544332211", "a18877665544332211", "67a144332211", "f60412 7f",
     "66f70412 3412", "f7d8", "660f3a0fc108", "660f38 00c1", "0fa4c305", "c4e37d06c131", "62f3fd4819c101", "f3480fb8c1",
     "f0480fb10f", "8b8490 44332211", "8b049d 44332211", "8b0424", "d9c0", "0fbae007", "c5f877", "0f1f8000000000"],
)  # fmt: skip
def test_lengths_of_instructions(instruction: str) -> None:
    raw = bytes.fromhex(instruction)
    copy = translate(raw + b"\xc3", HERE, AT, SLOTS)
    assert copy is not None
    assert raw in copy.code
    assert sorted({mark[1] - HERE for mark in copy.marks}) == [0, len(raw)]


@pytest.mark.parametrize("code", ["06", "d4", "82c001", "0f04", "0f24c0", "8fe87812c1", "fec8fef8"])
def test_what_is_not_known_is_left_to_the_original(code: str) -> None:
    copy = translate(bytes.fromhex(code).ljust(16, b"\x90"), HERE, AT, SLOTS)
    assert (copy is None) == (code != "fec8fef8")


def test_copies_lead_to_each_other_once_both_are_made() -> None:
    memory, made = FakeMemory(bytes.fromhex("7502 90c3 90ebf9")), copies()  # jnz over; nop; ret; nop; jmp to the start
    first = made.entry(memory, HERE)
    assert first == AT and made.inside(first)
    copy = translate(memory.read(HERE, 4096), HERE, AT, SLOTS)
    assert copy is not None
    offset, why = next((at, why) for at, why in copy.exits.items() if why.why == "jump" and why.target == HERE + 4)
    assert made.exit(memory, AT + offset) == why and not why.counted
    second = made.follow(memory, AT + offset, why)
    assert second is not None
    distance = struct.unpack("<i", memory.read(AT + why.patch, 4))[0]
    assert AT + why.patch + 4 + distance == second
    assert made.made == 2


def test_a_mark_tells_where_the_program_is() -> None:
    memory, made = FakeMemory(bytes.fromhex("4801d8 ffc1 c3")), copies()
    assert made.entry(memory, HERE) == AT
    copy = translate(memory.read(HERE, 4096), HERE, AT, SLOTS)
    assert copy is not None
    found = made.original(AT + copy.plain + 3)
    assert found is not None and found.address == HERE + 3
    assert made.original(AT + 1) is None
    entered = made.original(AT)
    assert entered is not None and entered.address == HERE


def test_code_that_may_change_is_not_copied() -> None:
    assert copies().entry(FakeMemory(b"\x90\xc3"), 0x7000) is None


def test_changed_code_is_copied_anew() -> None:
    memory, made = FakeMemory(b"\x90\xc3"), copies()
    entry = made.entry(memory, HERE)
    assert made.check(memory) and made.entry(memory, HERE) == entry
    memory.pages[HERE][0] = 0x99
    assert not made.check(memory)
    again = made.entry(memory, HERE)
    assert again is not None and again != entry
    assert b"\x99" in memory.read(again, 128)


def test_a_jump_is_led_to_what_is_copied_later() -> None:
    memory, made = FakeMemory(bytes.fromhex("7502 90c3 90ebf9")), copies()  # as above
    made.entry(memory, HERE)
    copy = translate(memory.read(HERE, 4096), HERE, AT, SLOTS)
    assert copy is not None
    why = next(why for why in copy.exits.values() if why.why == "jump" and why.target == HERE + 4)
    second = made.entry(memory, HERE + 4, counted=False)
    assert second is not None
    assert AT + why.patch + 4 + struct.unpack("<i", memory.read(AT + why.patch, 4))[0] == second


def test_what_follows_is_made_too() -> None:
    # call over; jnz to the return; nop; ret
    memory, made = FakeMemory(bytes.fromhex("e804000000 7502 90c3 c3")), copies()
    first = made.entry(memory, HERE, ahead=8)
    assert first is not None and made.made == 3
    for address in (HERE, HERE + 5, HERE + 9):
        assert made.entry(memory, address) is not None and made.made == 3
    pairs = [memory.read(PLACE + 0x10000 + 16 * (address & INDEX), 8) for address in (HERE, HERE + 5)]
    assert pairs == [bytes(8), struct.pack("<Q", HERE + 5)]  # the call returns there


def test_a_child_goes_on_with_its_parents_copies() -> None:
    memory, made = FakeMemory(b"\x90\xc3"), copies()
    entry = made.entry(memory, HERE)
    child, own = made.inherited(lambda: [(HERE, HERE + 4096)]), deepcopy(memory)
    assert child.entry(own, HERE) == entry
    second = child.entry(own, HERE + 1)
    assert second is not None and (child.made, made.made) == (2, 1)
    assert memory.read(second, 64) == bytes(64) != own.read(second, 64)
    assert made.entry(memory, HERE + 1) == second and made.made == 1, "its brothers are given what it has made"
    assert memory.read(second, 64) == own.read(second, 64)


def test_a_family_has_its_copies_in_common() -> None:
    code = bytes.fromhex("e804000000 7502 90c3 c3")  # call over; jnz to the return; nop; ret
    library = Library()
    memory, other = FakeMemory(code), FakeMemory(code)
    first, second = (Copies(lambda: [(HERE, HERE + 4096)], library) for _ in range(2))
    entry = first.entry(memory, HERE)
    copy = translate(code, HERE, AT, SLOTS)
    assert entry is not None and copy is not None and second.entry(other, HERE) == entry
    offset, why = next((at, why) for at, why in copy.exits.items() if why.why == "jump")
    first.follow(memory, entry + offset, why, ahead=8)
    computed = Exit("computed", HERE + 5, counted=True)
    first.follow(memory, 0, computed)
    assert (first.made, second.made) == (3, 0)
    assert memory.pages != other.pages
    assert second.entry(other, HERE) == entry and second.made == 0
    assert memory.pages == other.pages, "also where the jumps lead, and the table"
    for address in (HERE, HERE + 5, HERE + 9):
        at = second.entry(other, address)
        assert at is not None and second.original(at) == first.original(at)


def test_a_relative_with_other_code_goes_its_own_way() -> None:
    code = bytes.fromhex("7502 90c3 90ebf9")  # jnz over; nop; ret; nop; jmp to the start
    library = Library()
    memory, other = FakeMemory(code), FakeMemory(code)
    first, second = (Copies(lambda: [(HERE, HERE + 4096)], library) for _ in range(2))
    entry = first.entry(memory, HERE)
    assert second.entry(other, HERE) == entry
    other.pages[HERE][2] = 0x99
    second.suspect = True
    assert not second.check(other) and first.check(memory)
    over = first.entry(memory, HERE + 2)
    own = second.entry(other, HERE + 2)
    assert over is not None and own is not None
    assert b"\x99" in other.read(own, 64) and b"\x99" not in memory.read(over, 64)
    mark = second.original(AT)
    assert entry == AT and mark is not None and mark.address == HERE, "a thread may be there"
    # One that has never come to that page is asked nothing before it is given the others' copies.
    third, late = Copies(lambda: [(HERE, HERE + 4096)], library), FakeMemory(bytes.fromhex("7502 99c3 90ebf9"))
    changed = third.entry(late, HERE + 2)
    assert changed is not None and b"\x99" in late.read(changed, 64)


def test_relatives_with_other_libraries_have_the_rest_in_common() -> None:
    far = HERE + 0x5000
    jump = b"\x74\x04\xe9" + struct.pack("<i", far - HERE - 7) + b"\x90\xc3"  # jz over; jmp far; nop; ret
    library, both = Library(), [(HERE, HERE + 4096), (far, far + 4096)]
    memories, spaces = [], []
    for there in (b"\x90\xc3", b"\x99\xc3", b"\x99\xc3", b"\x9b\xc3"):
        memories.append(FakeMemory(jump))
        memories[-1].pages[far] = bytearray(there.ljust(4096, b"\xcc"))
        spaces.append(Copies(lambda: both, library))
    first, second, third, fourth = spaces
    entry = first.entry(memories[0], HERE, ahead=8)
    first.follow(memories[0], 0, Exit("computed", far, counted=True))
    assert entry is not None and first.made == 3
    place = PLACE + 0x10000 + 16 * (far & INDEX)
    assert second.entry(memories[1], HERE) == entry and second.made == 0
    missed = PLACE + LOOKUP + slots.lookup(PLACE + LOOKUP, PLACE)[1] - 1
    assert memories[1].read(place, 16) == struct.pack("<QQ", far, missed) != memories[0].read(place, 16)
    copy = translate(jump, HERE, AT, SLOTS)
    assert copy is not None
    offset, why = next((at, why) for at, why in copy.exits.items() if why.target == far)
    distance = slice(why.patch, why.patch + 4)
    assert memories[1].read(entry, 128)[distance] == copy.code[distance] != memories[0].read(entry, 128)[distance]
    own = second.follow(memories[1], entry + offset, why)
    assert own is not None and second.made == 1 and b"\x99" in memories[1].read(own, 64)
    assert memories[1].read(entry, 128)[distance] == struct.pack("<i", own - (entry + why.patch + 4))
    first.entry(memories[0], HERE + 1)
    there = third.entry(memories[2], far, counted=why.counted)
    assert there == own and third.made == 0, "it has what the second one has made"
    assert memories[2].read(entry, 128) == memories[1].read(entry, 128)
    another = fourth.entry(memories[3], far)
    assert another is not None and fourth.made == 1 and b"\x9b" in memories[3].read(another, 64)
    assert fourth.original(entry) == second.original(entry)


def test_what_is_not_mapped_any_more_takes_no_other_copies_along() -> None:
    far = HERE + 0x5000
    jump = b"\x74\x04\xe9" + struct.pack("<i", far - HERE - 7) + b"\x90\xc3"  # jz over; jmp far; nop; ret
    memory, ranges = FakeMemory(jump), [(HERE, HERE + 4096), (far, far + 4096)]
    memory.write(far, b"\x90\xc3")
    library, fresh = Library(), FakeMemory(jump)
    made = Copies(lambda: ranges, library)
    entry = made.entry(memory, HERE, ahead=8)
    assert entry is not None
    before = memory.read(entry, 128)
    there = made.follow(memory, 0, Exit("computed", far, counted=True))
    place, missed = PLACE + 0x10000 + 16 * (far & INDEX), PLACE + LOOKUP + slots.lookup(PLACE + LOOKUP, PLACE)[1]
    assert made.made == 3 and memory.read(place, 16) == struct.pack("<QQ", far, there)
    gone = ranges.pop()
    assert not made.check(memory) and made.check(memory)
    assert memory.read(place, 16) == struct.pack("<QQ", far, missed - 1), "as if it had not been found"
    copy = translate(jump, HERE, AT, SLOTS)
    assert copy is not None
    offset, why = next((at, why) for at, why in copy.exits.items() if why.target == far)
    distance = slice(why.patch, why.patch + 4)
    assert memory.read(entry, 128)[distance] == copy.code[distance]
    assert before[distance] != copy.code[distance]
    assert made.entry(memory, HERE) == entry and made.follow(memory, entry + offset, why) is None and made.made == 3
    # Something else is loaded there.
    ranges.append(gone)
    memory.write(far, b"\x99\xc3")
    assert made.check(memory)
    second = made.follow(memory, missed, Exit("computed", far, counted=True))
    assert second is not None and b"\x99" in memory.read(second, 64) and made.made == 4
    assert memory.read(place, 16) == struct.pack("<QQ", far, second)
    assert memory.read(entry, 128)[distance] != copy.code[distance], "the jump leads there, too"
    # Another process of the same file goes the same way, and makes nothing.
    both = [(HERE, HERE + 4096)]
    other = Copies(lambda: both, library)
    assert other.entry(fresh, HERE) == entry
    both.append(gone)
    fresh.write(far, b"\x99\xc3")
    other.check(fresh)
    assert other.entry(fresh, far) == second and other.made == 0
    assert fresh.read(entry, 128) == memory.read(entry, 128) and fresh.read(place, 16) == memory.read(place, 16)


def test_what_is_mapped_later_gets_its_copies_then() -> None:
    code, far = bytes.fromhex("e804000000 7502 90c3 c3"), HERE + 0x5000  # as above
    library = Library()
    memory, other = FakeMemory(code), FakeMemory(code)
    memory.write(far, b"\x90\xc3")
    both, ranges = [(HERE, HERE + 4096), (far, far + 4096)], [(HERE, HERE + 4096)]
    first, second = Copies(lambda: both, library), Copies(lambda: ranges, library)
    first.entry(memory, HERE, ahead=8)
    computed = Exit("computed", far, counted=True)
    there = first.follow(memory, 0, computed)
    assert there is not None
    assert second.entry(other, HERE) == AT and second.made == 0
    assert second.entry(other, far) is second.follow(other, 0, computed) is None, "it may have generated code there"
    place = PLACE + 0x10000 + 16 * (far & INDEX)
    assert (memory.read(place, 8), other.read(place, 8)) == (struct.pack("<Q", far), bytes(8))
    assert other.read(PLACE + 0x10000 + 16 * (HERE + 5 & INDEX), 8) == struct.pack("<Q", HERE + 5)
    other.write(far, b"\x90\xc3")
    ranges.append((far, far + 4096))
    assert second.check(other) and second.entry(other, far) == there
    assert other.read(place, 8) == struct.pack("<Q", far) and second.made == 0


def test_a_look_at_the_code_writes_nothing_again() -> None:
    code, far = bytes.fromhex("e804000000 7502 90c3 c3"), HERE + 0x5000  # as above
    library, ranges = Library(), [(HERE, HERE + 4096)]
    memory, other = FakeMemory(code), FakeMemory(code)
    for each in (memory, other):
        each.write(far, b"\x90\xc3")
    first = Copies(lambda: [(HERE, HERE + 4096), (far, far + 4096)], library)
    second = Copies(lambda: ranges, library)
    first.entry(memory, HERE, ahead=8)
    first.follow(memory, 0, Exit("computed", far, counted=True))
    second.entry(other, HERE)
    written: list[tuple[int, bytes]] = []
    other.write_all = written.extend  # type: ignore[method-assign]
    assert second.check(other) and second.entry(other, HERE) == AT and not written
    ranges.append((far, far + 4096))
    assert second.check(other) and second.entry(other, HERE) == AT
    assert [address for address, _ in written] == [PLACE + 0x10000 + 16 * (far & INDEX)], "what has come, and no more"
    assert second.check(other) and len(written) == 1


def test_the_table_is_never_nearly_full() -> None:
    library = Library()
    copies = Copies(lambda: [(HERE, HERE + 4096)], library)
    library.table.update(dict.fromkeys(range(INDEX * 3 // 4), HERE))
    assert not copies.full
    library.table.update(dict.fromkeys(range(INDEX * 3 // 4 + 8), HERE))
    assert copies.full and copies.entry(FakeMemory(b"\x90\xc3"), HERE) is None
