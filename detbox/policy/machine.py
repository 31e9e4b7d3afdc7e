"""Policy rows: time, random numbers, identity, limits, scheduling, and what the machine does not offer."""

from __future__ import annotations

from errno import ENOSYS, EPERM

from detbox.policy.later import (
    clocks,
    identity,
    limits,
    random,
    scheduling,
    timers,
)
from detbox.policy.row import Row, emulate, emulated, refuse

CLOCKS = "clocks"
TIMERS = "timers"
RANDOM = "random"
IDENTITY = "identity"
LIMITS = "limits"
SCHEDULING = "scheduling"
MACHINE = "machine"

_RULES = "virtual credentials with the rules of the kernel"
_EFFECT = "kept and shown, without effect: the schedule depends on the guest's calls alone"

ROWS: tuple[Row, ...] = (
    *emulated(
        CLOCKS, "virtual time; each look advances it a little, and all clocks agree",
        time=clocks.time, gettimeofday=clocks.gettimeofday, clock_gettime=clocks.clock_gettime,
    ),
    emulate("clock_getres", clocks.clock_getres, CLOCKS, "one nanosecond, whatever the host's timers can do"),
    *emulated(
        CLOCKS, "CPU time is virtual: a fixed cost for each intercepted call",
        times=clocks.times, getrusage=clocks.getrusage,
    ),
    *emulated(
        CLOCKS, "sleeps exactly as long as asked, in virtual time, which passes at once",
        nanosleep=clocks.nanosleep, clock_nanosleep=clocks.clock_nanosleep,
    ),
    *emulated(
        CLOCKS, "shows a clock that nobody disciplines; setting it is not permitted",
        adjtimex=clocks.adjtimex, clock_adjtime=clocks.clock_adjtime, clock_settime=clocks.clock_settime,
    ),
    refuse("settimeofday", EPERM, CLOCKS, "virtual time cannot be set; start the run with another --epoch"),

    *emulated(
        TIMERS, "expires in virtual time; expirations are delivered in a fixed order",
        "a timer on CPU time does not count computation between two calls",
        alarm=timers.alarm, getitimer=timers.getitimer, setitimer=timers.setitimer,
    ),
    *emulated(
        TIMERS, "expires in virtual time; expirations are delivered in a fixed order",
        "a timer on CPU time does not count computation between two calls",
        timer_create=timers.timer_create, timer_settime=timers.timer_settime,
        timer_gettime=timers.timer_gettime, timer_getoverrun=timers.timer_getoverrun,
        timer_delete=timers.timer_delete,
    ),

    emulate("getrandom", random.getrandom, RANDOM, "a stream per process, derived from seed and fork tree"),

    *emulated(
        IDENTITY, _RULES,
        getuid=identity.getuid, geteuid=identity.geteuid, getgid=identity.getgid, getegid=identity.getegid,
        setuid=identity.setuid, setgid=identity.setgid, setreuid=identity.setreuid,
        setregid=identity.setregid, getresuid=identity.getresuid, getresgid=identity.getresgid,
        setresuid=identity.setresuid, setresgid=identity.setresgid, setfsuid=identity.setfsuid,
        setfsgid=identity.setfsgid, getgroups=identity.getgroups, setgroups=identity.setgroups,
        capget=identity.capget, capset=identity.capset,
    ),
    emulate("uname", identity.uname, IDENTITY, "host name, kernel release and version are fixed"),
    *emulated(
        IDENTITY, "the names of the machine are fixed, but for a UTS namespace of the guest's own",
        sethostname=identity.sethostname, setdomainname=identity.setdomainname,
    ),
    emulate("personality", identity.personality, IDENTITY, "the layout is fixed; the guest sees what it set"),

    *emulated(
        LIMITS, "a fixed base; limits that can be enforced exactly take effect",
        getrlimit=limits.getrlimit, setrlimit=limits.setrlimit, prlimit64=limits.prlimit64,
    ),
    emulate("sysinfo", limits.sysinfo, LIMITS, "memory, load and process count are fixed; uptime is virtual"),

    emulate("sched_yield", scheduling.sched_yield, SCHEDULING, "lets the others run, in a fixed order"),
    emulate("getcpu", scheduling.getcpu, SCHEDULING, "every thread is shown on CPU 0 of node 0"),
    *emulated(
        SCHEDULING, "a virtual mask of the configured number of CPUs, without effect",
        sched_getaffinity=scheduling.sched_getaffinity, sched_setaffinity=scheduling.sched_setaffinity,
    ),
    *emulated(
        SCHEDULING, _EFFECT,
        sched_setparam=scheduling.sched_setparam, sched_getparam=scheduling.sched_getparam,
        sched_setscheduler=scheduling.sched_setscheduler, sched_getscheduler=scheduling.sched_getscheduler,
        sched_setattr=scheduling.sched_setattr, sched_getattr=scheduling.sched_getattr,
        sched_rr_get_interval=scheduling.sched_rr_get_interval, getpriority=scheduling.getpriority,
        setpriority=scheduling.setpriority, ioprio_set=scheduling.ioprio_set,
        ioprio_get=scheduling.ioprio_get,
    ),
    *emulated(
        SCHEDULING, "the kernel's constants",
        sched_get_priority_max=scheduling.sched_get_priority_max,
        sched_get_priority_min=scheduling.sched_get_priority_min,
    ),

    *(refuse(name, EPERM, MACHINE, "changes or shows the whole machine")
      for name in ("syslog", "acct", "reboot", "vhangup", "kexec_load", "kexec_file_load", "init_module",
                   "finit_module", "delete_module", "iopl", "ioperm")),
    *(refuse(name, EPERM, MACHINE, "observes the host's kernel and CPU")
      for name in ("bpf", "perf_event_open")),
    *(refuse(name, ENOSYS, MACHINE, "keyrings outlive processes and containers; programs do without")
      for name in ("add_key", "request_key", "keyctl")),
    *(refuse(name, ENOSYS, MACHINE, "depends on the host's security modules; programs do without")
      for name in ("landlock_create_ruleset", "landlock_add_rule", "landlock_restrict_self",
                   "lsm_get_self_attr", "lsm_set_self_attr", "lsm_list_modules")),
    *(refuse(name, ENOSYS, MACHINE, "never implemented on x86-64, or removed from the kernel")
      for name in ("create_module", "get_kernel_syms", "query_module", "getpmsg", "putpmsg", "afs_syscall",
                   "tuxcall", "security", "vserver", "epoll_ctl_old", "epoll_wait_old")),
    *(refuse(name, ENOSYS, MACHINE, "for the kernel's own trampolines only")
      for name in ("uretprobe", "uprobe")),
)
