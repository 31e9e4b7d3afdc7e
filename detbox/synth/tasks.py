"""The rows of /proc/PID and /proc/PID/task/TID."""

from __future__ import annotations

import errno

from detbox.synth import maps, mounts, process
from detbox.synth.table import Access, Query, Row, fixed, real, refused, synth

_ADDRESSES = "the kernel's text with virtual device and inode numbers"
_HOST = "depends on the host's memory or scheduling"
_IDENTITY = "         0          0 4294967295\n"


def auxv(query: Query) -> bytes:
    """Hidden processes have none."""
    return b"" if query.process.hidden else process.auxv(query)


ROWS: tuple[Row, ...] = (
    real("clear_refs", "write-only; resident sizes are virtual anyway", Access.REAL, 0o100200),
    real("cmdline", "the guest's own memory"),
    synth("comm", "the name that the machine keeps", process.comm, Access.REAL, 0o100644),
    real("environ", "the guest's own memory", mode=0o100400),
    real("exe", "a link to a file of the guest", mode=0o120777),
    real("cwd", "a link to a directory of the guest", mode=0o120777),
    real("root", "a link to the guest's root", mode=0o120777),
    real("fd/*", "links to the guest's open files", Access.REAL, 0o120700),
    real("map_files/*", "links to the guest's mapped files", mode=0o120600, only="process"),
    real("ns/*", "links whose text is virtual", mode=0o120777),
    real("limits", "fixed when the container starts", mode=0o100444),
    real("mem", "the guest's own memory; of itself alone", Access.REAL, 0o100600),
    real("coredump_filter", "set by the guest", Access.REAL, 0o100644, only="process"),
    real("timens_offsets", "fixed when the container starts", Access.REAL, 0o100644, only="process"),
    synth("arch_status", "AVX-512 use in real time", fixed("")),
    synth("attr/apparmor/current", "no security module", fixed(""), mode=0o100666),
    synth("attr/current", "no security module", fixed("unconfined\n"), mode=0o100666),
    synth("attr/exec", "no security module", fixed(""), Access.SINK, 0o100666),
    synth("attr/fscreate", "no security module", fixed(""), Access.SINK, 0o100666),
    synth("attr/keycreate", "no security module", fixed(""), Access.SINK, 0o100666),
    synth("attr/prev", "no security module", fixed("unconfined\n")),
    synth("attr/sockcreate", "no security module", fixed(""), Access.SINK, 0o100666),
    synth("autogroup", "numbered by the host", fixed("/autogroup-1 nice 0\n"), Access.SINK, 0o100644,
    "process"),
    synth("auxv", "without the entries that show the host's processor", auxv, mode=0o100400),
    synth("cgroup", "the root of a cgroup namespace", fixed("0::/\n")),
    synth("children", "from the machine's processes", process.children, only="thread"),
    synth("cpu_resctrl_groups", "no cache allocation", fixed("res:\nmon:\n")),
    synth("cpuset", "the root of a cgroup namespace", fixed("/\n")),
    synth("fdinfo/*", "the kernel's text without mount, inode and clock values", process.fdinfo,
    mode=0o100400),
    synth("gid_map", "the host's mapping is hidden", fixed(_IDENTITY), Access.REAL, 0o100644),
    synth("io", _HOST, fixed(
        "rchar: 0\nwchar: 0\nsyscr: 0\nsyscw: 0\nread_bytes: 0\nwrite_bytes: 0\ncancelled_write_bytes: 0\n"),
        mode=0o100400),
    synth("ksm_merging_pages", _HOST, fixed("0\n"), mode=0o100400),
    synth("loginuid", "sessions of the host; unset", fixed("4294967295"), Access.SINK, 0o100644),
    synth("maps", _ADDRESSES, maps.maps),
    synth("mountinfo", "the virtual mount table", mounts.mountinfo),
    synth("mounts", "the virtual mount table", mounts.mounts),
    synth("mountstats", "the virtual mount table", mounts.mountstats, mode=0o100400, only="process"),
    synth("numa_maps", "derived from maps", maps.numa_maps),
    synth("oom_adj", "the host's adjustment is hidden", fixed("0\n"), Access.SINK, 0o100644),
    synth("oom_score", _HOST, fixed("666\n")),
    synth("oom_score_adj", "the host's adjustment is hidden", fixed("0\n"), Access.SINK, 0o100644),
    synth("personality", "detbox turns address randomisation off; the guest sees the default",
          fixed("00000000\n"), mode=0o100400),
    synth("projid_map", "the host's mapping is hidden", fixed(_IDENTITY), Access.REAL, 0o100644),
    synth("sched", "CPU time is virtual", process.sched, Access.SINK, 0o100644),
    synth("schedstat", "CPU time is virtual", process.schedstat),
    synth("sessionid", "sessions of the host; unset", fixed("4294967295")),
    synth("setgroups", "the default", fixed("allow\n"), Access.REAL, 0o100644),
    synth("smaps", "derived from maps", maps.smaps),
    synth("smaps_rollup", "derived from maps", maps.smaps_rollup),
    synth("stat", "times, numbers and sizes are virtual", process.stat),
    synth("statm", "derived from maps", process.statm),
    synth("status", "from the machine's processes", process.status),
    synth("timers", "real time; detbox keeps the timers", fixed(""), only="process"),
    synth("timerslack_ns", "the default; sleeps are exact", fixed("50000\n"), Access.SINK, 0o100666,
    "process"),
    synth("uid_map", "the host's mapping is hidden", fixed(_IDENTITY), Access.REAL, 0o100644),
    synth("wchan", "where detbox stopped it", fixed("0")),
    refused("attr/*", "no security module"),
    refused("fail-nth", "fault injection", errno.EACCES),
    refused("ksm_stat", _HOST),
    refused("latency", _HOST),
    refused("make-it-fail", "fault injection", errno.EACCES),
    refused("pagemap", "physical addresses of the host", errno.EPERM),
    refused("patch_state", "live patching of the host"),
    refused("seccomp_cache", "detbox's own filter", errno.EACCES),
    refused("stack", "the host's kernel", errno.EACCES),
    refused("stack_depth", "the host's kernel"),
    refused("syscall", "where detbox stopped it", errno.EACCES),
    refused("user_delay", _HOST),
)  # fmt: skip
