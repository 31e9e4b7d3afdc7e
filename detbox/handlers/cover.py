"""The directory that hides the supervisor's own /proc/1, from the guest and from the supervisor's look-ups.

Every name that leads anywhere is a symbolic link to itself, with its absolute path as the text: a path
through /proc/self that the supervisor resolves ends with ELOOP instead of in the supervisor's own memory and
descriptors.  The few plain files stand for a quiet init; their contents are synthesised when they are opened.
"""

from __future__ import annotations

import os
from stat import S_IFDIR, S_IFREG, S_ISLNK

from detbox.kernel import _native

#: Everything in a /proc/PID directory (fs/proc/base.c, tgid_base_stuff) that the supervisor must not follow.
LOOPS = (
    "arch_status attr auxv clear_refs coredump_filter cpu_resctrl_groups cwd environ exe fd fdinfo "
    "gid_map ksm_merging_pages ksm_stat latency map_files maps mem mountinfo mounts mountstats net ns "
    "numa_maps pagemap patch_state personality projid_map root seccomp_cache setgroups smaps smaps_rollup "
    "stack syscall task timens_offsets timers timerslack_ns uid_map wchan"
).split()
FILES = (
    "autogroup cgroup cmdline comm cpuset io limits loginuid oom_adj oom_score oom_score_adj sched schedstat "
    "sessionid stat statm status"
).split()
_READ_ONLY, _REMOUNT, _BIND = 1, 32, 4096  # of mount(2)
_DIRECTORIES = frozenset("attr fd fdinfo map_files net ns task".split())
_LINKS = frozenset(("cwd", "exe", "root"))


def shown_mode(name: bytes, mode: int) -> int:
    """st_mode that the guest sees for the cover's entry ``name`` of real mode ``mode``."""
    text = name.decode("latin-1")
    if not S_ISLNK(mode) or text in _LINKS:
        return mode
    return S_IFDIR | 0o500 if text in _DIRECTORIES else S_IFREG | 0o400


def cover(directory: bytes = b"/proc/1") -> None:
    """Mount the cover over ``directory`` in the present mount namespace; OSError.

    ``Machine.proc_fd`` must be a descriptor of another procfs mount: it needs the true directory.
    """
    _native.mount("none", directory, "tmpfs", 0, "mode=555,size=64k")
    for name in LOOPS:
        os.symlink(b"/proc/1/" + os.fsencode(name), os.path.join(directory, os.fsencode(name)))
    for name in FILES:
        os.close(os.open(os.path.join(directory, os.fsencode(name)), os.O_CREAT | os.O_WRONLY, 0o444))
    # Calls that make or remove a name do not follow it, and would find the cover's instead of the guest's.
    _native.mount(None, directory, None, _REMOUNT | _BIND | _READ_ONLY, None)
