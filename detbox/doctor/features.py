"""The kernel features that detbox uses, one row each: the probe, and what follows when it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from detbox.doctor import probes
from detbox.doctor.host import mend_user_namespaces

_CONTAINER = "in a container manager, allow it (docker: --security-opt seccomp=unconfined, or --privileged)"
_MASKED = "the container manager masks parts of /proc (docker: --security-opt systempaths=unconfined)"


@dataclass(frozen=True)
class Feature:
    """``needed``: no run is possible without it.  ``without``: what follows when it is missing."""

    name: str
    probe: Callable[[], str]
    needed: bool
    without: str
    mend: str | Callable[[], str]


def _namespace(name: str, flag: int, holds: str, *, needed: bool = True) -> Feature:
    mend: str | Callable[[], str] = mend_user_namespaces
    if name != "user":
        mend = f"a kernel built with CONFIG_{name.upper()}_NS; {_CONTAINER}"
    return Feature(f"{name} namespace", probes.namespace(flag), needed, holds, mend)


# CLONE_NEW* of include/uapi/linux/sched.h.
FEATURES: tuple[Feature, ...] = (
    _namespace("user", 0, "detbox cannot build a container"),
    _namespace("mount", 0x00020000, "the guest cannot have its own root"),
    _namespace("pid", 0x20000000, "process numbers cannot be fixed"),
    _namespace("net", 0x40000000, "the guest cannot be kept from the network"),
    _namespace("uts", 0x04000000, "the host's name would show"),
    _namespace("ipc", 0x08000000, "the host's System V objects would show"),
    _namespace(
        "cgroup", 0x02000000, "the host's cgroup paths are hidden by synthesised files only", needed=False
    ),
    _namespace("time", 0x00000080, "clocks are virtual by interception alone", needed=False),
    Feature(
        "tmpfs in a user namespace",
        probes.file_system("tmpfs"),
        True,
        "the container has no place for its changes",
        _CONTAINER,
    ),
    Feature(
        "proc in a user namespace",
        probes.file_system("proc"),
        True,
        "the guest's processes cannot be looked up",
        _MASKED,
    ),
    Feature(
        "devpts in a user namespace",
        probes.file_system("devpts", "newinstance"),
        False,
        "the guest has no terminals of its own",
        _CONTAINER,
    ),
    Feature(
        "mqueue in a user namespace",
        probes.file_system("mqueue"),
        False,
        "the guest has no /dev/mqueue",
        "a kernel built with CONFIG_POSIX_MQUEUE",
    ),
    Feature(
        "overlay in a user namespace",
        probes.overlay,
        True,
        "the root file system cannot be shown writable without changing it",
        "Linux 5.11 or newer with the overlay module: `sudo modprobe overlay`",
    ),
    Feature(
        "seccomp notification",
        probes.notification_sizes,
        True,
        "system calls cannot be intercepted",
        f"Linux 5.0 or newer with CONFIG_SECCOMP_FILTER; {_CONTAINER}",
    ),
    Feature(
        "seccomp ADDFD with SEND",
        probes.notification_reply,
        True,
        "descriptors cannot be put into the guest",
        f"Linux 5.14 or newer; {_CONTAINER}",
    ),
    Feature(
        "seccomp WAIT_KILLABLE_RECV",
        probes.wait_killable,
        True,
        "a signal can interrupt a call that detbox is carrying out",
        "Linux 5.19 or newer",
    ),
    Feature(
        "seccomp SYNC_WAKE_UP",
        probes.sync_wake_up,
        False,
        "the same results, but every intercepted call takes several times as long",
        "Linux 6.6 or newer",
    ),
    Feature(
        "ptrace of children",
        probes.ptrace_seize,
        True,
        "new processes cannot be stopped before their first instruction",
        "`sudo sysctl kernel.yama.ptrace_scope=1`; " + _CONTAINER,
    ),
    Feature(
        "pidfd_getfd",
        probes.pidfd_getfd,
        True,
        "the guest's descriptors cannot be used",
        f"Linux 5.6 or newer; {_CONTAINER}",
    ),
    Feature(
        "rdtsc trapping",
        probes.tsc_trap,
        True,
        "the processor's time stamp would show",
        "an x86-64 kernel; sandboxes such as gVisor do not have it",
    ),
    Feature(
        "cpuid faulting",
        probes.cpuid_fault,
        False,
        "cpuid instructions in executables and libraries are patched instead; "
        "those in code generated at run time are not seen",
        "an Intel processor of 2012 or later (AMD: Zen 4 or later), outside of a virtual machine or in one "
        "that offers it",
    ),
    Feature(
        "instruction counter",
        probes.instruction_counter,
        False,
        "a thread that computes for ever while others wait for it ends the run with a report",
        "`sudo sysctl kernel.perf_event_paranoid=2`; a virtual machine needs a virtual PMU",
    ),
)
