"""A freshly executed program image: what has to change before its first instruction, and trapped instructions."""

from __future__ import annotations

import os
import signal
from typing import TYPE_CHECKING

from ptrace.binding import ptrace_getregs, ptrace_setregs

from detbox.cpu import auxv, emulate, model
from detbox.cpu.trap import TrapValues
from detbox.kernel import _native, siginfo
from detbox.kernel.numbers import NUMBERS
from detbox.supervisor.memory import peek, poke

if TYPE_CHECKING:
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

ARCH_SET_CPUID = 0x1012
SYSCALL_INSTRUCTION = b"\x0f\x05"
STACK_TOP = 0x7FFFFFFFF000  # TASK_SIZE - one page, without address space randomisation
MAX_INITIAL_STACK = 8 << 20
LONGEST_INSTRUCTION = 15
#: FSGSBASE instructions are usable (arch/x86/include/uapi/asm/hwcap2.h); every processor of the models has them.
HWCAP2 = 2


class Image:
    """Prepares images and emulates the instructions that trap in them."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self.cpuid_faulting = False

    def prepare(self, m: Machine, task: Task) -> None:
        """At PTRACE_EVENT_EXEC: rewrite the initial stack, arm CPUID faulting (exec resets it)."""
        regs = ptrace_getregs(task.tid)
        stack = task.read(regs.rsp, min(STACK_TOP - regs.rsp, MAX_INITIAL_STACK))
        creds = task.process.creds
        secure = self._set_user_ids(m, task)
        values = auxv.AuxValues(
            hwcap=model.hwcap(m.cpu_model, m.spec.cpus), hwcap2=HWCAP2, random=task.rng.at_random(),
            uid=creds.ruid, euid=creds.euid, gid=creds.rgid, egid=creds.egid, secure=secure,
        )  # fmt: skip
        rewritten = auxv.rewrite(stack, regs.rsp, values)
        for address, data in rewritten.edits:
            task.write(address, data)
        regs.rsp = rewritten.rsp
        ptrace_setregs(task.tid, regs)
        task.process.data["auxv"] = rewritten.auxv
        if self.cpuid_faulting:
            self.inject(task, NUMBERS["arch_prctl"], ARCH_SET_CPUID, 0)

    def _set_user_ids(self, m: Machine, task: Task) -> bool:
        """What a set-user-ID program does to the virtual credentials; whether privileges were gained."""
        st = os.stat(f"{task.tid}/exe", dir_fd=m.proc_fd)
        owner = m.inodes.of(st)
        return task.process.creds.on_exec(st.st_mode, owner.uid, owner.gid)

    def inject(self, task: Task, nr: int, *args: int) -> int:
        """Have a ptrace-stopped thread make a call of ours; the signed result.

        The two bytes at its program counter are replaced for the time of one step.
        """
        regs = ptrace_getregs(task.tid)
        saved = ptrace_getregs(task.tid)
        code = peek(task.tid, regs.rip, len(SYSCALL_INSTRUCTION))
        poke(task.tid, regs.rip, SYSCALL_INSTRUCTION)
        regs.rax, regs.orig_rax = nr, 0xFFFFFFFFFFFFFFFF
        for name, value in zip(("rdi", "rsi", "rdx", "r10", "r8", "r9"), args, strict=False):
            setattr(regs, name, value)
        ptrace_setregs(task.tid, regs)
        _native.single_step(task.tid)
        result = ptrace_getregs(task.tid).rax
        poke(task.tid, saved.rip, code)
        ptrace_setregs(task.tid, saved)
        return int(result - (1 << 64) if result >> 63 else result)

    def trapped(self, task: Task, signo: int, info: bytes) -> bool:
        """Emulate the instruction that caused this signal, if it is one of ours."""
        if signo != signal.SIGSEGV or siginfo.code_of(info) != siginfo.SI_KERNEL:
            return False
        regs = ptrace_getregs(task.tid)
        try:
            code = peek(task.tid, regs.rip, LONGEST_INSTRUCTION)
        except OSError:
            code = peek(task.tid, regs.rip, 3)
        if not emulate.emulate(code, regs, TrapValues(self.sup.m, task)):
            return False
        ptrace_setregs(task.tid, regs)
        return True
