"""Displaced code does what the original did, with the model's answers; the loader runs on it untrapped."""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from detbox.cpu import model, trampoline
from detbox.cpu.elf import Elf
from detbox.cpu.sites import find_sites, trap_bytes

from .test_guest import LOADER, diagnostics, patched
from .tracer import Traced, Values

CPU = model.MODELS["x86-64-v3"]
SYS_MMAP = 9

# int f(unsigned registers[4], long *flags): a leaf function with a value in the red zone
FUNCTION = bytes.fromhex(
    "53"  # push rbx
    "8b07 8b4f08"  # mov eax, [rdi]; mov ecx, [rdi + 8]
    "48c74424f8 2a000000"  # mov qword [rsp - 8], 42
    "f9"  # stc
    "0fa2"  # cpuid
    "8907 895f04"  # mov [rdi], eax; mov [rdi + 4], ebx
    "894f08 89570c"  # mov [rdi + 8], ecx; mov [rdi + 12], edx
    "0f9206"  # setc [rsi]
    "488b4424f8"  # mov rax, [rsp - 8]
    "5b c3"  # pop rbx; ret
)


@pytest.mark.parametrize("first", [16, 15, 6])
def test_displaced_code_runs(first: int) -> None:
    """The jump may replace bytes from the instruction itself on, or begin with the one or two before it."""
    site = FUNCTION.index(b"\x0f\xa2")
    assert site == 16
    last = {16: 23, 15: 20, 6: 18}[first]
    moved = trampoline.Displacement(first, last - first, FUNCTION[first:site], FUNCTION[site + 2 : last])
    memory = mmap.mmap(-1, 8192, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    plan = trampoline.assemble([moved], base + 64, base + 1024, CPU, 4)
    memory[64 : 64 + len(FUNCTION)] = FUNCTION
    memory[1024 : 1024 + len(plan.code)] = plan.code
    ((address, jump),) = plan.patches
    assert len(jump) == moved.length
    memory[address - base : address - base + len(jump)] = jump
    function = ctypes.CFUNCTYPE(ctypes.c_long, ctypes.c_void_p, ctypes.c_void_p)(base + 64)
    leaves = [(leaf, 7) for leaf in (*range(4), 5, 6, 0xA, 0x15, 0x16, *range(0x80000000, 0x80000009))]
    leaves += [
        (leaf, subleaf) for leaf, count in ((4, 5), (7, 2), (0xB, 3), (0xD, 20)) for subleaf in range(count)
    ]
    pid = os.fork()  # a mistake here would kill the process
    if pid == 0:
        os._exit(0 if all(_answers(function, *leaf) for leaf in leaves) else 1)
    assert os.waitpid(pid, 0)[1] == 0


def _answers(function: Callable[[int, int], int], leaf: int, subleaf: int) -> bool:
    registers = ctypes.create_string_buffer(struct.pack("<4I", leaf, 0, subleaf, 0), 16)
    carry = ctypes.create_string_buffer(8)
    in_red_zone = function(ctypes.addressof(registers), ctypes.addressof(carry))
    answers = struct.unpack("<4I", registers)
    return in_red_zone == 42 and carry.raw[0] == 1 and answers == model.cpuid(CPU, 4, 0, leaf, subleaf)


# void f(unsigned registers[4]): all ones, then the instruction; three bytes of it and two moved ones follow
OTHERS = bytes.fromhex("48c7c0ffffffff 48c7c2ffffffff 31c9 f9")  # mov rax, -1; mov rdx, -1; xor ecx, ecx; stc
STORE = bytes.fromhex("488907 48895708 0f924710 c3")  # mov [rdi], rax; mov [rdi+8], rdx; setc [rdi+16]; ret


@pytest.mark.parametrize(
    ("kind", "code", "expected"),
    [("xgetbv", b"\x0f\x01\xd0", [7]), ("rdtsc", b"\x0f\x31", [0x12345678FFFFFFFF + n for n in (1, 2, 3)])],
)
def test_xgetbv_and_rdtsc(kind: str, code: bytes, expected: list[int]) -> None:
    memory = mmap.mmap(-1, 16384, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    moved = trampoline.Displacement(len(OTHERS), len(code) + 3, b"", STORE[:3], kind)
    plan = trampoline.assemble([moved], base, base + 4096, CPU, 4)
    memory[: len(OTHERS + code + STORE)] = OTHERS + code + STORE
    memory[4096 : 4096 + len(plan.code)] = plan.code
    counter = plan.counter - base
    memory[counter : counter + 8] = (0x12345678FFFFFFFF).to_bytes(8, "little")
    ((address, jump),) = plan.patches
    memory[address - base : address - base + len(jump)] = jump
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(base)
    result = ctypes.create_string_buffer(24)
    pid = os.fork()
    if pid == 0:
        for value in expected:
            function(ctypes.addressof(result))
            if struct.unpack("<QQB7x", result.raw) != (value & 0xFFFFFFFF, value >> 32, 1):
                os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0


def test_rows_survive_json() -> None:
    here = trampoline.Displacement
    every = (here(1, 5, b"", b"\x90\xff\x00"), here(2, 6, b"1", b"23", "rdtsc", ((2, 6, 99), (7, 9, 1))))
    for moved in every:
        assert trampoline.Displacement.from_row(json.loads(json.dumps(moved.to_row()))) == moved


def test_too_far_away_is_refused() -> None:
    moved = trampoline.Displacement(0x1000, 5, b"", b"\x90" * 3)
    with pytest.raises(ValueError, match="too far"):
        trampoline.assemble([moved], 0, 1 << 33, CPU, 4)


def test_branch_targets_are_not_displaced() -> None:
    data = Path(LOADER).read_bytes()
    sites = find_sites(data)
    moved = trampoline.displacements(data, sites)
    cpuids = [site for site in sites if site.kind == "cpuid"]
    assert len([item for item in moved if item.kind == "cpuid"]) >= 0.8 * len(cpuids)
    assert {item.kind for item in moved} == {"cpuid", "xgetbv", "rdtsc"}
    codes = {"cpuid": b"\x0f\xa2", "xgetbv": b"\x0f\x01\xd0", "rdtsc": b"\x0f\x31"}
    elf = Elf(data)
    covered: set[int] = set()
    for item in moved:
        span = range(item.vaddr, item.vaddr + item.length)
        assert covered.isdisjoint(span) and item.length >= 5
        covered.update(span)
        offset = elf.offset_of(item.vaddr)
        assert offset is not None
        assert data[offset : offset + item.length] == item.before + codes[item.kind] + item.after


def test_the_loader_runs_on_trampolines() -> None:
    _, counts = on_trampolines([LOADER, "--version"])
    assert sum(counts.values()) == 0
    output, counts = on_trampolines([LOADER, "--list-diagnostics"])
    assert set(counts) <= {"cpuid"}  # from glibc 2.41 on it asks for leaves that no program needs
    assert diagnostics(output) == diagnostics(patched([LOADER, "--list-diagnostics"], {}, Values()))


def on_trampolines(argv: list[str]) -> tuple[bytes, Counter[str]]:
    """What the loader prints, and how often it was stopped."""
    data = Path(LOADER).read_bytes()
    sites = find_sites(data)
    moved = trampoline.displacements(data, sites)
    program = Traced(argv, {})
    with open(f"/proc/{program.pid}/maps") as maps:
        base = int(next(line for line in maps if "ld-linux" in line).split("-")[0], 16)
    where = base - (1 << 20)
    # PROT_READ | PROT_WRITE | PROT_EXEC; MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
    assert program.call(SYS_MMAP, where, 16384, 7, 0x100022, -1, 0) == where
    plan = trampoline.assemble(moved, base, where, CPU, 4)
    originals = dict(plan.traps)
    for site in sites:
        originals[base + site.vaddr] = data[site.offset : site.offset + site.length]
        program.write(base + site.vaddr, trap_bytes(site.length))
    program.write(where, plan.code)
    for address, patch in plan.patches:
        program.write(address, patch)
    return program.run(Values(), originals.get)
