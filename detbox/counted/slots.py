"""The memory that copies of code need besides themselves: slots, and the code that finds a computed target's copy."""

from __future__ import annotations

import struct

#: Offsets of the slots in the copies' memory: what is left to count, the target of a computed branch, the copy that
#: it leads to, and registers that are put aside.
COUNTER, TARGET, DESTINATION, TABLE = 0, 8, 16, 24
RAX, RCX, RDX, SCRATCH = 32, 40, 48, 56
#: Offset of the code that looks computed targets up.
LOOKUP = 0x1000
#: Bits of an address that say where its pair begins to be looked for.
INDEX_BITS = 18
BREAKPOINT = b"\xcc"


def moved(slot: int, here: int, register: int, *, load: bool) -> bytes:
    """mov between a low register and the ``slot``, for the address ``here``."""
    return bytes((0x48, 0x8B if load else 0x89, 5 | register << 3)) + struct.pack("<i", slot - (here + 7))


def lookup(at: int, slots: int) -> tuple[bytes, int]:
    """The code for computed branches, to be put at ``at``; and the offset behind its breakpoint.

    It is entered with the target in RCX, and the program's RCX in its slot.  The table has pairs of an
    address and its copy, found by the address's lower ``INDEX_BITS`` or behind that, up to the first empty pair.
    """
    out = bytearray()

    def move(slot: int, register: int, *, load: bool) -> None:
        out.extend(moved(slots + slot, at + len(out), register, load=load))

    def restore() -> None:
        move(RDX, 2, load=True)
        move(RCX, 1, load=True)
        out.extend(b"\x04\x7f\x9e")  # add al, 127 (it overflows if al is 1); sahf
        move(RAX, 0, load=True)

    move(RAX, 0, load=False)
    out += b"\x9f\x0f\x90\xc0"  # lahf; seto al
    move(RDX, 2, load=False)
    move(TARGET, 1, load=False)
    out += b"\x89\xca"  # mov edx, ecx
    out += b"\x81\xe2" + struct.pack("<I", (1 << INDEX_BITS) - 1)  # and edx, ...
    out += b"\x48\xc1\xe2\x04"  # shl rdx, 4
    distance = slots + TABLE - (at + len(out) + 7)
    out += b"\x48\x03\x15" + struct.pack("<i", distance)  # add rdx, [TABLE]
    probe = len(out)
    out += b"\x48\x3b\x0a"  # cmp rcx, [rdx]
    out += b"\x74\x00"  # je hit
    hit = len(out)
    out += b"\x48\x83\x3a\x00"  # cmp qword [rdx], 0
    out += b"\x74\x06"  # je miss
    out += b"\x48\x83\xc2\x10"  # add rdx, 16
    out += b"\xeb" + struct.pack("b", probe - (len(out) + 2))
    restore()  # miss
    out += BREAKPOINT
    missed = len(out)
    out[hit - 1] = len(out) - hit
    out += b"\x48\x8b\x52\x08"  # mov rdx, [rdx + 8]
    move(DESTINATION, 2, load=False)
    restore()
    distance = slots + DESTINATION - (at + len(out) + 6)
    out += b"\xff\x25" + struct.pack("<i", distance)
    return bytes(out), missed
