"""seccomp(2): filters of the guest's own, and the strict mode, which is one to the kernel."""

from __future__ import annotations

import errno
import struct
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen, Decision
from detbox.handlers import cores
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_CALL, OWN_MAPPING
from detbox.machine.creds import STRICT
from detbox.machine.userspaces import CAP_SYS_ADMIN

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

# include/uapi/linux/seccomp.h, include/uapi/linux/prctl.h
_SET_MODE_STRICT, _SET_MODE_FILTER = 0, 1
_NEW_LISTENER = 8
_RET_TRAP, _RET_ALLOW = 0x00030000, 0x7FFF0000
MODE_STRICT, MODE_FILTER = 1, 2

#: What a thread in strict mode may call (mode1_syscalls in kernel/seccomp.c).
_ALLOWED = tuple(NUMBERS[name] for name in ("read", "write", "exit", "rt_sigreturn"))
# include/uapi/linux/bpf_common.h, and struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6]
_LOAD, _JUMP_EQ, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER, _MAPPED, _LAST = 0, 16 + 8 * 4, 16 + 8 * 5
_MAX_INSTRUCTIONS = 4096
_READ_WRITE, _PRIVATE_ANONYMOUS = 3, 0x22


def _program(*code: tuple[int, int, int, int]) -> bytes:
    """Instructions of a filter: what to do, how many to skip if a comparison holds, and if not, and the operand."""
    return b"".join(struct.pack("<HBBI", *each) for each in code)


#: Goes before a filter of the guest's own: the supervisor's calls are not the guest's.  A filter finds 0 at its start.
_PROLOGUE = _program(
    (_LOAD, 0, 0, _LAST), (_JUMP_EQ, 0, 2, OWN_CALL),
    (_LOAD, 0, 0, _LAST + 4), (_JUMP_EQ, 4, 0, 0),
    (_LOAD, 0, 0, _NUMBER), (_JUMP_EQ, 0, 3, NUMBERS["mmap"]),
    (_LOAD, 0, 0, _MAPPED + 4), (_JUMP_EQ, 0, 1, OWN_MAPPING >> 32),
    (_RETURN, 0, 0, _RET_ALLOW), (_AND, 0, 0, 0),
)  # fmt: skip
_SIZE = 8  # of an instruction
_KILL_PROCESS, _KILL_THREAD, _ACTION = 0x80000000, 0, 0xFFFF0000
#: What filters trap with instead of killing, if that is to leave a core file: si_errno of the signal.
KILLS_PROCESS, KILLS_THREAD = 0xDE7B, 0xDE7C
_INSTEAD = {_KILL_PROCESS: _RET_TRAP | KILLS_PROCESS, _KILL_THREAD: _RET_TRAP | KILLS_THREAD}


def seccomp(m: Machine, t: Task, a: Args) -> Decision:
    """A filter of the guest's own can only restrict it further; a second listener would get in our way."""
    operation, flags = a[0] & 0xFFFFFFFF, a[1] & 0xFFFFFFFF
    if operation == _SET_MODE_STRICT:
        return -errno.EINVAL if flags or a[2] else strict(m, t)
    if operation != _SET_MODE_FILTER:
        return CONTINUE
    if flags & _NEW_LISTENER:
        return -errno.EBUSY
    return own_filter(m, t, flags, a[2])


def own_filter(m: Machine, t: Task, flags: int, program: int) -> Decision:
    """Install the filter at that address.  It is counted, because programs ask whether they have one.

    Calls that the supervisor has the thread make later are nothing that the filter may refuse, or end the process for.
    """
    header = t.read(program, 16)
    length = int.from_bytes(header[:2], "little")
    if not 0 < length <= _MAX_INSTRUCTIONS:
        return -errno.EINVAL
    creds = t.process.creds
    if not (creds.no_new_privs or creds.capable(CAP_SYS_ADMIN)):
        return -errno.EACCES
    code = t.read(int.from_bytes(header[8:], "little"), length * _SIZE)
    if cores.limit(t.process):
        code = _stopping(code)
    if len(code) + len(_PROLOGUE) <= _MAX_INSTRUCTIONS * _SIZE:
        code = _PROLOGUE + code

    def look(task: Task, _: int) -> int:
        failed = _install(m, task, flags, code)
        if not failed:
            task.process.creds.filters += 1
        return failed

    return ContinueThen(look, instead=0)


def _stopping(code: bytes) -> bytes:
    """A filter that traps where it would kill: the kernel lets nobody see a thread before that end."""
    found = [struct.unpack_from("<HBBI", code, at) for at in range(0, len(code), _SIZE)]
    return _program(*(
        (what, yes, no, _INSTEAD.get(operand & _ACTION, operand) if what == _RETURN else operand)
        for what, yes, no, operand in found
    ))  # fmt: skip


def _install(m: Machine, t: Task, flags: int, code: bytes) -> int:
    """Have a thread install a filter at the end of its call; the call's result."""
    size = 16 + len(code)
    asked = NUMBERS["mmap"], 0, size, _READ_WRITE, _PRIVATE_ANONYMOUS, OWN_MAPPING | 0xFFFFFFFF, 0
    place = m.run_call(t, *asked)
    if place < 0:
        return place
    t.write(place, struct.pack("<H6xQ", len(code) // _SIZE, place + 16) + code)
    result = m.run_call(t, NUMBERS["seccomp"], _SET_MODE_FILTER, flags, place)
    m.run_call(t, NUMBERS["munmap"], place, size)
    return result


def strict(m: Machine, t: Task) -> Decision:
    """The kernel refuses the mode to who has a filter, and every thread has detbox's: one more filter stands for it.

    Where the strict mode would kill, the filter traps, which comes before all that detbox's filter does with the call.
    The supervisor sees the signal, and the thread dies as it would (:func:`detbox.supervisor.lifecycle.forbidden`).
    """
    if t.process.creds.filters:
        return -errno.EINVAL

    def look(task: Task, _: int) -> int:
        allowed = [(_JUMP_EQ, len(_ALLOWED) - at, 0, number) for at, number in enumerate(_ALLOWED)]
        verdicts = (_RETURN, 0, 0, _RET_TRAP), (_RETURN, 0, 0, _RET_ALLOW)
        failed = _install(m, task, 0, _PROLOGUE + _program((_LOAD, 0, 0, _NUMBER), *allowed, *verdicts))
        if not failed:
            task.data[STRICT] = True
        return failed

    return ContinueThen(look, instead=0)
