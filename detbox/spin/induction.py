"""Endless loops that count: a proof by data flow over one observed turn.

A turn is the path from an instruction back to itself.  Let V be what differs
between its two ends.  If nothing that decides the path (a branch, an address,
a repeat count, a divisor) depends on V, and V is closed (what is outside of V
at the end is computed from what is outside of V at the beginning), then the
next turn has the same inputs outside of V, takes the same path, and so on for
ever, until somebody else changes memory or a signal comes.
"""

from __future__ import annotations

from collections.abc import Hashable

from detbox.spin.effects import FLAGS, VECTORS, inputs, named, outputs, supported
from detbox.spin.stepper import OFFSET, register
from detbox.spin.walk import Visit

# Their target is an operand: a register, a word of memory, the return address.
_JUMPS = frozenset(("jmp", "call", "ret"))


def repeats(turn: list[Visit], after: Visit) -> frozenset[int] | None:
    """The bytes of memory that vary, if the turn repeats for ever; else None."""
    varying: set[Hashable] = {
        name
        for name, offset in OFFSET.items()
        if register(turn[0].registers, offset) != register(after.registers, offset)
    }
    if "eflags" in varying:
        varying.remove("eflags")
        varying.add(FLAGS)
    varying |= {address for address, _ in turn[0].delta ^ after.delta}
    if any(visit.instruction.vector for visit in turn):
        varying.add(VECTORS)
    while True:
        end = _flow(turn, set(varying))
        if end is None:
            return None
        if end <= varying:
            return frozenset(place for place in varying if isinstance(place, int))
        varying |= end


def _flow(turn: list[Visit], tainted: set[Hashable]) -> set[Hashable] | None:
    """Carry the taint through the turn; None if it reaches a decision."""
    for visit in turn:
        if not supported(visit) or _decides(visit, tainted):
            return None
        _transfer(visit, tainted)
    return tainted


def _decides(visit: Visit, tainted: set[Hashable]) -> bool:
    """Whether a varying value chooses the path or an address."""
    instruction = visit.instruction
    if instruction.repeated:
        return True
    for span in instruction.spans:
        if any(_NAMES[part] in tainted for part in (span.base, span.index, span.segment) if part is not None):
            return True
    if instruction.name.startswith("j") and instruction.name != "jmp":
        return FLAGS in tainted or (instruction.name.endswith("cxz") and "rcx" in tainted)
    return instruction.name in _JUMPS and bool(named(visit) & tainted)


def _transfer(visit: Visit, tainted: set[Hashable]) -> None:
    name = visit.instruction.name
    if name in ("jmp", "ret", "nop", "pause", "endbr64") or name.startswith("j"):
        return
    dirty = visit.instruction.vector or bool(inputs(visit) & tainted)
    for place, whole in outputs(visit):
        if dirty:
            tainted.add(place)
        elif whole:
            tainted.discard(place)


_NAMES = {offset: name for name, offset in OFFSET.items()}
