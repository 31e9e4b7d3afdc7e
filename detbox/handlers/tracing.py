"""ptrace(2): what debuggers, strace and leak checkers do with threads of other processes.

The kernel allows each thread one tracer, and that is the supervisor, which stops threads for the guest's tracers and
has them go on (:mod:`detbox.supervisor.tracing`).  Here is what these ask for, and what they read and change.
"""

from __future__ import annotations

import errno
import signal
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.decision import ERESTARTNOINTR
from detbox.handlers import tracing_registers
from detbox.handlers.futex_core import Args, signed
from detbox.handlers.other_memory import debuggable
from detbox.handlers.tracing_registers import code_memory
from detbox.kernel import _native, registers, siginfo
from detbox.machine import tracees
from detbox.machine.tracees import (
    CONT,
    EVENT_CLONE,
    EVENT_EXEC,
    EVENT_FORK,
    EVENT_STOP,
    EVENT_VFORK,
    EVENT_VFORK_DONE,
    EXITKILL,
    FLAGS,
    SINGLESTEP,
    SYSCALL,
    SYSEMU,
    TRACEES,
    Kind,
    Stop,
    Traced,
    is_traced,
)

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

# include/uapi/linux/ptrace.h
_TRACEME, _PEEKTEXT, _PEEKDATA, _POKETEXT, _POKEDATA, _KILL, _ATTACH, _DETACH = 0, 1, 2, 4, 5, 8, 16, 17
_SETOPTIONS, _GETEVENTMSG, _GETSIGINFO, _SETSIGINFO = 0x4200, 0x4201, 0x4202, 0x4203
_SEIZE, _INTERRUPT, _LISTEN, _GETSIGMASK, _SETSIGMASK = 0x4206, 0x4207, 0x4208, 0x420A, 0x420B
_GET_SYSCALL_INFO, _GET_RSEQ = 0x420E, 0x420F
#: Options that there are; that for stops by a filter is not (of two filters the supervisor's comes first).
_OPTIONS = 0x7F | EXITKILL
_LAST_SIGNAL = 64
_WORD, _MASK_SIZE, _RSEQ_SIZE = 8, 8, 24
_ARCH = 0xC000003E  # AUDIT_ARCH_X86_64
#: Events whose message is the number of a thread.
_NAMING = (EVENT_FORK, EVENT_VFORK, EVENT_CLONE, EVENT_EXEC, EVENT_VFORK_DONE)
#: struct ptrace_syscall_info: op, arch, and where the thread is; then the call and its arguments, or its result.
_HEAD, _CALL, _RESULT = struct.Struct("<B3xIQQ"), struct.Struct("<7Q"), struct.Struct("<q?")
_NONE, _AT_ENTRY, _AT_EXIT = 0, 1, 2
_ERRORS = 4095
_LARGEST = 88


def ptrace(m: Machine, t: Task, a: Args) -> Decision:
    """long ptrace(long request, pid_t pid, void *addr, void *data)"""
    if a[0] == _TRACEME:
        return _trace_me(t)
    if a[0] in (_ATTACH, _SEIZE):
        return _attach(m, t, debuggable(m, t, a[1]), a)
    tracee: Traced | None = t.process.data.get(TRACEES, {}).get(signed(a[1], 32))
    if tracee is None or not tracee.task.process.tasks:
        return -errno.ESRCH
    if a[0] == _INTERRUPT:
        return _interrupt(m, tracee)
    if a[0] == _KILL:
        m.kill(tracee.task.process)
        return 0
    if tracee.stop is None:
        return -errno.ESRCH
    request = _REQUESTS.get(a[0])
    return request(m, t, tracee, tracee.stop, a) if request is not None else -errno.EIO


# -- beginning and end --------------------------------------------------------------------


def _trace_me(t: Task) -> Decision:
    parent = t.process.parent
    if is_traced(t) or parent is None:
        return -errno.EPERM
    tracees.begin(t, parent, seized=False)
    return 0


def _attach(m: Machine, t: Task, task: Task, a: Args) -> Decision:
    seize = a[0] == _SEIZE
    if seize and (a[2] or a[3] & ~_OPTIONS):
        return -errno.EIO
    if task.process is t.process or is_traced(task) or task.process.exiting:
        return -errno.EPERM
    tracees.begin(task, t.process, seized=seize, options=a[3] if seize else 0)
    if not seize:
        m.signal(task, signal.SIGSTOP, code=siginfo.SI_USER, sender=t.process)
    if task.process.job_stop:
        m.stop_for_tracer(task)
    return 0


def _interrupt(m: Machine, tracee: Traced) -> Decision:
    if not tracee.seized:
        return -errno.EIO
    m.stop_for_tracer(tracee.task)
    return 0


def _go_on(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    signo = a[3]
    if signo > _LAST_SIGNAL:
        return -errno.EIO
    task = tracee.task
    tracee.stop = None
    if a[0] == _DETACH:
        tracees.release(task)
    else:
        tracee.mode = a[0]
    m.go_on(task, stop, signo)
    return 0


def _listen(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    if not tracee.seized or stop.code >> 8 != EVENT_STOP:
        return -errno.EIO
    if stop.kind is Kind.GROUP and not tracee.asked:
        tracee.stop = None
        m.listens(tracee.task, stop.code & 0x7F)
    elif stop.kind is Kind.GROUP:
        tracee.stop = None
        m.go_on(tracee.task, stop, 0)  # SIGCONT has come already
    return 0


# -- options and events ----------------------------------------------------------------------


def _set_options(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    if a[3] & ~_OPTIONS:
        return -errno.EINVAL
    tracee.options = a[3]
    m.tracing.heed_exit(tracee)
    return 0


def _event_message(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    message, other = stop.message, m.tasks.get(stop.message)
    if other is not None and stop.code >> 8 in _NAMING:
        message = m.nested.called(other, t)
    t.write(a[3], message.to_bytes(_WORD, "little"))
    return 0


def _get_siginfo(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    if stop.info is None and stop.kind is not Kind.SIGNAL:
        return -errno.EINVAL
    t.write(a[3], stop.info if stop.info is not None else _native.get_siginfo(tracee.task.tid))
    return 0


def _set_siginfo(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    info = t.read(a[3], siginfo.SIZE)
    if stop.info is not None:
        stop.info = info
    elif stop.kind is Kind.SIGNAL:
        _native.set_siginfo(tracee.task.tid, info)
    else:
        return -errno.EINVAL
    return 0


def _get_mask(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    if a[2] != _MASK_SIZE:
        return -errno.EINVAL
    t.write(a[3], _native.get_sigmask(tracee.task.tid).to_bytes(_MASK_SIZE, "little"))
    return 0


def _set_mask(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    if a[2] != _MASK_SIZE:
        return -errno.EINVAL
    _native.set_sigmask(tracee.task.tid, t.u64(a[3]))
    return 0


def _syscall_info(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    """PTRACE_GET_SYSCALL_INFO: ``addr`` is the room for it; the length that it has."""
    regs = registers.get(tracee.task.tid)
    op, rest = _NONE, b""
    if tracee.options & tracees.SYSGOOD and stop.kind is Kind.ENTRY:
        op = _AT_ENTRY
        rest = _CALL.pack(regs.orig_rax, regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9)
    elif tracee.options & tracees.SYSGOOD and stop.kind is Kind.EXIT:
        op = _AT_EXIT
        result = signed(regs.rax, 64)
        rest = _RESULT.pack(result, -_ERRORS <= result < 0)
    found = _HEAD.pack(op, _ARCH, regs.rip, regs.rsp) + rest
    t.write(a[3], found.ljust(_LARGEST, b"\0")[: min(a[2], len(found))])
    return len(found)


def _rseq(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    if a[2] != _RSEQ_SIZE:
        return -errno.EINVAL
    t.write(a[3], bytes(_RSEQ_SIZE))
    return _RSEQ_SIZE


# -- memory ----------------------------------------------------------------------------------


def _peek(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    try:
        word = code_memory(m, tracee.task, a[2], _WORD)
    except OSError:
        return -errno.EIO
    t.write(a[3], word)
    return 0


def _poke(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    try:
        _native.write_code(tracee.task.tid, [(a[2], a[3].to_bytes(_WORD, "little"))])
    except OSError:
        return -errno.EIO
    return 0


_Request = Callable[["Machine", "Task", Traced, Stop, Args], "Decision"]
_REQUESTS: dict[int, _Request] = {
    _PEEKTEXT: _peek, _PEEKDATA: _peek, _POKETEXT: _poke, _POKEDATA: _poke,
    CONT: _go_on, SYSCALL: _go_on, SINGLESTEP: _go_on, SYSEMU: _go_on, _DETACH: _go_on, _LISTEN: _listen,
    _SETOPTIONS: _set_options, _GETEVENTMSG: _event_message, _GETSIGINFO: _get_siginfo, _SETSIGINFO: _set_siginfo,
    _GETSIGMASK: _get_mask, _SETSIGMASK: _set_mask, _GET_SYSCALL_INFO: _syscall_info, _GET_RSEQ: _rseq,
    **tracing_registers.REQUESTS,
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
