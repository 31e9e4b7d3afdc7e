"""ptrace(2), as far as it stops threads of another process and reads what they hold, as leak checkers do.

The kernel allows each thread one tracer, and that is the supervisor.  A thread that the guest has attached to is
held where it is about to take a signal, and the guest's tracer is told, until that lets it go on.  What debuggers need
besides (stops at calls, single steps, breakpoints, children from their first instruction on) is refused.
"""

from __future__ import annotations

import errno
import signal
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTNOINTR
from detbox.handlers.futex_core import Args, signed
from detbox.handlers.other_memory import debuggable
from detbox.kernel import _native, registers, siginfo
from detbox.machine import tracees
from detbox.machine.tracees import FLAGS, TRACED, TRACEES, Traced

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

# include/uapi/linux/ptrace.h, include/uapi/linux/elf.h
_PEEKTEXT, _PEEKDATA, _CONT, _GETREGS, _GETFPREGS, _ATTACH, _DETACH, _GETREGSET = 1, 2, 7, 12, 14, 16, 17, 0x4204
_NT_PRSTATUS, _NT_FPREGSET, _NT_X86_XSTATE = 1, 2, 0x202
_INTERRUPT = 0x4207
_LAST_SIGNAL = 64
_WORD = 8
#: Of struct user_fpregs_struct: fop, rip and rdp, which processors of two makers keep differently; MXCSR's mask, and
#: what is reserved.
_FP_INSTRUCTION, _FP_MASK, _FP_RESERVED = slice(6, 24), slice(28, 32), slice(416, 512)
_MASK = (0xFFFF).to_bytes(4, "little")


def ptrace(m: Machine, t: Task, a: Args) -> Decision:
    """long ptrace(long request, pid_t pid, void *addr, void *data)"""
    if a[0] == _ATTACH:
        return _attach(m, t, debuggable(m, t, a[1]))
    if a[0] not in _REQUESTS:
        return -errno.EPERM
    task = t.process.data.get(TRACEES, {}).get(signed(a[1], 32))
    if task is None or not task.data[TRACED].signo:
        return -errno.ESRCH
    return _REQUESTS[a[0]](m, t, task, a)


def _attach(m: Machine, t: Task, task: Task) -> Decision:
    if task.process is t.process or TRACED in task.data or task.process.job_stop:
        return -errno.EPERM
    task.data[TRACED] = Traced(t.process)
    t.process.data.setdefault(TRACEES, {})[task.tid] = task
    m.signal(task, signal.SIGSTOP, code=siginfo.SI_USER, sender=t.process)
    return 0


def _go_on(m: Machine, t: Task, task: Task, a: Args) -> Decision:
    signo = a[3]
    if signo > _LAST_SIGNAL:
        return -errno.EIO
    task.data[TRACED].signo = 0
    if a[0] == _DETACH:
        tracees.release(task)
    m.after_stop(task, signo)
    return 0


def _peek(m: Machine, t: Task, task: Task, a: Args) -> Decision:
    try:
        word = task.read(a[2], _WORD)
    except OSError:
        return -errno.EIO
    t.write(a[3], word)
    return 0


def _get_regs(m: Machine, t: Task, task: Task, a: Args) -> Decision:
    t.write(a[3], bytes(registers.get(task.tid).words))
    return 0


def _get_fpregs(m: Machine, t: Task, task: Task, a: Args) -> Decision:
    t.write(a[3], _fpregs(task))
    return 0


def _get_regset(m: Machine, t: Task, task: Task, a: Args) -> Decision:
    """PTRACE_GETREGSET: ``addr`` is the kind, ``data`` points to a struct iovec, which gets the length."""
    if a[2] == _NT_X86_XSTATE:
        return -errno.ENODEV  # as without XSAVE: its layout is the host's
    if a[2] not in (_NT_PRSTATUS, _NT_FPREGSET):
        return -errno.EINVAL
    found = bytes(registers.get(task.tid).words) if a[2] == _NT_PRSTATUS else _fpregs(task)
    base, length = t.u64(a[3]), t.u64(a[3] + _WORD)
    if length % _WORD:
        return -errno.EINVAL
    t.write(base, found[:length])
    t.write(a[3] + _WORD, min(length, len(found)).to_bytes(_WORD, "little"))
    return 0


def _fpregs(task: Task) -> bytes:
    """The x87 and SSE registers of a stopped thread, without what tells the processor."""
    found = bytearray(_native.get_fpregs(task.tid))
    for part in (_FP_INSTRUCTION, _FP_RESERVED):
        found[part] = bytes(part.stop - part.start)
    found[_FP_MASK] = _MASK
    return bytes(found)


_REQUESTS = {
    _PEEKTEXT: _peek, _PEEKDATA: _peek, _GETREGS: _get_regs, _GETFPREGS: _get_fpregs, _GETREGSET: _get_regset,
    _CONT: _go_on, _DETACH: _go_on,
}  # fmt: skip


# -- CLONE_UNTRACED ------------------------------------------------------------------


def without_flag(task: Task, flag: int) -> Decision:
    """Have a thread make its clone(2) again without a flag by which the child would evade the supervisor."""
    flags = task.args[0]

    def look(task: Task, result: int) -> None:
        regs = registers.get(task.tid)
        regs.rdi = flags & ~flag
        registers.put(task.tid, regs)
        task.data[FLAGS] = flags

    task.look = look
    _native.ptrace_request(_INTERRUPT, task.tid, 0, 0)
    return -ERESTARTNOINTR
