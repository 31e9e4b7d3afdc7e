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

from detbox.spin.stepper import OFFSET, register
from detbox.spin.walk import Visit

# The operand that is written does not depend on what it was.
_MOVES = frozenset("mov movabs movzx movsx movsxd lea pop".split())
# All arithmetic flags are written, and none is read.
_SET_FLAGS = frozenset("add sub cmp test and or xor neg".split())
# Some flags may keep their value.
_KEEP_FLAGS = frozenset("inc dec shl shr sar sal rol ror not adc sbb".split())
_COMPARE = frozenset(("cmp", "test"))
_NO_EFFECT = frozenset("nop pause endbr64 mfence lfence sfence jmp push call ret leave cdqe cwde".split())
_FLAGS = "flags"
_VECTORS = "vectors"
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
        varying.add(_FLAGS)
    varying |= {address for address, _ in turn[0].delta ^ after.delta}
    if any(visit.instruction.vector for visit in turn):
        varying.add(_VECTORS)
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
        if not _supported(visit) or _decides(visit, tainted):
            return None
        _transfer(visit, tainted)
    return tainted


def _supported(visit: Visit) -> bool:
    name = visit.instruction.name
    return (
        visit.instruction.vector
        or name in _MOVES | _SET_FLAGS | _KEEP_FLAGS | _NO_EFFECT
        or name.startswith(("j", "set", "cmov"))
        or name in ("xchg", "xadd", "cmpxchg")
        or name == "imul" and len(visit.instruction.operands) > 1
    )


def _decides(visit: Visit, tainted: set[Hashable]) -> bool:
    """Whether a varying value chooses the path or an address."""
    instruction = visit.instruction
    if instruction.repeated:
        return True
    for span in instruction.spans:
        if any(_NAMES[part] in tainted for part in (span.base, span.index, span.segment) if part is not None):
            return True
    if instruction.name.startswith("j") and instruction.name != "jmp":
        return _FLAGS in tainted or (instruction.name.endswith("cxz") and "rcx" in tainted)
    return instruction.name in _JUMPS and bool(_inputs(visit) & tainted)


def _inputs(visit: Visit) -> set[Hashable]:
    """All registers and bytes of memory that the instruction names."""
    places: set[Hashable] = {
        address for start, length in visit.spans for address in range(start, start + length)
    }
    for kind, what, _ in visit.instruction.operands:
        if kind == "reg":
            places.add(what)
        elif kind == "address":
            places.update(str(what).split())
    return places


def _transfer(visit: Visit, tainted: set[Hashable]) -> None:
    instruction = visit.instruction
    name, operands = instruction.name, instruction.operands
    if name in ("jmp", "ret", "nop", "pause", "endbr64") or name.startswith("j"):
        return
    inputs = _inputs(visit)
    if name in _MOVES and operands:
        inputs -= _places(visit, 0, whole=True)
    if name.startswith(("set", "cmov")) or name in ("adc", "sbb"):
        inputs.add(_FLAGS)
    if name == "cmpxchg":
        inputs.add("rax")
    if name in ("cdqe", "cwde"):
        inputs.add("rax")
    zero = name in ("xor", "sub") and operands[0] == operands[1] and operands[0][0] == "reg"
    dirty = instruction.vector or (not zero and bool(inputs & tainted))
    for place, whole in _outputs(visit):
        if dirty:
            tainted.add(place)
        elif whole:
            tainted.discard(place)


def _outputs(visit: Visit) -> list[tuple[Hashable, bool]]:
    """What is written, and whether nothing of the old value is left."""
    name, operands = visit.instruction.name, visit.instruction.operands
    places: list[tuple[Hashable, bool]] = []
    written = range(len(operands)) if name in ("xchg", "xadd") or visit.instruction.vector else range(1)
    if name in ("push", "call"):
        written = range(len(operands) - 1, len(operands))
    if name not in _COMPARE:
        for index in written:
            # A zeroing idiom and a full move leave nothing; partial registers keep their rest.
            places += [(place, True) for place in _places(visit, index, whole=True)]
            places += [(place, False) for place in _places(visit, index, whole=False)]
    if name == "cmpxchg" or name in ("cdqe", "cwde"):
        places.append(("rax", False))
    if name == "leave":
        places += [("rbp", True), ("rsp", False)]
    if visit.instruction.vector:
        places += [(_VECTORS, False), (_FLAGS, False)]
    elif name in _SET_FLAGS:
        places.append((_FLAGS, True))
    elif name in _KEEP_FLAGS or name in ("imul", "xadd", "cmpxchg"):
        places.append((_FLAGS, False))
    return places


def _places(visit: Visit, index: int, *, whole: bool) -> set[Hashable]:
    """An operand's places that are overwritten as a whole, or only in part."""
    if index >= len(visit.instruction.operands):
        return set()
    kind, what, width = visit.instruction.operands[index]
    if kind == "reg":
        # Writing 32 bits clears the upper half of the register.
        return {what} if whole == (width >= 4) else set()
    if kind == "mem" and whole:
        start, length = visit.spans[int(what)]
        return set(range(start, start + length))
    return set()


_NAMES = {offset: name for name, offset in OFFSET.items()}
