"""Plans how ``cpuid``, ``xgetbv`` and ``rdtsc`` are answered inside the guest: by a jump to code of ours.

A trap costs some 25 microseconds, and the dynamic loader runs more than forty such instructions per exec.
They have two or three bytes and a jump needs five, so neighbours move into the trampoline as well.  That is
done only where it cannot be noticed:

- The function is known from unwind data or a symbol, and decodes from start to end.
- No branch goes to a moved instruction other than the first.  Direct branches are seen by disassembly.  Of
  indirect ones only the compilers' jump tables are understood; a function with another one is left alone.
- A moved neighbour does not branch; where it names memory relative to the program counter, the distance is
  put right.
- No bytes in the file's code could be a branch into the middle from elsewhere, and none in the file its address.
- The loader's ``rdtsc`` are all moved or none, so that they agree with each other.

What cannot be planned stays a trap.  ``cpuid`` and ``xgetbv`` give what the trap would give, so there this
saves time and decides nothing.  ``rdtsc`` counts from a value that the supervisor stores: it is for the
loader's own timing of its start, which nothing but a look at the difference of two of its readings shows.  No
call is made, and of memory only that counter and 8 + 8 bytes below the red zone are written.  What is done with
other programs' ``rdtsc`` is in :mod:`detbox.cpu.hot`.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from detbox.cpu.elf import Elf
from detbox.cpu.entrances import Piece, entered
from detbox.cpu.model import CpuModel, cpuid
from detbox.cpu.sites import Site
from detbox.records import NamedTuple

if TYPE_CHECKING:
    from capstone import Cs

#: Changes whenever the same file may give other displacements: part of the cache's key.
PLANNER_VERSION = 7

_JUMP_SIZE = 5
_MAX_MOVED_BEFORE = 3  # instructions
_TABLE_ENTRIES = 1024  # of a jump table: reading too many only adds targets
_RIP_OPERAND = re.compile(r"\[rip ([+-]) (0x[0-9a-f]+|\d+)\]")
_ANY = 0
_EXACT = 0xFFFFFFFF

_XGETBV = b"\x0f\x01\xd0"
#: What is answered here, and the length of the instruction without prefixes.
_SIZES = {"cpuid": 2, "xgetbv": 3, "rdtsc": 2, "rdtscp": 3}
CLOCKS = frozenset({"rdtsc", "rdtscp"})
_XGETBV_MISS = 3  # offset of the trap in _xgetbv

SKIP_RED_ZONE = bytes.fromhex("488d6424 80")  # lea rsp, [rsp - 128]
BACK_FROM_RED_ZONE = bytes.fromhex("488da424 80000000")  # lea rsp, [rsp + 128]


class Displacement(NamedTuple):
    """The instructions that make room for a jump: virtual address, total length, and the bytes around the
    instruction of this kind.

    ``fixups``: distances from the program counter in the moved bytes, as the offset of the distance, that of
    the end of its instruction (both from ``vaddr``), and the virtual address that is meant.
    ``spare``: for ``rdtsc`` and ``rdtscp``, if nothing is before it and nothing names memory but the file's own, the
    virtual address behind the segment (:meth:`Elf.spare`), else 0.
    """

    vaddr: int
    length: int
    before: bytes
    after: bytes
    kind: str = "cpuid"
    fixups: tuple[tuple[int, int, int], ...] = ()
    spare: int = 0

    def to_row(self) -> list[object]:
        """As JSON can hold it."""
        fixups = [list(fixup) for fixup in self.fixups]
        return [self.vaddr, self.length, self.before.hex(), self.after.hex(), self.kind, fixups, self.spare]

    @classmethod
    def from_row(cls, row: Sequence[object]) -> Displacement:
        """The inverse; ValueError or TypeError for anything else."""
        vaddr, length, before, after, kind, fixups, spare = row
        if not isinstance(fixups, list):
            raise TypeError("no list of fixups")
        around = bytes.fromhex(str(before)), bytes.fromhex(str(after))
        targets = tuple((int(at), int(end), int(target)) for at, end, target in fixups)
        return cls(int(str(vaddr)), int(str(length)), *around, str(kind), targets, int(str(spare)))


class Assembled(NamedTuple):
    """The trampolines' code, what to write over the program's, and where what they cannot answer traps.

    ``patches``: (address, bytes).  ``miss``: address of two bytes that raise SIGILL and stand for ``cpuid``.
    ``traps``: all such addresses with the bytes of the instructions that they stand for.
    ``counter``: address of the eight bytes that ``rdtsc`` counts up; they have to be writable.
    """

    code: bytes
    patches: list[tuple[int, bytes]]
    miss: int
    traps: dict[int, bytes]
    counter: int


def displacements(data: bytes | mmap.mmap, sites: Iterable[Site]) -> list[Displacement]:
    """What can be moved in an ELF file, for as many of its sites as possible, in their order."""
    import capstone

    elf = Elf(data)
    cs = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)
    every = list(sites)
    taken = {site.vaddr for site in every}
    functions: dict[tuple[int, int], _Function | None] = {}
    found: dict[Displacement, Piece] = {}
    for site in every:
        bounds = elf.function_range(site.vaddr)
        if site.length != _SIZES.get(site.kind) or bounds is None:
            continue
        if bounds not in functions:
            functions[bounds] = _Function.read(elf, cs, *bounds)
        function = functions[bounds]
        spare = elf.spare(site.vaddr) if site.kind in CLOCKS else 0
        moved = function.displacement(site, taken, spare) if function else None
        if moved is not None:
            end = moved.vaddr + moved.length
            found[moved] = Piece(moved.vaddr + 1, end - 1, *bounds)
            taken.update(range(moved.vaddr, end))
    bad = entered(elf, list(found.values())) if found else set()
    return [moved for moved, piece in found.items() if piece not in bad]


def of_loader(moved: Iterable[Displacement], sites: Iterable[Site]) -> list[Displacement]:
    """Those displacements that :func:`assemble` can use.  ``sites``: all of the file."""
    found = [item for item in moved if item.kind != "rdtscp"]
    if sum(item.kind == "rdtsc" for item in found) < sum(site.kind in CLOCKS for site in sites):
        found = [item for item in found if item.kind != "rdtsc"]
    return found


def assemble(moved: Iterable[Displacement], bias: int, address: int, model: CpuModel, cpus: int) -> Assembled:
    """The code to map at ``address`` for a file that is loaded ``bias`` above its virtual addresses.

    ``address`` has to lie within 2 GiB of the file's code; raises ValueError otherwise.
    """
    code = bytearray(_answer(_table(model, cpus)))
    miss = address + code.index(b"\x0f\x0b")
    traps = {miss: b"\x0f\xa2"}
    code += bytes(-len(code) % 8)
    counter = address + len(code)
    code += bytes(8)
    patches = []
    for item in moved:
        start = bias + item.vaddr
        entry = address + len(code)
        code += item.before
        moved_by = {False: entry}
        if item.kind == "cpuid":
            code += SKIP_RED_ZONE + relative(0xE8, address + len(code) + len(SKIP_RED_ZONE), address)
            code += BACK_FROM_RED_ZONE
        elif item.kind == "xgetbv":
            traps[address + len(code) + _XGETBV_MISS] = _XGETBV
            code += _xgetbv(model.xcr0)
        else:
            code += _rdtsc(address + len(code), counter)
        moved_by[True] = address + len(code) - (item.length - len(item.after))
        code += item.after
        for at, end, target in item.fixups:
            shift = moved_by[at >= len(item.before)]
            struct.pack_into("<i", code, shift - address + at, _near(bias + target - shift - end))
        code += relative(0xE9, address + len(code), start + item.length)
        # The rest of the patch is never executed: nothing jumps there.
        patches.append((start, relative(0xE9, start, entry).ljust(item.length, b"\x90")))
    return Assembled(bytes(code), patches, miss, traps, counter)


class _Instruction(NamedTuple):
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
        return not branches and ("rip" not in self.operands or self.fixup is not None)

    @property
    def fixup(self) -> tuple[int, int] | None:
        """Offset of a distance from the program counter, and the address that is meant."""
        match = _RIP_OPERAND.search(self.operands)
        if match is None:
            return None
        distance = int(match[2], 0) * (1 if match[1] == "+" else -1)
        encoded = struct.pack("<i", distance)
        if self.code.count(encoded) != 1:
            return None
        return self.code.index(encoded), self.address + len(self.code) + distance


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
                elif not tables or "[" in operands:
                    return None
        targets |= tables  # a label whose address is taken
        for table in tables:
            targets |= _table_targets(elf, table)
        return cls(instructions, targets)

    def displacement(self, site: Site, taken: set[int], spare: int) -> Displacement | None:
        """The shortest run of movable instructions around a site that is long enough for a jump."""
        index = self._index.get(site.vaddr)
        if index is None:
            return None
        for first in range(index, max(-1, index - _MAX_MOVED_BEFORE - 1), -1):
            run = self._run(first, index, taken)
            if run is not None:
                before = b"".join(item.code for item in run if item.address < site.vaddr)
                after = b"".join(item.code for item in run if item.address > site.vaddr)
                length = len(before) + site.length + len(after)
                start = run[0].address
                fixups = []
                for item in run:
                    if item.fixup is not None:
                        at, target = item.fixup
                        offset = item.address - start
                        fixups.append((offset + at, offset + len(item.code), target))
                if first < index or any("[" in item.operands and item.fixup is None for item in run):
                    spare = 0  # it could be left in its middle, by an earlier jump or a fault
                return Displacement(start, length, before, after, site.kind, tuple(fixups), spare)
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


def _xgetbv(xcr0: int) -> bytes:
    """Register 0 is XCR0.  Another one, or a processor without any, raises SIGILL at _XGETBV_MISS."""
    known = b"\x67\xe3\x03" if xcr0 else b"\x90" * 3  # jecxz answer
    answer = b"\xb8" + struct.pack("<I", xcr0 & _EXACT) + b"\xba" + struct.pack("<I", xcr0 >> 32)
    return known + b"\x0f\x0b\x90" + answer  # ud2 and nop: three bytes that stand for xgetbv


def _rdtsc(at: int, counter: int) -> bytes:
    """The next value of the counter, in EDX:EAX; flags stay."""
    code = b""
    for opcode, offset in ((b"\x48\x8b\x05", 0), (b"\x48\x89\x05", 0), (b"\x8b\x15", 4)):
        if opcode == b"\x48\x89\x05":
            code += b"\x48\x8d\x40\x01"  # lea rax, [rax + 1]
        code += opcode + struct.pack("<i", counter + offset - (at + len(code) + len(opcode) + 4))
    return code + b"\x89\xc0"  # mov eax, eax: the upper half is zero


def relative(opcode: int, at: int, target: int) -> bytes:
    """A jump (E9) or call (E8) at an address.  Raises ValueError if it is too far."""
    return bytes((opcode,)) + struct.pack("<i", _near(target - (at + _JUMP_SIZE)))


def _near(distance: int) -> int:
    if not -(1 << 31) <= distance < 1 << 31:
        raise ValueError("the trampolines are too far from the code")
    return distance
