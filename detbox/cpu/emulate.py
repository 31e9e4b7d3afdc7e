"""Emulates one trapped instruction that would show the host's processor, clock or entropy.

The traps come from CPUID faulting and PR_SET_TSC (SIGSEGV), or from a site that :mod:`detbox.cpu.sites` found
and the supervisor overwrote (SIGILL).  In both cases the caller gives the *original* bytes.
"""

from __future__ import annotations

from typing import Any, Protocol

from detbox.records import NamedTuple

MASK32 = 0xFFFFFFFF
MASK64 = 0xFFFFFFFFFFFFFFFF

#: RDRAND and RDSEED set CF for success and clear these (Intel SDM volume 2).
CF = 1 << 0
_PF_AF_ZF_SF_OF = 1 << 2 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 11

# In the order of their numbers in ModRM.
_REGISTERS = "rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15".split()
_PREFIXES = frozenset(b"\x66\x67\xf2\xf3\x2e\x36\x3e\x26\x64\x65")

#: ``regs``: any object with the attributes of Linux's ``user_regs_struct`` (python-ptrace's, say).
Registers = Any


class Callbacks(Protocol):
    """Where the values come from: the CPU model, the virtual clock and the process's random stream."""

    def cpuid(self, leaf: int, subleaf: int) -> tuple[int, int, int, int]:
        """EAX, EBX, ECX, EDX."""

    def xcr0(self) -> int:
        """The vector state that is enabled, 0 where XGETBV does not exist."""

    def tsc(self) -> int:
        """The virtual time stamp counter, advanced by this look."""

    def random(self, size: int) -> bytes:
        """``size`` bytes of the seeded stream."""

    def cpu(self) -> int:
        """The number of the virtual processor that the thread runs on (NUMA node 0)."""


class Instruction(NamedTuple):
    """A decoded instruction: ``register`` is an operand's number, ``size`` its width in bytes."""

    kind: str
    length: int
    register: int = 0
    size: int = 0
    displacement: int = 0


def decode(code: bytes) -> Instruction | None:
    """The instruction at the start of ``code`` if it is one of those emulated here, else None.

    64-bit code only.  At most 15 bytes are looked at.
    """
    at = 0
    prefixes = set()
    while at < len(code) and code[at] in _PREFIXES:
        prefixes.add(code[at])
        at += 1
    rex = 0
    if at < len(code) and 0x40 <= code[at] <= 0x4F:
        rex = code[at]
        at += 1
    if code[at : at + 2] == b"\xc7\xf8" and 0x66 not in prefixes and len(code) >= at + 6:
        target = int.from_bytes(code[at + 2 : at + 6], "little", signed=True)
        return _checked(Instruction("xbegin", at + 6, displacement=target))
    if code[at : at + 1] != b"\x0f":
        return None
    for opcode, kind in _PLAIN.items():
        if code.startswith(opcode, at + 1):
            return _checked(Instruction(kind, at + 1 + len(opcode)))
    if code[at + 1 : at + 2] == b"\xc7" and len(code) > at + 2 and code[at + 2] >= 0xF0:
        modrm = code[at + 2]
        register = modrm & 7 | (rex & 1) << 3
        if 0xF3 in prefixes:
            # F3 with /6 is SENDUIPI, which no guest may use.
            return _checked(Instruction("rdpid", at + 3, register, 8)) if modrm >= 0xF8 else None
        size = 8 if rex & 8 else 2 if 0x66 in prefixes else 4
        return _checked(Instruction("rdseed" if modrm >= 0xF8 else "rdrand", at + 3, register, size))
    return None


_PLAIN = {b"\xa2": "cpuid", b"\x31": "rdtsc", b"\x01\xf9": "rdtscp", b"\x01\xd0": "xgetbv"}


def emulate(code: bytes, regs: Registers, source: Callbacks) -> bool:
    """Carry out the instruction at ``regs.rip``, whose bytes are ``code``: registers, flags and ``rip``.

    Returns False, with nothing changed, if it is another instruction or one that faults on the virtual
    processor as well (XGETBV of a register that does not exist): the guest then gets the signal.
    """
    instruction = decode(code)
    if instruction is None:
        return False
    kind = instruction.kind
    if kind == "cpuid":
        regs.rax, regs.rbx, regs.rcx, regs.rdx = source.cpuid(regs.rax & MASK32, regs.rcx & MASK32)
    elif kind in ("rdtsc", "rdtscp"):
        ticks = source.tsc()
        regs.rax, regs.rdx = ticks & MASK32, ticks >> 32 & MASK32
        if kind == "rdtscp":
            regs.rcx = source.cpu()  # Linux keeps node << 12 | cpu in IA32_TSC_AUX
    elif kind == "xgetbv":
        xcr0 = source.xcr0()
        if regs.rcx & MASK32 or not xcr0:
            return False
        regs.rax, regs.rdx = xcr0 & MASK32, xcr0 >> 32
    elif kind in ("rdrand", "rdseed"):
        value = int.from_bytes(source.random(instruction.size), "little")
        _store(regs, instruction, value)
        regs.eflags = regs.eflags & ~_PF_AF_ZF_SF_OF | CF
    elif kind == "rdpid":
        _store(regs, instruction, source.cpu())
    else:
        # XBEGIN aborts at once, "not because of a retry-able event": status 0, and on to the fallback path.
        regs.rax = 0
        regs.rip = (regs.rip + instruction.displacement) & MASK64
    regs.rip = (regs.rip + instruction.length) & MASK64
    return True


def _checked(instruction: Instruction) -> Instruction | None:
    return instruction if instruction.length <= 15 else None


def _store(regs: Registers, instruction: Instruction, value: int) -> None:
    name = _REGISTERS[instruction.register]
    if instruction.size == 2:
        value |= getattr(regs, name) & ~0xFFFF  # a 32-bit result clears the upper half, a 16-bit one does not
    setattr(regs, name, value)
