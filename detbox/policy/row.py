"""What one row of the policy table can say: what happens to a system call, and why."""

from __future__ import annotations

import os
from collections.abc import Callable
from enum import Enum
from typing import TYPE_CHECKING, Any

from detbox.kernel.numbers import NUMBERS
from detbox.records import record

if TYPE_CHECKING:
    from detbox.decision import Decision

#: The six raw unsigned 64-bit argument registers.
Args = tuple[int, ...]
Handler = Callable[[Any, Any, Args], "Decision"]


class Action(Enum):
    """What happens to a call."""

    ALLOW = "allow"  # the filter lets it through; the supervisor never sees it
    NATIVE = "native"  # answered inside the guest
    EMULATE = "emulate"  # the supervisor does it and replies
    WATCH = "watch"  # the supervisor looks, orders it, and lets the kernel execute it
    REFUSE = "refuse"  # the filter answers with an errno (0: with success)


class Op(Enum):
    """How a :class:`Test` compares."""

    EQUAL = "=="
    LESS = "<"  # unsigned
    ANY_BITS = "&"  # at least one of the bits is set
    NO_BITS = "!&"  # none of the bits is set


@record(frozen=True)
class Test:
    """A condition on one argument.

    ``bits`` is the width that the kernel gives the parameter: for an ``int`` the upper half of the
    register is ignored, because the kernel ignores it as well (a guest may leave anything there).
    """

    __test__ = False  # the name is no invitation to pytest

    arg: int
    op: Op
    value: int
    bits: int = 32

    def __post_init__(self) -> None:
        if not (0 <= self.arg < 6 and self.bits in (32, 64) and 0 <= self.value < 1 << self.bits):
            raise ValueError(f"impossible test {self}")

    def holds(self, args: Args) -> bool:
        """Whether the condition holds (the filter's meaning, spelled out)."""
        actual = args[self.arg] & ((1 << self.bits) - 1)
        if self.op is Op.EQUAL:
            return actual == self.value
        if self.op is Op.LESS:
            return actual < self.value
        return bool(actual & self.value) is (self.op is Op.ANY_BITS)

    def __str__(self) -> str:
        shown = f"{self.value:#x}" if self.value > 9 else str(self.value)
        if self.op is Op.NO_BITS:
            return f"not arg{self.arg} & {shown}"
        return f"arg{self.arg} {self.op.value} {shown}"


@record(frozen=True)
class Case:
    """An exception to a row's action: if all ``tests`` hold, the filter does ``action`` instead.

    ``action`` is ALLOW, REFUSE (with ``errno``) or WATCH, which stands for "goes to the supervisor".
    """

    tests: tuple[Test, ...]
    action: Action
    errno: int = 0
    why: str = ""

    def __post_init__(self) -> None:
        if self.action not in (Action.ALLOW, Action.REFUSE, Action.WATCH) or not self.tests:
            raise ValueError(f"impossible case {self}")


@record(frozen=True)
class Row:
    """One system call.

    ``handler`` decides EMULATE and WATCH calls.  ``args`` are exceptions that the filter tells by the
    arguments alone; the first that fits counts.  ``missing`` says what is not supported ("" if nothing).
    ``errno``: the answer of a REFUSE row.
    """

    name: str
    number: int
    action: Action
    handler: Handler | None
    subject: str
    why: str
    args: tuple[Case, ...] = ()
    errno: int | None = None
    missing: str = ""

    def __post_init__(self) -> None:
        if (self.action is Action.REFUSE) is (self.errno is None):
            raise ValueError(f"{self.name}: exactly the refused calls have an errno")
        if self.handler is not None and not self.traps:
            raise ValueError(f"{self.name}: has a handler, but is never trapped")

    @property
    def traps(self) -> bool:
        """Whether the supervisor can see this call at all (a native one: if the fast path leaves it)."""
        return (self.action in (Action.EMULATE, Action.WATCH, Action.NATIVE)
                or any(case.action is Action.WATCH for case in self.args))

    def verdict(self, args: Args) -> tuple[Action, int]:
        """What the filter does with these arguments: (ALLOW or WATCH or REFUSE, errno)."""
        for case in self.args:
            if all(test.holds(args) for test in case.tests):
                return case.action, case.errno
        if self.action is Action.REFUSE:
            return Action.REFUSE, self.errno or 0
        return (Action.ALLOW if self.action is Action.ALLOW else Action.WATCH), 0

    @property
    def errno_name(self) -> str:
        """The errno of a REFUSE row by name, "success" for 0."""
        return errno_name(self.errno or 0)


def errno_name(number: int) -> str:
    """``EPERM`` for 1 …, ``success`` for 0."""
    import errno as names

    return names.errorcode.get(number, os.strerror(number)) if number else "success"


# The functions below are the vocabulary of the table's modules.

def allow(name: str, subject: str, why: str, args: tuple[Case, ...] = (), handler: Handler | None = None,
          missing: str = "") -> Row:
    """A call that the kernel executes unseen (``handler``: for the exceptions that are seen)."""
    return Row(name, NUMBERS[name], Action.ALLOW, handler, subject, why, args, missing=missing)


def emulate(name: str, handler: Handler | None, subject: str, why: str, args: tuple[Case, ...] = (),
            missing: str = "") -> Row:
    """A call that the supervisor answers."""
    return Row(name, NUMBERS[name], Action.EMULATE, handler, subject, why, args, missing=missing)


def watch(name: str, handler: Handler | None, subject: str, why: str, args: tuple[Case, ...] = (),
          missing: str = "") -> Row:
    """A call that the supervisor looks at before the kernel executes it."""
    return Row(name, NUMBERS[name], Action.WATCH, handler, subject, why, args, missing=missing)


def emulated(subject: str, why: str, missing: str = "", /, **handlers: Handler) -> tuple[Row, ...]:
    """Calls that the supervisor answers: the call's name = its handler."""
    return tuple(emulate(name, handler, subject, why, missing=missing) for name, handler in handlers.items())


def watched(subject: str, why: str, missing: str = "", /, **handlers: Handler) -> tuple[Row, ...]:
    """Calls that the supervisor looks at before the kernel executes them: the call's name = its handler."""
    return tuple(watch(name, handler, subject, why, missing=missing) for name, handler in handlers.items())


def refuse(name: str, errno: int, subject: str, why: str, args: tuple[Case, ...] = (),
           missing: str = "") -> Row:
    """A call that the filter answers with ``errno`` (0: success)."""
    return Row(name, NUMBERS[name], Action.REFUSE, None, subject, why, args, errno, missing)


def equal(arg: int, value: int, bits: int = 32) -> Test:
    """The argument equals ``value``."""
    return Test(arg, Op.EQUAL, value, bits)


def less(arg: int, value: int, bits: int = 32) -> Test:
    """The argument, unsigned, is less than ``value``."""
    return Test(arg, Op.LESS, value, bits)


def any_bits(arg: int, value: int, bits: int = 32) -> Test:
    """The argument has one of the bits of ``value``."""
    return Test(arg, Op.ANY_BITS, value, bits)


def no_bits(arg: int, value: int, bits: int = 32) -> Test:
    """The argument has none of the bits of ``value``."""
    return Test(arg, Op.NO_BITS, value, bits)


def let_through(*tests: Test, why: str = "") -> Case:
    """The kernel executes the call unseen if all ``tests`` hold."""
    return Case(tests, Action.ALLOW, why=why)


def trap(*tests: Test, why: str = "") -> Case:
    """The supervisor gets the call if all ``tests`` hold."""
    return Case(tests, Action.WATCH, why=why)


def answer(errno: int, *tests: Test, why: str = "") -> Case:
    """The filter answers with ``errno`` (0: success) if all ``tests`` hold."""
    return Case(tests, Action.REFUSE, errno, why)


def values(arg: int, *accepted: int, bits: int = 32) -> tuple[Case, ...]:
    """Let the call through if the argument has one of these values."""
    return tuple(let_through(equal(arg, value, bits)) for value in accepted)
