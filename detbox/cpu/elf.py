"""The little of ELF that finding instructions needs: executable ranges, and where functions are known to
start.

Only ELF64 for x86-64 in native byte order.  Tables that are missing or damaged are treated as empty: then
fewer starts are known.  Symbols and unwind data are read only when asked for, and as arrays: a browser
engine's symbol table has half a million entries.
"""

from __future__ import annotations

import mmap
import struct
from bisect import bisect_right
from collections.abc import Sequence
from functools import cached_property

from detbox.records import NamedTuple

_PT_LOAD, _PT_GNU_EH_FRAME = 1, 0x6474E550
_PF_X = 1
_SHT_SYMTAB, _SHT_NOBITS, _SHT_DYNSYM = 2, 8, 11
_SHF_EXECINSTR = 4
_STT_FUNC, _STT_GNU_IFUNC = 2, 10
_EM_X86_64 = 62
_SYMBOL_SIZE = 24

# Pointer encodings of .eh_frame (LSB 5.0, section 10.5.1): low nibble the format, high nibble what it is
# relative to.
_UDATA4, _SDATA4_PCREL, _SDATA4_DATAREL = 0x03, 0x1B, 0x3B
_POINTER_SIZES = {0x00: 8, 0x02: 2, 0x03: 4, 0x04: 8, 0x0A: 2, 0x0B: 4, 0x0C: 8}


class NotElf(ValueError):
    """The bytes are no ELF64 file for x86-64."""


class Segment(NamedTuple):
    """A loadable segment: file offset, size in the file, virtual address, and whether it is executable."""

    offset: int
    size: int
    vaddr: int
    executable: bool


class Range(NamedTuple):
    """A range of file offsets that holds code, with the virtual address of its first byte."""

    start: int
    end: int
    vaddr: int


class Elf:
    """A parsed view of an ELF file's bytes.  Raises NotElf."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data = data
        ident = bytes(data[:20])
        # Class 2: 64 bits.  Data 1: little-endian.
        machine = _EM_X86_64.to_bytes(2, "little")
        if len(data) < 64 or ident[:6] != b"\x7fELF\x02\x01" or ident[18:20] != machine:
            raise NotElf("not an ELF64 file for x86-64")
        self._phoff, self._shoff = struct.unpack_from("<QQ", data, 32)
        self._phentsize, self._phnum, self._shentsize, self._shnum = struct.unpack_from("<HHHH", data, 54)

    @cached_property
    def segments(self) -> list[Segment]:
        return [
            Segment(offset, min(filesz, max(0, len(self.data) - offset)), vaddr, bool(flags & _PF_X))
            for kind, flags, offset, vaddr, _, filesz, _, _ in self._program_headers
            if kind == _PT_LOAD
        ]

    def code_ranges(self) -> list[Range]:
        """What may hold instructions: the executable segments, cut down to executable sections where there
        are any.

        Older linkers put read-only data into the executable segment.
        """
        sections = [
            (offset, offset + size)
            for _, kind, flags, _, offset, size, *_ in self._section_headers
            if flags & _SHF_EXECINSTR and kind != _SHT_NOBITS and size
        ]
        ranges = []
        for segment in self.segments:
            if not segment.executable:
                continue
            first, last = segment.offset, segment.offset + segment.size
            inside = [(max(a, first), min(b, last)) for a, b in sections if a < last and b > first]
            ranges += [Range(a, b, segment.vaddr + a - first) for a, b in sorted(inside) or [(first, last)]]
        return ranges

    @property
    def type(self) -> int:
        """What the header says (ET_EXEC, ET_DYN)."""
        return int.from_bytes(self.data[16:18], "little")

    def has_segment(self, kind: int) -> bool:
        """Whether there is a program header of a kind (PT_INTERP)."""
        return any(header[0] == kind for header in self._program_headers)

    def section(self, name: bytes) -> Range | None:
        """The section of that name; None: there is none, or it is not in the file."""
        (index,) = struct.unpack_from("<H", self.data, 62)
        headers = self._section_headers
        if index >= len(headers):
            return None
        names, size = headers[index][4:6]
        for at, kind, _, vaddr, offset, length, *_ in headers:
            first = names + at
            if kind != _SHT_NOBITS and at < size and bytes(self.data[first : first + len(name) + 1]) == name + b"\0":
                return Range(offset, offset + length, vaddr) if offset + length <= len(self.data) else None
        return None

    def offset_of(self, vaddr: int) -> int | None:
        """The file offset of a virtual address, None if the file does not hold it."""
        for segment in self.segments:
            if segment.vaddr <= vaddr < segment.vaddr + segment.size:
                return vaddr - segment.vaddr + segment.offset
        return None

    def spare(self, vaddr: int) -> int:
        """The virtual address behind the executable segment that ``vaddr`` lies in: what its last page holds from there
        on belongs to nobody.  0: there is none."""
        for kind, flags, _, start, _, filesz, memsz, _ in self._program_headers:
            if kind == _PT_LOAD and flags & _PF_X and start <= vaddr < start + filesz:
                return start + filesz if filesz == memsz else 0
        return 0

    def function_start(self, vaddr: int) -> int | None:
        """The start of the function that ``vaddr`` lies in, if unwind data or a symbol says so."""
        bounds = self.unwind_range(vaddr)
        return bounds[0] if bounds else self._symbol_start(vaddr)

    def unwind_range(self, vaddr: int) -> tuple[int, int] | None:
        """Start and end of the function that ``vaddr`` lies in, if unwind data says so."""
        starts, entries, base = self._unwind_table
        index = bisect_right(starts, vaddr - base) - 1
        if index < 0:
            return None
        start = starts[index] + base
        size = self._fde_range(entries[index] + base)
        return (start, start + size) if size is not None and vaddr < start + size else None

    @cached_property
    def _program_headers(self) -> list[tuple[int, ...]]:
        return self._table("<IIQQQQQQ", self._phoff, self._phentsize, self._phnum)

    @cached_property
    def _section_headers(self) -> list[tuple[int, ...]]:
        return self._table("<IIQQQQIIQQ", self._shoff, self._shentsize, self._shnum) if self._shoff else []

    def _table(self, layout: str, offset: int, entry_size: int, count: int) -> list[tuple[int, ...]]:
        if entry_size < struct.calcsize(layout) or offset + entry_size * count > len(self.data):
            return []
        return [struct.unpack_from(layout, self.data, offset + entry_size * i) for i in range(count)]

    @cached_property
    def _functions(self) -> tuple[list[int], dict[int, int]]:
        """Sorted start addresses of functions, and their sizes by address (0: unknown)."""
        sizes: dict[int, int] = {}
        for _, kind, _, _, offset, size, *_ in self._section_headers:
            if kind not in (_SHT_SYMTAB, _SHT_DYNSYM):
                continue
            raw = bytes(self.data[offset : offset + size - size % _SYMBOL_SIZE])
            words = memoryview(raw).cast("Q")
            types = raw[4::_SYMBOL_SIZE]
            for info, value, length in zip(types, words[1::3], words[2::3], strict=True):
                if info & 15 in (_STT_FUNC, _STT_GNU_IFUNC) and value:
                    sizes[value] = max(length, sizes.get(value, 0))
        return sorted(sizes), sizes

    def function_range(self, vaddr: int) -> tuple[int, int] | None:
        """Start and end of the function that ``vaddr`` lies in, if unwind data or a symbol says so."""
        bounds = self.unwind_range(vaddr)
        start = self._symbol_start(vaddr) if bounds is None else None
        size = self._functions[1][start] if start is not None else 0
        return (start, start + size) if start is not None and size else bounds

    def _symbol_start(self, vaddr: int) -> int | None:
        starts, sizes = self._functions
        index = bisect_right(starts, vaddr) - 1
        if index < 0:
            return None
        start = starts[index]
        size = sizes[start]
        return start if not size or vaddr < start + size else None

    @cached_property
    def _unwind_table(self) -> tuple[Sequence[int], Sequence[int], int]:
        """The linker's sorted index of .eh_frame: function starts, their FDEs, and what both are relative
        to."""
        for kind, _, offset, vaddr, _, size, _, _ in self._program_headers:
            if kind != _PT_GNU_EH_FRAME:
                continue
            head = bytes(self.data[offset : offset + 12])
            # Every linker writes these encodings; another one would have to be decoded pointer by pointer.
            if len(head) == 12 and head == bytes((1, _SDATA4_PCREL, _UDATA4, _SDATA4_DATAREL)) + head[4:]:
                count = min(int.from_bytes(head[8:], "little"), (size - 12) // 8)
                words = memoryview(bytes(self.data[offset + 12 : offset + 12 + 8 * count]))
                table = words[: len(words) - len(words) % 8].cast("i")
                return table[::2], table[1::2], vaddr
        return (), (), 0

    def _fde_range(self, vaddr: int) -> int | None:
        """How many bytes of code an FDE covers."""
        at = self.offset_of(vaddr)
        try:
            if at is None or self._u32(at) == 0xFFFFFFFF:
                return None
            width = _POINTER_SIZES.get(self._pointer_encoding(at + 4 - self._u32(at + 4)) & 15)
            if width is None:
                return None
            return int.from_bytes(self.data[at + 8 + width : at + 8 + 2 * width], "little")
        except (IndexError, struct.error, ValueError):
            return None

    def _pointer_encoding(self, cie: int) -> int:
        """The encoding of an FDE's addresses: the R of its CIE's augmentation, absolute pointers without
        one."""
        if cie < 0:
            raise ValueError("CIE before the file's start")
        version = self.data[cie + 8]
        end = self.data.find(b"\0", cie + 9)
        augmentation = bytes(self.data[cie + 9 : end])
        at = self._skip_leb(self._skip_leb(end + 1))  # code and data alignment
        at = at + 1 if version == 1 else self._skip_leb(at)  # return address register
        if not augmentation.startswith(b"z"):
            return 0
        at = self._skip_leb(at)
        for letter in augmentation[1:]:
            if letter == ord("R"):
                return int(self.data[at])
            if letter == ord("L"):
                at += 1
            elif letter == ord("P"):
                at += 1 + _POINTER_SIZES[self.data[at] & 15] if self.data[at] & 15 in _POINTER_SIZES else 9
        return 0

    def _skip_leb(self, at: int) -> int:
        while self.data[at] & 0x80:
            at += 1
        return at + 1

    def _u32(self, at: int) -> int:
        return int(struct.unpack_from("<I", self.data, at)[0])
