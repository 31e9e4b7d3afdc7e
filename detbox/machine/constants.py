"""The fixed values that the virtual machine shows to every guest, in one place."""

from __future__ import annotations

from detbox.digests import sha256

#: uname(2).  The release stays at 6.1: programs that test for newer calls fall back to the ones refused or
#: emulated here, and glibc's minimum (3.2) is met.
OSTYPE = "Linux"
KERNEL_RELEASE = "6.1.0-detbox"
KERNEL_VERSION = "#1 SMP PREEMPT_DYNAMIC detbox"
MACHINE = "x86_64"
HOSTNAME = "detbox"
DOMAINNAME = "(none)"

#: Default virtual size of the machine.
CPUS = 4
MEMORY_TOTAL = 8 << 30  # bytes
MEMORY_FREE = 6 << 30  # bytes
PAGE_SIZE = 4096  # bytes
USER_HZ = 100  # ticks per second of every tick count in /proc (sysconf(_SC_CLK_TCK))
PID_MAX = 32768
THREADS_MAX = 63000
OPEN_FILES_MAX = 1048576  # fs.nr_open

#: 2020-01-01T00:00:00Z, in seconds since 1970.
DEFAULT_EPOCH_S = 1577836800

#: statfs(2) of every file system that has a size: 64 GiB, 48 GiB of them free.
STATFS_BLOCK_SIZE = 4096  # bytes
STATFS_BLOCKS = 64 << 30 >> 12
STATFS_BLOCKS_FREE = 48 << 30 >> 12
STATFS_FILES = 4194304
STATFS_FILES_FREE = 3145728
STATFS_NAME_MAX = 255

#: /etc/machine-id: one for all runs, because it names the (virtual) machine and not the run.
MACHINE_ID = sha256(b"detbox virtual machine").hexdigest()[:32]

#: Inode numbers of the namespaces that /proc/PID/ns names (include/linux/proc_ns.h gives the initial ones).
NAMESPACE_INODES = {
    "cgroup": 4026531835,
    "ipc": 4026531839,
    "mnt": 4026531841,
    "net": 4026531840,
    "pid": 4026531836,
    "pid_for_children": 4026531836,
    "time": 4026531834,
    "time_for_children": 4026531834,
    "user": 4026531837,
    "uts": 4026531838,
}

#: Mappings of these names belong to detbox itself and are left out of /proc/PID/maps.
LOOPS_MAPPING = b"/memfd:detbox-loops"
HIDDEN_MAPPING_PREFIXES = (b"/memfd:detbox", b"[anon:detbox")
#: Where the counting copies of a program's code are (detbox.counted), as (start, end); hidden as well.  Nothing else
#: comes so far from both ends of the address space by itself.
COPIES = (0x3FF0_0000_0000, 0x3FF0_0400_0000)


def uuid_text(raw: bytes) -> str:
    """The text form of a version 4 UUID (RFC 9562) made from 16 random bytes."""
    number = int.from_bytes(raw, "big") & ~(0xF << 76 | 0x3 << 62) | 0x4 << 76 | 0x2 << 62
    text = f"{number:032x}"
    return "-".join((text[:8], text[8:12], text[12:16], text[16:20], text[20:]))


def boot_id(seed: bytes) -> str:
    """The boot id of a run with this seed."""
    return uuid_text(sha256(b"boot id\0" + seed).digest()[:16])
