"""Makes a copy of a stretch of x86-64 code that does the same, and counts its turns in memory.

A copy begins where the program has arrived, and goes on to the first instruction that always branches.  It has two
entries.  By the *counted* one, its start, a counter is decremented by the copy's length, and the copy stops (at a
breakpoint) when that makes it negative; who jumps forward to a known place enters behind that.  Every loop has a
jump back, a call or a jump to a computed address, so each turn of it is counted.

What the program can see stays as it is: registers, flags and stack hold what they would hold, return addresses
are those of the original code, and what the copy needs for itself lies in slots of its own memory.  An
instruction whose effect depends on where it is (a branch, an address relative to it) is rewritten, and one that
traps is left to the original.  System calls are made from the copy: the thread goes on in it afterwards.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

from detbox.counted.slots import BREAKPOINT, COUNTER, LOOKUP, RCX, SCRATCH, moved

if TYPE_CHECKING:
    import capstone

#: Bytes that a copy may be made from at most, and instructions.
LONGEST = 768
_INSTRUCTIONS = 48
# Bytes that are disassembled at a time.
_AT_ONCE = 64
#: What a counted entry counts, in instructions, besides those of the copy: about what it takes.
ENTRY_WEIGHT = 8
#: What a call counts: by the time that one takes which the filter decides alone.
CALL_WEIGHT = 2_000
#: In place of a slot: the register holds the address.
AFTER_CALL = -1
# mov eax or rax, rt_sigreturn: the call does not come back to the copy.
_SIGNAL_RETURNS = (b"\xb8\x0f\0\0\0", b"\x48\xc7\xc0\x0f\0\0\0")

_PREFIXES = frozenset(b"\x66\x67\xf0\xf2\xf3\x2e\x36\x3e\x26\x64\x65")
# One byte: int3, int, int1, hlt, iret, far returns and jumps, ports, popf (it may set the trap flag), pop to ss …
_LEFT_ALONE = frozenset(
    b"\xcc\xcd\xce\xf1\xf4\xcf\xca\xcb\x9a\xea\xe4\xe5\xe6\xe7\xec\xed\xee\xef\x6c\x6d\x6e\x6f\x9d\x8e"
)
_BRANCHES = frozenset(b"\xe8\xe9\xeb\xc2\xc3\xe0\xe1\xe2\xe3")
# After 0F: syscall, sysret, sysenter, sysexit, ud2, ud1, ud0, cpuid, rdtsc, rdpmc, wrmsr, rdmsr.
_LEFT_ALONE_0F = frozenset(b"\x05\x07\x34\x35\x0b\xb9\xff\xa2\x31\x33\x30\x32")
# After 0F 01: rdtscp, xgetbv.
_LEFT_ALONE_0F01 = frozenset(b"\xf9\xd0")
# First bytes of what may be one of these.
_LOOKED_AT = bytes(
    byte in _LEFT_ALONE | _BRANCHES | _PREFIXES | set(b"\x0f\xc7\xff") or 0x70 <= byte <= 0x7F for byte in range(256)
)
_SCRATCHES = (("rdi", 7), ("rsi", 6), ("rbx", 3), ("rdx", 2), ("rcx", 1), ("rax", 0))
_MASK = (1 << 64) - 1


class Exit(NamedTuple):
    """A breakpoint in a copy.

    ``why``: "counted" (nothing is left), "native" (the original instruction has to be executed), or "jump".
    ``target``: the address in the original code.  ``counted``: whether to go on by the counted entry.
    ``patch``: offset in the copy of the jump's distance, which leads to this breakpoint as long as there is
    no copy of the target.
    """

    why: str
    target: int
    counted: bool = False
    patch: int = 0


class Mark(NamedTuple):
    """Offset in the copy, the original instruction's address, and a register (with its slot) that is put aside.

    Behind a call the register is RCX, where the processor has put the address of the copy, and the slot AFTER_CALL.
    """

    offset: int
    address: int
    saved: tuple[str, int] | None = None


@dataclass(slots=True, eq=False, repr=False)
class Copy:
    """Code for one place; ``exits``: by the offset behind their breakpoint."""

    address: int
    at: int
    code: bytearray = field(default_factory=bytearray)
    plain: int = 0
    exits: dict[int, Exit] = field(default_factory=dict)
    marks: list[Mark] = field(default_factory=list)


class _Form(NamedTuple):
    """The parts of an instruction: REX (0: none), opcode bytes, and their offset."""

    prefixes: bytes
    rex: int
    opcode: bytes
    at: int


@cache
def _disassembler(detail: bool) -> capstone.Cs:
    # Imported here because few runs need it, and it takes longer than all the rest of detbox's start.
    import capstone

    made = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    made.detail = detail
    return made


def _instructions(code: bytes, address: int) -> Iterator[tuple[int, int, str, str]]:
    """(address, size, mnemonic, operands) of instructions, as far as they are known.

    The disassembler does all that it is given before the first one is seen: it is given a little at a time.
    """
    at, before = 0, -1
    while at != before:
        before = at
        for found in _disassembler(False).disasm_lite(code[at : at + _AT_ONCE], address + at):
            yield found
            at = found[0] - address + found[1]


def translate(code: bytes, address: int, at: int, slots: int) -> Copy | None:
    """A copy of the ``code`` at ``address`` for the place ``at``; ``slots``: where the copies' memory begins.

    None if the first instruction is one of those that are left to the original.
    """
    made = _Maker(Copy(address, at), slots)
    for number, (place, size, mnemonic, operands) in enumerate(_instructions(code, address)):
        raw = code[place - address : place - address + size]
        if number == _INSTRUCTIONS:
            made.jump(place, counted=True)
            break
        made.length = number + 1
        if made.instruction(place, raw, mnemonic, operands):
            break
        if number == 0 and not made.copy.marks:
            return None
        made.before = raw
    else:
        if not made.copy.marks:
            return None
        made.native(made.following)
    return made.finished()


class _Maker:
    """Appends to one copy."""

    def __init__(self, copy: Copy, slots: int) -> None:
        self.copy = copy
        self.following = copy.address
        self._slots = slots
        self._links: list[tuple[int, int, bool]] = []
        self.length = 0  # instructions
        self.before = b""  # the instruction before
        self._calls = 0
        out = copy.code
        self._move(RCX, 1, load=False)
        self._move(COUNTER, 1, load=True)
        out += b"\x48\x8d\x89" + bytes(4)  # lea rcx, [rcx - weight]
        self._weight_at = len(out) - 4
        self._move(COUNTER, 1, load=False)
        distance = slots + COUNTER + 7 - (copy.at + len(out) + 7)
        out += b"\x0f\xb6\x0d" + struct.pack("<i", distance)  # movzx ecx, byte: zero unless it is negative
        out += b"\xe3\x08"  # jrcxz, behind the breakpoint
        self._move(RCX, 1, load=True)
        out += BREAKPOINT
        copy.exits[len(out)] = Exit("counted", copy.address)
        self._move(RCX, 1, load=True)
        copy.plain = len(out)

    # -- pieces ---------------------------------------------------------------------

    def _move(self, slot: int, register: int, *, load: bool) -> None:
        """Between a low register and a slot."""
        copy = self.copy
        copy.code += moved(self._slots + slot, copy.at + len(copy.code), register, load=load)

    def jump(self, target: int, *, counted: bool, opcode: bytes = b"\xe9") -> None:
        """A (conditional) jump to the copy of ``target``."""
        self.copy.code += opcode + bytes(4)
        self._links.append((len(self.copy.code) - 4, target, counted))

    def native(self, place: int) -> None:
        """The original goes on from here."""
        self.copy.code += BREAKPOINT
        self.copy.exits[len(self.copy.code)] = Exit("native", place)

    def _mark(self, place: int, saved: tuple[str, int] | None = None) -> None:
        self.copy.marks.append(Mark(len(self.copy.code), place, saved))

    def finished(self) -> Copy:
        """The copy, with a breakpoint for each jump."""
        copy = self.copy
        struct.pack_into("<i", copy.code, self._weight_at, -(ENTRY_WEIGHT + self.length + CALL_WEIGHT * self._calls))
        for patch, target, counted in self._links:
            struct.pack_into("<i", copy.code, patch, len(copy.code) - (patch + 4))
            copy.code += BREAKPOINT
            copy.exits[len(copy.code)] = Exit("jump", target, counted, patch)
        return copy

    # -- instructions -----------------------------------------------------------------

    def instruction(self, place: int, raw: bytes, mnemonic: str, operands: str) -> bool:
        """Append one instruction; True if the copy ends with it."""
        self.following = place + len(raw)
        relative = "rip" in operands
        if not (relative or _LOOKED_AT[raw[0] if raw[0] & 0xF0 != 0x40 else raw[1]]):
            self._mark(place)
            self.copy.code += raw
            return False
        form = _form(raw)
        if form.opcode[:2] == b"\x0f\x05" and self.before not in _SIGNAL_RETURNS:
            return self._call(place, raw)
        if _left_alone(form, raw):
            if self.copy.marks:
                self.native(place)
                return True
            return False
        opcode = form.opcode[0]
        if opcode == 0x0F and 0x80 <= form.opcode[1] <= 0x8F:
            return self._branch(place, form.opcode[1] & 15, int(operands, 0))
        if 0x70 <= opcode <= 0x7F:
            return self._branch(place, opcode & 15, int(operands, 0))
        if 0xE0 <= opcode <= 0xE3:
            return self._count_branch(place, form, int(operands, 0))
        if opcode in (0xE9, 0xEB):
            target = int(operands, 0)
            self._mark(place)
            self.jump(target, counted=target <= place)
            return True
        if opcode == 0xE8:
            self._mark(place)
            self._push(self.following)
            self.jump(int(operands, 0), counted=True)
            return True
        if opcode in (0xC2, 0xC3):
            return self._return(place, form, raw)
        if opcode == 0xFF and form.opcode[1] >> 3 & 7 in (2, 4):
            return self._computed(place, form, raw, call=form.opcode[1] >> 3 & 7 == 2)
        if relative:
            return self._relative(place, raw)
        self._mark(place)
        self.copy.code += raw
        return False

    def _branch(self, place: int, condition: int, target: int) -> bool:
        self._mark(place)
        self.jump(target, counted=target <= place, opcode=bytes((0x0F, 0x80 | condition)))
        return False

    def _call(self, place: int, raw: bytes) -> bool:
        """A system call; RCX is to hold what it would hold behind the original."""
        self._calls += 1
        self._mark(place)
        self.copy.code += raw
        self._mark(self.following, ("rcx", AFTER_CALL))
        self.copy.code += b"\x48\xb9" + struct.pack("<Q", self.following)
        return False

    def _count_branch(self, place: int, form: _Form, target: int) -> bool:
        """loopne, loope, loop, jrcxz: their distance has eight bits only."""
        self._mark(place)
        self.copy.code += bytes(p for p in form.prefixes if p == 0x67) + bytes((form.opcode[0], 5))
        self.jump(self.following, counted=False)
        self.jump(target, counted=target <= place)
        return True

    def _push(self, value: int) -> None:
        out = self.copy.code
        out += b"\x68" + struct.pack("<I", value & 0xFFFFFFFF)
        # push extends the sign; the upper half is stored over it, without a change of flags.
        out += b"\xc7\x44\x24\x04" + struct.pack("<I", value >> 32)

    def _to_lookup(self) -> None:
        out = self.copy.code
        out += b"\xe9" + struct.pack("<i", self._slots + LOOKUP - (self.copy.at + len(out) + 5))

    def _return(self, place: int, form: _Form, raw: bytes) -> bool:
        self._mark(place)
        self._move(RCX, 1, load=False)
        self._mark(place)
        self.copy.code += b"\x59"  # pop rcx
        if form.opcode[0] == 0xC2:
            self.copy.code += b"\x48\x8d\xa4\x24" + struct.pack("<I", int.from_bytes(raw[-2:], "little"))
        self._to_lookup()
        return True

    def _computed(self, place: int, form: _Form, raw: bytes, *, call: bool) -> bool:
        """A call or jump to what a register or memory holds."""
        self._mark(place)
        self._move(RCX, 1, load=False)
        self._mark(place)
        out = self.copy.code
        modrm, rest = form.opcode[1], raw[form.at + 2 :]
        segments = bytes(p for p in form.prefixes if p in b"\x64\x65\x67")
        if modrm & 0xC7 == 5:  # relative to the instruction
            meant = self.following + struct.unpack("<i", rest[:4])[0]
            out += b"\x48\xb9" + struct.pack("<Q", meant & _MASK)
            self._mark(place, ("rcx", RCX))
            out += segments + b"\x48\x8b\x09"  # mov rcx, [rcx]
        else:
            out += segments + bytes((0x48 | form.rex & 3, 0x8B, modrm & 0xC7 | 1 << 3)) + rest
        if call:
            self._mark(place, ("rcx", RCX))
            self._push(self.following)
        self._to_lookup()
        return True

    def _relative(self, place: int, raw: bytes) -> bool:
        """An operand whose address is relative to the instruction; True (and the original goes on) if it is unclear."""
        found = next(_disassembler(True).disasm(raw, place, 1))
        modrm, after = found.modrm_offset, found.disp_offset + 4
        if not found.modrm_offset or found.disp_offset != modrm + 1 or raw[modrm] & 0xC7 != 5:
            return self._give_up(place)
        meant = (self.following + struct.unpack_from("<i", raw, found.disp_offset)[0]) & _MASK
        form = _form(raw)
        out = self.copy.code
        if form.opcode[0] == 0x8D and form.prefixes == b"":  # lea
            self._mark(place)
            wide, high = form.rex & 8, form.rex >> 2 & 1
            head = bytes((0x40 | wide | high, 0xB8 | raw[modrm] >> 3 & 7))
            out += head + (struct.pack("<Q", meant) if wide else struct.pack("<I", meant & 0xFFFFFFFF))
            return False
        used = _registers(found)
        free = next(((name, number) for name, number in _SCRATCHES if name not in used), None)
        changed = _with_base(raw[:modrm], free[1]) if free else None
        if free is None or changed is None:
            return self._give_up(place)
        self._mark(place)
        self._move(SCRATCH, free[1], load=False)
        self._mark(place)
        out += bytes((0x48, 0xB8 | free[1])) + struct.pack("<Q", meant)
        self._mark(place, (free[0], SCRATCH))
        out += changed + bytes((raw[modrm] & 0x38 | free[1],)) + raw[after:]
        self._move(SCRATCH, free[1], load=True)
        return False

    def _give_up(self, place: int) -> bool:
        if self.copy.marks:
            self.native(place)
        return bool(self.copy.marks)


def _form(raw: bytes) -> _Form:
    at = 0
    while raw[at] in _PREFIXES:
        at += 1
    rex = 0
    if raw[at] & 0xF0 == 0x40:
        rex = raw[at]
        at += 1
    return _Form(raw[: at - bool(rex)], rex, raw[at : at + 3].ljust(3, b"\0"), at)


def _left_alone(form: _Form, raw: bytes) -> bool:
    first, second, third = form.opcode
    if first == 0x0F:
        if second == 0xC7 and third >= 0xF0:
            return True  # rdrand, rdseed, rdpid
        return second in _LEFT_ALONE_0F or second == 1 and third in _LEFT_ALONE_0F01
    if first == 0xC7 and second == 0xF8:
        return True  # xbegin
    if first == 0xFF and second >> 3 & 7 in (3, 5):
        return True  # far
    branches = first in _BRANCHES or first == 0xFF and second >> 3 & 7 in (2, 4)
    return first in _LEFT_ALONE or branches and 0x66 in form.prefixes


def _registers(found: capstone.CsInsn) -> set[str]:
    """The full names of the registers that an instruction names, or uses without naming them."""
    used = set()
    for operand in found.operands:
        if operand.type == 1:  # a register
            used.add(_full(found.reg_name(operand.reg)))
    for register in (*found.regs_read, *found.regs_write):
        used.add(_full(found.reg_name(register)))
    return used


def _full(name: str) -> str:
    for full, _ in _SCRATCHES:
        if name in (full, "e" + full[1:], full[1:], full[1] + "l", full[1] + "h", full[1:] + "l"):
            return full
    return name


def _with_base(head: bytes, register: int) -> bytes | None:
    """What precedes the ModRM byte, for a base register below 8 instead of an address relative to the instruction."""
    out = bytearray(head)
    at = 0
    while at < len(out) and out[at] in _PREFIXES:
        at += 1
    if at == len(out):
        return None
    if out[at] & 0xF0 == 0x40:
        out[at] &= 0xFE
    elif (out[at], len(out) - at) in ((0xC4, 4), (0x62, 5)):
        out[at + 1] |= 0x20  # the bit is stored inverted
    return bytes(out)
