"""Renderers of files about memory: meminfo, vmstat, zoneinfo, buddyinfo, pagetypeinfo, the NUMA node's."""

from __future__ import annotations

from detbox.machine.constants import PAGE_SIZE
from detbox.synth.table import Query
from detbox.synth.view import MachineView

PAGES_IN_LARGEST_BLOCK = 1024  # order 10, the buddy allocator's largest
#: Caches of an idle machine, in kB; they are part of what is not free.
BUFFERS_KB = 65536
CACHED_KB = 1048576
SLAB_KB = 131072

_VMSTAT_COUNTERS = """
nr_zspages nr_free_cma numa_hit numa_miss numa_foreign numa_interleave numa_local numa_other nr_unevictable
nr_slab_reclaimable nr_slab_unreclaimable nr_isolated_anon nr_isolated_file workingset_nodes
workingset_refault_anon workingset_refault_file workingset_activate_anon workingset_activate_file
workingset_restore_anon workingset_restore_file workingset_nodereclaim nr_anon_pages nr_mapped nr_file_pages
nr_dirty nr_writeback nr_writeback_temp nr_shmem nr_shmem_hugepages nr_shmem_pmdmapped nr_file_hugepages
nr_file_pmdmapped nr_anon_transparent_hugepages nr_vmscan_write nr_vmscan_immediate_reclaim nr_dirtied
nr_written nr_throttled_written nr_kernel_misc_reclaimable nr_foll_pin_acquired nr_foll_pin_released
nr_kernel_stack nr_page_table_pages nr_sec_page_table_pages nr_swapcached nr_dirty_threshold
nr_dirty_background_threshold pgpgin pgpgout pswpin pswpout pgalloc_dma pgalloc_dma32 pgalloc_normal
pgalloc_movable allocstall_dma allocstall_dma32 allocstall_normal allocstall_movable pgskip_dma pgskip_dma32
pgskip_normal pgskip_movable pgfree pgactivate pgdeactivate pglazyfree pgfault pgmajfault pglazyfreed pgrefill
pgreuse pgsteal_kswapd pgsteal_direct pgscan_kswapd pgscan_direct pgscan_direct_throttle pgscan_anon
pgscan_file pgsteal_anon pgsteal_file pginodesteal slabs_scanned kswapd_inodesteal
kswapd_low_wmark_hit_quickly kswapd_high_wmark_hit_quickly pageoutrun pgrotated drop_pagecache drop_slab
oom_kill pgmigrate_success pgmigrate_fail compact_migrate_scanned compact_free_scanned compact_isolated
compact_stall compact_fail compact_success compact_daemon_wake compact_daemon_migrate_scanned
compact_daemon_free_scanned htlb_buddy_alloc_success htlb_buddy_alloc_fail unevictable_pgs_culled
unevictable_pgs_scanned unevictable_pgs_rescued unevictable_pgs_mlocked unevictable_pgs_munlocked
unevictable_pgs_cleared unevictable_pgs_stranded thp_fault_alloc thp_fault_fallback thp_collapse_alloc
thp_collapse_alloc_failed thp_split_page thp_split_page_failed thp_deferred_split_page thp_split_pmd
thp_zero_page_alloc thp_zero_page_alloc_failed thp_swpout thp_swpout_fallback swap_ra swap_ra_hit nr_unstable
""".split()


def amounts(view: MachineView) -> dict[str, int]:
    """The fields of meminfo in kB.  They add up: total = free + buffers + cached + slab + anonymous."""
    total = view.memory_bytes // 1024
    free = min(view.memory_free_bytes // 1024, total)
    used = total - free
    buffers, cached, slab = (min(size, used * size // (2 << 20)) for size in (BUFFERS_KB, CACHED_KB, SLAB_KB))
    anonymous = used - buffers - cached - slab
    return {
        "MemTotal": total, "MemFree": free, "MemAvailable": free + buffers + cached + slab // 2,
        "Buffers": buffers, "Cached": cached, "SwapCached": 0,
        "Active": anonymous + cached // 2, "Inactive": buffers + cached - cached // 2,
        "Active(anon)": anonymous, "Inactive(anon)": 0,
        "Active(file)": cached // 2, "Inactive(file)": buffers + cached - cached // 2,
        "Unevictable": 0, "Mlocked": 0, "SwapTotal": 0, "SwapFree": 0, "Dirty": 0, "Writeback": 0,
        "AnonPages": anonymous, "Mapped": cached // 4, "Shmem": 0, "KReclaimable": slab // 2, "Slab": slab,
        "SReclaimable": slab // 2, "SUnreclaim": slab - slab // 2, "KernelStack": 4096, "PageTables": 8192,
        "SecPageTables": 0, "NFS_Unstable": 0, "Bounce": 0, "WritebackTmp": 0, "CommitLimit": total // 2,
        "Committed_AS": anonymous, "VmallocTotal": 34359738367, "VmallocUsed": 16384, "VmallocChunk": 0,
        "Percpu": 1024, "HardwareCorrupted": 0, "AnonHugePages": 0, "ShmemHugePages": 0, "ShmemPmdMapped": 0,
        "FileHugePages": 0, "FilePmdMapped": 0,
    }  # fmt: skip


def meminfo(query: Query) -> bytes:
    """The fields of Linux 6.1, in its order."""
    lines = [f"{name + ':':16s}{kb:8d} kB" for name, kb in amounts(query.view).items()]
    lines += [f"{'HugePages_' + what + ':':16s}{0:8d}" for what in ("Total", "Free", "Rsvd", "Surp")]
    total = query.view.memory_bytes // 1024
    for name, kb in (("Hugepagesize", 2048), ("Hugetlb", 0), ("DirectMap4k", 0), ("DirectMap2M", total)):
        lines.append(f"{name + ':':16s}{kb:8d} kB")
    return ("\n".join(lines) + "\n").encode()


def node_meminfo(view: MachineView) -> bytes:
    """node0/meminfo of sysfs: the whole machine is one node."""
    kb = amounts(view)
    shown = {"MemTotal": kb["MemTotal"], "MemFree": kb["MemFree"], "MemUsed": kb["MemTotal"] - kb["MemFree"]}
    for name in ("SwapCached", "Active", "Inactive", "Active(anon)", "Inactive(anon)", "Active(file)",
                 "Inactive(file)", "Unevictable", "Mlocked", "Dirty", "Writeback"):  # fmt: skip
        shown[name] = kb[name]
    shown["FilePages"] = kb["Buffers"] + kb["Cached"]
    for name in ("Mapped", "AnonPages", "Shmem", "KernelStack", "PageTables", "NFS_Unstable", "Bounce",
                 "WritebackTmp", "KReclaimable", "Slab", "SReclaimable", "SUnreclaim", "AnonHugePages"):
        shown[name] = kb[name]
    lines = [f"Node 0 {name + ':':15s}{value:8d} kB" for name, value in shown.items()]
    lines += [f"Node 0 {'HugePages_' + what + ':':15s}{0:6d}" for what in ("Total", "Free", "Surp")]
    return ("\n".join(lines) + "\n").encode()


def _page_counts(view: MachineView) -> dict[str, int]:
    kb = amounts(view)
    pages = {name: kb[name] * 1024 // PAGE_SIZE for name in kb}
    lru = {
        "inactive_anon": pages["Inactive(anon)"], "active_anon": pages["Active(anon)"],
        "inactive_file": pages["Inactive(file)"], "active_file": pages["Active(file)"],
    }  # fmt: skip
    counts = {"nr_free_pages": pages["MemFree"]}
    counts |= {f"nr_zone_{name}": value for name, value in lru.items()}
    counts |= {"nr_zone_unevictable": 0, "nr_zone_write_pending": 0, "nr_mlock": 0, "nr_bounce": 0}
    counts |= dict.fromkeys(_VMSTAT_COUNTERS, 0)
    counts |= {f"nr_{name}": value for name, value in lru.items()}
    counts["nr_anon_pages"] = pages["AnonPages"]
    counts["nr_mapped"] = pages["Mapped"]
    counts["nr_file_pages"] = pages["Buffers"] + pages["Cached"]
    counts["nr_slab_reclaimable"] = pages["SReclaimable"]
    counts["nr_slab_unreclaimable"] = pages["SUnreclaim"]
    return counts


def vmstat(query: Query) -> bytes:
    """Sizes agree with meminfo; all event counters are zero."""
    return "".join(f"{name} {value}\n" for name, value in _page_counts(query.view).items()).encode()


def node_vmstat(view: MachineView) -> bytes:
    """node0/vmstat of sysfs: the same counters."""
    return "".join(f"{name} {value}\n" for name, value in _page_counts(view).items()).encode()


def zoneinfo(query: Query) -> bytes:
    """One zone, Normal, with all memory.  (Go's and Java's readers, and postgres, look at totals only.)"""
    counts = _page_counts(query.view)
    managed = query.view.memory_bytes // PAGE_SIZE
    node = [name for name in counts if name.startswith("nr_") and not name.startswith("nr_zone_")]
    lines = ["Node 0, zone   Normal", "  per-node stats"]
    lines += [f"      {name:<12s} {counts[name]}" for name in node if name != "nr_free_pages"]
    lines.append(f"  pages free     {counts['nr_free_pages']}")
    for name, value in (("boost", 0), ("min", 4096), ("low", 5120), ("high", 6144), ("spanned", managed),
                        ("present", managed), ("managed", managed), ("cma", 0)):  # fmt: skip
        lines.append(f"        {name:<8s} {value}")
    lines.append("        protection: (0, 0, 0, 0)")
    lines += [f"      {name:<12s} {counts[name]}" for name in counts if name.startswith("nr_zone_")]
    lines.append("  pagesets")
    for number in range(query.view.cpus):
        lines += [f"    cpu: {number}", "              count: 0", "              high:  378",
                  "              batch: 63", "  vm stats threshold: 42"]  # fmt: skip
    lines += ["  node_unreclaimable:  0", "  start_pfn:           0"]
    return ("\n".join(lines) + "\n").encode()


def _largest_blocks(view: MachineView) -> int:
    return amounts(view)["MemFree"] * 1024 // PAGE_SIZE // PAGES_IN_LARGEST_BLOCK


def buddyinfo(query: Query) -> bytes:
    """All free memory in blocks of the largest order."""
    return f"Node 0, zone   Normal {'     0 ' * 10}{_largest_blocks(query.view):6d} \n".encode()


def pagetypeinfo(query: Query) -> bytes:
    """As buddyinfo, all of it movable."""
    types = ("Unmovable", "Movable", "Reclaimable", "HighAtomic", "Isolate")
    free = {"Movable": _largest_blocks(query.view)}
    orders = "".join(f"{order:6d} " for order in range(11))
    lines = ["Page block order: 9", "Pages per block:  512", ""]
    lines.append(f"Free pages count per migrate type at order {orders}")
    for name in types:
        lines.append(f"Node    0, zone   Normal, type {name:>12s} {'     0 ' * 10}{free.get(name, 0):6d} ")
    blocks = query.view.memory_bytes // PAGE_SIZE // 512
    lines += ["", "Number of blocks type " + "".join(f"{name:>12s} " for name in types)]
    counts = "".join(f"{blocks if name == 'Movable' else 0:12d} " for name in types)
    lines.append(f"Node 0, zone   Normal {counts}")
    return ("\n".join(lines) + "\n").encode()
