"""Policy rows: processes, threads, signals, futexes and System V and POSIX IPC."""

from __future__ import annotations

from errno import ENOSYS

from detbox.handlers import dispositions
from detbox.kernel.own import OWN_CALL
from detbox.policy.later import (
    clocks,
    futex,
    futex2,
    futex_exit,
    mqueue,
    namespaces,
    other_memory,
    prctl,
    processes,
    seccomp,
    signals,
    sysvipc,
    tracing,
)
from detbox.policy.row import (
    Row,
    allow,
    emulate,
    emulated,
    equal,
    let_through,
    refuse,
    trap,
    values,
    watch,
    watched,
)

PROCESSES = "processes"
SIGNALS = "signals"
FUTEXES = "futexes"
IPC = "System V and POSIX IPC"

ROWS: tuple[Row, ...] = (
    *watched(
        PROCESSES, "a new task gets its name in the fork tree and waits for its turn",
        clone=processes.clone, clone3=processes.clone3, fork=processes.fork, vfork=processes.vfork,
    ),
    *watched(
        PROCESSES, "the new program gets fixed auxiliary values, layout and random bytes",
        execve=processes.execve, execveat=processes.execveat,
    ),
    *watched(
        PROCESSES, "ends at a known point of the schedule",
        exit=processes.exit_, exit_group=processes.exit_group,
    ),
    *emulated(
        PROCESSES, "waits in the supervisor; children are reaped in a fixed order; "
        "their resource usage is virtual",
        wait4=processes.wait4, waitid=processes.waitid,
    ),
    *(allow(name, PROCESSES, "the container's own process numbers, given in a fixed order")
      for name in ("getpid", "gettid")),
    *watched(
        PROCESSES, "the container's own numbers; others change them, so who asks again and again gives way",
        getppid=processes.relation, getpgrp=processes.relation, getpgid=processes.relation, getsid=processes.relation,
    ),
    *(allow(name, PROCESSES, "changes groups and sessions at a known point of the schedule")
      for name in ("setpgid", "setsid")),
    *watched(
        PROCESSES, "a descriptor of a process; readiness is decided by the supervisor",
        pidfd_open=processes.pidfd_open, pidfd_getfd=processes.pidfd_getfd,
    ),
    *watched(
        PROCESSES, "namespaces of its own are possible where they leak nothing",
        unshare=namespaces.unshare, setns=namespaces.setns,
    ),
    watch("prctl", prctl.prctl, PROCESSES, "options that show or change the machine are virtual"),
    watch("arch_prctl", prctl.arch_prctl, PROCESSES,
          "the CPU's features and faulting are not the guest's, nor is the kernel's vDSO",
          (let_through(equal(0, 0x1012), equal(5, OWN_CALL, 64), why="the supervisor's own"),
           *values(0, 0x1001, 0x1002, 0x1003, 0x1004))),
    watch("seccomp", seccomp.seccomp, PROCESSES, "the guest's own filters count as well",
          (let_through(equal(5, OWN_CALL, 64), why="the supervisor's own"),)),
    watch("set_tid_address", futex_exit.set_tid_address, PROCESSES, "the thread's exit wakes the waiters"),
    emulate("restart_syscall", clocks.restart_syscall, PROCESSES, "goes on with an interrupted sleep"),
    refuse("rseq", ENOSYS, PROCESSES, "shows the CPU number in memory; the C library does without"),
    emulate("ptrace", tracing.ptrace, PROCESSES,
            "the supervisor is every thread's tracer, and stops those that the guest traces for its tracers",
            missing="stops by filters, steps of whole blocks"),
    *emulated(
        PROCESSES, "copied by the supervisor while the other process is held, whatever the host says of debugging",
        process_vm_readv=other_memory.process_vm_readv, process_vm_writev=other_memory.process_vm_writev,
    ),
    refuse("kcmp", ENOSYS, PROCESSES, "its order follows kernel addresses"),
    *(refuse(name, ENOSYS, PROCESSES, "32-bit segments are not supported")
      for name in ("modify_ldt", "set_thread_area", "get_thread_area")),

    *(allow(name, SIGNALS, "touches the caller's own signal state only")
      for name in ("rt_sigprocmask", "rt_sigreturn", "sigaltstack")),
    allow("rt_sigaction", SIGNALS, "touches the caller's own signal state only",
          (let_through(equal(5, OWN_CALL, 64), why="the supervisor's, after a trap"),
           *(trap(equal(0, signo), why="remembered, because trapped instructions raise it")
             for signo in dispositions.RECORDED)),
          dispositions.rt_sigaction),
    *watched(
        SIGNALS, "a signal is delivered at the receiver's next call, to a fixed thread",
        kill=signals.kill, tkill=signals.tkill, tgkill=signals.tgkill,
        rt_sigqueueinfo=signals.rt_sigqueueinfo, rt_tgsigqueueinfo=signals.rt_tgsigqueueinfo,
        pidfd_send_signal=signals.pidfd_send_signal,
    ),
    *emulated(
        SIGNALS, "waits in the supervisor; timeouts elapse in virtual time",
        rt_sigsuspend=signals.rt_sigsuspend, pause=signals.pause, rt_sigtimedwait=signals.rt_sigtimedwait,
    ),
    watch("rt_sigpending", signals.rt_sigpending, SIGNALS,
          "a signal that the supervisor holds back is pending in the kernel too; who waits for one gives way"),

    *emulated(
        FUTEXES, "waits and wakes are the supervisor's; the order of waiters is fixed",
        futex=futex.futex, futex_waitv=futex2.futex_waitv, futex_wake=futex2.futex_wake,
        futex_wait=futex2.futex_wait, futex_requeue=futex2.futex_requeue,
    ),
    watch("set_robust_list", futex_exit.set_robust_list, FUTEXES, "a new thread's first call: counted from here"),
    watch("get_robust_list", futex_exit.get_robust_list, FUTEXES, "the kernel knows the answer"),

    *emulated(
        IPC, "identifiers and the order of waiters are fixed; times are virtual",
        semget=sysvipc.semget, semop=sysvipc.semop, semtimedop=sysvipc.semtimedop, semctl=sysvipc.semctl,
        msgget=sysvipc.msgget, msgsnd=sysvipc.msgsnd, msgrcv=sysvipc.msgrcv, msgctl=sysvipc.msgctl,
        shmget=sysvipc.shmget, shmat=sysvipc.shmat, shmdt=sysvipc.shmdt, shmctl=sysvipc.shmctl,
        mq_open=mqueue.mq_open, mq_unlink=mqueue.mq_unlink, mq_timedsend=mqueue.mq_timedsend,
        mq_timedreceive=mqueue.mq_timedreceive, mq_notify=mqueue.mq_notify,
        mq_getsetattr=mqueue.mq_getsetattr,
    ),
)
