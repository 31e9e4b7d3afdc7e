"""What one x86-64 instruction may read and write, as far as a spin proof needs it.

Only the operands' shapes are taken from capstone: its access flags are wrong
for some instructions (``lock cmpxchg`` is said to write nothing), so that every
memory operand counts as both read and written here; the prover compares bytes.
"""

from __future__ import annotations

from functools import cache, lru_cache
from typing import TYPE_CHECKING

from detbox.records import NamedTuple, record
from detbox.spin.stepper import OFFSET, register

if TYPE_CHECKING:
    import capstone
    from capstone import x86

#: The longest x86 instruction.
MAX_LENGTH = 15
_MASK = (1 << 64) - 1

# The result is not a function of the registers and memory that are compared,
# or the instruction changes more than they show.
_FORBIDDEN = frozenset(
    "syscall sysenter sysret sysexit int int1 int3 into ud0 ud1 ud2 hlt cpuid rdtsc rdtscp rdpmc rdpid "
    "rdrand rdseed xgetbv xbegin xend xabort xtest umonitor umwait tpause monitor mwait monitorx mwaitx lsl "
    "lar verr verw sgdt sidt sldt str smsw in out insb insw insd outsb outsw outsd vmcall vmmcall enqcmd "
    "clzero xsave xsave64 xsavec xsavec64 xsaveopt xsaveopt64 xrstor xrstor64 fxsave fxsave64 fxrstor "
    "fxrstor64 fnsave fsave frstor fnstenv fstenv fldenv maskmovq maskmovdqu vmaskmovdqu xlatb enter iret "
    "iretd iretq pushf pushfq popf popfq retf retfq ljmp lcall".split()
)
_STRINGS = ("movs", "stos", "lods", "scas", "cmps")
_SCATTERED = ("vgather", "vpgather", "vscatter", "vpscatter")
# Their memory operand is not accessed.
_NO_ACCESS = ("nop", "lea", "prefetch", "clflush", "clwb", "endbr")
# Of the SSE groups, but without any vector state.
_PLAIN = frozenset(
    "pause lfence mfence sfence movnti clflush clflushopt clwb prefetchnta prefetcht0 prefetcht1 prefetcht2 "
    "crc32 popcnt lzcnt tzcnt movbe".split()
)
_VECTOR_PREFIXES = ("xmm", "ymm", "zmm", "st", "mm", "k")
_VECTOR_GROUPS = ("fpu", "sse", "avx", "mmx", "3dnow", "fma", "vlx", "aes", "sha", "pclmul", "f16c")


@record(frozen=True)
class Span:
    """A memory operand: its address is a sum of registers and a constant."""

    base: int | None  # offset in the register block
    index: int | None
    scale: int
    segment: int | None
    displacement: int
    size: int
    relative: bool  # to the next instruction

    def address(self, registers: bytes, following: int) -> int:
        """The effective address, before the instruction has been executed."""
        total = self.displacement
        if self.base is not None:
            total += register(registers, self.base)
        if self.index is not None:
            total += register(registers, self.index) * self.scale
        if self.segment is not None:
            total += register(registers, self.segment)
        if self.relative:
            total += following
        return total & _MASK


class Instruction(NamedTuple):
    """One decoded instruction.

    ``forbidden``: why a loop with it is no provable spin, or "".
    ``vector``: it touches state outside of the general registers.
    ``operands``: ("reg", name of the full register, bytes), ("mem", index in ``spans``, size),
    ("address", names of its registers, size) for what is only computed, or ("imm", value, size).
    ``computed``: the address that ``lea`` puts into its register, if it can be followed.
    """

    size: int
    name: str
    text: str
    forbidden: str
    spans: tuple[Span, ...]
    vector: bool
    operands: tuple[tuple[str, str | int, int], ...]
    repeated: bool
    computed: Span | None = None


# capstone's kinds of operands (cs_op_type).
_REGISTER, _IMMEDIATE, _MEMORY = 1, 2, 3


@cache
def _disassembler() -> capstone.Cs:
    # Imported here because few runs need it, and it takes longer than all the rest of detbox's start.
    import capstone

    made = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    made.detail = True
    return made


def prepared(*, now: bool = False) -> bool:
    """Whether the disassembler has been imported, which takes 25 ms.  ``now``: import it."""
    if now:
        _disassembler()
    return _disassembler.cache_info().currsize > 0


def _widths() -> dict[str, tuple[str, int]]:
    """Every name of a general register: the full register and the bytes it covers."""
    names: dict[str, tuple[str, int]] = {}
    for letter in "abcd":
        names |= {f"r{letter}x": (f"r{letter}x", 8), f"e{letter}x": (f"r{letter}x", 4)}
        names |= {f"{letter}x": (f"r{letter}x", 2), f"{letter}l": (f"r{letter}x", 1)}
        names[f"{letter}h"] = (f"r{letter}x", 1)
    for pair in ("si", "di", "bp", "sp"):
        names |= {f"r{pair}": (f"r{pair}", 8), f"e{pair}": (f"r{pair}", 4)}
        names |= {pair: (f"r{pair}", 2), f"{pair}l": (f"r{pair}", 1)}
    for number in range(8, 16):
        for suffix, width in (("", 8), ("d", 4), ("w", 2), ("b", 1)):
            names[f"r{number}{suffix}"] = (f"r{number}", width)
    return names


_GENERAL = _widths()


@lru_cache(maxsize=4096)
def decode(code: bytes) -> Instruction | None:
    """The instruction at the start of ``code``, or None if it is none."""
    for found in _disassembler().disasm(code, 0, 1):
        return _describe(found)
    return None


def _describe(found: capstone.CsInsn) -> Instruction:
    name = found.mnemonic.split()[-1]
    spans: list[Span] = []
    operands: list[tuple[str, str | int, int]] = []
    forbidden = name if name in _FORBIDDEN or name.startswith(_SCATTERED) else ""
    computed: Span | None = None
    vector = name not in _PLAIN and any(
        found.group_name(group).startswith(_VECTOR_GROUPS) for group in found.groups
    )
    for operand in found.operands:
        if operand.type == _MEMORY:
            if name.startswith(_NO_ACCESS):
                operands.append(("address", _registers_of(found, operand), operand.size))
                computed = _span(found, operand) if name == "lea" and not operand.mem.segment else None
                continue
            span = _span(found, operand)
            if span is None:
                forbidden = forbidden or "address"
                continue
            operands.append(("mem", len(spans), operand.size))
            spans.append(span)
        elif operand.type == _REGISTER:
            register_name = found.reg_name(operand.reg)
            full, width = _GENERAL.get(register_name, (register_name, operand.size))
            vector = vector or register_name.startswith(_VECTOR_PREFIXES)
            operands.append(("reg", full, width))
        else:
            operands.append(("imm", operand.imm if operand.type == _IMMEDIATE else 0, operand.size))
    # With a register operand, bt and its kin reach beyond the operand that is named.
    if name in ("bt", "bts", "btr", "btc") and spans and operands[-1][0] == "reg":
        forbidden = name
    stack = _stack(name, found)
    if stack is not None:
        operands.append(("mem", len(spans), stack.size))
        spans.append(stack)
    if found.prefix[2] == 0x66 and stack is not None or name == "pop" and len(spans) > 1:
        forbidden = forbidden or "stack operand"
    # "rep ret" and "pause" carry the prefix without repeating.
    repeated = found.prefix[0] in (0xF2, 0xF3) and name[:4] in _STRINGS and not vector
    return Instruction(
        found.size, name, f"{found.mnemonic} {found.op_str}".strip(), forbidden, tuple(spans), vector,
        tuple(operands), repeated, computed,
    )  # fmt: skip


def _span(found: capstone.CsInsn, operand: x86.X86Op) -> Span | None:
    """The operand's address, or None for a form that is not followed (vector index, 32-bit address)."""
    memory = operand.mem
    if found.addr_size != 8 or not operand.size:
        return None
    base = found.reg_name(memory.base) if memory.base else None
    index = found.reg_name(memory.index) if memory.index else None
    segment = found.reg_name(memory.segment) if memory.segment else None
    if index is not None and index not in OFFSET and index != "riz":
        return None
    return Span(
        OFFSET[base] if base is not None and base != "rip" else None,
        OFFSET[index] if index is not None and index != "riz" else None,
        memory.scale,
        OFFSET[f"{segment}_base"] if segment in ("fs", "gs") else None,
        memory.disp,
        operand.size,
        base == "rip",
    )


def _registers_of(found: capstone.CsInsn, operand: x86.X86Op) -> str:
    parts = [found.reg_name(part) for part in (operand.mem.base, operand.mem.index) if part]
    return " ".join(_GENERAL.get(part, (part, 8))[0] for part in parts if part not in ("riz", "eiz"))


def _stack(name: str, found: capstone.CsInsn) -> Span | None:
    """The stack slot that an instruction uses without naming it."""
    if name in ("push", "call"):
        return Span(OFFSET["rsp"], None, 1, None, -8, 8, False)
    if name in ("pop", "ret"):
        return Span(OFFSET["rsp"], None, 1, None, 0, 8, False)
    if name == "leave":
        return Span(OFFSET["rbp"], None, 1, None, 0, 8, False)
    return None
