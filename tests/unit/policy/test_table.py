"""The policy table covers every call of the kernel, and its rows make sense."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.decision import Decision
from detbox.handlers import identity, tracing
from detbox.kernel.numbers import NAMES, NUMBERS, name_of
from detbox.machine.creds import Creds
from detbox.policy import BY_NAME, BY_NUMBER, LOOKING, TABLE, Action, Row
from detbox.policy.later import Later, call_table
from detbox.policy.row import Args, Case, Op, Test, watch

HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def test_every_call_has_a_row() -> None:
    assert {row.number: row.name for row in TABLE} == NAMES


def test_numbers_agree_with_the_kernel_headers() -> None:
    if not HEADER.exists():
        pytest.skip("no kernel headers here")
    found = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADER.read_text()))
    assert {name: int(number) for name, number in found.items() if name in NUMBERS} == {
        name: NUMBERS[name] for name in found if name in NUMBERS}
    # The header of a newer kernel may have calls that the table does not know yet.
    assert not [name for name in found if name not in NUMBERS and int(found[name]) < max(NAMES)]


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.name)
def test_row(row: Row) -> None:
    assert row.why and "\n" not in row.why and not row.why.endswith(".")
    assert row.subject
    if row.traps:
        assert row.handler is not None, "the supervisor gets this call, but nobody decides it"
        handler = row.handler.load() if isinstance(row.handler, Later) else row.handler
        assert len(inspect.signature(handler).parameters) == 3
        assert handler.__module__.startswith("detbox.handlers.")
    else:
        assert row.handler is None


def test_calls_that_only_look() -> None:
    assert all(BY_NUMBER[number].action is Action.EMULATE for number in LOOKING)
    assert BY_NAME["clock_gettime"].number in LOOKING


def test_what_must_never_reach_the_kernel() -> None:
    dangerous = ("bpf", "perf_event_open", "init_module", "kexec_load", "reboot", "syslog",
                 "io_uring_setup", "userfaultfd", "open_by_handle_at", "rseq")
    assert all(BY_NAME[name].action is Action.REFUSE and not BY_NAME[name].traps for name in dangerous)
    assert BY_NAME["ptrace"].action is Action.EMULATE and "CONTINUE" not in inspect.getsource(tracing)


def test_impossible_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="errno"):
        Row("read", 0, Action.REFUSE, None, "x", "y")
    with pytest.raises(ValueError, match="never trapped"):
        Row("read", 0, Action.ALLOW, lambda m, t, a: 0, "x", "y")
    with pytest.raises(ValueError, match="impossible"):
        Test(6, Op.EQUAL, 0)
    with pytest.raises(ValueError, match="impossible"):
        Case((), Action.ALLOW)
    with pytest.raises(KeyError):
        watch("no_such_call", None, "x", "y")


def test_names() -> None:
    assert name_of(0) == "read"
    assert name_of(400) == "call_400"


def test_what_stands_for_a_handler_leaves_the_table() -> None:
    stand_in, wrapped = Later("identity", "getuid"), Later("identity", "getgid")
    table = call_table({3: stand_in, 4: wrapped}, 6)

    def wrapper(m: Any, t: Any, a: Args) -> Decision:
        return wrapped(m, t, a)

    table[4] = wrapper
    task = SimpleNamespace(process=SimpleNamespace(creds=Creds.of(7, 8)))
    for number, expected in (3, 7), (4, 8):
        handler = table[number]
        assert handler is not None and handler(None, task, (0,) * 6) == expected
    assert table == [None, None, None, identity.getuid, wrapper, None]
