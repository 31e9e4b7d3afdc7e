"""The filter decides exactly what the policy table says, for every call and any arguments."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detbox.policy import BY_NUMBER, TABLE, Action, Case, Op, Row
from detbox.policy import Test as Condition
from detbox.policy.row import allow, answer, any_bits, equal, less, no_bits, refuse, trap
from detbox.supervisor import filter as assembler

PROGRAM = assembler.build(TABLE)
X86_64, I386, AARCH64 = 0xC000003E, 0x40000003, 0xC00000B7
LAST = max(BY_NUMBER)
WORD = st.integers(0, 2**64 - 1)


def interpret(program: bytes, number: int, arch: int, args: tuple[int, ...]) -> int:
    """Classic BPF as seccomp runs it: the filter's return value; ValueError for an invalid program."""
    data = struct.pack("<iIQ6Q", number if number < 1 << 31 else number - (1 << 32), arch, 0, *args)
    code = list(struct.iter_unpack("<HBBI", program))
    if not 1 <= len(code) <= 4096:
        raise ValueError("length")
    accumulator = at = 0
    while True:
        opcode, if_true, if_false, k = code[at]
        at += 1
        if opcode == 0x06:
            return int(k)
        if opcode == 0x20:
            if k % 4 or k + 4 > len(data):
                raise ValueError(f"load at {k}")
            (accumulator,) = struct.unpack_from("<I", data, k)
        elif opcode == 0x05:
            at += k
        elif opcode == 0x15:
            at += if_true if accumulator == k else if_false
        elif opcode == 0x25:
            at += if_true if accumulator > k else if_false
        elif opcode == 0x35:
            at += if_true if accumulator >= k else if_false
        elif opcode == 0x45:
            at += if_true if accumulator & k else if_false
        else:
            raise ValueError(f"opcode {opcode:#x}")


def expected(row: Row | None, args: tuple[int, ...]) -> int:
    if row is None:
        return assembler.RET_USER_NOTIF
    action, errno = row.verdict(args)
    if action is Action.REFUSE:
        return assembler.RET_ERRNO | errno
    return assembler.RET_ALLOW if action is Action.ALLOW else assembler.RET_USER_NOTIF


def near_arguments(row: Row) -> st.SearchStrategy[tuple[int, ...]]:
    """Arguments that hit the row's conditions and miss them narrowly, with garbage above 32 bits."""
    plain = st.one_of(WORD, st.integers(0, 300))
    registers = [plain] * 6
    for index in range(6):
        found = {test.value for case in row.args for test in case.tests if test.arg == index}
        if found:
            close = sorted({(value + delta) % 2**64 for value in found for delta in (-1, 0, 1)})
            registers[index] = st.builds(
                lambda low, high: low | high << 32 if low < 2**32 else low,
                st.one_of(st.sampled_from(close), plain), st.sampled_from((0, 0, 1, 2**32 - 1)))
    return st.tuples(*registers)


@pytest.mark.parametrize("number", range(LAST + 40))
def test_every_number(number: int) -> None:
    for args in ((0,) * 6, (2**64 - 1,) * 6, (3, 1, 0x22, 0x22, 4, 0)):
        assert interpret(PROGRAM, number, X86_64, args) == expected(BY_NUMBER.get(number), args)


@pytest.mark.parametrize("row", [row for row in TABLE if row.args], ids=lambda row: row.name)
@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_conditions(row: Row, data: st.DataObject) -> None:
    args = data.draw(near_arguments(row))
    assert interpret(PROGRAM, row.number, X86_64, args) == expected(row, args)


TESTS = st.builds(
    lambda arg, op, value, bits: Condition(arg, op, value % (1 << bits), bits),
    st.integers(0, 5), st.sampled_from(Op), st.one_of(WORD, st.integers(0, 5)), st.sampled_from((32, 64)))
CASES = st.builds(
    lambda tests, action, errno: Case(tuple(tests), action, errno if action is Action.REFUSE else 0),
    st.lists(TESTS, min_size=1, max_size=3),
    st.sampled_from((Action.ALLOW, Action.REFUSE, Action.WATCH)), st.integers(0, 133))


@settings(max_examples=300, deadline=None)
@given(st.lists(CASES, max_size=4), st.tuples(*[st.one_of(WORD, st.integers(0, 6))] * 6))
def test_any_table(cases: list[Case], args: tuple[int, ...]) -> None:
    row = allow("read", "x", "y", tuple(cases))
    assert interpret(assembler.build([row]), row.number, X86_64, args) == expected(row, args)


@given(st.integers(LAST + 1, 0x3FFFFFFF))
def test_unknown_numbers_reach_the_supervisor(number: int) -> None:
    assert interpret(PROGRAM, number, X86_64, (0,) * 6) == assembler.RET_USER_NOTIF


@given(st.integers(0, 600))
def test_x32_calls_do_not_exist(number: int) -> None:
    assert interpret(PROGRAM, 0x40000000 | number, X86_64, (0,) * 6) == assembler.RET_ERRNO | 38


@pytest.mark.parametrize("arch", [I386, AARCH64])
def test_other_architectures_are_killed(arch: int) -> None:
    assert interpret(PROGRAM, 1, arch, (0,) * 6) == assembler.RET_KILL_PROCESS


def test_size() -> None:
    assert len(PROGRAM) % 8 == 0
    assert len(PROGRAM) // 8 <= assembler.MAX_INSTRUCTIONS


def test_vocabulary() -> None:
    cases = (answer(0, less(1, 5, 64)), trap(equal(0, 7), any_bits(2, 6)))
    row = refuse("pkey_mprotect", 22, "memory", "why", cases)
    assert row.verdict((0, 4, 0, 0, 0, 0)) == (Action.REFUSE, 0)
    assert row.verdict((0x100000007, 9, 2, 0, 0, 0)) == (Action.WATCH, 0)
    assert row.verdict((7, 9, 8, 0, 0, 0)) == (Action.REFUSE, 22)
    assert not no_bits(0, 4).holds((4, 0, 0, 0, 0, 0))
