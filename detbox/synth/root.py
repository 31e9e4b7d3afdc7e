"""The rows of /proc itself: files about the whole machine."""

from __future__ import annotations

import errno

from detbox.synth import cpuinfo, memory, sysvipc
from detbox.synth.table import Query, Row, fixed, refused, synth

_FILESYSTEMS = "".join(
    f"nodev\t{name}\n"
    for name in "sysfs tmpfs bdev proc cgroup cgroup2 cpuset devtmpfs debugfs tracefs securityfs sockfs bpf "
    "pipefs "
    "ramfs hugetlbfs devpts mqueue overlay".split()
) + "".join(f"\t{name}\n" for name in ("ext3", "ext2", "ext4"))

_DEVICES = """\
Character devices:
  1 mem
  4 tty
  5 /dev/tty
  5 /dev/console
  5 /dev/ptmx
 10 misc
128 ptm
136 pts

Block devices:
  7 loop
259 blkext
"""

_CONTROLLERS = (
    "cpuset cpu cpuacct blkio memory devices freezer net_cls perf_event net_prio hugetlb pids "
    "rdma misc"
)
_CGROUPS = "#subsys_name\thierarchy\tnum_cgroups\tenabled\n" + "".join(
    f"{name}\t0\t1\t1\n" for name in _CONTROLLERS.split()
)

_TTY_DRIVERS = """\
/dev/tty             /dev/tty        5       0 system:/dev/tty
/dev/console         /dev/console    5       1 system:console
/dev/ptmx            /dev/ptmx       5       2 system
pty_slave            /dev/pts      136 0-1048575 pty:slave
pty_master           /dev/ptm      128 0-1048575 pty:master
"""

_PRESSURE = "".join(f"{what} avg10=0.00 avg60=0.00 avg300=0.00 total=0\n" for what in ("some", "full"))
_LEAK = "shows or steers the host's kernel"
_NONE = "hardware of the host"


def key_users(query: Query) -> bytes:
    """Nobody has keys."""
    return b"    0:     1 1/1 0/1000000 0/25000000\n"


def locks(query: Query) -> bytes:
    """The guest's file locks, numbered."""
    return b"".join(b"%d: %s" % (number, line) for number, line in enumerate(query.view.locks(), 1))


ROWS: tuple[Row, ...] = (
    synth("buddyinfo", "free memory is virtual", memory.buddyinfo),
    synth("cgroups", "the unified hierarchy alone", fixed(_CGROUPS)),
    synth("cmdline", "boot parameters of the host", fixed("BOOT_IMAGE=/boot/vmlinuz-detbox ro quiet\n")),
    synth("consoles", "no console", fixed("")),
    synth("cpuinfo", "the CPU model", cpuinfo.cpuinfo),
    synth("crypto", "drivers of the host", fixed("")),
    synth("devices", "the drivers behind the guest's /dev", fixed(_DEVICES)),
    synth("diskstats", "no disks", fixed("")),
    synth("dma", "a constant of every PC", fixed(" 4: cascade\n")),
    synth("execdomains", "a constant", fixed("0-0\tLinux           \t[kernel]\n")),
    synth("fb", "no frame buffer", fixed("")),
    synth("filesystems", "modules of the host differ", fixed(_FILESYSTEMS)),
    synth("interrupts", "counters of the host", cpuinfo.interrupts),
    synth("iomem", "addresses of the host", fixed("")),
    synth("ioports", "addresses of the host", fixed("")),
    synth("key-users", "keys of the host's users", key_users),
    synth("loadavg", "load of the host", cpuinfo.loadavg),
    synth("locks", "the guest's locks, with virtual inodes", locks),
    synth("mdstat", "no arrays", fixed("Personalities : \nunused devices: <none>\n")),
    synth("meminfo", "memory of the host", memory.meminfo),
    synth("misc", "drivers of the host", fixed("229 fuse\n")),
    synth("modules", "modules of the host", fixed("")),
    synth("mtrr", "memory ranges of the host", fixed("")),
    synth("pagetypeinfo", "free memory is virtual", memory.pagetypeinfo, mode=0o100400),
    synth("partitions", "no disks", fixed("major minor  #blocks  name\n\n")),
    synth("pressure/cpu", "pressure on the host", fixed(_PRESSURE)),
    synth("pressure/io", "pressure on the host", fixed(_PRESSURE)),
    synth("pressure/memory", "pressure on the host", fixed(_PRESSURE)),
    synth("schedstat", "counters of the host", cpuinfo.schedstat),
    synth("softirqs", "counters of the host", cpuinfo.softirqs),
    synth("stat", "CPU times are virtual", cpuinfo.stat),
    synth("swaps", "no swap", fixed("Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n")),
    synth("sysvipc/msg", "the guest's queues, without times", sysvipc.table),
    synth("sysvipc/sem", "the guest's semaphores, without times", sysvipc.table),
    synth("sysvipc/shm", "the guest's segments, without times", sysvipc.table),
    synth("tty/drivers", "the drivers behind the guest's /dev (ps reads it)", fixed(_TTY_DRIVERS)),
    synth("tty/ldiscs", "the one that terminals have", fixed("n_tty       0\n")),
    synth("uptime", "virtual time", cpuinfo.uptime),
    synth("version", "the virtual kernel", cpuinfo.version),
    synth("vmstat", "memory is virtual, counters are zero", memory.vmstat),
    synth("zoneinfo", "memory is virtual", memory.zoneinfo),
    refused("acpi/*", _NONE),
    refused("allocinfo", _LEAK),
    refused("apm", _NONE),
    refused("asound/*", _NONE),
    refused("bootconfig", _LEAK),
    refused("bus/*", _NONE),
    refused("config.gz", _LEAK),
    refused("driver/*", _NONE),
    refused("dri/*", _NONE),
    refused("dynamic_debug/*", _LEAK),
    refused("fs/*", "file systems of the host"),
    refused("ide/*", _NONE),
    refused("irq/*", _NONE),
    refused("kallsyms", _LEAK, errno.EACCES),
    refused("kcore", _LEAK, errno.EACCES),
    refused("keys", "keys of the host's users", errno.EACCES),
    refused("kmsg", _LEAK, errno.EPERM),
    refused("kpagecgroup", _LEAK, errno.EACCES),
    refused("kpagecount", _LEAK, errno.EACCES),
    refused("kpageflags", _LEAK, errno.EACCES),
    refused("latency_stats", _LEAK),
    refused("lockdep", _LEAK),
    refused("lockdep_chains", _LEAK),
    refused("lockdep_stats", _LEAK),
    refused("lock_stat", _LEAK),
    refused("mpt/*", _NONE),
    refused("page_owner", _LEAK),
    refused("profile", _LEAK),
    refused("sched_debug", _LEAK),
    refused("scsi/*", _NONE),
    refused("slabinfo", _LEAK, errno.EACCES),
    refused("spl/*", _NONE),
    refused("sysrq-trigger", _LEAK, errno.EACCES),
    refused("timer_list", _LEAK, errno.EACCES),
    refused("timer_stats", _LEAK),
    refused("tty/driver/*", _NONE),
    refused("vmallocinfo", _LEAK, errno.EACCES),
    refused("vmcore", _LEAK, errno.EACCES),
    refused("version_signature", "the host's distribution"),
    refused("xen/*", _NONE),
)
