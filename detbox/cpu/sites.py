"""Finds the instructions in an ELF file that would show the host's processor, clock or entropy.

Where the hardware cannot make such an instruction fault, the supervisor overwrites it in the mapped file.  A
wrong site would corrupt a constant or another instruction, so bytes that look right are not enough:

1. A regular expression over the executable ranges finds candidates, at some 400 MB/s.  Most are not
   instructions but parts of displacements and constants.
2. A disassembler goes from the start of the surrounding function (unwind data, else a symbol) to the
   candidate, which is an instruction exactly if the sweep arrives at it.
3. Where no start is known (a stripped Go program, code without unwind data) or the sweep meets bytes that it
   cannot decode (tables between functions), sweeps from many earlier addresses vote.  Sweeps of x86 code that
   start off an instruction's boundary fall into step within a few instructions, so nearly all agree.  As they
   agree about tables of constants as well, the surroundings have to look like a compiler's output.

A file without candidates never loads the disassembler.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from detbox.cpu.elf import Elf, Range
from detbox.cpu.emulate import decode
from detbox.records import NamedTuple

if TYPE_CHECKING:
    from capstone import Cs

#: Changes whenever the same file may give other sites: part of the cache's key.
SCANNER_VERSION = 1

#: The kinds that the virtual processor must not execute even where CPUID faults.
UNTRAPPED = frozenset({"xgetbv", "rdrand", "rdseed", "rdpid", "xbegin"})
#: The kinds that the kernel can make fault (PR_SET_TSC; ARCH_SET_CPUID where the hardware has it).
TRAPPABLE = frozenset({"cpuid", "rdtsc", "rdtscp"})

#: Below this share of votes a candidate is not an instruction.
MINIMUM_SHARE = 0.75
#: No vote is worth as much as a known start.
BEST_GUESS = 0.95

_UD2 = b"\x0f\x0b"
_NOP = b"\x90"
# The fixed part of each instruction's encoding, after the prefixes.
_OPCODES = re.compile(rb"\x0f(?:\xa2|\x31|\x01[\xd0\xf9]|\xc7[\xf0-\xff])|\xc7\xf8", re.DOTALL)
_LONGEST = 15  # bytes of an x86 instruction
_SWEEPS = range(20, 84)  # where the voting sweeps start, in bytes before the candidate
_LONGEST_SWEEP = 1 << 20  # bytes; a "function" longer than this is data
_IN_STEP = 24  # bytes after which a sweep from anywhere is taken to be in step
_WINDOW = 32  # bytes from a candidate on that have to look like code

_THREE_BYTES = frozenset({"xgetbv", "rdtscp", "rdrand", "rdseed", "rdpid"})
_BRANCHES = frozenset({"call", "loop", "loope", "loopne", "xbegin"})
# Decodable in 64-bit mode, but in no compiler's output, and in hardly anybody's assembly.
_UNLIKELY = frozenset(
    "in out insb insd outsb outsd hlt cli sti cld std clc stc cmc retf retfq iret iretd iretq int int1 enter"
    " lcall ljmp loop loope loopne jrcxz jecxz xlatb wait fwait sahf lahf fbld fbstp fnsave frstor fnstenv"
    " fldenv fisubr fisub fidiv fidivr ficom ficomp fiadd fimul lsl lar lss lfs lgs sysret sysexit sysenter"
    " wrmsr rdmsr invd wbinvd".split()
)
_SEGMENTS = re.compile(r"\b[cdes]s\b")


class Site(NamedTuple):
    """One instruction: file offset, length in bytes with its prefixes, kind (its mnemonic), virtual address.

    ``confidence`` is 1.0 when a sweep from a known function start met it, else the share of sweeps that did.
    """

    offset: int
    length: int
    kind: str
    vaddr: int
    confidence: float = 1.0

    def to_row(self) -> list[object]:
        """As JSON can hold it."""
        return [self.offset, self.length, self.kind, self.vaddr, self.confidence]

    @classmethod
    def from_row(cls, row: Sequence[object]) -> Site:
        """The inverse; ValueError or TypeError for anything else."""
        offset, length, kind, vaddr, confidence = row
        return cls(int(str(offset)), int(str(length)), str(kind), int(str(vaddr)), float(str(confidence)))


def trap_bytes(length: int) -> bytes:
    """What the supervisor writes over an instruction of ``length`` bytes so that it raises SIGILL at its
    address."""
    return _UD2 + _NOP * (length - len(_UD2))


def find_sites(data: bytes | mmap.mmap) -> list[Site]:
    """All sites in an ELF64 x86-64 file, by file offset.  Raises NotElf for anything else."""
    elf = Elf(data)
    found: dict[int, Site] = {}
    for area in elf.code_ranges():
        matches = [match.start() for match in _OPCODES.finditer(data, area.start, area.end)]
        if matches:
            sites = _Confirmation(data, area, elf).confirm(matches)
            found.update((site.offset, site) for site in sites)
    return [found[offset] for offset in sorted(found)]


def sites_in_mapping(
    sites: Iterable[Site], kinds: Collection[str], address: int, length: int, offset: int
) -> dict[int, Site]:
    """Where a mapping of ``length`` bytes of the file from ``offset`` on shows sites of these kinds, by
    address."""
    inside = (site for site in sites if site.kind in kinds and offset <= site.offset < offset + length)
    return {address + site.offset - offset: site for site in inside}


def find_sites_in_code(code: bytes, vaddr: int) -> list[Site]:
    """All sites in a piece of code without an ELF file around it; offsets count from its start."""
    area = Range(0, len(code), vaddr)
    matches = [match.start() for match in _OPCODES.finditer(code)]
    return sorted(_Confirmation(code, area, None).confirm(matches)) if matches else []


class _Confirmation:
    """Decides about the candidates of one range of code."""

    def __init__(self, data: bytes | mmap.mmap, area: Range, elf: Elf | None) -> None:
        import capstone  # 30 ms, and only files with candidates need it

        self._data = data
        self._area = area
        self._elf = elf
        # Where direct branches may go: all code of the file.
        ranges = elf.code_ranges() if elf else [area]
        self._low = min(other.vaddr for other in ranges)
        self._high = max(other.vaddr + other.end - other.start for other in ranges)
        self._cs: Cs = capstone.Cs(capstone.CS_ARCH_X86, capstone.CS_MODE_64)

    def confirm(self, matches: list[int]) -> Iterator[Site]:
        """The sites among the candidates; ``matches`` are ascending file offsets of their opcode bytes."""
        by_start: dict[int | None, list[int]] = {}
        for match in matches:
            by_start.setdefault(self._known_start(match), []).append(match)
        for start, members in by_start.items():
            # One sweep serves all candidates of a function.
            decided = {} if start is None else self._sweep(start, members)
            for match in members:
                site = decided[match] if match in decided else self._vote(match)
                if site is not None:
                    yield site

    def _known_start(self, match: int) -> int | None:
        """The file offset of the function around a candidate."""
        if self._elf is None:
            return None
        shift = self._area.start - self._area.vaddr
        vaddr = self._elf.function_start(match - shift)
        if vaddr is None:
            return None
        start = vaddr + shift
        return start if self._area.start <= start and match - start <= _LONGEST_SWEEP else None

    def _sweep(self, start: int, matches: list[int]) -> dict[int, Site | None]:
        """What a sweep from a true start says about each candidate that it reaches."""
        decided: dict[int, Site | None] = {}
        rest = matches[::-1]
        for begin, length, _, _ in self._instructions(start, matches[-1] + 1):
            while rest and rest[-1] < begin + length:
                match = rest.pop()
                decided[match] = self._site(begin, length, match)
        return decided

    def _vote(self, match: int) -> Site | None:
        """The site at a candidate with no known start around it, if most sweeps meet it in what looks like
        code."""
        votes: dict[int, Site | None] = {}
        for start in sorted({max(self._area.start, match - distance) for distance in _SWEEPS}):
            for begin, length, _, _ in self._instructions(start, match + 1):
                if begin + length > match:
                    votes[start] = self._site(begin, length, match)
        agreed = {start: site for start, site in votes.items() if site is not None}
        if not agreed or len(agreed) < MINIMUM_SHARE * len(votes):
            return None
        start, site = next(iter(agreed.items()))  # the longest of the sweeps that met it
        if not self._looks_like_code(start, match):
            return None
        return site._replace(confidence=round(min(len(agreed) / len(votes), BEST_GUESS), 2))

    def _looks_like_code(self, start: int, match: int) -> bool:
        """Whether the surroundings have no instruction that compilers do not write, and no jump out of the
        code.

        Sweeps agree about constants too, but constants decode to port I/O, far returns and wild jumps.
        """
        first, last = start + _IN_STEP, min(match + _WINDOW, self._area.end)
        shift = self._area.vaddr - self._area.start
        end = 0
        for begin, length, mnemonic, operands in self._instructions(start, last):
            end = begin + length
            if begin < first or mnemonic == "nop":
                continue
            if mnemonic.split()[-1] in _UNLIKELY or _SEGMENTS.search(operands):
                return False
            if mnemonic in _BRANCHES or mnemonic[0] == "j":
                target = _target(operands)
                if target is not None and not self._low <= target + shift < self._high:
                    return False
        return end >= last

    def _site(self, begin: int, length: int, match: int) -> Site | None:
        """A site if the instruction at ``begin`` is one of those wanted, by the opcode at ``match``."""
        instruction = decode(bytes(self._data[begin : begin + length]))
        if instruction is None or instruction.length != length:
            return None
        if instruction.kind != "xbegin" and match + 2 + (instruction.kind in _THREE_BYTES) != begin + length:
            return None
        return Site(begin, length, instruction.kind, begin - self._area.start + self._area.vaddr)

    def _instructions(self, start: int, end: int) -> Iterator[tuple[int, int, str, str]]:
        """(file offset, length, mnemonic, operands) of the instructions that begin between two file
        offsets."""
        code = bytes(self._data[start : min(end + _LONGEST - 1, self._area.end)])
        for instruction in self._cs.disasm_lite(code, start):
            if instruction[0] >= end:
                break
            yield instruction


def _target(operands: str) -> int | None:
    """The address that a direct branch goes to."""
    try:
        return int(operands, 0)
    except ValueError:
        return None
