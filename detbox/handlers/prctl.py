"""prctl and arch_prctl: per-process switches, of which a few would undo what detbox relies on."""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision
from detbox.handlers.futex_core import Args
from detbox.handlers.seccomp import MODE_FILTER, MODE_STRICT, own_filter, strict

if TYPE_CHECKING:
    from detbox.machine.creds import Creds
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

# include/uapi/linux/prctl.h
PR_SET_PDEATHSIG, PR_GET_DUMPABLE, PR_SET_DUMPABLE = 1, 3, 4
PR_GET_KEEPCAPS, PR_SET_KEEPCAPS, PR_SET_NAME = 7, 8, 15
PR_GET_SECCOMP, PR_SET_SECCOMP, PR_CAPBSET_READ, PR_CAPBSET_DROP = 21, 22, 23, 24
PR_GET_TSC, PR_SET_TSC, PR_GET_SECUREBITS, PR_SET_SECUREBITS = 25, 26, 27, 28
PR_SET_TIMERSLACK, PR_GET_TIMERSLACK, PR_TASK_PERF_DISABLE, PR_TASK_PERF_ENABLE = 29, 30, 31, 32
PR_SET_MM, PR_SET_CHILD_SUBREAPER = 35, 36
PR_SET_NO_NEW_PRIVS, PR_GET_NO_NEW_PRIVS, PR_CAP_AMBIENT = 38, 39, 47
PR_GET_SPECULATION_CTRL, PR_SET_SPECULATION_CTRL, PR_SET_SYSCALL_USER_DISPATCH, PR_SCHED_CORE = 52, 53, 59, 62
#: The last option of Linux 6.1, which the guest sees.  Later ones are on some hosts only, and one of them shows the
#: kernel's own auxiliary vector (PR_GET_AUXV).  So are Yama's and names of memory (CONFIG_ANON_VMA_NAME), with numbers
#: far above.
LAST_OPTION = 64
PR_TSC_ENABLE = 1
DEFAULT_TIMERSLACK_NS = 50_000
# arch/x86/include/uapi/asm/prctl.h
ARCH_SET_CPUID, ARCH_GET_CPUID = 0x1012, 0x1011

#: Answers that do not depend on the kernel: option -> result.
_FIXED = {
    PR_SET_TIMERSLACK: 0, PR_GET_TIMERSLACK: DEFAULT_TIMERSLACK_NS,
    PR_TASK_PERF_DISABLE: 0, PR_TASK_PERF_ENABLE: 0,
    PR_GET_SPECULATION_CTRL: -errno.ENODEV, PR_SET_SPECULATION_CTRL: -errno.ENODEV,
    PR_SCHED_CORE: -errno.ENODEV, PR_SET_MM: -errno.EPERM,
    # Calls come from copies of the code and from the supervisor's pages, too: they would be signals.
    PR_SET_SYSCALL_USER_DISPATCH: -errno.EINVAL,
}  # fmt: skip

#: What changes the virtual capabilities, with the arguments 2 and 3.
_CAPABILITIES: dict[int, Callable[[Creds, int, int], int | None]] = {
    PR_CAPBSET_READ: lambda creds, cap, _: creds.bounded(cap),
    PR_CAPBSET_DROP: lambda creds, cap, _: creds.drop_bound(cap),
    PR_CAP_AMBIENT: lambda creds, operation, cap: creds.change_ambient(operation, cap),
    PR_GET_SECUREBITS: lambda creds, _, __: creds.get_securebits(),
    PR_SET_SECUREBITS: lambda creds, bits, _: creds.set_securebits(bits),
}


def prctl(m: Machine, t: Task, a: Args) -> Decision:
    """Dispatch on the option; most concern the caller alone and are the kernel's."""
    option, value = a[0] & 0xFFFFFFFF, a[1]
    if option > LAST_OPTION:
        return -errno.EINVAL
    if option in _FIXED:
        return _FIXED[option]
    if option in _CAPABILITIES:
        return _CAPABILITIES[option](t.process.creds, value, a[2]) or 0
    if option == PR_SET_TSC:
        return 0 if value == PR_TSC_ENABLE else -errno.EINVAL
    if option == PR_GET_TSC:
        t.write(value, PR_TSC_ENABLE.to_bytes(4, "little"))
        return 0
    if option == PR_SET_CHILD_SUBREAPER:
        t.process.data["subreaper"] = bool(value)
    elif option == PR_SET_PDEATHSIG:
        t.process.data["death_signal"] = value
    elif option == PR_GET_DUMPABLE:
        return int(t.process.mm.dumpable)
    elif option == PR_SET_DUMPABLE and value in (0, 1):
        t.process.mm.dumpable = bool(value)
    elif option == PR_SET_NO_NEW_PRIVS and value == 1:
        t.process.creds.no_new_privs = True
    elif option == PR_GET_NO_NEW_PRIVS:
        return int(t.process.creds.no_new_privs)
    elif option == PR_GET_SECCOMP:
        return MODE_FILTER if t.process.creds.filters else 0
    elif option == PR_SET_SECCOMP and value in (MODE_STRICT, MODE_FILTER):
        return own_filter(m, t, 0, a[2]) if value == MODE_FILTER else strict(m, t)
    elif option == PR_SET_KEEPCAPS:
        t.process.creds.keep_caps = bool(value)
        return 0
    elif option == PR_GET_KEEPCAPS:
        return int(t.process.creds.keep_caps)
    elif option == PR_SET_NAME and t.tid == t.process.pid:
        t.process.comm = t.cstr(value)[:15]
    return CONTINUE


def arch_prctl(m: Machine, t: Task, a: Args) -> Decision:
    """CPUID faulting is detbox's, and seems not to exist; FS and GS bases are let through by the filter.

    The rest is refused as by kernels that do not have it: the kernel's vDSO, which programs may ask to be mapped once
    more (ARCH_MAP_VDSO_64), shows the host's clock, and the permissions for register states (ARCH_GET_XCOMP_SUPP)
    tell the processor.  AMX's state would need a larger signal frame.
    """
    code = a[0] & 0xFFFFFFFF
    if code == ARCH_SET_CPUID:
        return -errno.ENODEV
    return 1 if code == ARCH_GET_CPUID else -errno.EINVAL
