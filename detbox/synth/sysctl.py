"""The table of /proc/sys: fixed values (a freshly booted Linux 6.1), a few taken from the virtual machine.

Writes are refused, as for anybody who is not the host's root, except a few that installers and servers make
as a matter of course, which are accepted and have no effect.
"""

from __future__ import annotations

import errno

from detbox.machine import constants
from detbox.synth import cpuinfo
from detbox.synth.process import cpu_list
from detbox.synth.table import Access, Query, Renderer, Row, fixed, refused, synth

#: (directory, why, lines of "name value"); a tab inside a value is written as "|".
_FIXED: tuple[tuple[str, str, str], ...] = (
    ("abi", "binary interfaces: constants", "vsyscall32 1"),
    ("debug", "the default", "exception-trace 1"),
    ("dev/tty", "the default", "ldisc_autoload 1\nlegacy_tiocsti 0"),
    ("fs", "limits are the virtual machine's; counts are zero", f"""
aio-max-nr 65536
aio-nr 0
dentry-state 0|0|45|0|0|0
dir-notify-enable 1
file-max 9223372036854775807
file-nr 512|0|9223372036854775807
inode-nr 4096|0
inode-state 4096|0|0|0|0|0|0
lease-break-time 45
leases-enable 1
mount-max 100000
nr_open {constants.OPEN_FILES_MAX}
overflowgid 65534
overflowuid 65534
pipe-max-size 1048576
pipe-user-pages-hard 0
pipe-user-pages-soft 16384
protected_fifos 1
protected_hardlinks 1
protected_regular 2
protected_symlinks 1
suid_dumpable 0
epoll/max_user_watches 1048576
fanotify/max_queued_events 16384
fanotify/max_user_groups 128
fanotify/max_user_marks 65536
inotify/max_queued_events 16384
inotify/max_user_instances 128
inotify/max_user_watches 65536
mqueue/msg_default 10
mqueue/msg_max 10
mqueue/msgsize_default 8192
mqueue/msgsize_max 8192
mqueue/queues_max 256"""),
    ("kernel", "a kernel's defaults; nothing of the host", f"""
acct 4|2|30
arch {constants.MACHINE}
auto_msgmni 0
bpf_stats_enabled 0
cad_pid 1
cap_last_cap 40
core_pattern core
core_pipe_limit 0
core_uses_pid 0
ctrl-alt-del 0
dmesg_restrict 1
hung_task_timeout_secs 120
io_uring_disabled 2
keys/gc_delay 300
keys/maxbytes 20000
keys/maxkeys 200
keys/root_maxbytes 25000000
keys/root_maxkeys 1000000
kptr_restrict 2
max_lock_depth 1024
modules_disabled 1
msg_next_id -1
msgmax 8192
msgmnb 16384
msgmni 32000
ngroups_max 65536
numa_balancing 0
ostype {constants.OSTYPE}
overflowgid 65534
overflowuid 65534
panic 0
panic_on_oops 0
perf_cpu_time_max_percent 25
perf_event_max_contexts_per_stack 8
perf_event_max_sample_rate 100000
perf_event_max_stack 127
perf_event_mlock_kb 516
perf_event_paranoid 4
pid_max {constants.PID_MAX}
print-fatal-signals 0
printk 4|4|1|7
printk_delay 0
printk_ratelimit 5
printk_ratelimit_burst 10
pty/max 4096
pty/nr 0
pty/reserve 1024
random/entropy_avail 256
random/poolsize 256
random/urandom_min_reseed_secs 60
random/write_wakeup_threshold 256
randomize_va_space 2
sched_autogroup_enabled 0
sched_cfs_bandwidth_slice_us 5000
sched_child_runs_first 0
sched_deadline_period_max_us 4194304
sched_deadline_period_min_us 100
sched_rr_timeslice_ms 100
sched_rt_period_us 1000000
sched_rt_runtime_us 950000
seccomp/actions_avail kill_process kill_thread trap errno user_notif trace log allow
seccomp/actions_logged kill_process kill_thread trap errno user_notif trace log
sem 32000|1024000000|500|32000
sem_next_id -1
shm_next_id -1
shm_rmid_forced 0
shmall 18446744073692774399
shmmax 18446744073692774399
shmmni 4096
sysctl_writes_strict 1
tainted 0
task_delayacct 0
threads-max {constants.THREADS_MAX}
timer_migration 1
unprivileged_bpf_disabled 2
unprivileged_userns_clone 0
watchdog 0
yama/ptrace_scope 1"""),
    ("net/core", "a kernel's defaults", """
bpf_jit_enable 1
busy_poll 0
busy_read 0
default_qdisc pfifo_fast
dev_weight 64
message_burst 10
message_cost 5
netdev_budget 300
netdev_max_backlog 1000
optmem_max 131072
rmem_default 212992
rmem_max 212992
somaxconn 4096
tstamp_allow_data 1
wmem_default 212992
wmem_max 212992
xfrm_acq_expires 30"""),
    ("net/ipv4", "a kernel's defaults", """
icmp_echo_ignore_all 0
icmp_echo_ignore_broadcasts 1
icmp_ratelimit 1000
icmp_ratemask 6168
igmp_max_memberships 20
ip_default_ttl 64
ip_dynaddr 0
ip_early_demux 1
ip_forward 0
ip_local_port_range 32768|60999
ip_local_reserved_ports
ip_no_pmtu_disc 0
ip_nonlocal_bind 0
ip_unprivileged_port_start 1024
ipfrag_high_thresh 4194304
ipfrag_low_thresh 3145728
ipfrag_time 30
ping_group_range 1|0
tcp_abort_on_overflow 0
tcp_adv_win_scale 1
tcp_allowed_congestion_control reno cubic
tcp_available_congestion_control reno cubic
tcp_base_mss 1024
tcp_congestion_control cubic
tcp_dsack 1
tcp_ecn 2
tcp_fack 0
tcp_fastopen 1
tcp_fin_timeout 60
tcp_keepalive_intvl 75
tcp_keepalive_probes 9
tcp_keepalive_time 7200
tcp_low_latency 0
tcp_max_orphans 32768
tcp_max_syn_backlog 512
tcp_max_tw_buckets 32768
tcp_mem 94104|125472|188208
tcp_moderate_rcvbuf 1
tcp_mtu_probing 0
tcp_no_metrics_save 0
tcp_notsent_lowat 4294967295
tcp_orphan_retries 0
tcp_reordering 3
tcp_retries1 3
tcp_retries2 15
tcp_rfc1337 0
tcp_rmem 4096|131072|6291456
tcp_sack 1
tcp_slow_start_after_idle 1
tcp_stdurg 0
tcp_syn_retries 6
tcp_synack_retries 5
tcp_syncookies 1
tcp_timestamps 1
tcp_tw_reuse 2
tcp_window_scaling 1
tcp_wmem 4096|16384|4194304
udp_mem 188208|250944|376416
udp_rmem_min 4096
udp_wmem_min 4096"""),
    ("net/ipv6", "a kernel's defaults", "bindv6only 0\nip_nonlocal_bind 0\nauto_flowlabels 1"),
    ("net/unix", "the default", "max_dgram_qlen 512"),
    ("vm", "a kernel's defaults; sizes follow the virtual memory", """
admin_reserve_kbytes 8192
compact_unevictable_allowed 1
compaction_proactiveness 20
dirty_background_bytes 0
dirty_background_ratio 10
dirty_bytes 0
dirty_expire_centisecs 3000
dirty_ratio 20
dirty_writeback_centisecs 500
dirtytime_expire_seconds 43200
extfrag_threshold 500
hugetlb_shm_group 0
laptop_mode 0
legacy_va_layout 0
lowmem_reserve_ratio 256|256|32|0
max_map_count 65530
memory_failure_early_kill 0
min_free_kbytes 67584
min_slab_ratio 5
min_unmapped_ratio 1
mmap_min_addr 65536
mmap_rnd_bits 28
mmap_rnd_compat_bits 8
nr_hugepages 0
nr_hugepages_mempolicy 0
nr_overcommit_hugepages 0
numa_stat 1
numa_zonelist_order Node
oom_dump_tasks 1
oom_kill_allocating_task 0
overcommit_kbytes 0
overcommit_memory 0
overcommit_ratio 50
page-cluster 3
page_lock_unfairness 5
panic_on_oom 0
percpu_pagelist_high_fraction 0
stat_interval 1
swappiness 60
unprivileged_userfaultfd 0
user_reserve_kbytes 131072
vfs_cache_pressure 100
watermark_boost_factor 15000
watermark_scale_factor 10
zone_reclaim_mode 0"""),
    ("user", "limits per user: a fixed number", "\n".join(
        f"max_{what} {value}" for what, value in (
            ("cgroup_namespaces", 31500), ("fanotify_groups", 128), ("fanotify_marks", 65536),
            ("inotify_instances", 128), ("inotify_watches", 65536), ("ipc_namespaces", 31500),
            ("mnt_namespaces", 31500), ("net_namespaces", 31500), ("pid_namespaces", 31500),
            ("time_namespaces", 31500), ("user_namespaces", 31500), ("uts_namespaces", 31500)))),
)  # fmt: skip

#: Settings of loopback, "all" and "default", the same for each.
_CONF_4 = """accept_local 0|accept_redirects 1|accept_source_route 0|arp_accept 0|arp_announce 0|arp_filter 0
arp_ignore 0|arp_notify 0|disable_policy 0|disable_xfrm 0|forwarding 0|log_martians 0|mc_forwarding 0
medium_id 0
promote_secondaries 0|proxy_arp 0|route_localnet 0|rp_filter 0|secure_redirects 1
send_redirects 1|shared_media 1
src_valid_mark 0|tag 0"""
_CONF_6 = """accept_dad 0|accept_ra 1|accept_redirects 1|accept_source_route 0|addr_gen_mode 0|autoconf 1
dad_transmits 1|disable_ipv6 0|forwarding 0|hop_limit 64|mtu 65536|proxy_ndp 0|use_tempaddr 0"""

#: Written by start-up scripts and installers that do not expect a refusal; the value stays.
_SINKS = frozenset(("vm/overcommit_memory", "net/core/somaxconn", "vm/max_map_count", "kernel/ns_last_pid"))


def new_uuid(query: Query) -> bytes:
    """A fresh version 4 UUID at each open, from the reader's seeded stream."""
    return f"{constants.uuid_text(query.view.random_bytes(16))}\n".encode()


def _of_view(name: str) -> Renderer:
    return lambda query: f"{getattr(query.view, name)}\n".encode()


def ns_last_pid(query: Query) -> bytes:
    """The process number given last."""
    return b"%d\n" % cpuinfo.last_pid(query.view)


def watchdog_cpumask(query: Query) -> bytes:
    """All virtual CPUs."""
    return cpu_list(query.view.cpus).encode() + b"\n"


def _fixed_rows() -> list[Row]:
    rows = []
    for directory, why, text in _FIXED:
        for line in text.strip("\n").splitlines():
            name, _, value = line.partition(" ")
            path = f"{directory}/{name}"
            access = Access.SINK if path in _SINKS else Access.NO
            content = fixed(value.strip().replace("|", "\t") + "\n")
            rows.append(synth(f"sys/{path}", why, content, access, mode=0o100644))
    for family, text in (("ipv4", _CONF_4), ("ipv6", _CONF_6)):
        for device in ("all", "default", "lo"):
            for item in text.replace("\n", "|").split("|"):
                name, value = item.split()
                path = f"sys/net/{family}/conf/{device}/{name}"
                rows.append(synth(path, "a kernel's defaults", fixed(value + "\n"), mode=0o100644))
    return rows


#: Paths relative to /proc.
ROWS: tuple[Row, ...] = (
    *_fixed_rows(),
    synth("sys/kernel/hostname", "the virtual machine's name", _of_view("hostname"), mode=0o100644),
    synth("sys/kernel/domainname", "the virtual machine's domain", _of_view("domainname"), mode=0o100644),
    synth("sys/kernel/osrelease", "the virtual kernel", _of_view("release")),
    synth("sys/kernel/version", "the virtual kernel", _of_view("version")),
    synth("sys/kernel/random/boot_id", "derived from the seed", _of_view("boot_id")),
    synth("sys/kernel/random/uuid", "from the reader's seeded stream", new_uuid),
    synth("sys/kernel/ns_last_pid", "the virtual process number", ns_last_pid, Access.SINK, mode=0o100666),
    synth("sys/kernel/watchdog_cpumask", "all virtual CPUs", watchdog_cpumask, mode=0o100644),
    refused("sys/kernel/modprobe", "no modules"),
    refused("sys/kernel/hotplug", "no devices"),
    refused("sys/kernel/poweroff_cmd", "no power"),
    refused("sys/kernel/stack_tracer_enabled", "no tracing"),
    refused("sys/kernel/usermodehelper/*", "no helpers"),
    refused("sys/fs/binfmt_misc/*", "would run host interpreters"),
    refused("sys/vm/drop_caches", "write-only, host-wide", errno.EACCES),
    refused("sys/vm/compact_memory", "write-only, host-wide", errno.EACCES),
    refused("sys/vm/stat_refresh", "host-wide", errno.EACCES),
    refused("sys/net/ipv4/route/flush", "write-only", errno.EACCES),
    refused("sys/*", "the virtual kernel has no such option, as kernels differ in theirs"),
)
