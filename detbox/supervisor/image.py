"""What changes in a program before its first instruction, and what its trapped instructions give."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
from functools import partial
from stat import S_ISGID, S_ISUID
from typing import TYPE_CHECKING

from detbox.cpu import auxv, emulate, model, stub
from detbox.cpu.service import Finder
from detbox.cpu.sites import UNTRAPPED
from detbox.cpu.trap import TrapValues
from detbox.errors import InternalError
from detbox.guest.vdso import PAGE
from detbox.handlers import dispositions, paths
from detbox.kernel import _native, registers, siginfo
from detbox.kernel.mappings import mappings
from detbox.kernel.numbers import NUMBERS
from detbox.kernel.own import OWN_MAPPING
from detbox.machine import tracees
from detbox.machine.clock import BOOT_NS
from detbox.machine.creds import CAP_SYS_PTRACE
from detbox.machine.tracees import is_traced
from detbox.records import NamedTuple
from detbox.supervisor import again, guestclock, injection, placing, signals
from detbox.supervisor.hotsites import ROUTINE, HotSites
from detbox.supervisor.memory import peek
from detbox.supervisor.patching import AREA, ExecPlan, Patching

if TYPE_CHECKING:
    from detbox.cpu.siteindex import SiteIndex
    from detbox.supervisor.loop import Supervisor
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Process, Task

#: Key of Process.data: start and end of the room for trampolines.
OWN_MEMORY = "own memory"
#: Key of Process.data: the auxiliary vector that the program was given.
AUXV = "auxv"
ARCH_SET_CPUID = 0x1012
STACK_TOP = 0x7FFFFFFFF000  # TASK_SIZE - one page, without address space randomisation
MAX_INITIAL_STACK = 8 << 20
LONGEST_INSTRUCTION = 15
_UD2 = b"\x0f\x0b"
#: PROT_READ | PROT_WRITE | PROT_EXEC; MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE
_AREA_PROTECTION, _AREA_FLAGS = 7, 0x100022
#: Who blocks all of these blocks every signal that an instruction can raise.
_SYNCHRONOUS = sum(
    signals.bit(signo)
    for signo in (signal.SIGILL, signal.SIGTRAP, signal.SIGBUS, signal.SIGFPE, signal.SIGSEGV)
)
#: What the processor calls in /proc/cpuinfo: without it, the instruction raises SIGILL by itself.
_NEEDS = {"rdrand": "rdrand", "rdseed": "rdseed", "rdpid": "rdpid", "xbegin": "rtm"}


class Start(NamedTuple):
    """The initial stack of a program: the bytes from the stack pointer ``rsp`` to the stack's end."""

    rsp: int
    stack: bytes

    @property
    def words(self) -> bytes:
        """The number of arguments, then the arguments, the environment and the program's path, each with a NUL."""
        first = int.from_bytes(self.stack[8:16], "little") - self.rsp
        return self.stack[:8] + (self.stack[first:] if first > 0 else b"")


class Image:
    """Prepares images and emulates the instructions that trap in them."""

    def __init__(self, sup: Supervisor) -> None:
        self.sup = sup
        self.cpuid_faulting = False
        self.patching: Patching | None = None
        self.hot: HotSites | None = None
        self._known: dict[again.Key, again.Again] = {}
        # Of the vDSO and its data together: distance from the vDSO's own address, and length.
        self._vdso: tuple[int, int] | None = None

    def start(self, cpuid_faulting: bool, host_features: set[str], index: SiteIndex) -> None:
        """Decide how instructions are trapped.  ``host_features``: as /proc/cpuinfo names them."""
        sup = self.sup
        self.cpuid_faulting = cpuid_faulting
        kinds = {kind for kind in UNTRAPPED if _NEEDS.get(kind, "") in {"", *host_features}}
        if not cpuid_faulting:
            kinds.add("cpuid")
        self.patching = Patching(sup.m, Finder(sup.m.requests, index), kinds)
        self.hot = HotSites(sup, self.patching)
        sup.m.code_mapped = self.patching.mapping
        sup.fork_hooks += [Patching.after_fork, _after_fork, dispositions.after_fork]
        sup.exec_hooks.append(dispositions.after_exec)

    def look(self, task: Task) -> Start:
        """What a program starts with: the thread is in its PTRACE_EVENT_EXEC stop."""
        rsp = int(registers.get(task.tid).rsp)
        return Start(rsp, task.read(rsp, min(STACK_TOP - rsp, MAX_INITIAL_STACK)))

    def prepare(self, m: Machine, task: Task, start: Start) -> bool:
        """At PTRACE_EVENT_EXEC: rewrite the initial stack, arm CPUID faulting (exec resets it), patch.

        Whether the thread goes on already.
        """
        st = os.stat(f"{task.tid}/exe", dir_fd=m.proc_fd)
        secure = self._set_user_ids(m, task, st)
        parsed = auxv.parse(start.stack)
        random, data = task.rng.at_random(), task.process.data

        def rewritten(shown: int) -> auxv.Rewrite:
            """The stack, if the guest's vDSO is at this address."""
            creds = task.process.creds
            uid, gid = creds.space.shown(creds.ruid, creds.rgid)
            euid, egid = creds.space.shown(creds.euid, creds.egid)
            values = auxv.AuxValues(
                hwcap=model.hwcap(m.cpu_model, m.spec.cpus), hwcap2=model.HWCAP2, random=random,
                uid=uid, euid=euid, gid=gid, egid=egid, secure=secure,
                vdso=shown,
            )  # fmt: skip
            result = auxv.rewrite(start.stack, start.rsp, values, parsed)
            data[ROUTINE], data[AUXV] = shown + self.sup.guest_clock.ticks if shown else 0, result.auxv
            return result

        assert self.patching is not None
        key = again.key(st, parsed[1])
        known = self._known.get(key)
        # Who traces the program is told of its beginning when it is ready.
        if known is not None and not is_traced(task) and known.begin(self.sup, task, rewritten):
            data[OWN_MEMORY] = known.own.area, known.own.interpreter
            return True
        plan, has_area, shown = self._own_memory(m, task, st, parsed[1])
        result = rewritten(shown)
        for address, text in result.edits:
            task.write(address, text)
        regs = registers.get(task.tid)
        regs.rsp = result.rsp
        registers.put(task.tid, regs)
        self.sup.counting.long_loops.prepare(task, st, parsed[1])
        self.patching.carry_out(task, plan, has_area, m.clock.now - BOOT_NS)
        if has_area and shown and known is None:
            area, interpreter = data[OWN_MEMORY]
            own = again.Own(area, interpreter, shown)
            known = self._learn(task, key, plan, own, parsed[1].get(auxv.AT_SYSINFO_EHDR, 0))
        if has_area and known is not None:
            known.leave_alike(task)
        return False

    def _learn(
        self, task: Task, key: again.Key, plan: ExecPlan, own: again.Own, vdso: int
    ) -> again.Again | None:
        """A thread's program was given all that is ours: the next like it takes less.  ``vdso``: 0 if it was moved."""
        if not vdso or self._vdso is None:
            return None
        first = (NUMBERS["munmap"], vdso + self._vdso[0], self._vdso[1]), _area(own.area)
        trap = self._trap_cpuid()
        (number,), *rest = self.sup.guest_clock.calls(own.shown - PAGE, len(trap))
        calls = *trap, (number, stub.Result(0) if trap else 0), *rest
        known = again.learn(task, own, plan, first, calls)
        if known is not None:
            self._known[key] = known
        return known

    def _trap_cpuid(self) -> list[stub.Call]:
        return [(NUMBERS["arch_prctl"], ARCH_SET_CPUID, 0)] if self.cpuid_faulting else []

    def _own_memory(
        self, m: Machine, task: Task, st: os.stat_result, found: dict[int, int]
    ) -> tuple[ExecPlan, bool, int]:
        """The calls at exec: the kernel's own pages go, ours come.

        The plan for the program's instructions, whether there is room for trampolines, and the address of the
        guest's vDSO (0: none).  ``found``: the auxiliary vector; corrected if something is moved.
        """
        assert self.patching is not None
        kernel = self._kernel_mappings(m, task, found.get(auxv.AT_SYSINFO_EHDR, 0))
        large = placing.place(m, task, found, kernel)
        start, length = kernel if auxv.AT_SYSINFO_EHDR in found else (0, 0)
        interpreter = found.get(auxv.AT_BASE, 0)
        plan = self.patching.plan(task, st, interpreter, found[auxv.AT_ENTRY])
        calls = self._trap_cpuid()
        if length:
            calls.append((NUMBERS["munmap"], start, length))
        end = interpreter or large or start + length
        if interpreter:
            end -= AREA
            calls.append(_area(end))
        area = len(calls) - 1
        clock = self.sup.guest_clock
        place = end - guestclock.SIZE
        if end and clock.enabled:
            calls += clock.calls(place, len(calls))
        results = injection.at_exec(task, calls, m.listener, clock.fd)
        if self.cpuid_faulting and results[0]:
            raise InternalError(f"CPUID faulting cannot be switched on: {os.strerror(-results[0])}")
        has_area = bool(interpreter) and results[area] == end
        has_clock = results[-3:-1] == [place, place + PAGE]
        task.process.data[OWN_MEMORY] = (end, interpreter) if has_area else (0, 0)
        return plan, has_area, place + PAGE if has_clock else 0

    def _kernel_mappings(self, m: Machine, task: Task, vdso: int) -> tuple[int, int]:
        """Address and length of the vDSO with its data: their sizes, and so the addresses of what is mapped
        below them, differ from kernel to kernel; and the clock in them is the host's."""
        if not vdso:
            return 0, 0
        if self._vdso is None:
            found = [part for part in mappings(m.proc_fd, task.tid) if part.name.startswith((b"[vdso", b"[vvar"))]
            start = min(part.start for part in found)
            self._vdso = start - vdso, max(part.end for part in found) - start
        return vdso + self._vdso[0], self._vdso[1]

    def _set_user_ids(self, m: Machine, task: Task, st: os.stat_result) -> bool:
        """What a set-user-ID program does to the virtual credentials; whether privileges were gained."""
        owner, mode, traced = m.inodes.of(st), st.st_mode, tracees.of(task)
        if traced is not None and not traced.tracer.creds.capable(CAP_SYS_PTRACE, task.process.creds.space):
            mode &= ~(S_ISUID | S_ISGID)
        readable = paths.may(task, st, owner, paths.READ)
        secure = task.process.creds.on_exec(mode, owner.uid, owner.gid)
        task.process.mm.dumpable = readable and not secure
        return secure

    # -- traps ------------------------------------------------------------------------

    def trapped(self, task: Task, signo: int, info: bytes) -> bool:
        """Emulate the instruction that caused this signal, if it is one of ours."""
        if siginfo.code_of(info) <= 0 or signo == signal.SIGTRAP:
            return False
        if signo == signal.SIGSEGV and siginfo.code_of(info) != siginfo.SI_KERNEL:
            return False
        regs = registers.get(task.tid)
        address, looks = regs.rip, task.cpu.looks
        code = self._instruction(task, signo, address)
        if code is None or not emulate.emulate(code, regs, TrapValues(self.sup.m, task)):
            return False
        if task.cpu.looks != looks and self.hot is not None:
            regs.rip = self.hot.trapped(task, address) or regs.rip
        registers.put(task.tid, regs)
        self.undo_force(task, signo)
        return True

    def _instruction(self, task: Task, signo: int, address: int) -> bytes | None:
        """The original bytes of what trapped, None if it was not ours."""
        code = _code(task, address)
        if signo == signal.SIGSEGV:
            return code
        if code.startswith(_UD2):
            return self.patching.original(task, address) if self.patching else None
        # An instruction that the host's processor does not have.
        instruction = emulate.decode(code)
        return code if instruction is not None and instruction.kind in UNTRAPPED else None

    def undo_force(self, task: Task, signo: int) -> None:
        """Put back what the kernel changes when it forces a signal that is blocked or ignored.

        That a signal was blocked is seen by its lost handler, or by the others of its kind being blocked:
        nobody blocks four of them and leaves the fifth open.
        """
        mask = _native.get_sigmask(task.tid)
        blocked = mask | signals.bit(signo) == mask | _SYNCHRONOUS and mask & _SYNCHRONOUS
        act = task.process.data.get(dispositions.DISPOSITIONS, {}).get(signo)
        if act is not None and not dispositions.resets(act):
            sets = signals.pending(self.sup.m, task)
            if not (sets.caught | sets.ignored) & signals.bit(signo):
                blocked = blocked or dispositions.handler(act) != signal.SIG_IGN
                self.restore(task, signo, act)
        if blocked:
            _native.set_sigmask(task.tid, mask | signals.bit(signo))

    def restore(self, task: Task, signo: int, act: bytes) -> None:
        """Set a disposition again; the structure is passed on the thread's stack, below its red zone."""
        place = registers.get(task.tid).rsp - 128 - len(act)
        saved = task.read(place, len(act))
        task.write(place, act)
        result = injection.call(task, NUMBERS["rt_sigaction"], signo, place, 0, 8)
        task.write(place, saved)
        if result not in (0, -errno.EINVAL):
            self.sup.m.doubt(task, f"the handler of signal {signo} was lost")


def _area(address: int) -> stub.Call:
    """The call that makes room for trampolines."""
    return NUMBERS["mmap"], address, AREA, _AREA_PROTECTION, _AREA_FLAGS, OWN_MAPPING | 0xFFFFFFFF, 0


def _code(task: Task, address: int) -> bytes:
    """The longest instruction's bytes, or as many as there are before the end of the mapping."""
    for length in (LONGEST_INSTRUCTION, 3, 2):
        # The second way is slower, and reads what may only be executed.
        for read in (task.read, partial(peek, task.tid)):
            with contextlib.suppress(OSError):
                return read(address, length)
    return b""


def _after_fork(m: Machine, parent: Process, child: Process) -> None:
    """The child has the parent's memory."""
    child.data[OWN_MEMORY] = parent.data.get(OWN_MEMORY, (0, 0))
    child.data[ROUTINE] = parent.data.get(ROUTINE, 0)
    child.data[AUXV] = parent.data.get(AUXV, b"")
    if placing.MOVED_DOWN in parent.data:
        child.data[placing.MOVED_DOWN] = parent.data[placing.MOVED_DOWN]
