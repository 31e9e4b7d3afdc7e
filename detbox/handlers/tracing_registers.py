"""The registers of traced threads, as ptrace(2) gives and takes them."""

from __future__ import annotations

import errno
import os
from array import array
from typing import TYPE_CHECKING

from detbox.handlers.futex_core import Args
from detbox.kernel import _native, registers

if TYPE_CHECKING:
    from detbox.decision import Decision
    from detbox.machine.tracees import Stop, Traced
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

# include/uapi/linux/ptrace.h, include/uapi/linux/elf.h, arch/x86/include/uapi/asm/ptrace-abi.h
_PEEKUSER, _POKEUSER, _GETREGS, _SETREGS, _GETFPREGS, _SETFPREGS = 3, 6, 12, 13, 14, 15
_ARCH_PRCTL, _GETREGSET, _SETREGSET = 30, 0x4204, 0x4205
_NT_PRSTATUS, _NT_FPREGSET, _NT_X86_XSTATE = 1, 2, 0x202
_SET_GS, _SET_FS, _GET_FS, _GET_GS = 0x1001, 0x1002, 0x1003, 0x1004
_WORD, _REGISTERS, _FP = 8, 8 * len(registers.NAMES), 512
#: Of struct user: where the eight debug registers are, and its size.
_DEBUG, _USER = 848, 912
#: Of struct user_fpregs_struct: fop, rip and rdp, which processors of two makers keep differently; MXCSR's mask, and
#: what is reserved.
_FP_INSTRUCTION, _FP_MASK, _FP_RESERVED = slice(6, 24), slice(28, 32), slice(416, 512)
_MASK = (0xFFFF).to_bytes(4, "little")


def code_memory(m: Machine, task: Task, address: int, length: int) -> bytes:
    """Memory of a stopped thread, whatever its protection; OSError."""
    fd = os.open(f"{task.tid}/mem", os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    try:
        data = os.pread(fd, length, address)
    finally:
        os.close(fd)
    if len(data) != length:
        raise OSError(errno.EIO, "no memory there")
    return data


def _get_regs(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    t.write(a[3], bytes(registers.get(tracee.task.tid).words))
    return 0


def _set_regs(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    _native.set_regs(tracee.task.tid, t.read(a[3], _REGISTERS))
    return 0


def _get_fpregs(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    t.write(a[3], _fpregs(tracee.task))
    return 0


def _set_fpregs(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    return _put_fpregs(tracee.task, t.read(a[3], _FP))


def _put_fpregs(task: Task, new: bytes) -> int:
    words = array("Q", new)
    return _native.ptrace_request(_SETFPREGS, task.tid, 0, words.buffer_info()[0])


def _fpregs(task: Task) -> bytes:
    """The x87 and SSE registers of a stopped thread, without what tells the processor."""
    found = bytearray(_native.get_fpregs(task.tid))
    for part in (_FP_INSTRUCTION, _FP_RESERVED):
        found[part] = bytes(part.stop - part.start)
    found[_FP_MASK] = _MASK
    return bytes(found)


def _get_regset(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    """PTRACE_GETREGSET: ``addr`` is the kind, ``data`` points to a struct iovec, which gets the length."""
    base, length = _room(t, a)
    found = _regset(tracee.task, a[2])
    t.write(base, found[:length])
    t.write(a[3] + _WORD, min(length, len(found)).to_bytes(_WORD, "little"))
    return 0


def _set_regset(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    """PTRACE_SETREGSET: what is not given stays as it is."""
    base, length = _room(t, a)
    old = _regset(tracee.task, a[2])
    length = min(length, len(old))
    new = t.read(base, length) + old[length:]
    if a[2] == _NT_PRSTATUS:
        _native.set_regs(tracee.task.tid, new)
    elif failed := _put_fpregs(tracee.task, new):
        return failed
    t.write(a[3] + _WORD, length.to_bytes(_WORD, "little"))
    return 0


def _room(t: Task, a: Args) -> tuple[int, int]:
    if a[2] == _NT_X86_XSTATE:
        raise OSError(errno.ENODEV, "as without XSAVE: its layout is the host's")
    if a[2] not in (_NT_PRSTATUS, _NT_FPREGSET):
        raise OSError(errno.EINVAL, "no such registers")
    base, length = t.u64(a[3]), t.u64(a[3] + _WORD)
    if length % _WORD:
        raise OSError(errno.EINVAL, "no whole words")
    return base, length


def _regset(task: Task, kind: int) -> bytes:
    return bytes(registers.get(task.tid).words) if kind == _NT_PRSTATUS else _fpregs(task)


def _peek_user(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    """A word of struct user: general and debug registers; the rest is zero, as in the kernel."""
    at, value = a[2], 0
    if at % _WORD or at > _USER - _WORD:
        return -errno.EIO
    if at < _REGISTERS:
        value = int.from_bytes(registers.get(tracee.task.tid).words[at: at + _WORD], "little")
    elif at >= _DEBUG:
        value = _native.ptrace_request(_PEEKUSER, tracee.task.tid, at, 0)
    t.write(a[3], (value & 0xFFFF_FFFF_FFFF_FFFF).to_bytes(_WORD, "little"))
    return 0


def _poke_user(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    at = a[2]
    if at % _WORD or at > _USER - _WORD or _REGISTERS <= at < _DEBUG:
        return -errno.EIO
    return _native.ptrace_request(_POKEUSER, tracee.task.tid, at, a[3])


def _arch_prctl(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    """The bases of FS and GS: ``data`` says what is done, ``addr`` is the value or the place for it."""
    regs = registers.get(tracee.task.tid)
    if a[3] in (_GET_FS, _GET_GS):
        value = regs.fs_base if a[3] == _GET_FS else regs.gs_base
        t.write(a[2], value.to_bytes(_WORD, "little"))
        return 0
    if a[3] == _SET_FS:
        regs.fs_base = a[2]
    elif a[3] == _SET_GS:
        regs.gs_base = a[2]
    else:
        return -errno.EINVAL
    registers.put(tracee.task.tid, regs)
    return 0


REQUESTS = {
    _PEEKUSER: _peek_user, _POKEUSER: _poke_user, _GETREGS: _get_regs, _SETREGS: _set_regs, _GETFPREGS: _get_fpregs,
    _SETFPREGS: _set_fpregs, _GETREGSET: _get_regset, _SETREGSET: _set_regset, _ARCH_PRCTL: _arch_prctl,
}  # fmt: skip
