"""Sites are found where objdump finds them, with symbols and without, and nowhere else."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess
from pathlib import Path

import capstone
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detbox.cpu.elf import Elf, NotElf
from detbox.cpu.sites import (
    MINIMUM_SHARE,
    TRAPPABLE,
    UNTRAPPED,
    Site,
    find_sites,
    find_sites_in_code,
    sites_in_mapping,
    trap_bytes,
)

LIBRARIES = ["/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/libgcc_s.so.1"]
KINDS = "cpuid|xgetbv|rdrand|rdseed|rdtscp?|rdpid|xbegin"
SOURCE = r"""
static const unsigned long decoy = 0xa20f;
unsigned long table[2] = {0xa20fa20fa20f, 0x310f310f};
int named(int leaf) {
    int b, c, d;
    __asm__ volatile("cpuid" : "+a"(leaf), "=b"(b), "=c"(c), "=d"(d));
    return leaf + b;
}
unsigned long constant(unsigned long x) { return x + 0xa20fa20fd0010fUL + decoy; }
unsigned enabled(void) { unsigned a, d; __asm__ volatile("xgetbv" : "=a"(a), "=d"(d) : "c"(0)); return a; }
unsigned long entropy(void) { unsigned long r; __asm__ volatile("1: rdrand %0; jnc 1b" : "=r"(r)); return r; }
unsigned short seed(void) { unsigned short r; __asm__ volatile("rdseed %0" : "=r"(r)); return r; }
unsigned long number(void) {
    register unsigned long r __asm__("r12");
    __asm__ volatile("rdpid %0" : "=r"(r));
    return r;
}
int main(int argc, char **argv) {
    return named(argc) + constant(argc) + enabled() + entropy() + seed() + number();
}
"""
DISASSEMBLER = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
EXPECTED = ["cpuid", "rdpid", "rdrand", "rdseed", "xgetbv"]


@pytest.mark.parametrize("path", LIBRARIES)
def test_same_as_objdump(path: str) -> None:
    if not (shutil.which("objdump") and Path(path).exists()):
        pytest.skip("needs binutils and the library")
    text = subprocess.check_output(["objdump", "-dw", "--no-show-raw-insn", path], text=True)
    lines = re.findall(rf"^ *([0-9a-f]+):\s+(?:(?:data16|rex\S*|repz) )*({KINDS})\b", text, re.MULTILINE)
    sites = find_sites(Path(path).read_bytes())
    assert {(site.vaddr, site.kind) for site in sites} == {(int(vaddr, 16), kind) for vaddr, kind in lines}
    assert {site.confidence for site in sites} == {1.0}


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not shutil.which("gcc"):
        pytest.skip("needs gcc")
    folder = tmp_path_factory.mktemp("sites")
    (folder / "a.c").write_text(SOURCE)
    subprocess.run(["gcc", "-O1", "-fno-inline", "-o", folder / "a", folder / "a.c"], check=True)
    return folder / "a"


@pytest.mark.parametrize(
    "options",
    [
        pytest.param([], id="whole"),
        pytest.param(["--strip-all"], id="unwind data only"),
        pytest.param(["--remove-section=.eh_frame_hdr", "--remove-section=.eh_frame"], id="symbols only"),
    ],
)
def test_a_compiled_program(program: Path, tmp_path: Path, options: list[str]) -> None:
    copy = tmp_path / "copy"
    subprocess.run(["objcopy", *options, program, copy], check=True)
    data = copy.read_bytes()
    sites = find_sites(data)
    assert sorted(site.kind for site in sites) == EXPECTED
    assert {site.confidence for site in sites} == {1.0}
    for site in sites:
        assert Elf(data).offset_of(site.vaddr) == site.offset
        assert len(trap_bytes(site.length)) == site.length and trap_bytes(site.length).startswith(b"\x0f\x0b")
    lengths = {site.kind: site.length for site in sites}
    assert lengths["cpuid"] == 2 and lengths["rdseed"] == 4 and lengths["rdpid"] == 5


def test_without_any_table_the_sweeps_vote(program: Path) -> None:
    data = bytearray(program.read_bytes())
    known = find_sites(bytes(data))
    struct.pack_into("<Q", data, 40, 0)  # no section headers
    (phoff,) = struct.unpack_from("<Q", data, 32)
    for index in range(struct.unpack_from("<H", data, 56)[0]):
        if data[phoff + 56 * index : phoff + 56 * index + 4] == b"\x50\xe5\x74\x64":  # PT_GNU_EH_FRAME
            data[phoff + 56 * index : phoff + 56 * index + 4] = bytes(4)
    voted = find_sites(bytes(data))
    assert [(site.vaddr, site.kind) for site in voted] == [(site.vaddr, site.kind) for site in known]
    assert all(MINIMUM_SHARE <= site.confidence < 1 for site in voted)


@pytest.mark.parametrize("path", LIBRARIES)
def test_votes_agree_with_known_starts(path: str) -> None:
    data = Path(path).read_bytes()
    known = {site.vaddr for site in find_sites(data)}
    voted = set()
    for area in Elf(data).code_ranges():
        voted |= {site.vaddr for site in find_sites_in_code(data[area.start : area.end], area.vaddr)}
    assert voted <= known  # no false ones
    assert len(voted) >= 0.95 * len(known)


@settings(deadline=None, max_examples=30)
@given(st.lists(st.binary(min_size=40, max_size=60), min_size=2, max_size=4))
def test_constants_are_not_code(parts: list[bytes]) -> None:
    """An opcode in random data is not taken for an instruction, unless the data happen to look like code."""
    data = b"\x0f\xa2".join(parts)
    for site in find_sites_in_code(data, 0x1000):
        decoded = list(DISASSEMBLER.disasm_lite(data[site.offset :], 0))
        assert site.confidence < 1 and len(decoded) >= 3


def test_sites_in_a_mapping() -> None:
    sites = [Site(0x1000, 2, "cpuid", 0), Site(0x1FFE, 2, "rdtsc", 0), Site(0x2000, 3, "xgetbv", 0)]
    mapped = sites_in_mapping(sites, TRAPPABLE, 0x7F0000, 0x1000, 0x1000)
    assert mapped == {0x7F0000: sites[0], 0x7F0FFE: sites[1]}
    assert sites_in_mapping(sites, UNTRAPPED, 0x7F0000, 0x2000, 0x1000) == {0x7F1000: sites[2]}


@pytest.mark.parametrize("data", [b"", b"\x7fELF", bytes(100), b"\x7fELF\x01\x01" + bytes(100), b"MZ" * 50])
def test_other_files_are_refused(data: bytes) -> None:
    with pytest.raises(NotElf):
        find_sites(data)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_damaged_files_do_no_harm(data: st.DataObject) -> None:
    raw = bytearray(Path(LIBRARIES[1]).read_bytes())
    (shoff,) = struct.unpack_from("<Q", raw, 40)
    header = st.one_of(st.integers(16, 1000), st.integers(shoff, len(raw) - 1))
    for _ in range(8):
        raw[data.draw(header)] = data.draw(st.integers(0, 255))
    keep = data.draw(st.sampled_from([len(raw), len(raw) // 2, 700, 64]))
    try:
        find_sites(bytes(raw[:keep]))
    except NotElf:
        pass
