"""The code around loops that are known, as kernel/relay.c executes it for threads that wait for each other by turns.

Between one loop and the next there are mostly some dozen instructions: a lock is handed on, a counter raised.  To let
the thread go there and stop it again takes 40 us; the instructions themselves are those that kernel/turns.c knows.

Nothing is trusted that has not been seen: where an instruction is met for the first time, what has been foreseen is
compared with what the thread itself does.  Only code is executed that cannot change without a call (of a file, private,
not writable), and what lies there is compared before.
"""

from __future__ import annotations

from detbox.kernel.mappings import CODE, mappings
from detbox.spin.stepper import PtraceStepper
from detbox.spin.turns import INSTRUCTION_SIZE, encoded
from detbox.spin.walk import decoded

#: As kernel/relay.c has them: places for instructions, and the state of attempts before them.
_PLACES, _HEAD = 4096, 16
#: Instructions that are looked at in one go, and in all.
_BLOCK, _MOST = 64, 3000
_ENDS = ("jmp", "call", "ret", "syscall", "int3")


class Ground:
    """The instructions of one address space, in which a certain set of breakpoints is.

    ``proc_fd``: of a procfs mount.
    ``code``: what was read.  ``shut``: the memory that instructions must leave alone, since more depends on it.
    """

    def __init__(self, heads: frozenset[int], proc_fd: int) -> None:
        self.heads = heads
        self._proc_fd = proc_fd
        self.places = bytearray(_HEAD + _PLACES * INSTRUCTION_SIZE)
        self.code: tuple[tuple[int, bytes], ...] = ()
        self.shut = (0, 0)
        self._own: list[tuple[int, int]] | None = None
        self._known: set[int] = set()

    def more(self, tid: int, address: int) -> bool:
        """Add the instructions from an address on, up to a jump; False if there are none that could be executed."""
        try:
            return self._more(tid, address)
        except OSError:
            return False  # it has been killed

    def _more(self, tid: int, address: int) -> bool:
        stepper = PtraceStepper(tid)
        if self._own is None:
            self._look(tid)
        assert self._own is not None
        end = next((end for start, end in self._own if start <= address < end), None)
        if end is None or len(self._known) >= _MOST:
            return False
        at = address
        for _ in range(_BLOCK):
            if at in self._known or at in self.heads:
                break
            instruction = decoded(stepper, at)
            self._add(at, encoded(at, instruction))
            if instruction is None or at + instruction.size > end:
                break
            at += instruction.size
            if instruction.name in _ENDS:
                break
        if at == address:
            return address in self._known
        self.code += ((address, stepper.read(address, at - address)),)
        return True

    def _add(self, address: int, instruction: bytes) -> None:
        self._known.add(address)
        place = (address ^ address >> 12) % _PLACES
        while any(self.places[(at := _HEAD + place * INSTRUCTION_SIZE) : at + 8]):
            place = (place + 1) % _PLACES
        self.places[at : at + INSTRUCTION_SIZE] = instruction

    def _look(self, tid: int) -> None:
        """Where code of files lies that cannot change, and where the page in which the guest looks at clocks."""
        self._own, shown = [], []
        for each in mappings(self._proc_fd, tid):
            if each.name.startswith(b"/memfd:detbox-clock"):
                shown += [each.start, each.end]
            elif each.is_code and each.perms == CODE and b"memfd:" not in each.name:
                self._own.append((each.start, each.end))
        if shown:
            self.shut = min(shown), max(shown)
