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
#: Of what XSAVE writes: the features, where programs expect them (in what is reserved), the header, and AVX's halves.
_XFEATURES, _HEADER, _AVX = slice(464, 472), 64, slice(576, 832)
_HAS_AVX, _SHOWN, _LARGEST_XSTATE = 4, 7, 16384
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
    t.write(a[3], fpregs(tracee.task))
    return 0


def _set_fpregs(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    return _put_fpregs(tracee.task, t.read(a[3], _FP))


def _put_fpregs(task: Task, new: bytes) -> int:
    words = array("Q", new)
    return _native.ptrace_request(_SETFPREGS, task.tid, 0, words.buffer_info()[0])


def fpregs(task: Task) -> bytes:
    """The x87 and SSE registers of a stopped thread, without what tells the processor."""
    found = bytearray(_native.get_fpregs(task.tid))
    for part in (_FP_INSTRUCTION, _FP_RESERVED):
        found[part] = bytes(part.stop - part.start)
    found[_FP_MASK] = _MASK
    return bytes(found)


def _get_regset(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    """PTRACE_GETREGSET: ``addr`` is the kind, ``data`` points to a struct iovec, which gets the length."""
    base, length = _room(t, a)
    found = _regset(m, tracee.task, a[2])
    t.write(base, found[:length])
    t.write(a[3] + _WORD, min(length, len(found)).to_bytes(_WORD, "little"))
    return 0


def _set_regset(m: Machine, t: Task, tracee: Traced, stop: Stop, a: Args) -> Decision:
    """PTRACE_SETREGSET: what is not given stays as it is."""
    base, length = _room(t, a)
    old = _regset(m, tracee.task, a[2])
    if a[2] == _NT_X86_XSTATE and length != len(old):
        return -errno.EFAULT
    length = min(length, len(old))
    new = t.read(base, length) + old[length:]
    if a[2] == _NT_PRSTATUS:
        _native.set_regs(tracee.task.tid, new)
    elif failed := (_put_fpregs if a[2] == _NT_FPREGSET else _put_xstate)(tracee.task, new):
        return failed
    t.write(a[3] + _WORD, length.to_bytes(_WORD, "little"))
    return 0


def _room(t: Task, a: Args) -> tuple[int, int]:
    if a[2] not in (_NT_PRSTATUS, _NT_FPREGSET, _NT_X86_XSTATE):
        raise OSError(errno.EINVAL, "no such registers")
    base, length = t.u64(a[3]), t.u64(a[3] + _WORD)
    if length % _WORD:
        raise OSError(errno.EINVAL, "no whole words")
    return base, length


def _regset(m: Machine, task: Task, kind: int) -> bytes:
    if kind == _NT_X86_XSTATE:
        return xstate(task, m.cpu_model.xcr0)
    return bytes(registers.get(task.tid).words) if kind == _NT_PRSTATUS else fpregs(task)


def xstate(task: Task, features: int) -> bytes:
    """All registers that the processor that is shown has: those of x87 and SSE, what they are, and the halves of AVX's.

    Which of them have never been used depends on the processor, and is not told.
    """
    if not features:
        raise OSError(errno.ENODEV, "a processor without XSAVE")
    legacy, shown = bytearray(fpregs(task)), features.to_bytes(_WORD, "little")
    legacy[_XFEATURES] = shown
    header = shown.ljust(_HEADER, b"\0")
    return bytes(legacy) + header + (_real_xstate(task)[_AVX] if features & _HAS_AVX else b"")


def _put_xstate(task: Task, new: bytes) -> int:
    """What is not shown stays as it is."""
    real = bytearray(_real_xstate(task))
    own = int.from_bytes(new[_FP: _FP + _WORD], "little")
    real[: _FP_RESERVED.start] = new[: _FP_RESERVED.start]
    if len(new) >= _AVX.stop:
        real[_AVX] = new[_AVX]
    old = int.from_bytes(real[_FP: _FP + _WORD], "little")
    real[_FP: _FP + _WORD] = (old & ~_SHOWN | own & _SHOWN).to_bytes(_WORD, "little")
    words = array("Q", bytes(real))
    vector = array("Q", [words.buffer_info()[0], len(real)])
    return _native.ptrace_request(_SETREGSET, task.tid, _NT_X86_XSTATE, vector.buffer_info()[0])


def _real_xstate(task: Task) -> bytes:
    room = array("Q", bytes(_LARGEST_XSTATE))
    vector = array("Q", [room.buffer_info()[0], _LARGEST_XSTATE])
    if failed := _native.ptrace_request(_GETREGSET, task.tid, _NT_X86_XSTATE, vector.buffer_info()[0]):
        raise OSError(-failed, "no registers")
    return room.tobytes()[: vector[1]]


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
