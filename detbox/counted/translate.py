"""Makes a copy of a stretch of x86-64 code that does the same, and counts its turns in memory.

A copy begins where the program has arrived, and goes on to the first instruction that always branches.  It has two
entries.  By the *counted* one, its start, a counter is decremented by the copy's length, and the copy stops (at a
breakpoint) when that makes it negative; who jumps forward to a known place enters behind that.  Every loop has a
jump back, a call or a jump to a computed address, so each turn of it is counted.

What the program can see stays as it is: registers, flags and stack hold what they would hold, return addresses
are those of the original code, and what the copy needs for itself lies in slots of its own memory.  An
instruction whose effect depends on where it is (a branch, an address relative to it) is rewritten, and one that
traps is left to the original.  System calls are made from the copy: the thread goes on in it afterwards.

The work is done in ``kernel/translate.c`` and ``kernel/batch.c``, and this module reads what it tells of the copies:
a program's start takes some ten thousand.
"""

from __future__ import annotations

import struct

from detbox.counted.slots import RCX, SCRATCH
from detbox.records import NamedTuple

#: Bytes that a copy may be made from at most.
LONGEST = 768
#: What a call counts: by the time that one takes which the filter decides alone.
CALL_WEIGHT = 2_000
#: In place of a slot: the register holds the address.
AFTER_CALL = -1
# As in translate.c.
_EXIT = struct.Struct("<HHBBQ")
_WHY = ("counted", "native", "jump")
_SAVED = ((None, 0), ("rdi", SCRATCH), ("rsi", SCRATCH), ("rbx", SCRATCH), ("rcx", RCX), ("rcx", AFTER_CALL))


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
    register: str | None
    slot: int


class Copy(NamedTuple):
    """Code for one place, without the code itself.  It never changes, so that processes share it: they have thousands.

    ``address``: of the original.  ``at``: of the copy.
    """

    address: int
    at: int
    packed_exits: bytes
    packed_marks: bytes

    @property
    def exits(self) -> dict[int, Exit]:
        """By the offset behind their breakpoint."""
        return {
            offset: Exit(_WHY[why], target, bool(counted), patch)
            for offset, patch, counted, why, target in _EXIT.iter_unpack(self.packed_exits)
        }

    @property
    def marks(self) -> list[Mark]:
        """All places between two instructions."""
        found, offset, place = [], 0, self.address
        for further, low in zip(self.packed_marks[::2], self.packed_marks[1::2], strict=True):
            offset, place = offset + further, place + (low >> 4)
            found.append(Mark(offset, place, *_SAVED[low & 15]))
        return found
