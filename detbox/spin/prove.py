"""The proof itself: a thread that returns to the state it was in will do so for ever."""

from __future__ import annotations

import functools
import operator
from collections.abc import Container

from detbox.kernel import _native
from detbox.records import NamedTuple
from detbox.spin.induction import repeats
from detbox.spin.leaper import Leaper
from detbox.spin.stepper import OFFSET, Stepper, register
from detbox.spin.walk import State, Visit, Walk

#: Where loops begin, and the addresses of their instructions.
Bodies = tuple[tuple[int, frozenset[int]], ...]
# After a leap the walk goes on for so many instructions at least: it has got far by then.
_AFTER_LEAP = 600
_ORIG_RAX = OFFSET["orig_rax"]


class Spin(NamedTuple):
    """The thread waits for memory; it has been walked to the state that it is parked in.

    ``address``: program counter of that state.  ``period``: instructions a turn.
    ``addresses``: of the loop's instructions.  ``watched``: the memory that the
    loop uses, and what it holds.  ``exact``: every turn is identical; otherwise
    something counts (see :func:`prove_from`).  ``steps``: what the proof cost.
    ``bounded``: loops with an end that the walk went through without making all turns, which saved it so many
    instructions.  ``settled``: something counts, but how far does not depend on when the loop was found (counter.py).
    """

    address: int
    period: int
    addresses: frozenset[int]
    watched: tuple[tuple[int, bytes], ...]
    exact: bool
    steps: int
    bounded: Bodies = ()
    saved: int = 0
    settled: bool = False

    def unchanged(self, tid: int) -> bool:
        """Whether the parked thread would still spin: it costs no step.

        The state is fixed by registers, which nobody changes, and by the memory watched.
        """
        return _native.still_held(tid, self.watched)


class NotSpin(NamedTuple):
    """No proof; the thread has been walked some way and goes on from there.

    ``left``: it went out of the loop that it was expected to be in.
    ``bounded`` and ``saved``: as in :class:`Spin`.
    """

    reason: str
    steps: int
    left: bool = False
    bounded: Bodies = ()
    saved: int = 0


Verdict = Spin | NotSpin


def prove(stepper: Stepper, limit: int = 4000) -> Verdict:
    """Walk until a state repeats, at most ``limit`` instructions."""
    return prove_walk(Walk(stepper), limit)


def prove_walk(walk: Walk, limit: int = 4000, within: Container[int] | None = None) -> Verdict:
    """As :func:`prove`, with the record of the walk for the caller.

    ``within``: give up at once outside of these addresses (a loop known before).
    """
    leaper = Leaper(walk)
    verdict = _walked(walk, leaper, limit, within)
    return verdict._replace(bounded=tuple(leaper.bodies.items()), saved=leaper.saved) if leaper.bodies else verdict


def _walked(walk: Walk, leaper: Leaper, limit: int, within: Container[int] | None) -> Verdict:
    seen: dict[State, int] = {}
    while (steps := len(walk.visits)) < (max(limit, _AFTER_LEAP) if leaper.bodies else limit):
        first = seen.setdefault(walk.state(), steps)
        address = walk.address()
        # Which states of a shortened loop are seen depends on where the walk began.
        if first != steps and not leaper.inside(address):
            return _settle(walk, first, leaper)
        if within is not None and address not in within:
            return NotSpin("the loop has been left", steps, left=True)
        if reason := leaper.advance():
            return NotSpin(reason, steps)
    return NotSpin(f"no state repeated in {limit} instructions", limit)


def prove_from(stepper: Stepper, steps: int = 200) -> Verdict:
    """Walk exactly ``steps`` instructions from a deterministic point, and prove that
    the loop never ends, though something in it may count.

    The thread is stopped where the walk ends (or in the canonical state, if it is
    an exact spin), so that what it counted depends on the starting point alone.
    A signal handler that is being executed is followed to its end and beyond.
    """
    walk = Walk(stepper, through_handlers=True)
    seen: dict[State, int] = {}
    for step in range(steps):
        if not walk.visits:
            seen.clear()
        first = seen.setdefault(walk.state(), len(walk.visits))
        if first != len(walk.visits):
            return _settle(walk, first, Leaper(walk, leaping=False))
        reason = walk.advance()
        if reason:
            return NotSpin(reason, step)
    for begin, end in _turns(walk.visits):
        turn, after = walk.visits[begin:end], walk.visits[end]
        if (changing := repeats(turn, after)) is not None:
            return _found(walk, turn, walk.address(), exact=False, ignore=changing)
    return NotSpin(f"no endless loop in {steps} instructions", steps)


def _turns(visits: list[Visit]) -> list[tuple[int, int]]:
    """Candidate turns: the last two visits of an instruction, rarest (outermost) first."""
    places: dict[int, list[int]] = {}
    for index, visit in enumerate(visits):
        places.setdefault(visit.address, []).append(index)
    repeated = sorted((len(at), address) for address, at in places.items() if len(at) > 1)
    turns = {tuple(places[address][-2:]): None for _, address in repeated}
    # An outer loop that is passed twice has all inner ones inside; a few kinds of loop are enough.
    lengths: dict[int, tuple[int, int]] = {}
    for begin, end in turns:
        lengths.setdefault(end - begin, (begin, end))
    return list(lengths.values())[:8]


def _settle(walk: Walk, first: int, leaper: Leaper) -> Verdict:
    """The state of visit ``first`` is back: check the vector registers, go to the canonical state."""
    turn, steps, state = walk.visits[first:], len(walk.visits), walk.state()
    # Where turns are left out, those states are compared that any walk sees.
    candidates = leaper.last_turns(first) or turn
    if any(visit.instruction.vector for visit in turn):
        vectors = walk.stepper.vectors()
        reason = leaper.advance() or _go_to(state, leaper, 2 * len(turn))
        if reason or walk.stepper.vectors() != vectors:
            return NotSpin(reason or "vector registers change", steps)
    blocked = [walk.blocked(visit) for visit in turn]
    if not any(mask == functools.reduce(operator.and_, blocked) for mask in map(walk.blocked, candidates)):
        return NotSpin("signals are blocked by turns", steps)
    if reason := _go_to(_canonical(walk, turn, candidates), leaper, 2 * len(turn)):
        return NotSpin(reason, len(walk.visits))
    return _found(walk, turn, walk.address(), exact=True)


def _go_to(goal: State, leaper: Leaper, limit: int) -> str:
    """Walk to a state of the cycle; the reason why that did not work, or ""."""
    walk = leaper.walk
    for _ in range(limit + _AFTER_LEAP):
        if walk.state() == goal:
            return ""
        if reason := leaper.advance():
            return reason
    return "the cycle has been left"


def _canonical(walk: Walk, turn: list[Visit], candidates: list[Visit]) -> State:
    """The least state: the same one wherever the walk began.

    A thread that is parked while it holds a lock would take it again before anybody
    else gets it, whenever it is continued: states with locks at zero come first.
    Before all, a signal that it would take in its turn has to reach it: the fewest are blocked.
    """
    locks = {
        address
        for visit in turn
        if visit.instruction.name == "xchg" or visit.instruction.text.startswith("lock")
        for start, length in visit.spans
        for address in range(start, start + length)
    }
    changed = {address for visit in turn for address, _ in visit.delta}
    locks &= changed

    def rank(visit: Visit) -> tuple[int, bool, int, int, bytes]:
        held = sum(walk.value(address, visit.delta) != 0 for address in locks)
        in_call = register(visit.registers, _ORIG_RAX) >> 63 == 0
        return walk.blocked(visit).bit_count(), in_call, held, visit.address, visit.registers

    least = min(map(rank, candidates))
    tied = [visit for visit in candidates if rank(visit) == least]
    # Equal but for memory: compare what the turn itself changes, by its absolute values.
    varying = sorted({address for a in tied for b in tied for address, _ in a.delta ^ b.delta})
    best = min(tied, key=lambda visit: [walk.value(address, visit.delta) for address in varying])
    return best.registers, best.delta


def _found(
    walk: Walk, turn: list[Visit], address: int, *, exact: bool, ignore: frozenset[int] = frozenset()
) -> Verdict:
    spans = sorted({span for visit in turn for span in visit.spans})
    try:
        watched = tuple(
            (start, walk.stepper.read(start, length))
            for start, length in spans
            if not any(byte in ignore for byte in range(start, start + length))
        )
    except OSError:
        return NotSpin("unmapped memory", len(walk.visits))
    addresses = frozenset(visit.address for visit in turn)
    return Spin(address, len(turn), addresses, watched, exact, len(walk.visits))
