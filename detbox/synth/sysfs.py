"""The contents of /sys: a small fixed tree that describes the virtual CPUs, one memory node and loopback.

It is written once into a tmpfs.  What tells about the host's hardware (disks, PCI, DMI) is absent or an
empty directory.
"""

from __future__ import annotations

from detbox.cpu import model
from detbox.records import Alike, NamedTuple
from detbox.synth import memory
from detbox.synth.process import cpu_list, cpu_mask
from detbox.synth.view import MachineView

FILE_MODE = 0o444
DIRECTORY_MODE = 0o555


class Symlink(NamedTuple):
    """A symbolic link with this target."""

    target: str


class Directory(Alike):
    """A directory that stays empty."""

    __slots__ = ()


Content = bytes | Symlink | Directory
Tree = dict[str, Content]

_CACHE_KINDS = {1: "Data", 2: "Instruction", 3: "Unified"}
_EMPTY = (
    "block bus/pci/devices bus/usb/devices class/block class/drm class/hwmon class/input class/mem "
    "class/misc class/power_supply class/thermal class/tty dev/block dev/char devices/platform "
    "devices/virtual/block firmware fs/bpf fs/fuse/connections fs/pstore kernel/debug "
    "kernel/iommu_groups kernel/security kernel/tracing power"
).split()
_VULNERABILITIES = (
    "gather_data_sampling itlb_multihit l1tf mds meltdown mmio_stale_data retbleed spec_rstack_overflow "
    "spec_store_bypass spectre_v1 spectre_v2 srbds tsx_async_abort"
).split()
_LO = {
    "addr_assign_type": 0, "addr_len": 6, "address": "00:00:00:00:00:00", "broadcast": "00:00:00:00:00:00",
    "carrier": 1, "carrier_changes": 0, "carrier_down_count": 0, "carrier_up_count": 0, "dev_id": "0x0",
    "dev_port": 0, "dormant": 0, "flags": "0x9", "gro_flush_timeout": 0, "ifalias": "", "ifindex": 1,
    "iflink": 1, "link_mode": 0, "mtu": 65536, "name_assign_type": 2, "netdev_group": 0,
    "operstate": "unknown", "proto_down": 0, "testing": 0, "threaded": 0, "tx_queue_len": 1000, "type": 772,
    "uevent": "INTERFACE=lo\nIFINDEX=1",
}  # fmt: skip
_STATISTICS = (
    "collisions multicast rx_bytes rx_compressed rx_crc_errors rx_dropped rx_errors rx_fifo_errors "
    "rx_frame_errors rx_length_errors rx_missed_errors rx_nohandler rx_over_errors rx_packets "
    "tx_aborted_errors tx_bytes tx_carrier_errors tx_compressed tx_dropped tx_errors tx_fifo_errors "
    "tx_heartbeat_errors tx_packets tx_window_errors"
).split()
#: The cgroup of the container, as its root: no limits but the machine's own.
_CGROUP = {
    "cgroup.controllers": "cpuset cpu io memory hugetlb pids rdma misc",
    "cgroup.events": "populated 1\nfrozen 0",
    "cgroup.freeze": "0", "cgroup.max.depth": "max", "cgroup.max.descendants": "max", "cgroup.procs": "",
    "cgroup.stat": "nr_descendants 0\nnr_dying_descendants 0", "cgroup.subtree_control": "",
    "cgroup.threads": "",
    "cgroup.type": "domain", "cpu.max": "max 100000", "cpu.max.burst": "0",
    "cpu.stat": "usage_usec 0\nuser_usec 0\nsystem_usec 0\nnr_periods 0\nnr_throttled 0\nthrottled_usec 0",
    "cpu.weight": "100", "cpu.weight.nice": "0", "io.stat": "", "io.weight": "default 100",
    "memory.current": "268435456",
    "memory.events": "low 0\nhigh 0\nmax 0\noom 0\noom_kill 0\noom_group_kill 0",
    "memory.high": "max", "memory.low": "0", "memory.max": "max", "memory.min": "0", "memory.oom.group": "0",
    "memory.stat": "anon 134217728\nfile 134217728\nkernel 0\ninactive_file 0\nactive_file 134217728",
    "memory.swap.current": "0", "memory.swap.max": "max", "pids.current": "1", "pids.max": "max",
}  # fmt: skip
_THP = {
    "enabled": "always [madvise] never", "defrag": "always defer defer+madvise [madvise] never",
    "hpage_pmd_size": "2097152", "shmem_enabled": "always within_size advise [never] deny force",
    "use_zero_page": "1", "khugepaged/defrag": "1", "khugepaged/pages_to_scan": "4096",
    "khugepaged/max_ptes_none": "511", "khugepaged/scan_sleep_millisecs": "10000",
}  # fmt: skip
_HUGEPAGES = ("free_hugepages", "nr_hugepages", "nr_hugepages_mempolicy", "nr_overcommit_hugepages",
              "resv_hugepages", "surplus_hugepages")  # fmt: skip
_KERNEL = {
    "address_bits": "64", "cpu_byteorder": "little", "fscaps": "1", "profiling": "0", "rcu_expedited": "0",
    "rcu_normal": "0", "uevent_seqnum": "0", "mm/ksm/run": "0", "mm/ksm/pages_shared": "0",
    "mm/ksm/pages_sharing": "0", "mm/swap/vma_ra_enabled": "true", "mm/numa/demotion_enabled": "false",
}  # fmt: skip


def tree(view: MachineView) -> Tree:
    """All files, links and empty directories below /sys by relative path, sorted; parents are implied."""
    content: Tree = {}
    _cpus(content, view)
    _node(content, view)
    _loopback(content)
    _add(content, "fs/cgroup", _CGROUP)
    _add(content, "kernel", _KERNEL)
    _add(content, "kernel/mm/transparent_hugepage", _THP)
    _add(content, "kernel/mm/hugepages/hugepages-2048kB", dict.fromkeys(_HUGEPAGES, "0"))
    clocks = {"current_clocksource": "tsc", "available_clocksource": "tsc"}
    _add(content, "devices/system/clocksource/clocksource0", clocks)
    for name in _EMPTY:
        content[name] = Directory()
    return dict(sorted(content.items()))


def _add(content: Tree, directory: str, files: dict[str, str]) -> None:
    for name, text in files.items():
        content[f"{directory}/{name}"] = (text + "\n").encode() if text else b""


def _cpus(content: Tree, view: MachineView) -> None:
    base = "devices/system/cpu"
    every = cpu_list(view.cpus)
    _add(content, base, {
        "online": every, "possible": every, "present": every, "offline": "", "isolated": "",
        "kernel_max": "8191", "smt/active": "0", "smt/control": "notsupported", "uevent": "",
        "modalias": "", "cpuidle/current_driver": "none", "cpuidle/current_governor": "menu",
        **{f"vulnerabilities/{name}": "Not affected" for name in _VULNERABILITIES},
    })  # fmt: skip
    for number in range(view.cpus):
        mine = f"{base}/cpu{number}"
        _add(content, f"{mine}/topology", _topology(view.cpus, number))
        for index, cache in enumerate(model.CACHES):
            _add(content, f"{mine}/cache/index{index}", _cache(view.cpus, number, cache))
        _add(content, mine, {"uevent": "DRIVER=processor", "online": "1"} if number else {"uevent": ""})
        content[f"{mine}/subsystem"] = Symlink("../../../../bus/cpu")
        content[f"{mine}/node0"] = Symlink("../../node/node0")
        content[f"bus/cpu/devices/cpu{number}"] = Symlink(f"../../../{mine}")


def _one(number: int, cpus: int) -> str:
    """The kernel's mask of one CPU, as wide as the mask of all of them."""
    groups = len(cpu_mask(cpus).split(","))
    if groups == 1:
        return f"{1 << number:x}"
    text = f"{1 << number:0{8 * groups}x}"
    return ",".join(text[at : at + 8] for at in range(0, len(text), 8))


def _topology(cpus: int, number: int) -> dict[str, str]:
    """One package, one die, one thread per core."""
    mine, every = _one(number, cpus), cpu_mask(cpus)
    files = {"core_id": str(number), "physical_package_id": "0", "die_id": "0", "cluster_id": str(number)}
    for name in ("core_cpus", "thread_siblings", "cluster_cpus"):
        files |= {name: mine, f"{name}_list": str(number)}
    for name in ("core_siblings", "die_cpus", "package_cpus"):
        files |= {name: every, f"{name}_list": cpu_list(cpus)}
    return files


def _cache(cpus: int, number: int, cache: model.Cache) -> dict[str, str]:
    shared = cache.shared
    return {
        "coherency_line_size": str(model.LINE_SIZE),
        "id": "0" if shared else str(number),
        "level": str(cache.level),
        "number_of_sets": str(cache.sets),
        "physical_line_partition": "1",
        "shared_cpu_list": cpu_list(cpus) if shared else str(number),
        "shared_cpu_map": cpu_mask(cpus) if shared else _one(number, cpus),
        "size": f"{cache.size >> 10}K",
        "type": _CACHE_KINDS[cache.kind],
        "ways_of_associativity": str(cache.ways),
    }


def _node(content: Tree, view: MachineView) -> None:
    base = "devices/system/node"
    whole = {name: "0" for name in ("has_cpu", "has_memory", "has_normal_memory", "online", "possible")}
    _add(content, base, whole)
    node = f"{base}/node0"
    counters = "numa_hit numa_miss numa_foreign interleave_hit local_node other_node".split()
    _add(content, node, {
        "cpulist": cpu_list(view.cpus), "cpumap": cpu_mask(view.cpus), "distance": "10",
        "numastat": "\n".join(f"{name} 0" for name in counters), "uevent": "",
        **{f"hugepages/hugepages-2048kB/{name}": "0" for name in
           ("free_hugepages", "nr_hugepages", "surplus_hugepages")},
    })  # fmt: skip
    content[f"{node}/meminfo"] = memory.node_meminfo(view)
    content[f"{node}/vmstat"] = memory.node_vmstat(view)
    content[f"{node}/subsystem"] = Symlink("../../../../bus/node")
    for number in range(view.cpus):
        content[f"{node}/cpu{number}"] = Symlink(f"../../cpu/cpu{number}")
    content["bus/node/devices/node0"] = Symlink("../../../devices/system/node/node0")


def _loopback(content: Tree) -> None:
    base = "devices/virtual/net/lo"
    _add(content, base, {name: str(value) for name, value in _LO.items()})
    _add(content, f"{base}/statistics", dict.fromkeys(_STATISTICS, "0"))
    _add(content, f"{base}/queues", {"rx-0/rps_cpus": "0", "rx-0/rps_flow_cnt": "0", "tx-0/tx_maxrate": "0",
                                     "tx-0/tx_timeout": "0", "tx-0/xps_cpus": "0"})  # fmt: skip
    content[f"{base}/subsystem"] = Symlink("../../../../class/net")
    content["class/net/lo"] = Symlink("../../devices/virtual/net/lo")
