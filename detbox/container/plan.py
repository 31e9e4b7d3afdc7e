"""From a run description to the list of steps that build its file system."""

from __future__ import annotations

import os

from detbox.container import hostroot
from detbox.container import operations as ops
from detbox.container.operations import Step
from detbox.container.overlay import Overlay
from detbox.cpu import model
from detbox.errors import UserError
from detbox.machine import constants
from detbox.spec import RunSpec
from detbox.synth import dev, etc, sysfs
from detbox.synth.view import MachineView

#: Directories that stay in memory, and their modes.
_FRESH = {"/tmp": 0o1777, "/run": 0o755, "/home": 0o755, "/root": 0o700} | dict.fromkeys(
    ("/boot", "/media", "/mnt", "/srv"), 0o755
)
_SCRATCH = f"/{hostroot.SCRATCH}"
PROCFS = ops.Special("proc", "/proc")
#: File systems in memory that the guest can fill.
_LIMITED = ("/", _SCRATCH, "/tmp", "/run", "/dev/shm")
#: How many levels of directories are looked through for private ones, where it is not two (see Overlay).
_PRIVATE_DEPTH = {"etc": 8, "var": 8}


def steps(spec: RunSpec) -> list[Step]:
    """All steps, in order.  Raises UserError."""
    plan: list[Step] = []
    plan += image_root(spec.image) if spec.image else _host_root(spec)
    plan += [PROCFS, *_devices(), *_sys(spec)]
    plan += _fixed_files(spec)
    plan.append(ops.Directory(spec.guest_workdir))
    plan.append(ops.Bind(spec.workdir, spec.guest_workdir, read_only=False))
    for mount in spec.mounts:
        plan.append(ops.Bind(mount.src, mount.dst, read_only=not mount.rw))
    if spec.workdir_alias and not _covered(spec):
        plan.append(ops.Symlink(spec.workdir_alias, spec.guest_workdir))
    if spec.memory_bytes is not None:
        _limit(plan, spec.memory_bytes)
    return plan


def _limit(plan: list[Step], size: int) -> None:
    """No file system in memory takes more than ``size`` bytes: it is full at a moment that only the guest decides."""
    unpacked = any(isinstance(step, ops.Unpack) for step in plan)
    for step in plan:
        # What a tarball holds is there before the guest; it counts only for the whole run's limit.
        if isinstance(step, ops.Tmpfs) and step.path in _LIMITED and not (unpacked and step.path == "/"):
            step.size = str(size)


def describe(spec: RunSpec) -> str:
    """What ``--dry-run`` prints."""
    lines = [step.describe() for step in steps(spec)]
    lines.append(f"chdir    {spec.guest_workdir}")
    lines.append("exec     " + " ".join(os.fsdecode(word) for word in spec.command))
    return "\n".join(lines)


def kept(spec: RunSpec) -> list[str]:
    """Guest paths of the directories whose changes stay."""
    return [spec.guest_workdir, *(mount.dst for mount in spec.mounts if mount.rw)]


def declared(spec: RunSpec) -> set[bytes]:
    """Where the guest has directories and files of the host's."""
    return {os.fsencode(path) for path in (spec.guest_workdir, *(mount.dst for mount in spec.mounts))}


def _covered(spec: RunSpec) -> bool:
    """Whether a declared mount already provides the host path of the work directory."""
    alias = spec.workdir_alias or ""
    return any(alias == m.dst or alias.startswith(m.dst.rstrip("/") + "/") for m in spec.mounts)


def _host_root(spec: RunSpec) -> list[Step]:
    plan: list[Step] = [ops.Tmpfs("/", 0o755), ops.Tmpfs(_SCRATCH, 0o700)]
    for name in hostroot.names():
        path = "/" + name
        if path == spec.guest_workdir:
            continue
        if os.path.islink(path):
            plan.append(ops.Symlink(path, os.readlink(path)))
        elif hostroot.shown(name):
            plan.append(Overlay(path, path, f"{_SCRATCH}/{name}", _PRIVATE_DEPTH.get(name, 2)))
    plan.append(ops.Detach(_SCRATCH))
    plan += [ops.Directory(path, mode) for path, mode in _FRESH.items()]
    plan.append(ops.Tmpfs("/tmp", _FRESH["/tmp"]))
    return plan


def image_root(image: str) -> list[Step]:
    """Steps for the root of the directory or tarball ``image``.  Raises UserError."""
    if os.path.isfile(image):
        import tarfile

        if not tarfile.is_tarfile(image):
            raise UserError(f"{image} is neither a directory nor a tarball", "give a root file system")
        return [ops.Tmpfs("/", 0o755), ops.Unpack(image, "/"), *_fresh_in_image()]
    return [
        ops.Tmpfs("/", 0o755),
        ops.Directory("/scratch", 0o700),
        Overlay(image, "/root-of-image", "/scratch/image", 0),
        ops.Restage("/root-of-image"),
        *_fresh_in_image(),
    ]


def _fresh_in_image() -> list[Step]:
    return [ops.Tmpfs(path, mode) for path, mode in _FRESH.items() if path in ("/tmp", "/run")]


def _devices() -> list[Step]:
    plan: list[Step] = [ops.Tmpfs("/dev", 0o755)]
    for name, entry in dev.ENTRIES.items():
        path = f"/dev/{name}"
        if entry.kind is dev.Kind.BIND:
            # Read-only concerns the node's mode, owner and times, which are the host's; the device can be written.
            plan.append(ops.Bind(path, path, read_only=True))
        elif entry.kind is dev.Kind.LINK:
            plan.append(ops.Symlink(path, entry.target))
        elif entry.kind is dev.Kind.DIRECTORY:
            plan.append(ops.Directory(path, entry.mode & 0o7777))
        elif entry.kind is dev.Kind.DEVPTS:
            # The kernel's own limit (kernel.pty.max) counts the terminals of the whole machine.
            plan.append(ops.Special("devpts", path, "newinstance,ptmxmode=0666,mode=0620,max=1024"))
        elif entry.kind is dev.Kind.TMPFS:
            plan.append(ops.Tmpfs(path, entry.mode & 0o7777))
        elif entry.kind is dev.Kind.MQUEUE:
            plan.append(ops.Special("mqueue", path))
    return plan


def _sys(spec: RunSpec) -> list[Step]:
    view = MachineView(processes={}, cpus=spec.cpus, cpu=model.MODELS[spec.cpu_model])
    return [ops.Tmpfs("/sys", 0o555), ops.Tree("/sys", sysfs.tree(view))]


def _fixed_files(spec: RunSpec) -> list[Step]:
    plan: list[Step] = []
    for path, content in etc.FILES.items():
        if content is None:
            plan.append(ops.Remove(path))
        elif isinstance(content, bytes):
            plan.append(ops.File(path, content))
        else:
            plan.append(ops.Symlink(path, content.target))
    plan.append(ops.Remake(etc.REMADE, b"root", 0, 0))
    if spec.hostname != constants.HOSTNAME:
        plan.append(ops.File("/etc/hostname", os.fsencode(spec.hostname) + b"\n"))
    return plan
