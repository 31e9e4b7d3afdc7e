"""The fixed CPU models that a guest sees: every number that identifies a processor, in one place.

A model is a set of features with the names that Linux prints in /proc/cpuinfo.  What ``cpuid`` answers,
the text of /proc/cpuinfo, AT_HWCAP and the check of the host all derive from that set and from the constants
below, so they cannot disagree.

Both models call themselves an Intel processor of family 6, model 0x5E (Skylake client), because programs
choose their code by vendor and model and this one sends all of them (glibc, OpenSSL, OpenBLAS, HotSpot, MKL)
along well-known paths.  There is no AVX-512, AMX, TSX, RDRAND, RDSEED, RDPID, FSGSBASE or hypervisor bit.

Why ``x86-64-v3`` has XSAVEC, which a Haswell had not, and describes state that it has not enabled.  XCR0 is
7: x87, SSE and AVX.  But XSAVE saves what its mask *and the host's* XCR0 name, and glibc's trampolines for
lazy binding and for TLS descriptors use constant masks that name AVX-512, AMX and APX state
(sysdeps/x86/sysdep.h, STATE_SAVE_MASK and TLSDESC_CALL_STATE_SAVE_MASK).  On a host with AVX-512 a buffer for
XCR0 = 7, 832 bytes, is too small twice over: plain XSAVE stores 2688 bytes; XSAVEC stores nothing for
components in their initial configuration (Intel SDM volume 1, section 13.10), and a guest that never sees
AVX-512 never leaves it, yet the processor tests 2432 bytes for being writable (a page fault at the stack's
end proved it).  glibc sizes its buffers by the sub-leaves of leaf 0xD, so those describe all components of
today's processors as supported by the processor and not enabled by the kernel, and leaf 0xD gives the size of
them all, which is what a program needs that saves with a mask of all ones.  ``x86-64-v2`` shows no XSAVE:
glibc then uses FXSAVE, whose 512 bytes do not depend on XCR0.  Go, HotSpot and OpenSSL save vector registers
one by one after asking cpuid.
"""

from __future__ import annotations

import functools
import struct
from collections.abc import Iterable

from detbox.records import NamedTuple, record

Registers = tuple[int, int, int, int]

#: The virtual time stamp counter runs at one tick per virtual nanosecond.
TSC_HZ = 1_000_000_000
#: AT_PLATFORM, which is also the ``$PLATFORM`` of the dynamic loader.
PLATFORM = "x86_64"
#: AT_HWCAP2: neither ring 3 MWAIT nor FSGSBASE (leaf 7 does not show it; older kernels do not enable it).
HWCAP2 = 0

VENDOR = "GenuineIntel"
FAMILY, MODEL, STEPPING = 6, 0x5E, 3
MICROCODE = 0xF0
PHYSICAL_BITS, VIRTUAL_BITS = 39, 48
# Leaf 1 EAX: the upper half of the model goes to bits 16 to 19.
_SIGNATURE = (MODEL >> 4) << 16 | FAMILY << 8 | (MODEL & 15) << 4 | STEPPING
LINE_SIZE = 64
MAX_BASIC_LEAF = 0x16
MAX_EXTENDED_LEAF = 0x80000008
_CRYSTAL_HZ = 25_000_000
_NOTHING: Registers = (0, 0, 0, 0)


class Cache(NamedTuple):
    """One cache: ``kind`` is 1 for data, 2 for instructions, 3 for both; ``size`` in bytes."""

    level: int
    kind: int
    size: int
    ways: int
    shared: bool

    @property
    def sets(self) -> int:
        return self.size // (self.ways * LINE_SIZE)


#: Leaf 2 names the same four by one-byte descriptors.  A descriptor 0xFF ("ask leaf 4") would be as valid,
#: but then glibc asks leaf 4 again for each of its twelve questions at every exec.
CACHES = (
    Cache(1, 1, 32 << 10, 8, False),
    Cache(1, 2, 32 << 10, 8, False),
    Cache(2, 3, 256 << 10, 8, False),
    Cache(3, 3, 8 << 20, 16, True),
)
# 0x01: this leaf is complete after one call.  0x2C: L1 data.  0x30: L1 instructions.  0x21: L2.  0xE4: L3.
_LEAF_2: Registers = (0x01 | 0x2C << 8 | 0x30 << 16, 0x21 | 0xE4 << 8, 0, 0)

# (leaf, register index, bit -> Linux name), in the order in which /proc/cpuinfo prints capability words
# (arch/x86/include/asm/cpufeatures.h).  Leaf None: words that Linux makes up.
_WORDS: tuple[tuple[int | None, int, dict[int, str]], ...] = (
    (1, 3, {0: "fpu", 1: "vme", 2: "de", 3: "pse", 4: "tsc", 5: "msr", 6: "pae", 7: "mce", 8: "cx8",
            9: "apic", 11: "sep", 12: "mtrr", 13: "pge", 14: "mca", 15: "cmov", 16: "pat", 17: "pse36",
            19: "clflush", 23: "mmx", 24: "fxsr", 25: "sse", 26: "sse2", 27: "ss", 28: "ht"}),
    (0x80000001, 3, {11: "syscall", 20: "nx", 26: "pdpe1gb", 27: "rdtscp", 29: "lm"}),
    (None, 0, {0: "constant_tsc", 1: "rep_good", 2: "nopl", 3: "xtopology", 4: "nonstop_tsc", 5: "cpuid"}),
    (1, 2, {0: "pni", 1: "pclmulqdq", 9: "ssse3", 12: "fma", 13: "cx16", 19: "sse4_1", 20: "sse4_2",
            21: "x2apic", 22: "movbe", 23: "popcnt", 25: "aes", 26: "xsave", 28: "avx", 29: "f16c"}),
    (0x80000001, 2, {0: "lahf_lm", 5: "abm", 8: "3dnowprefetch"}),
    (7, 1, {3: "bmi1", 5: "avx2", 8: "bmi2"}),
    (0xD, 0, {0: "xsaveopt", 1: "xsavec"}),
    (6, 0, {2: "arat"}),
)  # fmt: skip
_ORDER = [name for _, _, names in _WORDS for name in names.values()]
_OSXSAVE = 1 << 27  # leaf 1 ECX: the kernel enabled XSAVE; Linux does not print it

# Components of the XSAVE area: size and offset in bytes, and ECX (bit 1: aligned to 64 bytes when compacted,
# bit 2: can be disabled with XFD).  In order: AVX; AVX-512 masks, upper halves, upper registers; PKRU; AMX;
# APX.
_XSAVE_COMPONENTS: dict[int, tuple[int, int, int]] = {
    2: (256, 576, 0),
    5: (64, 1088, 0),
    6: (512, 1152, 0),
    7: (1024, 1664, 0),
    9: (8, 2688, 0),
    17: (64, 2752, 2),
    18: (8192, 2816, 6),
    19: (128, 960, 0),
}
_XSAVE_SIZE = max(size + offset for size, offset, _ in _XSAVE_COMPONENTS.values())
_XSAVE_SUPPORTED = 0b11 | sum(1 << component for component in _XSAVE_COMPONENTS)

#: Features that only the kernel or the firmware uses, or whose absence no instruction notices (PREFETCHW is a
#: no-operation where it is missing).  The host need not have them.
_SYSTEM_ONLY = frozenset(
    "vme de pse tsc msr pae mce apic sep mtrr pge mca pat pse36 ss ht nx pdpe1gb constant_tsc rep_good nopl"
    " xtopology nonstop_tsc cpuid x2apic 3dnowprefetch arat".split()
)


@record(frozen=True)
class CpuModel:
    """A processor: its name in detbox's configuration and its features, as Linux names them."""

    name: str
    features: frozenset[str]

    def __post_init__(self) -> None:
        unknown = self.features.difference(_ORDER)
        if unknown:
            raise ValueError(f"CPU model {self.name}: no such feature: {', '.join(sorted(unknown))}")

    @property
    def brand(self) -> str:
        """The brand string; programs read the clock rate after the ``@``."""
        return f"detbox {self.name} CPU @ {TSC_HZ / 1e9:.2f}GHz"

    @property
    def xcr0(self) -> int:
        """What XGETBV shows: x87, SSE and AVX state; 0 where the model has no XSAVE."""
        if "xsave" not in self.features:
            return 0
        return 0b111 if "avx" in self.features else 0b011


_V2 = frozenset(_ORDER) - frozenset("ht fma movbe xsave avx f16c abm bmi1 avx2 bmi2 xsaveopt xsavec".split())
_V3 = frozenset(_ORDER) - {"ht"}

#: All models by name.  ``ht`` belongs to the topology, not to the model.
MODELS = {model.name: model for model in (CpuModel("x86-64-v2", _V2), CpuModel("x86-64-v3", _V3))}
DEFAULT_MODEL = "x86-64-v3"


def cpuid(model: CpuModel, cpus: int, cpu: int, leaf: int, subleaf: int = 0) -> Registers:
    """What ``cpuid`` returns on processor ``cpu`` of ``cpus``, as (EAX, EBX, ECX, EDX).

    A leaf beyond the end gives the data of the highest basic leaf, as Intel's processors do.
    """
    if not 0 <= cpu < cpus:
        raise ValueError(f"processor {cpu} of {cpus}")
    leaf &= 0xFFFFFFFF
    subleaf &= 0xFFFFFFFF
    if leaf > MAX_BASIC_LEAF and not 0x80000000 <= leaf <= MAX_EXTENDED_LEAF:
        leaf = MAX_BASIC_LEAF
    if leaf == 0:
        ebx, edx, ecx = struct.unpack("<III", VENDOR.encode())
        return MAX_BASIC_LEAF, ebx, ecx, edx
    if leaf == 1:
        ids = min(_ids(cpus), 255)
        ebx = (cpu & 0xFF) << 24 | ids << 16 | (LINE_SIZE // 8) << 8
        osxsave = _OSXSAVE if model.xcr0 else 0
        ecx = _word(model, cpus, 1, 2) | osxsave
        return _SIGNATURE, ebx, ecx, _word(model, cpus, 1, 3)
    if leaf == 2:
        return _LEAF_2
    if leaf == 4:
        return _cache_leaf(cpus, subleaf)
    if leaf == 6:
        return _word(model, cpus, 6, 0), 0, 0, 0
    if leaf == 7:
        return (0, _word(model, cpus, 7, 1), 0, 0) if subleaf == 0 else _NOTHING
    if leaf == 0xB:
        return _topology_leaf(cpus, cpu, subleaf)
    if leaf == 0xD:
        return _xsave_leaf(model, subleaf)
    if leaf == 0x15:
        return 1, TSC_HZ // _CRYSTAL_HZ, _CRYSTAL_HZ, 0
    if leaf == 0x16:
        return TSC_HZ // 1_000_000, TSC_HZ // 1_000_000, 100, 0
    return _extended_leaf(model, cpus, leaf) if leaf >= 0x80000000 else _NOTHING


@functools.cache
def hwcap(model: CpuModel, cpus: int) -> int:
    """AT_HWCAP: on x86 the EDX of leaf 1 (arch/x86/include/asm/elf.h)."""
    return _word(model, cpus, 1, 3)


def flags(model: CpuModel, cpus: int) -> list[str]:
    """The features in the order of the ``flags`` line of /proc/cpuinfo."""
    return [name for name in _ORDER if _has(model, cpus, name)]


def cpuinfo_fields(model: CpuModel, cpus: int, cpu: int) -> list[tuple[str, str]]:
    """The lines of one processor's paragraph in /proc/cpuinfo, in the kernel's order."""
    mhz = TSC_HZ / 1e6
    return [
        ("processor", str(cpu)),
        ("vendor_id", VENDOR),
        ("cpu family", str(FAMILY)),
        ("model", str(MODEL)),
        ("model name", model.brand),
        ("stepping", str(STEPPING)),
        ("microcode", hex(MICROCODE)),
        ("cpu MHz", f"{mhz:.3f}"),
        ("cache size", f"{CACHES[-1].size >> 10} KB"),
        ("physical id", "0"),
        ("siblings", str(cpus)),
        ("core id", str(cpu)),
        ("cpu cores", str(cpus)),
        ("apicid", str(cpu)),
        ("initial apicid", str(cpu)),
        ("fpu", "yes"),
        ("fpu_exception", "yes"),
        ("cpuid level", str(MAX_BASIC_LEAF)),
        ("wp", "yes"),
        ("flags", " ".join(flags(model, cpus))),
        ("bugs", ""),
        ("bogomips", f"{2 * mhz:.2f}"),
        ("clflush size", str(LINE_SIZE)),
        ("cache_alignment", str(LINE_SIZE)),
        ("address sizes", f"{PHYSICAL_BITS} bits physical, {VIRTUAL_BITS} bits virtual"),
        ("power management", ""),
    ]


def cpuinfo(model: CpuModel, cpus: int) -> str:
    """The text of /proc/cpuinfo."""
    paragraphs = []
    for cpu in range(cpus):
        fields = cpuinfo_fields(model, cpus, cpu)
        lines = (f"{name}{_tabs(name)}:{' ' if value else ''}{value}\n" for name, value in fields)
        paragraphs.append("".join(lines) + "\n")
    return "".join(paragraphs)


def missing_on_host(model: CpuModel, host_flags: Iterable[str] | None = None) -> list[str]:
    """The features that programs would use under this model and that the host's processor lacks.

    ``host_flags``: the host's flags; by default those of the host's /proc/cpuinfo.  Raises OSError if that
    cannot be read.
    """
    have = set(host_features() if host_flags is None else host_flags)
    needed = model.features - _SYSTEM_ONLY
    return [name for name in _ORDER if name in needed and name not in have]


def host_features() -> set[str]:
    """What /proc/cpuinfo lists for the host's first processor.  Raises OSError."""
    with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        flags_line = next((line for line in lines if line.startswith("flags")), "")
    return set(flags_line.partition(":")[2].split())


def _has(model: CpuModel, cpus: int, name: str) -> bool:
    return name in model.features or (name == "ht" and cpus > 1)


def _word(model: CpuModel, cpus: int, leaf: int, register: int) -> int:
    """The feature bits of one register of one leaf."""
    for word_leaf, word_register, names in _WORDS:
        if (word_leaf, word_register) == (leaf, register):
            return sum(1 << bit for bit, name in names.items() if _has(model, cpus, name))
    return 0


def _ids(cpus: int) -> int:
    """How many APIC ids the package spans: the next power of two."""
    return 1 << (cpus - 1).bit_length()


def _cache_leaf(cpus: int, subleaf: int) -> Registers:
    if subleaf >= len(CACHES):
        return _NOTHING
    cache = CACHES[subleaf]
    sharing = min(_ids(cpus), 4096) if cache.shared else 1
    cores = min(_ids(cpus), 64)
    eax = cache.kind | cache.level << 5 | 1 << 8 | (sharing - 1) << 14 | (cores - 1) << 26
    inclusive = 2 if cache.shared else 0
    return eax, (LINE_SIZE - 1) | (cache.ways - 1) << 22, cache.sets - 1, inclusive


def _topology_leaf(cpus: int, cpu: int, subleaf: int) -> Registers:
    """One package of ``cpus`` cores with one thread each."""
    level = subleaf & 0xFF
    if subleaf == 0:
        return 0, 1, 1 << 8, cpu
    if subleaf == 1:
        return (cpus - 1).bit_length(), cpus, level | 2 << 8, cpu
    return 0, 0, level, cpu


def _xsave_leaf(model: CpuModel, subleaf: int) -> Registers:
    if not model.xcr0:
        return _NOTHING
    if subleaf == 0:
        return _XSAVE_SUPPORTED, _XSAVE_SIZE, _XSAVE_SIZE, 0
    if subleaf == 1:
        return _word(model, 1, 0xD, 0), _XSAVE_SIZE, 0, 0
    size, offset, ecx = _XSAVE_COMPONENTS.get(subleaf, (0, 0, 0))
    return size, offset, ecx, 0


def _extended_leaf(model: CpuModel, cpus: int, leaf: int) -> Registers:
    if leaf == 0x80000000:
        return MAX_EXTENDED_LEAF, 0, 0, 0
    if leaf == 0x80000001:
        return 0, 0, _word(model, cpus, leaf, 2), _word(model, cpus, leaf, 3)
    if 0x80000002 <= leaf <= 0x80000004:
        text = model.brand.encode().ljust(48, b"\0")
        a, b, c, d = struct.unpack_from("<IIII", text, 16 * (leaf - 0x80000002))
        return a, b, c, d
    if leaf == 0x80000006:
        l2 = CACHES[2]
        return 0, 0, (l2.size >> 10) << 16 | 6 << 12 | LINE_SIZE, 0  # 6 is the code for 8 ways
    if leaf == 0x80000007:
        return 0, 0, 0, 1 << 8  # invariant TSC
    if leaf == 0x80000008:
        return VIRTUAL_BITS << 8 | PHYSICAL_BITS, 0, 0, 0
    return _NOTHING


def _tabs(name: str) -> str:
    """The tabs after a field's name: show_cpuinfo() aligns most of them on column 16."""
    return "" if name == "power management" else "\t" * max(1, 2 - len(name) // 8)
