"""A walk that leaps over the turns of bounded loops."""

from __future__ import annotations

from detbox.spin.leap import Leap, leap
from detbox.spin.walk import Visit, Walk

# Fewer turns are as quickly walked.
_FEWEST_TURNS = 64
# The longest turn that is examined, in instructions.
_LONGEST_TURN = 200
# Attempts in one walk: each costs as much as a few steps.
_ATTEMPTS = 100


class Leaper:
    """Watches a walk for loops that count towards their end, and takes it there.

    ``bodies``: by the address where a loop begins, the addresses of its instructions.
    """

    def __init__(self, walk: Walk, *, leaping: bool = True) -> None:
        """``leaping`` false: every turn is walked."""
        self.walk = walk
        self._leaping = leaping
        self.bodies: dict[int, frozenset[int]] = {}
        self.saved = 0  # instructions that have been leapt over
        self._arrivals: dict[int, int] = {}
        self._hopeless: set[tuple[int, ...]] = set()
        self._attempts = 0
        self._rest = 0
        self._leaps: list[tuple[int, frozenset[int]]] = []

    def advance(self) -> str:
        """Execute one instruction, and leap if that is possible; the reason why not, or ""."""
        walk = self.walk
        if reason := walk.advance():
            return reason
        head, last = walk.address(), walk.visits[-1]
        if not self._leaping or head > last.address or not last.instruction.name.startswith("j"):
            return ""
        begin = self._arrivals.get(head)
        end = self._arrivals[head] = len(walk.visits)
        if begin is None or end - begin > _LONGEST_TURN or end < self._rest:
            return ""
        turn = walk.visits[begin:end]
        path = tuple(visit.address for visit in turn)
        if path in self._hopeless:
            return ""
        self._attempts += 1
        if self._attempts > _ATTEMPTS:
            return "too many loops"
        after = Visit(head, walk.stepper.registers(), walk.delta, last.instruction, ())
        found = leap(turn, after, walk.bytes_at)
        if found is None:
            self._hopeless.add(path)
        elif found.turns >= _FEWEST_TURNS:
            return self._leap(found, head, frozenset(path))
        else:
            self._rest = end + found.turns * len(turn)
        return ""

    def last_turns(self, begin: int) -> list[Visit]:
        """Of each loop that was shortened since visit ``begin``, the last turn: it is always walked."""
        visits, found = self.walk.visits, []
        for index, body in self._leaps:
            if index >= begin:
                end = index
                while end < len(visits) and visits[end].address in body:
                    end += 1
                found += visits[max(index, end - len(body)) : end]
        return found

    def inside(self, address: int) -> bool:
        """Whether the address is in a loop of which turns have been left out."""
        return any(address in body for body in self.bodies.values())

    def _leap(self, found: Leap, head: int, body: frozenset[int]) -> str:
        # One more turn than this is made in full: it computes what has no constant slope.
        turns = found.turns - 1
        try:
            self.walk.place(*found.after(turns))
        except OSError:
            return "unmapped memory"
        self.saved += turns * len(body)
        self._leaps.append((len(self.walk.visits), body))
        self.bodies[head] = self.bodies.get(head, frozenset()) | body
        # A turn with a gap in it is none.
        self._arrivals.clear()
        self._rest = len(self.walk.visits) + 2 * len(body)
        return ""
