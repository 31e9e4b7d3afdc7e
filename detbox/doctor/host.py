"""What can be read about the host without trying anything out: versions, settings, the processor."""

from __future__ import annotations

import os
import platform
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from detbox.doctor.finding import Finding

#: WAIT_KILLABLE_RECV, the newest thing that detbox cannot do without.
OLDEST_KERNEL = (5, 19)
#: SYNC_WAKE_UP.
FAST_KERNEL = (6, 6)


def kernel() -> Finding:
    """The kernel's version and the machine's architecture."""
    release, machine = platform.release(), platform.machine()
    state = f"Linux {release} {machine}"
    if machine != "x86_64":
        return Finding("kernel", state, False, "detbox runs x86-64 programs only", "use an x86-64 machine")
    match = re.match(r"(\d+)\.(\d+)", release)
    version = (int(match[1]), int(match[2])) if match else (0, 0)
    if version < OLDEST_KERNEL:
        wanted = ".".join(map(str, OLDEST_KERNEL))
        return Finding("kernel", state, False, "it lacks what detbox needs", f"Linux {wanted} or newer")
    if version < FAST_KERNEL:
        wanted = ".".join(map(str, FAST_KERNEL))
        return Finding("kernel", state, True, "intercepted calls are slow", f"Linux {wanted} or newer")
    return Finding("kernel", state, True)


def mend_user_namespaces() -> str:
    """Which setting of this host forbids user namespaces, as far as it can be read."""
    for path, forbidding, command in (
        ("kernel/unprivileged_userns_clone", "0", "sudo sysctl kernel.unprivileged_userns_clone=1"),
        ("user/max_user_namespaces", "0", "sudo sysctl user.max_user_namespaces=15000"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "sudo sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ):
        if _read(f"/proc/sys/{path}") == forbidding:
            return f"`{command}` (and a file in /etc/sysctl.d to keep it)"
    return (
        "a kernel built with CONFIG_USER_NS; in a container manager, allow user namespaces "
        "(docker: --security-opt seccomp=unconfined --security-opt apparmor=unconfined)"
    )


def facts() -> Iterator[Finding]:
    """Settings that change how good a run is, none of which forbids it."""
    yield _processor()
    yield _user_mappings()
    yield _memory_control()


def _processor() -> Finding:
    from detbox.cpu.model import DEFAULT_MODEL, MODELS, missing_on_host

    try:
        missing = missing_on_host(MODELS[DEFAULT_MODEL])
    except OSError as error:
        return Finding("CPU model", f"unknown: /proc/cpuinfo: {error.strerror}", True)
    if not missing:
        return Finding("CPU model", f"{DEFAULT_MODEL} can be shown", True)
    fitting = [name for name, model in MODELS.items() if not missing_on_host(model)]
    state = f"{DEFAULT_MODEL} cannot be shown: the processor lacks {', '.join(missing)}"
    if not fitting:
        return Finding("CPU model", state, False, "no model of detbox runs here", "use a newer processor")
    return Finding(
        "CPU model",
        state,
        True,
        f"programs that use these features die of SIGILL under {DEFAULT_MODEL}",
        f"run with --cpu-model {fitting[0]} (a different configuration: its results differ)",
    )


def _user_mappings() -> Finding:
    name = "user mappings"
    if os.geteuid() == 0:
        return Finding(name, "not needed: root", True)
    follows = "the guest has one real user; other owners are kept virtually"
    if shutil.which("newuidmap") is None:
        return Finding(name, "no: newuidmap is not installed", True, follows, "sudo apt install uidmap")
    if not _has_range("/etc/subuid") or not _has_range("/etc/subgid"):
        command = "sudo usermod --add-subuids 100000-165535 --add-subgids 100000-165535 $USER"
        return Finding(name, "no: no range in /etc/subuid and /etc/subgid", True, follows, command)
    return Finding(name, "yes", True)


def _has_range(path: str) -> bool:
    import pwd

    try:
        names = {pwd.getpwuid(os.geteuid()).pw_name, str(os.geteuid())}
    except KeyError:
        names = {str(os.geteuid())}
    return any(line.partition(":")[0] in names for line in _read(path).splitlines())


def _memory_control() -> Finding:
    name = "memory limits by cgroup"
    follows = "nothing: detbox itself looks at what a run uses, and ends one that exceeds --memory"
    own = next((line[3:] for line in _read("/proc/self/cgroup").splitlines() if line.startswith("0::")), None)
    top = Path("/sys/fs/cgroup")
    if own is None or not (top / "cgroup.controllers").exists():
        mend = "a host with the unified cgroup hierarchy (boot with systemd.unified_cgroup_hierarchy=1)"
        return Finding(name, "no: no unified cgroup hierarchy", True, follows, mend)
    group = top / own.lstrip("/")
    if "memory" not in _read(group / "cgroup.controllers").split():
        mend = "systemd: set Delegate=memory for user@.service"
        return Finding(name, "no: the memory controller is not delegated", True, follows, mend)
    if not os.access(group, os.W_OK):
        mend = "run inside `systemd-run --user --scope -p Delegate=yes`"
        return Finding(name, "no: the own cgroup is not writable", True, follows, mend)
    return Finding(name, "yes", True)


def _read(path: str | Path) -> str:
    """A small file's text without its last newline; empty if it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
