"""Proof that a thread spins: it waits for memory that only others can change.

``prove`` walks a stopped thread by single steps, ``LoopTable`` remembers what
was proved so that later visits are caught by a breakpoint.  ``docs/spin.md``
tells why the result does not depend on when the thread was interrupted.
"""

from detbox.spin.counter import settle
from detbox.spin.pace import Pace
from detbox.spin.prove import NotSpin, Spin, Verdict, prove, prove_from
from detbox.spin.stepper import PtraceStepper, Stepper
from detbox.spin.table import Loop, LoopTable, attempt, enter, visit

__all__ = [
    "Loop",
    "LoopTable",
    "NotSpin",
    "Pace",
    "PtraceStepper",
    "Spin",
    "Stepper",
    "Verdict",
    "attempt",
    "enter",
    "prove",
    "prove_from",
    "settle",
    "visit",
]
