"""Builds the shared object that programs find by AT_SYSINFO_EHDR: the functions of clock.c, and an ELF around them.

Its form is that of the kernel's own (vdso(7)): C libraries and Go's runtime look for versioned symbols by way of the
dynamic section.  Everything fits into one page, which is mapped at any address, directly above the shared page.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

PAGE = 4096
#: int64 in the shared page: the offsets of clock.c's struct guest_clock, as indices.
NOW, LIMIT, COST, WALL, BOOT, PROCESS, THREAD, WORK, DAY, PLACE, OTHER, TURNED, ENOUGH, DULL = range(14)

_NAME, _VERSION = b"linux-vdso.so.1", b"LINUX_2.6"
_EHDR, _PHDR, _SYM = struct.Struct("<16sHHIQQQIHHHHHH"), struct.Struct("<IIQQQQQQ"), struct.Struct("<IBBHQQ")
_VERDEF, _VERDAUX = struct.Struct("<HHHHIII"), struct.Struct("<II")
_DYN = 3  # e_type: a shared object
_X86_64 = 62
_LOAD, _DYNAMIC, _GNU_STACK = 1, 2, 0x6474E551
_READ_EXECUTE, _READ_WRITE, _READ = 5, 6, 4
_SEGMENTS = 3  # program headers
_GLOBAL_FUNCTION = 1 << 4 | 2
_SECTION = 1  # any number but zero says that a symbol is defined here
_BASE = 1  # VER_FLG_BASE: the version that is the object's own name
_CODE_ALIGNMENT = 64
# Kinds of the dynamic section (elf.h).
_HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME = 4, 5, 6, 10, 11, 14
_VERSYM, _VERDEF_AT, _VERDEFNUM = 0x6FFFFFF0, 0x6FFFFFFC, 0x6FFFFFFD
_ENTRIES = 10  # of the dynamic section, the last one empty


def image(code: bytes, functions: Mapping[str, int]) -> bytes:
    """The page.  ``functions``: offsets in the code.  Raises ValueError if it does not fit."""
    strings = bytearray(1)
    at = {name: _add(strings, name) for name in (_NAME, _VERSION, *(name.encode() for name in functions))}
    dynamic = _EHDR.size + _SEGMENTS * _PHDR.size
    symbols = dynamic + 16 * _ENTRIES
    count = len(functions) + 1
    versions = symbols + _SYM.size * count
    definitions = _aligned(versions + 2 * count, 8)
    hashes = definitions + 2 * (_VERDEF.size + _VERDAUX.size)
    names = hashes + 4 * (3 + count)
    start = _aligned(names + len(strings), _CODE_ALIGNMENT)
    if start + len(code) > PAGE:
        raise ValueError(f"the code has {len(code)} bytes: too many for one page")
    table = [(0, 0, 0, 0, 0, 0)]
    table += [
        (at[name.encode()], _GLOBAL_FUNCTION, 0, _SECTION, start + offset, 0) for name, offset in functions.items()
    ]
    parts = {
        0: _headers(dynamic),
        dynamic: _pairs({
            _SONAME: at[_NAME], _HASH: hashes, _STRTAB: names, _SYMTAB: symbols, _STRSZ: len(strings),
            _SYMENT: _SYM.size, _VERSYM: versions, _VERDEF_AT: definitions, _VERDEFNUM: 2, 0: 0,
        }),
        symbols: b"".join(_SYM.pack(*row) for row in table),
        versions: struct.pack(f"<{count}H", 0, *[2] * len(functions)),
        definitions: _definition(_BASE, 1, _NAME, at[_NAME], last=False) + _definition(
            0, 2, _VERSION, at[_VERSION], last=True
        ),
        # One bucket: all symbols in one chain, from the last to the first.
        hashes: struct.pack(f"<{3 + count}I", 1, count, count - 1, 0, *range(count - 1)),
        names: bytes(strings),
        start: code,
    }  # fmt: skip
    page = bytearray(PAGE)
    for place, part in parts.items():
        page[place : place + len(part)] = part
    return bytes(page)


def _add(strings: bytearray, name: bytes) -> int:
    place = len(strings)
    strings += name + b"\0"
    return place


def _aligned(value: int, to: int) -> int:
    return -(-value // to) * to


def _headers(dynamic: int) -> bytes:
    ident = b"\x7fELF\x02\x01\x01"
    return (
        _EHDR.pack(ident, _DYN, _X86_64, 1, 0, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, _SEGMENTS, 0, 0, 0)
        + _PHDR.pack(_LOAD, _READ_EXECUTE, 0, 0, 0, PAGE, PAGE, PAGE)
        + _PHDR.pack(_DYNAMIC, _READ, dynamic, dynamic, dynamic, 16 * _ENTRIES, 16 * _ENTRIES, 8)
        + _PHDR.pack(_GNU_STACK, _READ_WRITE, 0, 0, 0, 0, 0, 16)  # without it, the stack would have to be executable
    )


def _pairs(values: Mapping[int, int]) -> bytes:
    return b"".join(struct.pack("<QQ", *pair) for pair in values.items())


def _definition(flags: int, index: int, name: bytes, at: int, *, last: bool) -> bytes:
    size = _VERDEF.size + _VERDAUX.size
    head = _VERDEF.pack(1, flags, index, 1, _elf_hash(name), _VERDEF.size, 0 if last else size)
    return head + _VERDAUX.pack(at, 0)


def _elf_hash(name: bytes) -> int:
    """The hash function of the System V ABI."""
    value = 0
    for byte in name:
        value = (value << 4) + byte
        value = (value ^ value >> 24 & 0xF0) & 0x0FFFFFFF
    return value
