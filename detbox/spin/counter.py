"""Endless loops that count, found at a moment that depends on the machine: taken to a turn that does not.

A counter of some bits comes back to each of its values, so that a loop which only counts is a cycle of states, and
where it is parked is as free as in any other cycle.  The turn is named by one of its counters: the first turn in which
that is ``1 << 38`` (more than are counted before the loop is found), or for a narrow one a quarter of its range, whose
turns may be over by then.  All other values follow (see leap.py); where one does not, nothing is done.
"""

from __future__ import annotations

from collections.abc import Iterator

from detbox.records import NamedTuple
from detbox.spin.effects import outputs
from detbox.spin.leap import Leap, leap
from detbox.spin.prove import Spin
from detbox.spin.stepper import OFFSET, Stepper
from detbox.spin.walk import Visit, Walk

#: A wide counter gets so far, in powers of two: a minute or more.
_FAR = 38
# Turns that are walked: some for each time that a counter of 32 bits wraps, which may count by more than one.
_ROUNDS = 1024
_MASK = (1 << 64) - 1


class _Counter(NamedTuple):
    """What changes by ``slope`` with each turn, modulo ``1 << bits``; narrow registers come before wide ones."""

    bits: int
    value: int
    slope: int


def settle(stepper: Stepper, spin: Spin) -> Spin | None:
    """Take a thread that is in such a loop to the turn that names itself; None: it cannot be told, or it has ended."""
    walk, head = Walk(stepper), min(spin.addresses)
    for _ in range(spin.period):
        if walk.address() == head:
            break
        if walk.advance():
            return None
    for _ in range(_ROUNDS):
        turn = _turn(walk, spin, head)
        if turn is None:
            return None
        after = Visit(head, stepper.registers(), walk.delta, turn[-1].instruction, ())
        found = leap(turn, after, walk.bytes_at, endless=True)
        left = _turns_left(turn, found) if found is not None else None
        if found is None or left is None:
            return None
        if not left:
            return spin._replace(address=head, settled=True)
        if turns := min(left, found.turns):
            try:
                walk.place(*found.after(turns - 1))
            except OSError:
                return None
            # The last one computes what has no constant slope.
            if _turn(walk, spin, head) is None:
                return None
            if turns == left:
                return spin._replace(address=head, settled=True)
    return None


def _turn(walk: Walk, spin: Spin, head: int) -> list[Visit] | None:
    """Walk one turn; None: it is another one."""
    begin = len(walk.visits)
    for _ in range(spin.period):
        if walk.advance():
            return None
    turn = walk.visits[begin:]
    same = walk.address() == head and frozenset(visit.address for visit in turn) == spin.addresses
    return turn if same and [visit.address for visit in turn].count(head) == 1 else None


def _turns_left(turn: list[Visit], found: Leap) -> int | None:
    """How many turns there are to the one that is looked for; None: it is not determined."""
    counters = [each for each in _counters(turn, found) if each.bits == 64 or each.slope % 2]
    widest = max((each.bits for each in _counters(turn, found)), default=0)
    counter = next((each for each in counters if each.bits == widest), None)
    if counter is None:
        return None
    if widest < 64:
        size = 1 << widest
        return (size // 4 - counter.value) * pow(counter.slope, -1, size) % size
    value, slope = (counter.value if counter.slope > 0 else -counter.value) & _MASK, abs(counter.slope)
    far = 1 << _FAR + (slope - 1).bit_length()
    if far <= value < far + slope:
        return 0
    return -((value - far) // slope) if value < far else None


def _counters(turn: list[Visit], found: Leap) -> Iterator[_Counter]:
    """What counts, in an order that is the same in every turn."""
    narrow = {
        OFFSET[place]
        for visit in turn
        for place, _ in outputs(visit)
        if isinstance(place, str) and place in OFFSET and _writes_half(visit, place)
    }
    for offset, value, slope in sorted(found.registers):
        bits = 32 if offset in narrow else 64
        yield _Counter(bits, value % (1 << bits), slope)
    for _, length, value, slope in sorted(found.memory):
        yield _Counter(8 * length, value, slope)


def _writes_half(visit: Visit, place: str) -> bool:
    return any(kind == "reg" and what == place and width == 4 for kind, what, width in visit.instruction.operands)
