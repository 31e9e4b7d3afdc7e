"""A walk that need not be repeated: what it depended on, and what it led to.

Threads meet at the same barrier thousands of times, and most walks through its
loop are copies of an earlier one.  A shortcut keeps the registers and the
memory that a walk read before it wrote them.  When a thread arrives at the
loop with the same values in these, the processor would do the same again, so
that the registers (and bytes) that the walk wrote are simply set.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from detbox.kernel.registers import NAMES
from detbox.records import record
from detbox.spin.effects import FLAGS, inputs, outputs, supported
from detbox.spin.stepper import OFFSET, RIP, register
from detbox.spin.walk import Visit, Walk

_EFLAGS = OFFSET["eflags"]
_STACK = frozenset("push pop call ret leave".split())
#: (offset in the register block, value)
Values = tuple[tuple[int, int], ...]
Memory = tuple[tuple[int, bytes], ...]


Outcome = TypeVar("Outcome")


@record(frozen=True)
class Shortcut(Generic[Outcome]):
    """Conditions and effects of one walk; ``outcome`` is the verdict that it ended with."""

    needs: Values
    loads: Memory
    sets: Values
    stores: Memory
    outcome: Outcome

    def applies(self, registers: bytes, read: Callable[[int, int], bytes]) -> bool:
        """Whether a thread with these registers would take this walk."""
        try:
            return all(register(registers, offset) == value for offset, value in self.needs) and all(
                read(address, len(held)) == held for address, held in self.loads
            )
        except OSError:
            return False


def shortcut(walk: Walk, outcome: Outcome) -> Shortcut[Outcome] | None:
    """The shortcut of a finished walk, or None if its effects are not fully understood."""
    if not walk.visits:
        return None
    needed: set[int] = set()
    written: set[int] = {RIP}
    spans: dict[tuple[int, int], None] = {}
    for visit in walk.visits:
        if visit.instruction.vector or visit.instruction.repeated or not supported(visit):
            return None
        needed |= _reads(visit) - written
        partial, whole = _writes(visit)
        needed |= partial - written
        written |= partial | whole
        spans.update(dict.fromkeys(visit.spans))
    first, last = walk.visits[0].registers, walk.stepper.registers()
    changed = {
        offset
        for offset in map(OFFSET.__getitem__, NAMES)
        if register(first, offset) != register(last, offset)
    }
    if not changed <= written:
        return None
    try:
        loads = tuple((start, _original(walk, start, length)) for start, length in spans)
    except OSError:
        return None
    return Shortcut(
        tuple((offset, register(first, offset)) for offset in sorted(needed)),
        loads,
        tuple((offset, register(last, offset)) for offset in sorted(written)),
        tuple((address, bytes([byte])) for address, byte in sorted(walk.delta)),
        outcome,
    )


def _reads(visit: Visit) -> set[int]:
    """Register offsets that the instruction or its addresses depend on."""
    used = {_offset(place) for place in inputs(visit) if isinstance(place, str)}
    for span in visit.instruction.spans:
        used |= {part for part in (span.base, span.index, span.segment) if part is not None}
    name = visit.instruction.name
    if name.startswith("j") and name != "jmp":
        used |= {_EFLAGS, OFFSET["rcx"]} if name.endswith("cxz") else {_EFLAGS}
    return used


def _writes(visit: Visit) -> tuple[set[int], set[int]]:
    """Register offsets that are written in part, and as a whole."""
    partial: set[int] = set()
    whole: set[int] = set()
    for place, all_of_it in outputs(visit):
        if isinstance(place, str):
            (whole if all_of_it else partial).add(_offset(place))
    if visit.instruction.name in _STACK:
        partial.add(OFFSET["rsp"])
    return partial, whole


def _offset(place: str) -> int:
    return _EFLAGS if place == FLAGS else OFFSET[place]


def _original(walk: Walk, start: int, length: int) -> bytes:
    """What memory held when the walk began."""
    now = walk.stepper.read(start, length)
    return bytes(walk.original.get(start + index, byte) for index, byte in enumerate(now))
