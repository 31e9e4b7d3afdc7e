"""Which registers and bytes of memory an executed instruction read and wrote.

Only instructions whose effects are stated here by name are trusted; for all
others ``supported`` is False, and nothing is concluded from them.
"""

from __future__ import annotations

from collections.abc import Hashable

from detbox.spin.walk import Visit

# The operand that is written does not depend on what it was.
_MOVES = frozenset("mov movabs movzx movsx movsxd lea pop".split())
# All arithmetic flags are written, and none is read.
_SET_FLAGS = frozenset("add sub cmp test and or xor neg".split())
# Some flags may keep their value.
_KEEP_FLAGS = frozenset("inc dec shl shr sar sal rol ror not adc sbb".split())
_COMPARE = frozenset(("cmp", "test"))
_NO_EFFECT = frozenset("nop pause endbr64 mfence lfence sfence jmp push call ret leave cdqe cwde".split())
FLAGS = "flags"
VECTORS = "vectors"


def supported(visit: Visit) -> bool:
    """Whether the effects of the instruction are known."""
    name = visit.instruction.name
    return (
        visit.instruction.vector
        or name in _MOVES | _SET_FLAGS | _KEEP_FLAGS | _NO_EFFECT
        or name.startswith(("j", "set", "cmov"))
        or name in ("xchg", "xadd", "cmpxchg")
        or name == "imul" and len(visit.instruction.operands) > 1
    )


def named(visit: Visit) -> set[Hashable]:
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


def inputs(visit: Visit) -> set[Hashable]:
    """As :func:`named`, without what is only overwritten, and with what is implied."""
    name, operands = visit.instruction.name, visit.instruction.operands
    places = named(visit)
    if name in _MOVES and operands:
        # What is overwritten may be a source as well: lea rdi, [rdi + rdi * 2].
        places -= _places(visit, 0, whole=True) - _sources(visit)
    if name.startswith(("set", "cmov")) or name in ("adc", "sbb"):
        places.add(FLAGS)
    if name in ("cmpxchg", "cdqe", "cwde"):
        places.add("rax")
    if name in ("xor", "sub") and operands[0] == operands[1] and operands[0][0] == "reg":
        return set()
    return places


def _sources(visit: Visit) -> set[Hashable]:
    """The registers of all operands but the first."""
    names: set[Hashable] = set()
    for kind, what, _ in visit.instruction.operands[1:]:
        if kind in ("reg", "address"):
            names.update(str(what).split())
    return names


def outputs(visit: Visit) -> list[tuple[Hashable, bool]]:
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
        places += [(VECTORS, False), (FLAGS, False)]
    elif name in _SET_FLAGS:
        places.append((FLAGS, True))
    elif name in _KEEP_FLAGS or name in ("imul", "xadd", "cmpxchg"):
        places.append((FLAGS, False))
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
