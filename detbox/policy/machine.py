"""Policy rows: time, random numbers, identity, limits, scheduling, and what the machine does not offer."""

from __future__ import annotations

from errno import ENOSYS, EPERM

from detbox.policy.find import h
from detbox.policy.row import Row, emulate, refuse

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
    *(emulate(name, h(name), CLOCKS, "virtual time; each look advances it a little, and all clocks agree")
      for name in ("time", "gettimeofday", "clock_gettime")),
    emulate("clock_getres", h("clock_getres"), CLOCKS, "one nanosecond, whatever the host's timers can do"),
    *(emulate(name, h(name), CLOCKS, "CPU time is virtual: a fixed cost for each intercepted call")
      for name in ("times", "getrusage")),
    *(emulate(name, h(name), CLOCKS, "sleeps exactly as long as asked, in virtual time, which passes at once")
      for name in ("nanosleep", "clock_nanosleep")),
    *(emulate(name, h(name), CLOCKS, "shows a clock that nobody disciplines; setting it is not permitted")
      for name in ("adjtimex", "clock_adjtime")),
    *(refuse(name, EPERM, CLOCKS, "virtual time cannot be set; start the run with another --epoch")
      for name in ("settimeofday", "clock_settime")),

    *(emulate(name, h(name), TIMERS, "expires in virtual time; expirations are delivered in a fixed order",
              missing="a timer on CPU time does not count computation between two calls")
      for name in ("alarm", "getitimer", "setitimer")),
    *(emulate(name, h(name), TIMERS, "expires in virtual time; expirations are delivered in a fixed order",
              missing="a timer on CPU time does not count computation between two calls")
      for name in ("timer_create", "timer_settime", "timer_gettime", "timer_getoverrun", "timer_delete")),

    emulate("getrandom", h("getrandom"), RANDOM, "a stream per process, derived from seed and fork tree"),

    *(emulate(name, h(name), IDENTITY, _RULES)
      for name in ("getuid", "geteuid", "getgid", "getegid", "setuid", "setgid", "setreuid", "setregid",
                   "getresuid", "getresgid", "setresuid", "setresgid", "setfsuid", "setfsgid", "getgroups",
                   "setgroups", "capget", "capset")),
    emulate("uname", h("uname"), IDENTITY, "host name, kernel release and version are fixed"),
    *(refuse(name, EPERM, IDENTITY, "the names of the machine are fixed")
      for name in ("sethostname", "setdomainname")),
    emulate("personality", h("personality"), IDENTITY, "the layout is fixed; the guest sees what it set"),

    *(emulate(name, h(name), LIMITS, "a fixed base; limits that can be enforced exactly take effect")
      for name in ("getrlimit", "setrlimit", "prlimit64")),
    emulate("sysinfo", h("sysinfo"), LIMITS, "memory, load and process count are fixed; uptime is virtual"),

    emulate("sched_yield", h("sched_yield"), SCHEDULING, "lets the other threads run, in a fixed order"),
    emulate("getcpu", h("getcpu"), SCHEDULING, "every thread is shown on CPU 0 of node 0"),
    *(emulate(name, h(name), SCHEDULING, "a virtual mask of the configured number of CPUs, without effect")
      for name in ("sched_getaffinity", "sched_setaffinity")),
    *(emulate(name, h(name), SCHEDULING, _EFFECT)
      for name in ("sched_setparam", "sched_getparam", "sched_setscheduler", "sched_getscheduler",
                   "sched_setattr", "sched_getattr", "sched_rr_get_interval", "getpriority", "setpriority",
                   "ioprio_set", "ioprio_get")),
    *(emulate(name, h(name), SCHEDULING, "the kernel's constants")
      for name in ("sched_get_priority_max", "sched_get_priority_min")),

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
