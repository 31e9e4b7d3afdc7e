"""Policy rows: processes, threads, signals, futexes and System V and POSIX IPC."""

from __future__ import annotations

from errno import ENOSYS, EPERM

from detbox.policy.find import h
from detbox.policy.row import Row, allow, emulate, refuse, watch

PROCESSES = "processes"
SIGNALS = "signals"
FUTEXES = "futexes"
IPC = "System V and POSIX IPC"

ROWS: tuple[Row, ...] = (
    *(watch(name, h(name), PROCESSES, "a new task gets its name in the fork tree and waits for its turn")
      for name in ("clone", "clone3", "fork", "vfork")),
    *(watch(name, h(name), PROCESSES, "the new program gets fixed auxiliary values, layout and random bytes")
      for name in ("execve", "execveat")),
    *(watch(name, h(name), PROCESSES, "ends at a known point of the schedule")
      for name in ("exit", "exit_group")),
    *(emulate(name, h(name), PROCESSES, "waits in the supervisor; children are reaped in a fixed order; "
              "their resource usage is virtual")
      for name in ("wait4", "waitid")),
    *(allow(name, PROCESSES, "the container's own process numbers, given in a fixed order")
      for name in ("getpid", "gettid", "getppid", "getpgrp", "getpgid", "getsid")),
    *(allow(name, PROCESSES, "changes groups and sessions at a known point of the schedule")
      for name in ("setpgid", "setsid")),
    *(watch(name, h(name), PROCESSES, "a descriptor of a process; readiness is decided by the supervisor")
      for name in ("pidfd_open", "pidfd_getfd")),
    *(watch(name, h(name), PROCESSES, "namespaces of its own are possible where they leak nothing")
      for name in ("unshare", "setns")),
    watch("prctl", h("prctl"), PROCESSES, "options that show or change the machine are virtual"),
    watch("arch_prctl", h("arch_prctl"), PROCESSES, "the CPU's features and faulting are not the guest's"),
    watch("seccomp", h("seccomp"), PROCESSES, "the guest's own filters run after the one of the container"),
    watch("set_tid_address", h("set_tid_address"), PROCESSES, "the thread's exit wakes the word's waiters"),
    emulate("restart_syscall", h("restart_syscall"), PROCESSES, "goes on with an interrupted sleep"),
    refuse("rseq", ENOSYS, PROCESSES, "shows the CPU number in memory; the C library asks the kernel instead"),
    refuse("ptrace", EPERM, PROCESSES, "the supervisor traces every process; there can be one tracer only",
           missing="debuggers and strace in the guest"),
    *(refuse(name, EPERM, PROCESSES, "reads or writes other processes behind the scheduler's back")
      for name in ("process_vm_readv", "process_vm_writev")),
    refuse("kcmp", ENOSYS, PROCESSES, "its order follows kernel addresses"),
    *(refuse(name, ENOSYS, PROCESSES, "32-bit segments are not supported")
      for name in ("modify_ldt", "set_thread_area", "get_thread_area")),

    *(allow(name, SIGNALS, "touches the caller's own signal state only")
      for name in ("rt_sigaction", "rt_sigprocmask", "rt_sigreturn", "sigaltstack")),
    *(watch(name, h(name), SIGNALS, "a signal is delivered at the receiver's next call, to a fixed thread")
      for name in ("kill", "tkill", "tgkill", "rt_sigqueueinfo", "rt_tgsigqueueinfo", "pidfd_send_signal")),
    *(emulate(name, h(name), SIGNALS, "waits in the supervisor; timeouts elapse in virtual time")
      for name in ("rt_sigsuspend", "pause", "rt_sigtimedwait")),
    emulate("rt_sigpending", h("rt_sigpending"), SIGNALS, "signals that the supervisor holds are pending too"),

    *(emulate(name, h(name), FUTEXES, "waits and wakes are the supervisor's; the order of waiters is fixed")
      for name in ("futex", "futex_waitv", "futex_wake", "futex_wait", "futex_requeue")),
    *(emulate(name, h(name), FUTEXES, "the supervisor walks the list when the thread ends")
      for name in ("set_robust_list", "get_robust_list")),

    *(emulate(name, h(name), IPC, "identifiers and the order of waiters are fixed; times are virtual")
      for name in ("semget", "semop", "semtimedop", "semctl", "msgget", "msgsnd", "msgrcv", "msgctl",
                   "shmget", "shmat", "shmdt", "shmctl", "mq_open", "mq_unlink", "mq_timedsend", "mq_timedreceive",
                   "mq_notify", "mq_getsetattr")),
)
