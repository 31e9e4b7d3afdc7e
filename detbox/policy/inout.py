"""Policy rows: descriptors, pipes, sockets, readiness, memory."""

from __future__ import annotations

from errno import EINVAL, ENOSPC, ENOSYS, EPERM

from detbox.policy.find import h
from detbox.policy.row import (
    Row,
    allow,
    answer,
    emulate,
    equal,
    let_through,
    no_bits,
    refuse,
    trap,
    values,
    watch,
)

DATA = "reading and writing"
FDS = "descriptors"
SOCKETS = "sockets"
READY = "readiness"
MEMORY = "memory"
NUMA = "NUMA"

_BLOCKS = "never blocks in the kernel: the thread waits in the supervisor; file times are virtual"
_LENGTH = "how much a pipe or socket takes or gives at a time is decided by the guest's actions alone"
_LOOPBACK = "only the container's own loopback exists; ports and the order of connections are fixed"
_READY = "readiness is decided in a fixed order; timeouts elapse in virtual time"

F_GETFD, F_SETFD, F_GETFL, F_SETFL = 1, 2, 3, 4
F_ADD_SEALS, F_GET_SEALS = 1033, 1034
O_ASYNC = 0o20000

MADV_FREE = 8
MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 12, 13, 14, 15
MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE = 20, 21, 25
MADV_HWPOISON, MADV_SOFT_OFFLINE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 100, 101, 102, 103

MEMBARRIER_CMD_QUERY = 0

ROWS: tuple[Row, ...] = (
    *(emulate(name, h(name), DATA, f"{_BLOCKS}; {_LENGTH}")
      for name in ("read", "pread64", "readv", "preadv", "preadv2", "write", "pwrite64", "writev", "pwritev",
                   "pwritev2")),
    *(emulate(name, h(name), DATA, _LENGTH)
      for name in ("sendfile", "splice", "tee", "vmsplice", "copy_file_range")),
    allow("close", FDS, "touches the caller's own descriptors only"),
    *(emulate(name, h(name), FDS, "the supervisor keeps a table of what each descriptor is")
      for name in ("dup", "dup2", "dup3", "close_range", "pipe", "pipe2", "memfd_create")),
    watch("fcntl", h("fcntl"), FDS, "locks wait in the supervisor; duplicates enter its table",
          args=(*values(1, F_GETFD, F_SETFD, F_GETFL, F_ADD_SEALS, F_GET_SEALS),
                let_through(equal(1, F_SETFL), no_bits(2, O_ASYNC), why="without O_ASYNC"))),
    emulate("ioctl", h("ioctl"), FDS, "only requests of known meaning; terminals have a fixed size"),
    emulate("flock", h("flock"), FDS, "waits in the supervisor; the order of waiters is fixed"),
    *(emulate(name, h(name), SOCKETS, _LOOPBACK)
      for name in ("socket", "socketpair", "connect", "accept", "accept4", "bind", "listen", "shutdown",
                   "sendto", "sendmsg", "sendmmsg", "recvfrom", "recvmsg", "recvmmsg", "getsockname",
                   "getpeername", "getsockopt", "setsockopt")),
    *(emulate(name, h(name), READY, _READY)
      for name in ("poll", "ppoll", "select", "pselect6", "epoll_create", "epoll_create1", "epoll_ctl",
                   "epoll_wait", "epoll_pwait", "epoll_pwait2")),
    *(emulate(name, h(name), READY, "signals, timers and events arrive in virtual time and in a fixed order")
      for name in ("eventfd", "eventfd2", "timerfd_create", "timerfd_settime", "timerfd_gettime", "signalfd",
                   "signalfd4")),
    *(emulate(name, h(name), READY, "events are made by the supervisor from the calls that cause them")
      for name in ("inotify_init", "inotify_init1", "inotify_add_watch", "inotify_rm_watch")),
    *(refuse(name, ENOSYS, READY, "completes behind the scheduler's back; programs fall back to threads")
      for name in ("io_setup", "io_destroy", "io_getevents", "io_submit", "io_cancel", "io_pgetevents",
                   "io_uring_setup", "io_uring_enter", "io_uring_register")),
    *(refuse(name, EPERM, READY, "watches whole file systems; needs power over the host")
      for name in ("fanotify_init", "fanotify_mark")),

    *(allow(name, MEMORY, "touches the caller's own address space only, whose layout is fixed")
      for name in ("brk", "munmap", "mprotect", "mremap", "remap_file_pages")),
    allow("madvise", MEMORY, "advice with a result or an effect that depends on the host is answered here",
          args=(*(answer(EINVAL, equal(2, advice), why="when pages vanish would depend on the host's memory")
                  for advice in (MADV_FREE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE)),
                *(answer(0, equal(2, advice), why="a hint")
                  for advice in (MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLD,
                                 MADV_PAGEOUT, MADV_COLLAPSE)),
                *(answer(EPERM, equal(2, advice), why="injects hardware errors")
                  for advice in (MADV_HWPOISON, MADV_SOFT_OFFLINE)))),
    emulate("mincore", h("mincore"), MEMORY, "shows every page as resident; the page cache is the host's"),
    *(refuse(name, 0, MEMORY, "succeeds without effect: limits on locked memory are the host's")
      for name in ("mlock", "mlock2", "munlock", "mlockall", "munlockall")),
    allow("membarrier", MEMORY, "orders the caller's own threads",
          args=(trap(equal(0, MEMBARRIER_CMD_QUERY), why="the commands offered depend on the kernel"),),
          handler=h("membarrier")),
    refuse("pkey_alloc", ENOSPC, MEMORY, "protection keys exist on some CPUs only"),
    refuse("pkey_free", EINVAL, MEMORY, "protection keys exist on some CPUs only"),
    refuse("pkey_mprotect", EINVAL, MEMORY, "protection keys exist on some CPUs only",
           args=(let_through(equal(3, 0xFFFFFFFF), why="key -1: plain mprotect"),)),
    *(refuse(name, ENOSYS, MEMORY, "depends on the host's kernel or CPU; programs do without")
      for name in ("memfd_secret", "map_shadow_stack", "mseal", "process_madvise", "process_mrelease")),
    refuse("userfaultfd", EPERM, MEMORY, "hands page faults to another thread behind the scheduler's back"),

    *(emulate(name, h(name), NUMA, "the virtual machine has one memory node")
      for name in ("get_mempolicy", "set_mempolicy", "mbind", "set_mempolicy_home_node", "migrate_pages",
                   "move_pages")),
)
