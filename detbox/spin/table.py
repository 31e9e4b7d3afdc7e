"""Remembered loops: a breakpoint catches the next visit, long before a tick would."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable

from detbox.records import field, record, replace
from detbox.spin.ground import Ground
from detbox.spin.prove import Spin, Verdict, prove_from, prove_walk
from detbox.spin.shortcut import Shortcut, shortcut
from detbox.spin.stepper import RIP, Stepper, register
from detbox.spin.turns import Turns, turns
from detbox.spin.walk import Walk

_BREAKPOINT = 0xCC
# A visit that is no spin costs some 0.1 ms; a spin that only the tick finds, some 10 ms.
# The breakpoint is worth its while until so many more visits than spins have been seen.
_VISITS_PER_SPIN = 50
_FREE_VISITS = 200
# Instructions that are executed while one is stepped; and steps that take as long as such a visit.
_PER_STEP, _STEPS_PER_VISIT = 250_000, 8
# A loop that counts is walked for so many turns, but at least so many instructions.
_COUNTED_TURNS, _COUNTED_STEPS = 4, 24
# Walks remembered for each loop; the two or three that matter repeat for ever.
_SHORTCUTS = 32


@record
class Loop:
    """A proven loop in one address space."""

    address: int
    addresses: frozenset[int]
    original: int  # the byte under the breakpoint
    counted: int = 0  # for a loop that counts: instructions to walk from its head
    armed: bool = False
    visits: int = 0
    spins: int = 1  # visits that were worth the breakpoint
    shortcuts: deque[Shortcut[Verdict]] = field(default_factory=lambda: deque(maxlen=_SHORTCUTS))
    turns: Turns | None = None

    def worthwhile(self) -> bool:
        """Whether the next visit should be caught."""
        return self.visits <= _FREE_VISITS + _VISITS_PER_SPIN * self.spins


class LoopTable:
    """The loops of every address space (``mm``: any hashable identity).

    A breakpoint is an ``int3`` at a loop's canonical address, never in memory that is shared.  All of them are
    taken out while a thread of that address space is stepped or its memory is
    copied (fork), since neither may see them.
    """

    def __init__(self) -> None:
        self._loops: dict[Hashable, dict[int, Loop]] = {}
        self._grounds: dict[Hashable, Ground] = {}

    def learn(self, mm: Hashable, spin: Spin, stepper: Stepper) -> None:
        """Remember a spin (while nothing is armed)."""
        loops = self._loops.setdefault(mm, {})
        # A counting spin may be parked anywhere in its loop; the breakpoint has one place.
        address = spin.address if spin.exact else min(spin.addresses)
        known = loops.get(address)
        if known is not None:
            known.addresses |= spin.addresses
            known.spins += 1
            return
        if not stepper.own(address):
            return
        turns = 0 if spin.exact else max(_COUNTED_TURNS * spin.period, _COUNTED_STEPS)
        loops[address] = Loop(address, spin.addresses, stepper.read(address, 1)[0], turns)

    def learn_bounded(self, mm: Hashable, verdict: Verdict, stepper: Stepper) -> None:
        """Remember loops of which turns were left out (while nothing is armed)."""
        if not verdict.bounded:
            return
        loops = self._loops.setdefault(mm, {})
        around = verdict.addresses if isinstance(verdict, Spin) else frozenset()
        for address, body in verdict.bounded:
            known = loops.get(address)
            if known is None and not stepper.own(address):
                continue
            if known is None:
                loops[address] = Loop(address, body | around, stepper.read(address, 1)[0])
            else:
                known.addresses |= body | around
                known.spins += _worth(verdict, verdict.steps)

    def arm(self, mm: Hashable, stepper: Stepper) -> None:
        """Insert the breakpoints that are worth it; forget loops whose code has gone."""
        for loop in list(self._loops.get(mm, {}).values()):
            if loop.armed or not loop.worthwhile():
                continue
            if _try(stepper, loop.address, loop.original, _BREAKPOINT):
                loop.armed = True
            else:
                del self._loops[mm][loop.address]

    def disarm(self, mm: Hashable, stepper: Stepper) -> None:
        """Take all breakpoints out."""
        for loop in list(self._loops.get(mm, {}).values()):
            if loop.armed and not _try(stepper, loop.address, _BREAKPOINT, loop.original):
                del self._loops[mm][loop.address]
            loop.armed = False

    def armed(self, mm: Hashable) -> bool:
        """Whether the address space has a breakpoint in it now."""
        return any(loop.armed for loop in self._loops.get(mm, {}).values())

    def known(self, mm: Hashable) -> bool:
        """Whether the address space has, or had, a breakpoint in it."""
        return mm in self._loops

    def quick(self, mm: Hashable) -> list[Loop]:
        """The loops with a breakpoint at which no walk is needed."""
        loops = self._loops.get(mm, {}).values()
        return [loop for loop in loops if loop.armed and loop.turns is not None and loop.turns.known]

    def ground(self, mm: Hashable, proc_fd: int) -> Ground:
        """The code around them, as it is with these breakpoints.  ``proc_fd``: of a procfs mount."""
        heads = frozenset(loop.address for loop in self._loops.get(mm, {}).values() if loop.armed)
        ground = self._grounds.get(mm)
        if ground is None or ground.heads != heads:
            ground = self._grounds[mm] = Ground(heads, proc_fd)
        return ground

    def at(self, mm: Hashable, rip: int) -> Loop | None:
        """The loop whose breakpoint is at the program counter, not yet executed."""
        loop = self._loops.get(mm, {}).get(rip)
        return loop if loop is not None and loop.armed else None

    def at_breakpoint(self, mm: Hashable, rip: int) -> Loop | None:
        """The loop whose breakpoint has just trapped, given the program counter after it."""
        return self.at(mm, rip - 1)

    def inherit(self, parent: Hashable, child: Hashable) -> None:
        """A fork has copied the memory, with whatever is armed in it."""
        if parent in self._loops:
            self._loops[child] = {
                at: replace(loop, shortcuts=loop.shortcuts.copy(), turns=loop.turns and replace(loop.turns))
                for at, loop in self._loops[parent].items()
            }

    @property
    def empty(self) -> bool:
        """Whether nothing is known of any address space."""
        return not self._loops

    def keep(self, living: set[Hashable]) -> None:
        """Forget all address spaces but these (exec and exit end them)."""
        for mm in [mm for mm in self._loops if mm not in living]:
            del self._loops[mm]
            self._grounds.pop(mm, None)


def visit(table: LoopTable, mm: Hashable, stepper: Stepper) -> Verdict | None:
    """A SIGTRAP stop: None if no breakpoint of ours caused it (it is the guest's own).

    Otherwise the thread is walked: either it spins and is in its canonical
    state, or it has gone on and may run.  The breakpoints are in place again.
    """
    loop = table.at_breakpoint(mm, register(stepper.registers(), RIP))
    if loop is None:
        return None
    stepper.assign(((RIP, loop.address),))
    return enter(table, mm, loop, stepper)


def enter(table: LoopTable, mm: Hashable, loop: Loop, stepper: Stepper) -> Verdict:
    """The same for a thread whose program counter is the loop's address."""
    loop.visits += 1
    if loop.turns is not None and loop.turns.known:
        taken = loop.turns.take(stepper)
        if taken is not None:
            loop.spins += _worth(taken[0], 1)
            return taken[0]
    registers = stepper.registers()
    for known in loop.shortcuts:
        if known.applies(registers, stepper.read):
            for address, data in known.stores:
                stepper.write(address, data)
            stepper.assign(known.sets)
            loop.spins += _worth(known.outcome, 1)
            return known.outcome
    if loop.counted:
        # From the head on its first arrival, hence the same number of turns in every run.
        return attempt(table, mm, stepper, lambda walked: prove_from(walked, loop.counted))
    table.disarm(mm, stepper)
    loop.turns = turns(stepper, loop.address, loop.addresses, loop.turns)
    foreseen = None
    if loop.turns is not None and not loop.turns.checked and not loop.turns.hopeless:
        foreseen = loop.turns.take(stepper, commit=False)
    walk = Walk(stepper)
    verdict = prove_walk(walk, within=loop.addresses)
    if loop.turns is not None and foreseen is not None:
        loop.turns.check(foreseen, verdict, stepper.registers())
    if not _worth(verdict, verdict.steps):
        loop.visits += verdict.steps // _STEPS_PER_VISIT
    if isinstance(verdict, Spin) or verdict.left:
        found = shortcut(walk, verdict)
        if found is not None:
            loop.shortcuts.appendleft(found)
    if isinstance(verdict, Spin):
        table.learn(mm, verdict, stepper)
    table.learn_bounded(mm, verdict, stepper)
    table.arm(mm, stepper)
    if loop.turns is not None:
        loop.turns.look(stepper)
    return verdict


def attempt(
    table: LoopTable, mm: Hashable, stepper: Stepper, prover: Callable[[Stepper], Verdict]
) -> Verdict:
    """Run a prover on a thread that a tick or a deterministic point has stopped."""
    table.disarm(mm, stepper)
    verdict = prover(stepper)
    if isinstance(verdict, Spin):
        table.learn(mm, verdict, stepper)
    table.learn_bounded(mm, verdict, stepper)
    table.arm(mm, stepper)
    return verdict


def _worth(verdict: Verdict, steps: int) -> bool:
    """Whether a visit that took so many steps was worth it."""
    return isinstance(verdict, Spin) or verdict.saved > steps * _PER_STEP


def _try(stepper: Stepper, address: int, expected: int, byte: int) -> bool:
    try:
        if stepper.read(address, 1)[0] != expected:
            return False
        stepper.patch(address, byte)
    except OSError:
        return False
    return True
