"""Plans how ``cpuid`` is answered inside the guest: a jump to code that looks the answer up in a table.

A trap costs some 25 microseconds and the dynamic loader runs ``cpuid`` more than thirty times per exec.  The
instruction has two bytes and a jump needs five, so neighbours move into the trampoline as well.  That is done
only where it cannot be noticed:

- The function is known from unwind data and decodes from start to end.
- No branch goes to a moved instruction other than the first.  Direct branches are seen by disassembly.  Of
indirect
  ones only the compilers' jump tables are understood; a function with another one is left alone.
- A moved neighbour neither branches nor names the program counter.

What cannot be planned stays a trap, so this saves time and decides nothing.  No call is made and no other
memory than 8 + 8 bytes below the red zone is written.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from detbox.cpu.elf import Elf
from detbox.cpu.model import CpuModel, cpuid
from detbox.cpu.sites import Site

if TYPE_CHECKING:
    from capstone import Cs

_JUMP_SIZE = 5
_MAX_MOVED_BEFORE = 3  # instructions
_TABLE_ENTRIES = 1024  # of a jump table: reading too many only adds targets
_RIP_OPERAND = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")
_ANY = 0
_EXACT = 0xFFFFFFFF

_SKIP_RED_ZONE = bytes.fromhex("488d6424 80")  # lea rsp, [rsp - 128]
_BACK_FROM_RED_ZONE = bytes.fromhex("488da424 80000000")  # lea rsp, [rsp + 128]


@dataclass(frozen=True, slots=True)
class Displacement:
    """The instructions that make room for a jump: virtual address, total length, and the bytes around
    ``cpuid``."""

    vaddr: int
    length: int
    before: bytes
    after: bytes


@dataclass(frozen=True, slots=True)
class Assembled:
    """The trampolines' code, what to write over the program's, and where a ``cpuid`` that is not in the table
    traps.

    ``patches``: (address, bytes).  ``miss``: address of two bytes that raise SIGILL and stand for ``cpuid``.
    """

    code: bytes
    patches: list[tuple[int, bytes]]
    miss: int


def displacements(data: bytes | mmap.mmap, sites: Iterable[Site]) -> list[Displacement]:
    """What can be moved in an ELF file, for as many of its ``cpuid`` sites as possible, in their order."""
    import capstone

    elf = Elf(data)
    cs = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    every = list(sites)
    taken = {site.vaddr for site in every}
    functions: dict[tuple[int, int], _Function | None] = {}
    found: list[Displacement] = []
    for site in every:
        bounds = elf.unwind_range(site.vaddr)
        if site.kind != "cpuid" or site.length != 2 or bounds is None:
            continue
        if bounds not in functions:
            functions[bounds] = _Function.read(elf, cs, *bounds)
        function = functions[bounds]
        moved = function.displacement(site.vaddr, taken - {site.vaddr}) if function else None
        if moved is not None:
            found.append(moved)
            taken.update(range(moved.vaddr, moved.vaddr + moved.length))
    return found


def assemble(moved: Iterable[Displacement], bias: int, address: int, model: CpuModel, cpus: int) -> Assembled:
    """The code to map at ``address`` for a file that is loaded ``bias`` above its virtual addresses.

    ``address`` has to lie within 2 GiB of the file's code; raises ValueError otherwise.
    """
    code = bytearray(_answer(_table(model, cpus)))
    miss = address + code.index(b"\x0f\x0b")
    patches = []
    for item in moved:
        start = bias + item.vaddr
        entry = address + len(code)
        code += item.before + _SKIP_RED_ZONE
        code += _relative(0xE8, address + len(code), address)
        code += _BACK_FROM_RED_ZONE + item.after
        code += _relative(0xE9, address + len(code), start + item.length)
        # The rest of the patch is never executed: nothing jumps there.
        patches.append((start, _relative(0xE9, start, entry).ljust(item.length, b"\x90")))
    return Assembled(bytes(code), patches, miss)


@dataclass(frozen=True, slots=True)
class _Instruction:
    address: int
    code: bytes
    mnemonic: str
    operands: str

    @property
    def addresses(self) -> range:
        return range(self.address, self.address + len(self.code))

    @property
    def movable(self) -> bool:
        name = self.mnemonic.split()[-1]
        branches = name[0] == "j" or name.startswith(
            ("call", "ret", "loop", "int", "sys", "ud", "hlt", "xbegin")
        )
        return not branches and "rip" not in self.operands


class _Function:
    """The instructions of a function, and where its branches go."""

    def __init__(self, instructions: list[_Instruction], targets: set[int]) -> None:
        self._instructions = instructions
        self._targets = targets
        self._index = {instruction.address: index for index, instruction in enumerate(instructions)}

    @classmethod
    def read(cls, elf: Elf, cs: Cs, start: int, end: int) -> _Function | None:
        """None if it does not decode to its end, or jumps where only its execution would tell."""
        offset = elf.offset_of(start)
        if offset is None:
            return None
        code = bytes(elf.data[offset : offset + end - start])
        instructions = [
            _Instruction(address, code[address - start : address - start + size], mnemonic, operands)
            for address, size, mnemonic, operands in cs.disasm_lite(code, start)
        ]
        if not instructions or instructions[-1].address + len(instructions[-1].code) != end:
            return None
        targets: set[int] = set()
        tables: set[int] = set()
        for instruction in instructions:
            name, operands = instruction.mnemonic.split()[-1], instruction.operands
            if name == "lea" and (match := _RIP_OPERAND.search(operands)):
                distance = int(match[2], 0) * (1 if match[1] == "+" else -1)
                tables.add(instruction.address + len(instruction.code) + distance)
            elif name[0] == "j" or name.startswith("loop"):
                if operands.startswith("0x"):
                    targets.add(int(operands, 16))
                elif not tables or "rip" in operands:
                    return None
        targets |= tables  # a label whose address is taken
        for table in tables:
            targets |= _table_targets(elf, table)
        return cls(instructions, targets)

    def displacement(self, vaddr: int, taken: set[int]) -> Displacement | None:
        """The shortest run of movable instructions around ``vaddr`` that is long enough for a jump."""
        site = self._index.get(vaddr)
        if site is None:
            return None
        for first in range(site, max(-1, site - _MAX_MOVED_BEFORE - 1), -1):
            run = self._run(first, site, taken)
            if run is not None:
                before = b"".join(item.code for item in run if item.address < vaddr)
                after = b"".join(item.code for item in run if item.address > vaddr)
                return Displacement(run[0].address, len(before) + 2 + len(after), before, after)
        return None

    def _run(self, first: int, site: int, taken: set[int]) -> list[_Instruction] | None:
        run: list[_Instruction] = []
        size = 0
        for index in range(first, len(self._instructions)):
            item = self._instructions[index]
            if run and item.address in self._targets:
                return None
            if index != site and not (item.movable and taken.isdisjoint(item.addresses)):
                return None
            run.append(item)
            size += len(item.code)
            if size >= _JUMP_SIZE and index >= site:
                return run
        return None


def _table_targets(elf: Elf, table: int) -> set[int]:
    """Where a jump table of 32-bit distances from its own start may lead, if there is one at this address."""
    offset = elf.offset_of(table)
    if offset is None:
        return set()
    raw = bytes(elf.data[offset : offset + 4 * _TABLE_ENTRIES])
    return {table + distance for (distance,) in struct.iter_unpack("<i", raw[: len(raw) & ~3])}


def _table(model: CpuModel, cpus: int) -> bytes:
    """Rows of leaf, mask of the sub-leaf, sub-leaf, whether the row is in use, and the four answers."""

    def row(leaf: int, mask: int, subleaf: int) -> bytes:
        return struct.pack("<8I", leaf, mask, subleaf, 1, *cpuid(model, cpus, 0, leaf, subleaf))

    plain = [*range(4), 5, 6, *range(8, 11), 12, *range(14, 0x17), *range(0x80000000, 0x80000009)]
    rows = [row(leaf, _ANY, 0) for leaf in plain]
    # The other sub-leaves of these leaves trap.
    for leaf, count in ((4, 5), (7, 2), (0xB, 3), (0xD, 32)):
        rows += [row(leaf, _EXACT, subleaf) for subleaf in range(count)]
    return b"".join(rows) + bytes(32)


def _answer(table: bytes) -> bytes:
    """The routine that all trampolines call, followed by its table.  Only flags and outputs of cpuid are
    used."""
    body = bytes.fromhex(
        "9c"  # pushfq
        "488d1d 2c000000"  # lea rbx, [table]
        "837b0c 00"  # row: cmp dword [rbx + 12], 0
        "7422"  # je miss
        "3b03"  # cmp eax, [rbx]
        "750a"  # jne next
        "8b5304"  # mov edx, [rbx + 4]
        "21ca"  # and edx, ecx
        "3b5308"  # cmp edx, [rbx + 8]
        "7406"  # je hit
        "4883c3 20"  # next: add rbx, 32
        "ebe6"  # jmp row
        "8b4310"  # hit: mov eax, [rbx + 16]
        "8b4b18"  # mov ecx, [rbx + 24]
        "8b531c"  # mov edx, [rbx + 28]
        "8b5b14"  # mov ebx, [rbx + 20]
        "9d"  # popfq
        "c3"  # ret
        "9d"  # miss: popfq
        "0f0b"  # ud2: stands for cpuid
        "c3"  # ret
    )
    return body + table


def _relative(opcode: int, at: int, target: int) -> bytes:
    distance = target - (at + _JUMP_SIZE)
    if not -(1 << 31) <= distance < 1 << 31:
        raise ValueError("the trampolines are too far from the code")
    return bytes((opcode,)) + struct.pack("<i", distance)
