"""Bounded loops: a counter that will end the loop after a million turns is set to its last turns at once.

One turn has been observed.  If every value that differs between its ends
differs by a constant, or is computed anew in each turn from values that do, if
no address depends on them, and if each branch depends on invariants or on a
comparison of such values, then the state at the beginning of every later turn
is known up to the turn in which a branch goes the other way.  The thread is put
into the state that the processor would have reached; see docs/spin.md.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from detbox.records import NamedTuple
from detbox.spin.decode import Span
from detbox.spin.effects import FLAGS, inputs, named, outputs, supported
from detbox.spin.slopes import (
    ALL_CONDITIONS,
    NEVER,
    OF_RESULT,
    WITHOUT_CARRY,
    Compare,
    Slope,
    Unclear,
    flip,
    merged,
    signed,
    turns_within,
)
from detbox.spin.stepper import OFFSET, RIP, register
from detbox.spin.walk import Visit

#: ``read(address, length, visit)``: memory as it was before the visit's instruction.
Reader = Callable[[int, int, Visit], bytes]

_MASK = (1 << 64) - 1
_NAMES = {offset: name for name, offset in OFFSET.items()}
_MOVES = frozenset("mov movabs movzx movsx movsxd".split())
_SIGN_EXTENDING = frozenset(("movsx", "movsxd"))
_JUMPS = frozenset(("jmp", "call", "ret"))
_SHIFTS = frozenset("shl shr sar sal rol ror".split())
# Rounds in which values without a constant slope are found; each names at least one more.
_ROUNDS = 6


class _Refused(Exception):
    """Nothing is concluded from this turn."""


class Leap(NamedTuple):
    """``turns``: complete turns that are certain to follow.

    ``registers`` (offset, now, slope) and ``memory`` (address, length, now, slope) are
    what changes by a constant; all else is invariant, or correct again after one turn.
    """

    turns: int
    registers: tuple[tuple[int, int, int], ...]
    memory: tuple[tuple[int, int, int, int], ...]

    def after(self, turns: int) -> tuple[list[tuple[int, int]], list[tuple[int, bytes]]]:
        """What registers and memory are set to for so many turns: the next one has to be made in full."""
        return (
            [(offset, (now + turns * slope) & _MASK) for offset, now, slope in self.registers],
            [
                (address, ((now + turns * slope) % (1 << 8 * length)).to_bytes(length, "little"))
                for address, length, now, slope in self.memory
            ],
        )


def leap(turn: list[Visit], after: Visit, read: Reader, *, endless: bool = False) -> Leap | None:
    """What follows from an observed turn, of which ``after`` is the state at the end; None: nothing.

    ``endless``: no branch ever goes another way; otherwise one does.
    """
    if any(not supported(visit) or visit.instruction.vector or visit.instruction.repeated for visit in turn):
        return None
    try:
        spans = _disjoint(turn)
        heads = _head_slopes(turn[0], after, spans, read)
        unclear: set[Hashable] = {FLAGS}
        for _ in range(_ROUNDS):
            pass_ = _Pass(heads, unclear, spans, read)
            for visit in turn:
                pass_.take(visit)
            changed = {place for place, slope in heads.items() if place not in unclear}
            changed = {place for place in changed if pass_.slopes[place] != heads[place]}
            if not changed:
                break
            unclear |= changed
        else:
            return None
    except (_Refused, OSError):
        return None
    # What was unknown at the beginning must have been computed anew.
    if any(pass_.slopes[place] is Unclear.UNKNOWN for place in unclear if place != FLAGS):
        return None
    if (pass_.flips >= NEVER) is not endless:
        return None
    # A counter that wraps (or whose sign changes) on its way is taken to that point first.
    return Leap(max(min(pass_.flips - 1, pass_.valid), 0), *_changes(after, heads, unclear, spans, read))


def _disjoint(turn: list[Visit]) -> dict[int, tuple[int, int]]:
    """The memory operand that each byte belongs to; refused if those written overlap with others."""
    spans: dict[int, tuple[int, int]] = {}
    mixed: set[int] = set()
    for span in {span for visit in turn for span in visit.spans}:
        for address in range(span[0], span[0] + span[1]):
            if address in spans:
                mixed.add(address)
            spans[address] = span
    if mixed and any(place in mixed for visit in turn for place, _ in outputs(visit)):
        raise _Refused
    return spans


def _head_slopes(
    first: Visit, after: Visit, spans: dict[int, tuple[int, int]], read: Reader
) -> dict[Hashable, int]:
    """By how much each register and byte's operand differs between the ends of the turn."""
    slopes: dict[Hashable, int] = {}
    for name, offset in OFFSET.items():
        if offset != RIP and name != "eflags":
            difference = register(after.registers, offset) - register(first.registers, offset)
            slopes[name] = signed(difference & _MASK, 64)
    for start, length in set(spans.values()):
        old, new = read(start, length, first), read(start, length, after)
        bits = 8 * length
        difference = int.from_bytes(new, "little") - int.from_bytes(old, "little")
        slope = signed(difference % (1 << bits), bits)
        for address in range(start, start + length):
            slopes[address] = slope
    return slopes


def _changes(
    after: Visit,
    heads: dict[Hashable, int],
    unclear: set[Hashable],
    spans: dict[int, tuple[int, int]],
    read: Reader,
) -> tuple[tuple[tuple[int, int, int], ...], tuple[tuple[int, int, int, int], ...]]:
    moving = {place: slope for place, slope in heads.items() if slope and place not in unclear}
    registers = tuple(
        (OFFSET[place], register(after.registers, OFFSET[place]), slope)
        for place, slope in moving.items()
        if isinstance(place, str)
    )
    starts = {spans[place] for place in moving if isinstance(place, int)}
    memory = tuple(
        (start, length, int.from_bytes(read(start, length, after), "little"), moving[start])
        for start, length in sorted(starts)
    )
    return registers, memory


def _count(visit: Visit) -> set[Hashable]:
    return {what for kind, what, _ in visit.instruction.operands[1:] if kind == "reg"}


class _Pass:
    """One passage through the turn with slopes in the place of values.

    ``flips``: first turn (the observed one is number 0) in which a condition changes.
    ``valid``: last turn for which the slopes are right.
    """

    def __init__(
        self,
        heads: dict[Hashable, int],
        unclear: set[Hashable],
        spans: dict[int, tuple[int, int]],
        read: Reader,
    ) -> None:
        self.slopes: dict[Hashable, Slope] = dict(heads)
        self.slopes.update(dict.fromkeys(unclear, Unclear.UNKNOWN))
        self.spans = spans
        self.read = read
        self.flips = NEVER
        self.valid = NEVER

    def take(self, visit: Visit) -> None:
        """Carry the slopes through one instruction; _Refused."""
        instruction = visit.instruction
        for span in instruction.spans:
            self._invariant(span)
        name = instruction.name
        if name in _SHIFTS and any(self.slopes[place] != 0 for place in _count(visit)):
            raise _Refused  # a count of zero leaves the flags alone
        if name.startswith("j") and name != "jmp":
            self._branch(name[1:])
        elif name in _JUMPS and any(self.slopes[place] != 0 for place in named(visit) if name != "call"):
            raise _Refused
        elif name not in _JUMPS and not self._arithmetic(visit):
            self._anything(visit)
        if name == "call":
            self._anything(visit)

    def _invariant(self, span: Span) -> None:
        parts = (span.base, span.index, span.segment)
        if any(self.slopes[_NAMES[part]] != 0 for part in parts if part is not None):
            raise _Refused

    def _branch(self, condition: str) -> None:
        flags = self.slopes[FLAGS]
        if condition.endswith("cxz"):
            raise _Refused
        if flags == 0:
            return
        changes = flip(flags, condition) if isinstance(flags, Compare) else None
        if changes is None:
            raise _Refused
        self.flips = min(self.flips, changes[0])
        self.valid = min(self.valid, changes[1])

    def _anything(self, visit: Visit) -> None:
        """Whatever the instruction does: invariant from invariants, and no constant slope otherwise."""
        name = visit.instruction.name
        sources = inputs(visit)
        if name == "call" or name == "push":
            sources -= set(range(visit.spans[-1][0], sum(visit.spans[-1])))
        slopes = [self.slopes[place] for place in sources]
        if name.startswith("set") and isinstance(self.slopes[FLAGS], Compare):
            self._branch(name[3:])
            slopes = [self.slopes[place] for place in sources if place != FLAGS]
        result = merged(slopes)
        for place, whole in outputs(visit):
            self.slopes[place] = result if whole else merged([result, self.slopes[place]])

    def _arithmetic(self, visit: Visit) -> bool:
        """Instructions whose result has a constant slope; False if this is none of them."""
        name, operands = visit.instruction.name, visit.instruction.operands
        if name == "lea":
            return self._lea(visit)
        if name == "xadd":
            return self._exchange_and_add(visit)
        if name not in _MOVES and name not in ("add", "sub", "inc", "dec", "cmp", "test"):
            return False
        if operands[0][0] == "reg" and operands[0][2] < 4 and name not in ("cmp", "test"):
            return False
        left = None if name in _MOVES else self._operand(visit, 0)
        right = self._operand(visit, 1) if len(operands) > 1 else (1, 0)
        if right is None or left is None and name not in _MOVES:
            return False
        bits = 8 * operands[0][2]
        if left is None:
            value, slope = right
            if name in _SIGN_EXTENDING:
                value = self._extended(value, slope, 8 * operands[1][2]) % (1 << bits)
            self._set(visit, value, slope, bits)
        elif name in ("add", "inc"):
            self._set(visit, (left[0] + right[0]) % (1 << bits), left[1] + right[1], bits)
            self._compare(name, ((left[0] + right[0]) % (1 << bits), left[1] + right[1]), (0, 0), bits)
        elif name in ("sub", "dec"):
            self._set(visit, (left[0] - right[0]) % (1 << bits), left[1] - right[1], bits)
            self._compare(name, left, right, bits)
        elif name == "cmp":
            self._compare(name, left, right, bits)
        elif operands[0] == operands[1]:
            self._compare(name, left, (0, 0), bits)
        else:
            return False
        return True

    def _lea(self, visit: Visit) -> bool:
        operands, computed = visit.instruction.operands, visit.instruction.computed
        if computed is None or operands[0][2] < 4:
            return False
        slope = 0
        for part, scale in ((computed.base, 1), (computed.index, computed.scale)):
            own = self.slopes[_NAMES[part]] if part is not None else 0
            if not isinstance(own, int):
                return False
            slope += scale * own
        bits = 8 * operands[0][2]
        value = computed.address(visit.registers, visit.address + visit.instruction.size)
        self._set(visit, value % (1 << bits), slope, bits)
        return True

    def _exchange_and_add(self, visit: Visit) -> bool:
        (kind, what, width), (_, register_, _) = visit.instruction.operands
        left, right = self._operand(visit, 0), self._operand(visit, 1)
        if left is None or right is None or kind != "mem":
            return False
        bits = 8 * width
        total, slope = (left[0] + right[0]) % (1 << bits), left[1] + right[1]
        self.valid = min(self.valid, turns_within(total, slope, 0, 1 << bits))
        start, length = visit.spans[int(what)]
        self.slopes[register_] = left[1]
        for place in range(start, start + length):
            self.slopes[place] = slope
        self._compare("add", (total, slope), (0, 0), bits)
        return True

    def _operand(self, visit: Visit, index: int) -> tuple[int, int] | None:
        """An operand's value and constant slope, which holds while the value does not wrap."""
        kind, what, width = visit.instruction.operands[index]
        bits = 8 * width
        if kind == "imm":
            # An immediate is extended to the width of what it is combined with.
            return int(what) % (1 << 8 * visit.instruction.operands[0][2]), 0
        if kind == "mem":
            start, length = visit.spans[int(what)]
            slope, value = self.slopes[start], int.from_bytes(self.read(start, length, visit), "little")
        elif kind == "reg" and what in OFFSET:
            slope, value = self.slopes[what], register(visit.registers, OFFSET[str(what)])
        else:
            return None
        # "ah" and its like have the name and width of "al".
        if not isinstance(slope, int) or kind == "reg" and width < 4:
            return None
        value %= 1 << bits
        self.valid = min(self.valid, turns_within(value, slope, 0, 1 << bits))
        return value, slope

    def _extended(self, value: int, slope: int, bits: int) -> int:
        half = 1 << (bits - 1)
        value = signed(value, bits)
        low = 0 if value >= 0 else -half
        self.valid = min(self.valid, turns_within(value, slope, low, low + half))
        return value

    def _set(self, visit: Visit, value: int, slope: int, bits: int) -> None:
        self.valid = min(self.valid, turns_within(value, slope, 0, 1 << bits))
        for place, _ in outputs(visit):
            if place != FLAGS:
                self.slopes[place] = slope

    def _compare(self, name: str, left: tuple[int, int], right: tuple[int, int], bits: int) -> None:
        conditions = {"add": OF_RESULT, "inc": OF_RESULT, "dec": WITHOUT_CARRY}.get(name, ALL_CONDITIONS)
        self.slopes[FLAGS] = Compare(*left, *right, bits, conditions) if left[1] or right[1] else 0
