"""The probes: each tries one kernel feature and returns a short text, or raises OSError or ProbeFailed.

They run in a child process (see ``child``) and may change that process at will.
Call numbers are those of x86-64 (arch/x86/entry/syscalls/syscall_64.tbl).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import signal
import struct
import tempfile
from collections.abc import Callable

from detbox.doctor.child import (
    CLONE_NEWNS,
    CLONE_NEWPID,
    ProbeFailed,
    become_root_of_namespaces,
    mount,
    prctl,
    syscall,
)

_SYS_IOCTL = 16
_SYS_PTRACE = 101
_SYS_GETPPID = 110
_SYS_ARCH_PRCTL = 158
_SYS_PERF_EVENT_OPEN = 298
_SYS_SECCOMP = 317
_SYS_PIDFD_OPEN = 434
_SYS_PIDFD_GETFD = 438

_PR_SET_NO_NEW_PRIVS = 38
_PR_SET_TSC, _PR_TSC_SIGSEGV = 26, 2
_ARCH_SET_CPUID = 0x1012

# include/uapi/linux/seccomp.h
_SET_MODE_FILTER = 1
_GET_NOTIF_SIZES = 3
FLAG_NEW_LISTENER = 1 << 3
FLAG_WAIT_KILLABLE_RECV = 1 << 5
_IOCTL_RECV = 0xC0502100
_IOCTL_ADDFD = 0x40182103
_IOCTL_SET_FLAGS = 0x40082104
_ADDFD_FLAG_SEND = 2
_SYNC_WAKE_UP = 1

_PTRACE_SEIZE = 0x4206
# TRACEFORK | TRACEVFORK | TRACECLONE | TRACEEXEC | TRACEEXIT | EXITKILL
_PTRACE_OPTIONS = 0x2 | 0x4 | 0x8 | 0x10 | 0x40 | 0x100000


def namespace(flag: int) -> Callable[[], str]:
    """A probe of one kind of namespace, inside a user namespace."""

    def probe() -> str:
        become_root_of_namespaces(flag)
        return "yes"

    return probe


def file_system(kind: str, data: str = "") -> Callable[[], str]:
    """A probe that mounts a fresh pseudo file system in namespaces of its own."""

    def probe() -> str:
        target = tempfile.mkdtemp(prefix="detbox-doctor-")
        try:
            _in_new_pid_namespace(lambda: mount(kind, target, kind, 0, data))
        finally:
            os.rmdir(target)
        return "yes"

    return probe


def _in_new_pid_namespace(body: Callable[[], None]) -> None:
    """Runs ``body`` as PID 1 of new user, mount, PID and IPC namespaces; raises its OSError here."""
    child = os.fork()
    if child == 0:
        try:
            become_root_of_namespaces(CLONE_NEWNS | CLONE_NEWPID | 0x08000000)
            inner = os.fork()
            if inner == 0:
                body()
                os._exit(0)
            os._exit(os.waitstatus_to_exitcode(os.waitpid(inner, 0)[1]) & 0xFF)
        except OSError as error:
            os._exit(min(error.errno or 255, 255))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status != 0:
        raise OSError(status, os.strerror(status))


def overlay() -> str:
    """An overlay with `userxattr`, its upper directory on a tmpfs, over a directory of the host."""
    top = tempfile.mkdtemp(prefix="detbox-doctor-")
    child = os.fork()
    if child == 0:
        try:
            become_root_of_namespaces(CLONE_NEWNS)
            mount("tmpfs", top, "tmpfs")
            for name in ("upper", "work", "merged"):
                os.mkdir(f"{top}/{name}")
            layers = f"lowerdir=/etc,upperdir={top}/upper,workdir={top}/work,userxattr"
            mount("overlay", f"{top}/merged", "overlay", 0, layers)
            with open(f"{top}/merged/detbox-doctor", "w") as file:
                file.write("written")
            os._exit(0)
        except OSError as error:
            os._exit(min(error.errno or 255, 255))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    os.rmdir(top)
    if status != 0:
        raise OSError(status, os.strerror(status))
    return "yes"


def seccomp_listener(flags: int) -> int:
    """Installs a filter that notifies of getppid(2) and allows the rest; returns the listener."""
    allow, notify = 0x7FFF0000, 0x7FC00000
    code = struct.pack(
        "=HBBIHBBIHBBIHBBI",
        *(0x20, 0, 0, 0),  # load the call's number
        *(0x15, 0, 1, _SYS_GETPPID),
        *(0x06, 0, 0, notify),
        *(0x06, 0, 0, allow),
    )
    instructions = ctypes.create_string_buffer(code, len(code))
    program = ctypes.create_string_buffer(struct.pack("=HxxxxxxQ", 4, ctypes.addressof(instructions)), 16)
    prctl(_PR_SET_NO_NEW_PRIVS, 1)
    return syscall(_SYS_SECCOMP, _SET_MODE_FILTER, flags, ctypes.addressof(program))


def notification_sizes() -> str:
    """The sizes of the notification structures, which detbox takes from the kernel."""
    sizes = ctypes.create_string_buffer(6)
    syscall(_SYS_SECCOMP, _GET_NOTIF_SIZES, 0, ctypes.addressof(sizes))
    notification, response, data = struct.unpack("=HHH", sizes.raw)
    if (notification, response, data) != (80, 24, 64):
        raise ProbeFailed(f"unexpected sizes {notification}, {response}, {data}")
    return "yes"


def notification_reply() -> str:
    """A descriptor sent into another process as the result of its call (ADDFD with SEND)."""
    listener = seccomp_listener(FLAG_NEW_LISTENER)
    child = os.fork()
    if child == 0:
        try:
            os._exit(0 if os.fstat(syscall(_SYS_GETPPID)).st_ino else 1)
        except OSError:
            os._exit(1)
    received = ctypes.create_string_buffer(80)
    syscall(_SYS_IOCTL, listener, _IOCTL_RECV, ctypes.addressof(received))
    identity = struct.unpack_from("=Q", received.raw)[0]
    addfd = ctypes.create_string_buffer(struct.pack("=QIIII", identity, _ADDFD_FLAG_SEND, listener, 0, 0), 24)
    try:
        syscall(_SYS_IOCTL, listener, _IOCTL_ADDFD, ctypes.addressof(addfd))
    except OSError:
        os.kill(child, signal.SIGKILL)
        raise
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise ProbeFailed("the descriptor did not arrive")
    return "yes"


def wait_killable() -> str:
    """Notifications that signals do not interrupt once they were received."""
    seccomp_listener(FLAG_NEW_LISTENER | FLAG_WAIT_KILLABLE_RECV)
    return "yes"


def sync_wake_up() -> str:
    """The hint that makes the kernel switch between guest and supervisor on one CPU."""
    listener = seccomp_listener(FLAG_NEW_LISTENER)
    syscall(_SYS_IOCTL, listener, _IOCTL_SET_FLAGS, _SYNC_WAKE_UP)
    return "yes"


def ptrace_seize() -> str:
    """PTRACE_SEIZE of a child, from inside a user namespace."""
    become_root_of_namespaces()
    child = os.fork()
    if child == 0:
        signal.pause()
    try:
        syscall(_SYS_PTRACE, _PTRACE_SEIZE, child, 0, _PTRACE_OPTIONS)
    finally:
        os.kill(child, signal.SIGKILL)
    return "yes"


def pidfd_getfd() -> str:
    """Another process's descriptor, duplicated."""
    pidfd = syscall(_SYS_PIDFD_OPEN, os.getpid(), 0)
    syscall(_SYS_PIDFD_GETFD, pidfd, pidfd, 0)
    return "yes"


def tsc_trap() -> str:
    """`rdtsc` ends in SIGSEGV after PR_SET_TSC."""
    return _executed_dies(b"\x0f\x31\xc3", lambda: prctl(_PR_SET_TSC, _PR_TSC_SIGSEGV), "rdtsc")


def cpuid_fault() -> str:
    """`cpuid` ends in SIGSEGV after arch_prctl(ARCH_SET_CPUID, 0); few virtual machines have it."""

    def arm() -> None:
        syscall(_SYS_ARCH_PRCTL, _ARCH_SET_CPUID, 0)

    # push rbx; xor eax, eax; cpuid; pop rbx; ret
    return _executed_dies(b"\x53\x31\xc0\x0f\xa2\x5b\xc3", arm, "cpuid")


def _executed_dies(code: bytes, arm: Callable[[], None], what: str) -> str:
    """Checks in a child that ``code`` runs, and that it dies of SIGSEGV once ``arm`` was called."""
    page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    page.write(code)
    function = ctypes.CFUNCTYPE(None)(ctypes.addressof(ctypes.c_char.from_buffer(page)))
    function()
    child = os.fork()
    if child == 0:
        try:
            arm()
        except OSError as error:
            os._exit(min(error.errno or 255, 255))
        function()
        os._exit(0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status > 0:
        raise OSError(status, os.strerror(status))
    if status != -signal.SIGSEGV:
        raise ProbeFailed(f"{what} is not trapped")
    return "yes"


def instruction_counter() -> str:
    """A hardware counter of retired branches of one's own process (user mode only)."""
    size = 112
    # type HARDWARE, size, config BRANCH_INSTRUCTIONS; disabled | exclude_kernel | exclude_hv
    fields = struct.pack("=IIQQQQQ", 0, size, 4, 0, 0, 0, 1 | 1 << 5 | 1 << 6)
    attributes = ctypes.create_string_buffer(fields.ljust(size, b"\0"), size)
    no_cpu, no_group = 2**64 - 1, 2**64 - 1
    syscall(_SYS_PERF_EVENT_OPEN, ctypes.addressof(attributes), 0, no_cpu, no_group, 0)
    return "yes"
