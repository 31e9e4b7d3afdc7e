"""Which instructions may make room for a jump, and where the code goes that it leads to."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from detbox.cpu import hot, trampoline
from detbox.cpu.elf import Elf
from detbox.cpu.sites import find_sites

FUNCTION = """
.text
.globl {name}
.type {name}, @function
{name}:
.cfi_startproc
{body}
ret
.cfi_endproc
.size {name}, .-{name}
"""
CASES = {
    # Only registers behind it.
    "plain": ("rdtsc\n shl $32, %rdx", "", True),
    "with_processor": ("rdtscp\n lfence", "", True),
    # What makes room could fault, or is a branch.
    "memory": ("rdtsc\n mov %rax, (%rdi)", "", False),
    "own_memory": ("rdtsc\n cmp counter(%rip), %eax", ".bss\n .local counter\n .comm counter, 4\n", True),
    "short": ("rdtsc", "", False),
    # A jump from the part of the function that was put elsewhere, near or far.
    "near": ("rdtsc\n 2: shl $32, %rdx", FUNCTION.format(name="unlikely", body="jmp 2b"), False),
    "far": ("rdtsc\n 2: shl $32, %rdx", FUNCTION.format(name="unlikely", body=".skip 4000, 0x90\n jz 2b"), False),
    "behind_all": ("rdtsc\n shl $32, %rdx\n 2:", FUNCTION.format(name="unlikely", body="jmp 2b"), True),
    # A table of addresses.
    "table": ("rdtsc\n 2: shl $32, %rdx", '.section .data.rel.ro, "aw"\n .quad 2b\n', False),
}


@pytest.mark.parametrize("unwind", [True, False], ids=["unwind", "symbols"])
@pytest.mark.parametrize("case", CASES)
def test_nothing_leads_into_the_middle(case: str, unwind: bool, tmp_path: Path) -> None:
    body, elsewhere, expected = CASES[case]
    source, built = tmp_path / "code.s", tmp_path / "code.so"
    text = FUNCTION.format(name="function", body=body) + elsewhere
    source.write_text("\n".join(line for line in text.splitlines() if unwind or ".cfi" not in line) + "\n")
    subprocess.run(["gcc", "-nostdlib", "-shared", "-o", built, source], check=True)
    data = built.read_bytes()
    found = trampoline.displacements(data, find_sites(data))
    assert [bool(moved.spare) for moved in found if moved.spare] == [True] * expected
    if expected:
        code = next(segment for segment in Elf(data).segments if segment.executable)
        assert found[0].spare == code.vaddr + code.size


def test_room_is_what_nobody_uses() -> None:
    page = b"\xc3" * 100 + bytes(3996)
    assert hot.room(page, 100, 64) == 112
    assert hot.room(page, 200, 64) == 208
    assert hot.room(page, 100, 4096 - 112) == 112
    assert hot.room(page, 100, 4096 - 111) is None
    assert hot.room(b"\xff" * 4096, 100, 1) is None


@pytest.mark.parametrize("kind", ["rdtsc", "rdtscp"])
def test_detours_follow_each_other(kind: str) -> None:
    """Each is seen to be in use, though it begins and its address may end with zeros."""
    after = b"\x48\xc1\xe2\x20"
    moved = trampoline.Displacement(0x1000, 2 + (kind == "rdtscp") + len(after), b"", after, kind, (), 0x2100)
    page = bytearray(0x100) + bytes(0xF00)
    places = []
    for _ in range(3):
        at = hot.room(bytes(page), 0x100, hot.size(moved))
        assert at is not None
        made = hot.detour(moved, 0x401000, 0x402000 + at, 0x7FFFF7FC0400)
        assert len(made.code) <= hot.size(moved) and len(made.jump) == moved.length
        assert made.code[made.resume - 0x402000 - at :].startswith(after)
        page[at : at + len(made.code)] = made.code
        places.append(range(at, at + len(made.code)))
    assert all(one.stop <= two.start for one, two in zip(places, places[1:], strict=False))


def test_addresses_of_memory_stay_the_same() -> None:
    after = bytes.fromhex("29c8 3b0544332211")  # sub eax, ecx; cmp eax, [rip + 0x11223344]
    meant = 0x1000 + 2 + len(after) + 0x11223344
    fixups = ((6, 10, meant),)
    moved = trampoline.Displacement(0x1000, 2 + len(after), b"", after, "rdtsc", fixups, 0x2100)
    made = hot.detour(moved, 0x401000, 0x402000, 0x7FFFF7FC0400)
    resume = made.resume - 0x402000
    assert made.code[resume : resume + 4] == after[:4]
    distance = int.from_bytes(made.code[resume + 4 : resume + 8], "little", signed=True)
    assert made.resume + len(after) + distance == meant + 0x400000
