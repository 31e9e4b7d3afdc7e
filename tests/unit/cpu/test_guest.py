"""Real programs under a tracer: the loader sees the model by CPUID faulting and at patched sites."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbox.cpu import model
from detbox.cpu.elf import Elf
from detbox.cpu.sites import find_sites, trap_bytes

from .tracer import ARCH_SET_CPUID, PR_SET_TSC, PR_TSC_SIGSEGV, SYS_ARCH_PRCTL, SYS_PRCTL, Traced, Values

LOADER = "/lib64/ld-linux-x86-64.so.2"


def diagnostics(output: bytes) -> dict[str, str]:
    lines = (line.partition("=") for line in output.decode().splitlines())
    return {name: value for name, _, value in lines if name.startswith(("x86.", "dl_platform"))}


def patched(argv: list[str], environ: dict[str, str], values: Values) -> bytes:
    """Run a program of the loader's with every site in it overwritten by a trap."""
    program = Traced(argv, environ)
    data = Path(LOADER).read_bytes()
    with open(f"/proc/{program.pid}/maps") as maps:
        first = next(line for line in maps if "ld-linux" in line and " 00000000 " in line)
    base = int(first.split("-")[0], 16)
    originals = {}
    for site in find_sites(data):
        address = base + site.vaddr - Elf(data).segments[0].vaddr
        originals[address] = program.read(address, site.length)
        assert originals[address] == data[site.offset : site.offset + site.length]
        program.write(address, trap_bytes(site.length))
    output, counts = program.run(values, originals.get)
    assert counts["cpuid"] and counts["rdtsc"]
    return output


def test_the_loader_sees_the_model_at_patched_sites() -> None:
    got = diagnostics(patched([LOADER, "--list-diagnostics"], {}, Values()))
    assert got["x86.cpu_features.basic.max_cpuid"] == hex(model.MAX_BASIC_LEAF)
    # What the model has of the registers, close together or, for newer C libraries, where XSAVE puts them.
    size, offset, _, _ = model.cpuid(model.MODELS["x86-64-v3"], 4, 0, 0xD, 7)
    assert got["x86.cpu_features.xsave_state_size"] in (hex(2432 + 64), hex(offset + size))
    assert got["x86.cpu_features.level2_cache_size"] == hex(model.CACHES[2].size)
    assert got["x86.cpu_features.level3_cache_assoc"] == hex(model.CACHES[3].ways)
    assert got["dl_platform"] == '"haswell"'
    old = diagnostics(patched([LOADER, "--list-diagnostics"], {}, Values("x86-64-v2")))
    assert old["x86.cpu_features.xsave_state_size"] == "0x0"
    assert old["x86.cpu_features.isa_1"] == "0x3"


def test_faulting_and_patching_agree() -> None:
    program = Traced([LOADER, "--list-diagnostics"], {})
    if program.call(SYS_ARCH_PRCTL, ARCH_SET_CPUID, 0) != 0:
        program.run(Values())
        pytest.skip("no CPUID faulting")
    assert program.call(SYS_PRCTL, PR_SET_TSC, PR_TSC_SIGSEGV) == 0
    output, counts = program.run(Values())
    assert diagnostics(output) == diagnostics(patched([LOADER, "--list-diagnostics"], {}, Values()))
    # Each trap costs microseconds in every exec: a change of the cache leaves must not add to them.
    assert counts["cpuid"] <= 40


def test_lazy_binding_at_the_top_of_the_stack() -> None:
    """With an empty environment the first lazily bound calls happen close to the stack's end."""
    for _ in range(10):
        assert patched(["/usr/bin/getconf", "LEVEL1_DCACHE_SIZE"], {}, Values()) == b"32768\n"
