"""The CPU models agree with themselves and with Linux, and are safe on processors that have more."""

from __future__ import annotations

import ctypes
import mmap
import re
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from detbox.cpu import model
from detbox.cpu.model import MODELS, cpuid, flags, missing_on_host

V2, V3 = MODELS["x86-64-v2"], MODELS["x86-64-v3"]
WORD = st.integers(0, 0xFFFFFFFF)


@given(st.sampled_from([V2, V3]), st.integers(1, 300), WORD, WORD)
def test_every_leaf_gives_four_words(cpu: model.CpuModel, cpus: int, leaf: int, subleaf: int) -> None:
    registers = cpuid(cpu, cpus, cpus - 1, leaf, subleaf)
    assert len(registers) == 4
    assert all(0 <= value <= 0xFFFFFFFF for value in registers)


@pytest.mark.parametrize("leaf", [0x17, 0x1F, 0x40000000, 0x7FFFFFFF, 0x80000009, 0x80860000, 0xFFFFFFFF])
def test_beyond_the_end_is_the_highest_basic_leaf(leaf: int) -> None:
    assert cpuid(V3, 4, 0, leaf) == cpuid(V3, 4, 0, model.MAX_BASIC_LEAF)


def test_psabi_levels() -> None:
    # x86-64 psABI, table 3.1
    level_2 = {"cx16", "lahf_lm", "popcnt", "sse4_1", "sse4_2", "ssse3"}
    level_3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
    assert level_2 <= V2.features and not level_3 & V2.features
    assert level_2 | level_3 <= V3.features


@pytest.mark.parametrize("cpu", [V2, V3])
def test_nothing_random_transactional_or_virtual(cpu: model.CpuModel) -> None:
    ecx1 = cpuid(cpu, 4, 0, 1)[2]
    ebx7 = cpuid(cpu, 4, 0, 7)[1]
    assert not ecx1 & (1 << 30 | 1 << 31)  # RDRAND, hypervisor
    assert not ebx7 & (1 << 4 | 1 << 11 | 1 << 18 | 1 << 16 | 1 << 0)  # HLE, RTM, RDSEED, AVX-512F, FSGSBASE


def test_frequencies_agree() -> None:
    denominator, numerator, crystal, _ = cpuid(V3, 1, 0, 0x15)
    assert crystal * numerator // denominator == model.TSC_HZ
    assert cpuid(V3, 1, 0, 0x16)[0] * 1_000_000 == model.TSC_HZ
    brand = b"".join(struct.pack("<IIII", *cpuid(V3, 1, 0, 0x80000002 + i)) for i in range(3)).rstrip(b"\0")
    assert brand.decode() == V3.brand and len(brand) < 48
    assert float(V3.brand.split("@")[1].removesuffix("GHz")) * 1e9 == model.TSC_HZ


@pytest.mark.parametrize("cpus", [1, 2, 3, 4, 16, 200])
def test_topology(cpus: int) -> None:
    for cpu in {0, cpus - 1}:
        assert cpuid(V3, cpus, cpu, 1)[1] >> 24 == cpu
        assert cpuid(V3, cpus, cpu, 0xB, 0)[3] == cpu
    shift, count, _, _ = cpuid(V3, cpus, 0, 0xB, 1)
    assert count == cpus <= 1 << shift < 2 * max(cpus, 1) + (cpus == 1)
    assert bool(cpuid(V3, cpus, 0, 1)[3] >> 28 & 1) == (cpus > 1) == ("ht" in flags(V3, cpus))
    assert model.hwcap(V3, cpus) == cpuid(V3, cpus, 0, 1)[3]


def test_cache_leaves_agree() -> None:
    sizes = []
    for subleaf, cache in enumerate(model.CACHES):
        eax, ebx, ecx, _ = cpuid(V3, 4, 0, 4, subleaf)
        sizes.append(((ebx >> 22) + 1) * ((ebx & 0xFFF) + 1) * (ecx + 1))
        assert eax & 31 == cache.kind and eax >> 5 & 7 == cache.level
    assert sizes == [cache.size for cache in model.CACHES]
    assert cpuid(V3, 4, 0, 4, len(sizes))[0] & 31 == 0
    assert cpuid(V3, 4, 0, 0x80000006)[2] >> 16 == model.CACHES[2].size >> 10
    with pytest.raises(ValueError):
        cpuid(V3, 4, 4, 1)


def test_cpuinfo_has_the_kernel_format() -> None:
    with open("/proc/cpuinfo") as file:
        host = file.read()
    ours = model.cpuinfo(V3, 3)
    assert ours.count("processor\t: ") == 3

    def name_shapes(text: str) -> list[str]:
        first = text.split("\n\n")[0]
        return [re.sub(r"(:).*", r"\1", line) for line in first.splitlines()]

    expected = [shape for shape in name_shapes(host) if "vmx flags" not in shape and "TLB" not in shape]
    assert name_shapes(ours) == expected
    assert ours.endswith("power management:\n\n")


def test_missing_on_host() -> None:
    assert missing_on_host(V3, V3.features) == []
    assert missing_on_host(V3, V2.features | {"avx"}) == [
        "fma", "movbe", "xsave", "f16c", "abm", "bmi1", "avx2", "bmi2", "xsaveopt", "xsavec",
    ]  # fmt: skip
    assert missing_on_host(V2, V3.features - {"mtrr"}) == []
    assert isinstance(missing_on_host(V2), list)


def test_unknown_feature_is_refused() -> None:
    with pytest.raises(ValueError, match="avx9"):
        model.CpuModel("x", frozenset({"avx9"}))


def _glibc_area(mask: int) -> int:
    """The size of an area that is compacted for ``mask``, as glibc computes it from leaf 0xD."""
    end = 576
    for component in range(2, 20):
        if mask >> component & 1:
            size, _, ecx, _ = cpuid(V3, 1, 0, 0xD, component)
            end = (-(-end // 64) * 64 if ecx & 2 else end) + size
    return end


@pytest.mark.skipif(bool(missing_on_host(V3)), reason="the host lacks XSAVEC")
@pytest.mark.parametrize("mask", [0xEE, 0x800EE, 0xE00EF])
def test_xsavec_stays_inside_the_area_of_the_model(mask: int) -> None:
    """XSAVEC with glibc's masks, into a buffer that ends at an inaccessible page."""
    page = mmap.PAGESIZE
    code = mmap.mmap(-1, page, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    # mov eax, mask; xor edx, edx; xsavec [rdi]; ret
    code.write(b"\xb8" + mask.to_bytes(4, "little") + b"\x31\xd2\x0f\xc7\x27\xc3")
    xsavec = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(ctypes.addressof(ctypes.c_char.from_buffer(code)))
    area = -(-_glibc_area(mask) // 64) * 64
    room = -(-area // page) * page
    buffer = mmap.mmap(-1, room + page)
    base = ctypes.addressof(ctypes.c_char.from_buffer(buffer))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.mprotect(ctypes.c_void_p(base + room), page, 0) == 0
    start = room - area
    xsavec(base + start)  # a fault would kill the test
    in_use, layout = struct.unpack_from("<QQ", buffer, start + 512)
    assert layout >> 63 == 1
    assert in_use & ~0b111 & 0xE0000 == 0  # neither AMX nor APX state
