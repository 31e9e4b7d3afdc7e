"""seccomp(2): filters of the guest's own, and the strict mode, which is one to the kernel."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen, Decision
from detbox.handlers.dispositions import OWN_CALL
from detbox.kernel import registers
from detbox.kernel.numbers import NUMBERS
from detbox.machine.creds import STRICT
from detbox.machine.userspaces import CAP_SYS_ADMIN

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

# include/uapi/linux/seccomp.h, include/uapi/linux/prctl.h
_SET_MODE_STRICT, _SET_MODE_FILTER = 0, 1
_NEW_LISTENER = 8
_RET_TRAP, _RET_ALLOW = 0x00030000, 0x7FFF0000
_PR_SET_SECCOMP = 22
MODE_STRICT, MODE_FILTER = 1, 2

#: What a thread in strict mode may call (mode1_syscalls in kernel/seccomp.c).
_ALLOWED = tuple(NUMBERS[name] for name in ("read", "write", "exit", "rt_sigreturn"))
_LOAD, _JUMP_EQ, _RETURN = 0x20, 0x15, 0x06  # of the number, which comes first in struct seccomp_data
_PAGE = 4096


def seccomp(m: Machine, t: Task, a: Args) -> Decision:
    """A filter of the guest's own can only restrict it further; a second listener would get in our way."""
    operation, flags = a[0] & 0xFFFFFFFF, a[1] & 0xFFFFFFFF
    if operation == _SET_MODE_STRICT:
        return -errno.EINVAL if flags or a[2] else strict(m, t)
    if operation != _SET_MODE_FILTER:
        return CONTINUE
    if flags & _NEW_LISTENER:
        return -errno.EBUSY
    return own_filter(t, a[2])


def own_filter(t: Task, program: int) -> Decision:
    """Let the kernel install the filter at that address.  It is counted, because programs ask whether they have one."""
    creds = t.process.creds
    if program and not (creds.no_new_privs or creds.capable(CAP_SYS_ADMIN)):
        return -errno.EACCES

    def look(task: Task, result: int) -> None:
        if result == 0:
            task.process.creds.filters += 1

    return ContinueThen(look) if program else CONTINUE


def strict(m: Machine, t: Task) -> Decision:
    """The kernel refuses the mode to who has a filter, and every thread has detbox's: one more filter stands for it.

    Where the strict mode would kill, the filter traps, which comes before all that detbox's filter does with the call.
    The supervisor sees the signal, and the thread dies as it would (:mod:`detbox.supervisor.strict`).
    """
    if t.process.creds.filters:
        return -errno.EINVAL

    def look(task: Task, result: int) -> int:
        code = [(_LOAD, 0, 0, 0)]
        code += [(_JUMP_EQ, len(_ALLOWED) - at, 0, number) for at, number in enumerate(_ALLOWED)]
        code += [(_RETURN, 0, 0, _RET_TRAP), (_RETURN, 0, 0, _RET_ALLOW)]
        program = b"".join(struct.pack("<HBBI", *each) for each in code)
        # Passed on the page of the stack that the thread is on.
        size = 16 + len(program)
        stack = registers.get(task.tid).rsp
        place = min(stack & -8, (stack | _PAGE - 1) + 1 - size)
        saved = task.read(place, size)
        task.write(place, struct.pack("<H6xQ", len(code), place + 16) + program)
        failed = m.run_call(task, NUMBERS["prctl"], _PR_SET_SECCOMP, MODE_FILTER, place, OWN_CALL)
        task.write(place, saved)
        if not failed:
            task.data[STRICT] = True
        return failed

    return ContinueThen(look)
