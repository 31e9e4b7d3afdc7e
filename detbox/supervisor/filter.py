"""The seccomp filter, assembled from the policy table as a classic BPF program.

The program loads the call number once and finds it by a balanced tree of comparisons over *runs* of
numbers that share a verdict; the commonest calls are compared first.  Every verdict that depends on
arguments is a small block of its own.  Jumps of the classic BPF reach 255 instructions, so that a
tree's far branch goes through an unconditional jump, whose offset has 32 bits.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable

from detbox.kernel.numbers import NUMBERS
from detbox.policy.row import Action, Case, Op, Row, Test
from detbox.records import field, record

# include/uapi/linux/bpf_common.h
LOAD = 0x20  # BPF_LD | BPF_W | BPF_ABS
JUMP = 0x05  # BPF_JMP | BPF_JA
JUMP_EQ = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
JUMP_GE = 0x35  # BPF_JMP | BPF_JGE | BPF_K
JUMP_GT = 0x25  # BPF_JMP | BPF_JGT | BPF_K
JUMP_SET = 0x45  # BPF_JMP | BPF_JSET | BPF_K
RETURN = 0x06  # BPF_RET | BPF_K

# include/uapi/linux/seccomp.h
RET_KILL_PROCESS = 0x80000000
RET_ERRNO = 0x00050000
RET_USER_NOTIF = 0x7FC00000
RET_ALLOW = 0x7FFF0000

AUDIT_ARCH_X86_64 = 0xC000003E
X32_BIT = 0x40000000
ENOSYS = 38
MAX_INSTRUCTIONS = 4096  # BPF_MAXINSNS
MAX_SHORT_JUMP = 255

# struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6], little endian here
OFFSET_NUMBER, OFFSET_ARCH, OFFSET_ARGS = 0, 4, 16

#: Compared before the tree, in this order: the calls that real programs make most.
HOT = ("read", "write", "newfstatat", "openat", "close", "futex", "mmap", "rt_sigprocmask",
       "rt_sigaction", "readlink", "lseek", "brk")


@record
class Assembler:
    """Collects instructions whose jump targets are labels, and resolves them at the end."""

    code: list[tuple[int, str, str, int]] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)
    _fresh: int = 0

    def fresh(self) -> str:
        """A label that nobody else uses."""
        self._fresh += 1
        return f"L{self._fresh}"

    def label(self, name: str) -> None:
        """The next instruction is called ``name``."""
        self.labels[name] = len(self.code)

    def load(self, offset: int) -> None:
        """Accumulator = 32-bit word of seccomp_data."""
        self.code.append((LOAD, "", "", offset))

    def ret(self, value: int) -> None:
        """End with this verdict."""
        self.code.append((RETURN, "", "", value))

    def goto(self, target: str) -> None:
        """Jump, however far."""
        self.code.append((JUMP, target, "", 0))

    def branch(self, opcode: int, value: int, then: str, other: str) -> None:
        """Compare the accumulator with ``value``; "" means the next instruction."""
        self.code.append((opcode, then, other, value))

    def branch_far(self, opcode: int, value: int, then: str) -> None:
        """Jump however far if the comparison holds, else go on."""
        here, on = self.fresh(), self.fresh()
        self.branch(opcode, value, here, on)
        self.label(here)
        self.goto(then)
        self.label(on)

    def assemble(self) -> bytes:
        """The array of ``struct sock_filter``."""
        if len(self.code) > MAX_INSTRUCTIONS:
            raise OverflowError(f"the filter has {len(self.code)} instructions, more than {MAX_INSTRUCTIONS}")
        program = bytearray()
        for position, (opcode, then, other, value) in enumerate(self.code):
            if opcode == JUMP:
                program += struct.pack("<HBBI", JUMP, 0, 0, self._distance(position, then))
                continue
            distances = [self._distance(position, target) for target in (then, other)]
            if max(distances) > MAX_SHORT_JUMP:
                raise OverflowError(f"jump of {max(distances)} instructions at {position}")
            program += struct.pack("<HBBI", opcode, *distances, value)
        return bytes(program)

    def _distance(self, position: int, target: str) -> int:
        return self.labels[target] - position - 1 if target else 0


def build(table: Iterable[Row]) -> bytes:
    """The filter for a policy table, as an array of ``struct sock_filter`` (8 bytes each).

    Calls of other architectures kill the process: ``int 0x80`` and 32-bit programs have call numbers
    of their own, and answering them would mean a second table.  x32 calls and numbers beyond the table
    are told apart: x32 is refused here, unknown numbers go to the supervisor, which counts and names them.
    """
    rows = {row.number: row for row in table}
    asm = Assembler()
    asm.load(OFFSET_ARCH)
    asm.branch(JUMP_EQ, AUDIT_ARCH_X86_64, "native", "")
    asm.ret(RET_KILL_PROCESS)
    asm.label("native")
    asm.load(OFFSET_NUMBER)
    asm.branch(JUMP_SET, X32_BIT, "", "known")
    asm.ret(RET_ERRNO | ENOSYS)
    asm.label("known")
    for name in HOT:
        if NUMBERS[name] in rows:
            asm.branch_far(JUMP_EQ, NUMBERS[name], _target(rows[NUMBERS[name]]))
    _tree(asm, _runs(rows))
    _endings(asm, rows.values())
    return asm.assemble()


def _target(row: Row) -> str:
    """The label of the block that deals with a row."""
    if row.args:
        return f"call {row.name}"
    return _ending(*row.verdict((0,) * 6))


def _ending(action: Action, errno: int) -> str:
    return f"errno {errno}" if action is Action.REFUSE else action.value


def _runs(rows: dict[int, Row]) -> list[tuple[int, str]]:
    """(first number, target) of the runs of equal targets; the last run has no end."""
    runs: list[tuple[int, str]] = []
    for number in range(max(rows) + 2):
        target = _target(rows[number]) if number in rows else Action.WATCH.value
        if not runs or runs[-1][1] != target:
            runs.append((number, target))
    return runs


def _tree(asm: Assembler, runs: list[tuple[int, str]]) -> None:
    """Binary search for the run that holds the number in the accumulator."""
    if len(runs) == 1:
        asm.goto(runs[0][1])
        return
    middle = len(runs) // 2
    upper = asm.fresh()
    asm.branch_far(JUMP_GE, runs[middle][0], upper)
    _tree(asm, runs[:middle])
    asm.label(upper)
    _tree(asm, runs[middle:])


def _endings(asm: Assembler, rows: Iterable[Row]) -> None:
    """The blocks for calls with argument conditions, then one return for each verdict."""
    verdicts = {(Action.WATCH, 0), (Action.ALLOW, 0)}
    for row in rows:
        default = row.verdict((0,) * 6) if not row.args else _default(row)
        verdicts.add(default)
        if row.args:
            verdicts.update((case.action, case.errno) for case in row.args)
            _conditions(asm, row, default)
    for action, errno in sorted(verdicts, key=lambda verdict: (verdict[0].value, verdict[1])):
        asm.label(_ending(action, errno))
        asm.ret({Action.WATCH: RET_USER_NOTIF, Action.ALLOW: RET_ALLOW}.get(action, RET_ERRNO | errno))


def _default(row: Row) -> tuple[Action, int]:
    """The verdict when no case of the row fits."""
    if row.action is Action.REFUSE:
        return Action.REFUSE, row.errno or 0
    return (Action.ALLOW if row.action is Action.ALLOW else Action.WATCH), 0


def _conditions(asm: Assembler, row: Row, default: tuple[Action, int]) -> None:
    asm.label(f"call {row.name}")
    for case in row.args:
        _case(asm, case)
    asm.goto(_ending(*default))


def _case(asm: Assembler, case: Case) -> None:
    fails = asm.fresh()
    for test in case.tests:
        _test(asm, test, fails)
    asm.goto(_ending(case.action, case.errno))
    asm.label(fails)


def _test(asm: Assembler, test: Test, fails: str) -> None:
    """Fall through if the test holds, else jump to ``fails``."""
    low, high = test.value & 0xFFFFFFFF, test.value >> 32
    at_low = OFFSET_ARGS + 8 * test.arg
    holds = asm.fresh()
    if test.bits == 64:
        asm.load(at_low + 4)
        if test.op is Op.EQUAL:
            asm.branch(JUMP_EQ, high, "", fails)
        elif test.op is Op.LESS:
            asm.branch(JUMP_GT, high, fails, "")
            asm.branch(JUMP_EQ, high, "", holds)
        elif test.op is Op.ANY_BITS:
            asm.branch(JUMP_SET, high, holds, "")
        else:
            asm.branch(JUMP_SET, high, fails, "")
    asm.load(at_low)
    if test.op is Op.EQUAL:
        asm.branch(JUMP_EQ, low, "", fails)
    elif test.op is Op.LESS:
        asm.branch(JUMP_GE, low, fails, "")
    elif test.op is Op.ANY_BITS:
        asm.branch(JUMP_SET, low, "", fails)
    else:
        asm.branch(JUMP_SET, low, fails, "")
    asm.label(holds)
