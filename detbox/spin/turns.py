"""A loop's turns without steps: its instructions, as kernel/turns.c executes them.

A breakpoint tells that a thread has arrived at a loop that was proved before.  Mostly it waits there again, or the
wait is over: both are a few turns of a few dozen instructions, with other values in registers and memory each time.
Where each of the loop's instructions is known exactly, they are executed here, from the thread's registers and memory,
and the result is set: the states are those that the processor would have gone through, so that a state which comes back
proves as much as in a walk.  What is not known, or does not come back within some turns, is walked.

Nothing is trusted that has not been seen: a walk through the loop has to come to the end that was foreseen here.
"""

from __future__ import annotations

import contextlib
import re
import struct

from detbox.records import field, record
from detbox.spin.decode import Instruction
from detbox.spin.prove import NotSpin, Spin, Verdict
from detbox.spin.stepper import OFFSET, Stepper
from detbox.spin.walk import decoded

_INSTRUCTION, _OPERAND = struct.Struct("<QBBBBxxxx"), struct.Struct("<BBBBBBxxq")
_REGISTER, _MEMORY, _IMMEDIATE = 1, 2, 3
_NOTHING = bytes(_OPERAND.size)
INSTRUCTION_SIZE = _INSTRUCTION.size + 2 * _OPERAND.size
_NO_WORD, _MASK = 255, (1 << 64) - 1
_GENERAL = frozenset(name for name in OFFSET if name.startswith("r") and name != "rip")
# The order is that of kernel/turns.c.
_WHAT = {
    name: number
    for number, names in enumerate((
        "", "nop pause endbr64 mfence lfence sfence", "mov movabs movzx", "movsx movsxd", "lea", "add", "sub", "and",
        "or", "xor", "cmp", "test", "inc", "dec", "neg", "not", "xchg", "xadd", "cmpxchg", "jmp", "branch", "call",
        "ret", "push", "pop", "leave", "set", "cmov", "cdqe", "shl sal", "shr", "sar", "imul", "mul",
        "div", "idiv", "cdq cqo",
    ))
    for name in names.split()
}  # fmt: skip
# Of each condition all names, in the order of opcodes.
_CONDITIONS = {
    name: number
    for number, names in enumerate(
        "o,no,b c nae,ae nb nc,e z,ne nz,be na,a nbe,s,ns,p pe,np po,l nge,ge nl,le ng,g nle".split(",")
    )
    for name in names.split()
}
_HIGH_BYTE = re.compile(r"\b[abcd]h\b")
_STACK = frozenset("push call pop ret leave".split())
# Instructions and bytes: what is longer is walked.
_LONGEST, _WIDEST = 250, 4_000
# When there was no result so many times in a row, it is not tried any more.
_PATIENCE = 16


@record
class Turns:
    """The instructions of a loop, its head first; ``plain``: its code without breakpoints, ``code`` with them."""

    addresses: frozenset[int]
    order: tuple[int, ...]
    instructions: bytes
    start: int
    plain: bytes
    code: bytes
    checked: bool = False  # a walk has come to the same end
    vain: int = 0  # how often in a row there was no result
    paths: dict[bytes, frozenset[int]] = field(default_factory=dict)  # of turns: their addresses

    def take(self, stepper: Stepper, *, commit: bool = True) -> tuple[Verdict, bytes] | None:
        """What becomes of a thread that is stopped at the head, and its registers then; None: it has to be walked."""
        found = stepper.take_turns(self.instructions, self.start, self.code, commit=commit)
        if found is None:
            self.vain += 1
            return None
        self.vain = 0
        if len(found) == 1:
            return NotSpin("the loop has been left", 1, left=True), found[0]
        then, path, watched = found
        return self.spin(path, watched), then

    def spin(self, path: bytes, watched: tuple[tuple[int, bytes], ...]) -> Spin:
        """Of a thread that goes a path over and over again as long as its memory holds that."""
        addresses = self.paths.get(path)
        if addresses is None:
            addresses = self.paths[path] = frozenset(self.order[index] for index in path)
        return Spin(self.order[0], len(path), addresses, watched, True, 1)

    @property
    def known(self) -> bool:
        """Whether a thread that arrives at the loop need not be walked."""
        return self.checked and not self.hopeless

    @property
    def hopeless(self) -> bool:
        """Whether it is not worth trying any more."""
        return self.vain >= _PATIENCE

    def check(self, foreseen: tuple[Verdict, bytes], verdict: Verdict, registers: bytes) -> None:
        """Compare what would have been done with what a walk has done."""
        ours = foreseen[0]
        if isinstance(ours, Spin) and isinstance(verdict, Spin):
            same = ours == verdict._replace(steps=ours.steps)
        else:
            same = isinstance(ours, NotSpin) and isinstance(verdict, NotSpin) and verdict.left
        if same and foreseen[1] == registers:
            self.checked = True
        else:
            self.vain = _PATIENCE

    def look(self, stepper: Stepper) -> None:
        """The breakpoints are as the next thread will find them."""
        with contextlib.suppress(OSError):
            self.code = stepper.read(self.start, len(self.plain))


def turns(stepper: Stepper, head: int, addresses: frozenset[int], known: Turns | None) -> Turns | None:
    """The turns of a loop, while no breakpoint is in its code; ``known``: what has been made of it before."""
    if not addresses or len(addresses) > _LONGEST or max(addresses) - min(addresses) > _WIDEST:
        return None
    try:
        if known is not None and known.addresses == addresses:
            known.code = stepper.read(known.start, len(known.plain))
            if known.code == known.plain:
                return known
        order = (head, *sorted(addresses - {head}))
        found = [(address, decoded(stepper, address)) for address in order]
        end = max(address + (instruction.size if instruction is not None else 1) for address, instruction in found)
        start = min(order)
        code = stepper.read(start, end - start)
    except OSError:
        return None
    packed = b"".join(encoded(address, instruction) for address, instruction in found)
    return Turns(addresses, order, packed, start, code, code)


def encoded(address: int, instruction: Instruction | None) -> bytes:
    """An instruction as kernel/turns.c has it."""
    if instruction is None:
        return _unknown(address, 0)
    name, following = instruction.name, address + instruction.size
    prefix, _, rest = instruction.text.partition(" ")
    what, condition, operands = name, 0, list(instruction.operands)
    for family in ("set", "cmov", "j"):
        if name.startswith(family) and name.removeprefix(family) in _CONDITIONS:
            what, condition = "branch" if family == "j" else family, _CONDITIONS[name.removeprefix(family)]
    number = _WHAT.get(what, 0)
    if number == _WHAT["nop"]:
        operands = []
    elif name in _STACK:
        operands.pop()  # the slot
    if name in ("cdq", "cqo"):
        condition = 4 if name == "cdq" else 8  # bytes
    factor = 0
    if name == "imul" and len(operands) == 3 and operands[2][0] == "imm":
        factor, condition = int(operands.pop()[1]), 1
    odd = instruction.forbidden or instruction.vector or instruction.repeated or _HIGH_BYTE.search(rest)
    if not number or odd or len(operands) > (0 if name in ("ret", "leave") else 2):
        return _unknown(address, instruction.size)
    if what == "branch" or name in ("jmp", "call") and operands[0][0] == "imm":
        operands = [("imm", address + int(operands[0][1]), 8)]
    width = 8 if name == "push" else operands[0][2] if operands else 0
    packed = [_operand(instruction, following, operand, width) for operand in operands]
    if condition and name == "imul":
        packed[0] = packed[0][:8] + _signed(factor).to_bytes(8, "little", signed=True)
    packed += [_NOTHING] * (2 - len(packed))
    return _INSTRUCTION.pack(address, instruction.size, number, condition, prefix == "lock") + b"".join(packed)


def _unknown(address: int, size: int) -> bytes:
    return _INSTRUCTION.pack(address, size, 0, 0, 0) + 2 * _NOTHING


def _operand(instruction: Instruction, following: int, operand: tuple[str, str | int, int], width: int) -> bytes:
    kind, what, size = operand
    if kind == "reg" and what in _GENERAL:
        return _OPERAND.pack(_REGISTER, size, _word(OFFSET[f"{what}"]), _NO_WORD, 0, _NO_WORD, 0)
    if kind == "imm":
        return _OPERAND.pack(_IMMEDIATE, width, _NO_WORD, _NO_WORD, 0, _NO_WORD, _signed(int(what)))
    span = instruction.computed if kind == "address" else instruction.spans[int(what)] if kind == "mem" else None
    if span is None:
        return _NOTHING
    places = _word(span.base), _word(span.index), span.scale, _word(span.segment)
    offset = span.displacement + (following if span.relative else 0)
    return _OPERAND.pack(_MEMORY, span.size, *places, _signed(offset))


def _word(offset: int | None) -> int:
    return _NO_WORD if offset is None else offset // 8


def _signed(value: int) -> int:
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value
