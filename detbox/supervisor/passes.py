"""Counts how often a thread passes one instruction of a loop, with a debug register of the processor.

Where a timer is too far away for its thread to be stepped there (see counting.py), the loop that it is in is
found by a short walk, and the thread runs at full speed between two passes of the loop's rarest
instruction.  The processor stops it before the instruction, each time, whatever the host does.
See docs/counting.md.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from detbox.kernel import _native
from detbox.spin.stepper import RIP, register

if TYPE_CHECKING:
    from detbox.supervisor.task import Task

#: What a pass stands for at least: what counting one really takes.
NS_PER_PASS = 40_000
#: Steps of the walk that looks for the loop; more, if nothing has come twice by then (a hash function's
#: unrolled rounds are 2,000 instructions and more).
WALK = 1_500
LONGEST_WALK = 12_000
#: Passes that one process may cost in its life.
LIFETIME = 1_000_000

_POKEUSER = 6
_DEBUGREG = 848  # offsetof(struct user, u_debugreg)
_ADDRESS, _CONTROL = _DEBUGREG, _DEBUGREG + 7 * 8
_EXECUTE_LOCAL = 1  # DR7: register 0, for this thread, when the instruction is about to be executed
_TRAP_HWBKPT = 4
# On a busy virtual machine the status register is sometimes empty when the kernel looks, and it takes the trap
# for another one (TRAP_BRKPT, TRAP_TRACE); an int3 of the guest's own has SI_KERNEL.
_TRAP_CODES = frozenset((1, 2, _TRAP_HWBKPT))
_LEFT = "passes"  # in a task's data: passes that are still to come
_ARMED = "passes_at"  # in a task's data: the address in the register
_SPENT = "passes_spent"  # in a process's data


def rarest(task: Task, known: bytearray) -> tuple[int | None, int, int]:
    """Step a stopped thread on: (the address that it passed least often, but twice at least; status; why).

    ``known``, ``status`` and ``why``: as for ``step_many``.  The address is None if the walk ended early.
    """
    seen: Counter[int] = Counter()
    for step in range(LONGEST_WALK):
        if step >= WALK and len(seen) < step:
            break
        seen[register(_native.get_regs(task.tid), RIP)] += 1
        _, status, why = _native.step_many(task.tid, 1, known)
        if why:
            return None, status, why
    repeated = [(count, address) for address, count in seen.items() if count > 1]
    return (min(repeated)[1] if repeated else None), 0, 0


def begin(task: Task, address: int, passes: int) -> bool:
    """Have a stopped thread stop before ``address``; True if ``passes`` of them are to be counted."""
    spent = task.process.data.get(_SPENT, 0)
    if passes > LIFETIME - spent:
        return False
    if _native.ptrace_request(_POKEUSER, task.tid, _ADDRESS, address) < 0:
        return False
    if _native.ptrace_request(_POKEUSER, task.tid, _CONTROL, _EXECUTE_LOCAL) < 0:
        return False
    task.process.data[_SPENT] = spent + passes
    task.data[_LEFT] = passes
    task.data[_ARMED] = address
    return True


def active(task: Task) -> bool:
    """Whether a thread's passes are being counted."""
    return _LEFT in task.data


def end(task: Task) -> None:
    """Stop counting: the thread has made a call, or takes a signal."""
    task.data.pop(_LEFT, None)


def trapped(task: Task, code: int) -> bool | None:
    """A SIGTRAP stop with this si_code: None if it is no pass, True if it was the last one that was wanted."""
    if code not in _TRAP_CODES:
        return None
    left = task.data.get(_LEFT)
    if code != _TRAP_HWBKPT and register(_native.get_regs(task.tid), RIP) != task.data.get(_ARMED):
        return None
    if left is not None:
        if left > 1:
            task.data[_LEFT] = left - 1
            return False
        del task.data[_LEFT]
    # Also one of a count that a call has ended: the register could not be cleared then.
    task.data.pop(_ARMED, None)
    _native.ptrace_request(_POKEUSER, task.tid, _CONTROL, 0)
    return left is not None
