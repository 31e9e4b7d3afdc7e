"""The record of a walk: where a thread went, and how memory differs from the start."""

from __future__ import annotations

from collections.abc import Iterable

from detbox.records import NamedTuple
from detbox.spin.decode import MAX_LENGTH, Instruction, decode
from detbox.spin.stepper import OFFSET, RIP, Stepper, register

#: Bytes that differ from what they were when the walk began: (address, value).
Delta = frozenset[tuple[int, int]]
#: Registers and memory: two equal states have the same future.
State = tuple[bytes, Delta]

_RT_SIGRETURN, _RT_SIGPROCMASK = 15, 14
# Calls that are no reason to stop at: they tell the same each time, and change nothing.
_TELLING = frozenset((39, 186))  # getpid, gettid
# A thread's mask of signals is among what a walk changes, as eight bytes where no memory is.
_MASK_AT, _MASK_BYTES = 1 << 64, 8
_SIGTRAP_BIT = 1 << 4
# With a register as their first operand these only read memory.
_LOADS = frozenset("mov movzx movsx movsxd add sub and or xor cmp test".split())


class Visit(NamedTuple):
    """One executed instruction: the state before it, and the addresses it used."""

    address: int
    registers: bytes
    delta: Delta
    instruction: Instruction
    spans: tuple[tuple[int, int], ...]  # (address, length)


class Walk:
    """A thread on its way, instruction by instruction."""

    def __init__(self, stepper: Stepper, *, through_handlers: bool = False) -> None:
        """``through_handlers``: walk through the return from a signal handler, and begin the record anew."""
        self.stepper = stepper
        self._through_handlers = through_handlers
        self.visits: list[Visit] = []
        self.original: dict[int, int] = {}
        self._changed: dict[int, int] = {}
        self.delta: Delta = frozenset()
        self._instructions: dict[int, Instruction] = {}
        self._mask_bytes = range(0)

    def state(self) -> State:
        """Registers and changed memory at this moment."""
        return self.stepper.registers(), self.delta

    def address(self) -> int:
        """The program counter."""
        return register(self.stepper.registers(), RIP)

    def advance(self) -> str:
        """Execute one instruction; the reason why that is impossible, or ""."""
        registers = self.stepper.registers()
        address = register(registers, RIP)
        instruction = self._instruction(address)
        if instruction is None:
            return "an instruction that cannot be decoded"
        if instruction.forbidden:
            if self._through_handlers and instruction.name == "syscall" and _sigreturn(registers):
                return self._return_from_handler()
            if instruction.name == "syscall" and self._may_call(registers):
                return self._call(Visit(address, registers, self.delta, instruction, ()))
            return f"{instruction.text} at {address:#x}"
        following = address + instruction.size
        spans = tuple((span.address(registers, following), span.size) for span in instruction.spans)
        self.visits.append(Visit(address, registers, self.delta, instruction, spans))
        if not spans or instruction.name in _LOADS and instruction.operands[0][0] == "reg":
            return "" if self.stepper.step() else "another event"
        try:
            before = [self.stepper.read(*span) for span in spans]
            if not self.stepper.step():
                return "another event"
            after = [self.stepper.read(*span) for span in spans]
        except OSError:
            return "unmapped memory"
        if before != after:
            self._note(spans, before, after)
        return ""

    def value(self, address: int, delta: Delta) -> int:
        """A byte of memory as it was when ``delta`` held."""
        for changed, byte in delta:
            if changed == address:
                return byte
        return self.original[address]

    def bytes_at(self, address: int, length: int, visit: Visit) -> bytes:
        """Memory as it was before a visit's instruction; OSError."""
        now = self.stepper.read(address, length)
        then = dict(visit.delta)
        return bytes(
            then.get(place, self.original.get(place, byte)) for place, byte in enumerate(now, start=address)
        )

    def place(self, registers: Iterable[tuple[int, int]], memory: Iterable[tuple[int, bytes]]) -> None:
        """Put the thread into a state that it would have reached by itself; OSError."""
        for address, data in memory:
            was = self.stepper.read(address, len(data))
            self.stepper.write(address, data)
            self._note(((address, len(data)),), [was], [data])
        self.stepper.assign(registers)

    def blocked(self, visit: Visit) -> int:
        """The signals that were blocked before a visit's instruction; 0 if that has not changed in the walk."""
        if _MASK_AT not in self._mask_bytes:
            return 0
        return int.from_bytes(bytes(self.value(place, visit.delta) for place in self._mask_bytes), "little")

    def _may_call(self, registers: bytes) -> bool:
        """Whether a step over a call is one like others: the end of a step is a SIGTRAP, which may not be blocked."""
        number, how_many = register(registers, OFFSET["rax"]), register(registers, OFFSET["r10"])
        if number in _TELLING:
            return True
        if number != _RT_SIGPROCMASK or how_many != _MASK_BYTES:
            return False
        new = register(registers, OFFSET["rsi"])
        try:
            wanted = int.from_bytes(self.stepper.read(new, _MASK_BYTES), "little") if new else 0
            return not (self.stepper.blocked() | wanted) & _SIGTRAP_BIT
        except OSError:
            return False

    def _call(self, visit: Visit) -> str:
        """Step over a call, which reads and writes its sets of signals, and the mask."""
        sets = []
        if register(visit.registers, OFFSET["rax"]) == _RT_SIGPROCMASK:
            sets = [register(visit.registers, OFFSET[name]) for name in ("rsi", "rdx")]
        spans = tuple((place, _MASK_BYTES) for place in sets if place)
        self.visits.append(visit._replace(spans=spans))
        try:
            before, mask = [self.stepper.read(*span) for span in spans], self.stepper.blocked()
            if not self.stepper.step():
                return "another event"
            after, now = [self.stepper.read(*span) for span in spans], self.stepper.blocked()
        except OSError:
            return "unmapped memory"
        masks = [each.to_bytes(_MASK_BYTES, "little") for each in (mask, now)]
        # All of it is known from now on.
        self._mask_bytes = range(_MASK_AT, _MASK_AT + _MASK_BYTES)
        for place, byte in zip(self._mask_bytes, masks[0], strict=True):
            if place not in self._changed:
                self.original.setdefault(place, byte)
        self._note((*spans, (_MASK_AT, _MASK_BYTES)), [*before, masks[0]], [*after, masks[1]])
        return ""

    def _return_from_handler(self) -> str:
        self.visits.clear()
        self.original.clear()
        self._changed.clear()
        self._mask_bytes = range(0)
        self.delta = frozenset()
        return "" if self.stepper.step() else "another event"

    def _instruction(self, address: int) -> Instruction | None:
        if address not in self._instructions:
            found = decoded(self.stepper, address)
            if found is None:
                return None
            self._instructions[address] = found
        return self._instructions[address]

    def _note(self, spans: tuple[tuple[int, int], ...], before: list[bytes], after: list[bytes]) -> None:
        for (address, _), old, new in zip(spans, before, after, strict=True):
            for offset, (was, now) in enumerate(zip(old, new, strict=True)):
                # The first change of a byte shows what it was at the start.
                if was != now and self.original.setdefault(address + offset, was) == now:
                    self._changed.pop(address + offset, None)
                elif was != now:
                    self._changed[address + offset] = now
        self.delta = frozenset(self._changed.items())


def _sigreturn(registers: bytes) -> bool:
    return register(registers, OFFSET["rax"]) == _RT_SIGRETURN


def decoded(stepper: Stepper, address: int) -> Instruction | None:
    """The instruction at an address, while no breakpoint is there; None: there is none."""
    return decode(_code(stepper, address))


def _code(stepper: Stepper, address: int) -> bytes:
    """Up to MAX_LENGTH bytes of code; fewer before the end of the mapping."""
    try:
        return stepper.read(address, MAX_LENGTH)
    except OSError:
        try:
            return stepper.read(address, 0x1000 - address % 0x1000)
        except OSError:
            return b""
