"""Policy rows: descriptors, pipes, sockets, readiness, memory."""

from __future__ import annotations

from errno import EINVAL, ENOSPC, ENOSYS, EPERM

from detbox.handlers import mapping
from detbox.policy.later import (
    descriptors,
    epoll,
    inotify,
    ioctls,
    locked_memory,
    locks,
    memory,
    pipes,
    polling,
    readwrite,
    socket_names,
    socket_options,
    sockets,
    splice,
    timerfd,
)
from detbox.policy.row import (
    Row,
    allow,
    answer,
    any_bits,
    emulate,
    emulated,
    equal,
    less,
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
O_ASYNC = 0o20000

MADV_FREE = 8
MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE = 12, 13, 14, 15
MADV_COLD, MADV_PAGEOUT, MADV_COLLAPSE = 20, 21, 25
MADV_HWPOISON, MADV_SOFT_OFFLINE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE = 100, 101, 102, 103

MEMBARRIER_CMD_QUERY = 0

ROWS: tuple[Row, ...] = (
    *emulated(
        DATA, f"{_BLOCKS}; {_LENGTH}",
        read=readwrite.read, pread64=readwrite.pread64, readv=readwrite.readv, preadv=readwrite.preadv,
        preadv2=readwrite.preadv2, write=readwrite.write, pwrite64=readwrite.pwrite64,
        writev=readwrite.writev, pwritev=readwrite.pwritev, pwritev2=readwrite.pwritev2,
    ),
    *emulated(
        DATA, _LENGTH,
        sendfile=splice.sendfile, splice=splice.splice, tee=splice.tee, vmsplice=splice.vmsplice,
        copy_file_range=splice.copy_file_range,
    ),
    allow("close", FDS, "touches the caller's own descriptors only"),
    *emulated(
        FDS, "the supervisor keeps a table of what each descriptor is",
        dup=descriptors.dup, dup2=descriptors.dup2, dup3=descriptors.dup3,
        close_range=descriptors.close_range, pipe=pipes.pipe, pipe2=pipes.pipe2,
        memfd_create=pipes.memfd_create,
    ),
    watch("fcntl", descriptors.fcntl, FDS, "locks wait in the supervisor; duplicates enter its table",
          args=values(1, F_GETFD, F_SETFD, F_GETFL)),
    emulate("ioctl", ioctls.ioctl, FDS, "only requests of known meaning; terminals have a fixed size"),
    emulate("flock", locks.flock, FDS, "waits in the supervisor; the order of waiters is fixed"),
    *emulated(
        SOCKETS, _LOOPBACK,
        socket=socket_names.socket, socketpair=socket_names.socketpair, connect=sockets.connect,
        accept=sockets.accept, accept4=sockets.accept4, bind=socket_names.bind, listen=socket_names.listen,
        shutdown=sockets.shutdown, sendto=sockets.sendto, sendmsg=sockets.sendmsg,
        sendmmsg=sockets.sendmmsg, recvfrom=sockets.recvfrom, recvmsg=sockets.recvmsg,
        recvmmsg=sockets.recvmmsg, getsockname=socket_names.getsockname,
        getpeername=socket_names.getpeername, getsockopt=socket_options.getsockopt,
        setsockopt=socket_options.setsockopt,
    ),
    *emulated(
        READY, _READY,
        poll=polling.poll, ppoll=polling.ppoll, select=polling.select, pselect6=polling.pselect6,
        epoll_create=epoll.epoll_create, epoll_create1=epoll.epoll_create1, epoll_ctl=epoll.epoll_ctl,
        epoll_wait=epoll.epoll_wait, epoll_pwait=epoll.epoll_pwait, epoll_pwait2=epoll.epoll_pwait2,
    ),
    *emulated(
        READY, "signals, timers and events arrive in virtual time and in a fixed order",
        eventfd=pipes.eventfd, eventfd2=pipes.eventfd2, timerfd_create=timerfd.timerfd_create,
        timerfd_settime=timerfd.timerfd_settime, timerfd_gettime=timerfd.timerfd_gettime,
        signalfd=pipes.signalfd, signalfd4=pipes.signalfd4,
    ),
    *emulated(
        READY, "events are made by the supervisor from the calls that cause them",
        inotify_init=pipes.inotify_init, inotify_init1=pipes.inotify_init1,
        inotify_add_watch=inotify.inotify_add_watch, inotify_rm_watch=inotify.inotify_rm_watch,
    ),
    *(refuse(name, ENOSYS, READY, "completes behind the scheduler's back; programs fall back to threads")
      for name in ("io_setup", "io_destroy", "io_getevents", "io_submit", "io_cancel", "io_pgetevents",
                   "io_uring_setup", "io_uring_enter", "io_uring_register")),
    *(refuse(name, EPERM, READY, "watches whole file systems; needs power over the host")
      for name in ("fanotify_init", "fanotify_mark")),

    *(allow(name, MEMORY, "touches the caller's own address space only, whose layout is fixed")
      for name in ("brk", "munmap", "mprotect", "remap_file_pages")),
    watch("mremap", mapping.mremap, MEMORY, "where large mappings of files come does not depend on the file system",
          args=(let_through(no_bits(3, mapping.MREMAP_MAYMOVE), why="stays where it is"),
                let_through(any_bits(3, mapping.MREMAP_FIXED), why="moves to a given place"),
                let_through(less(2, mapping.ROUNDED_LARGE, 64), why="small"))),
    allow("madvise", MEMORY, "advice with a result or an effect that depends on the host is answered here",
          args=(*(answer(EINVAL, equal(2, advice), why="when pages vanish would depend on the host's memory")
                  for advice in (MADV_FREE, MADV_GUARD_INSTALL, MADV_GUARD_REMOVE)),
                *(answer(0, equal(2, advice), why="a hint")
                  for advice in (MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, MADV_COLD,
                                 MADV_PAGEOUT, MADV_COLLAPSE)),
                *(answer(EPERM, equal(2, advice), why="injects hardware errors")
                  for advice in (MADV_HWPOISON, MADV_SOFT_OFFLINE)))),
    emulate("mincore", mapping.mincore, MEMORY, "shows every page as resident; the page cache is the host's"),
    *emulated(
        MEMORY, "remembered for the guest's own limit: how much can be locked is the host's",
        mlock=locked_memory.mlock, mlock2=locked_memory.mlock2, munlock=locked_memory.munlock,
        mlockall=locked_memory.mlockall, munlockall=locked_memory.munlockall,
    ),
    allow("membarrier", MEMORY, "orders the caller's own threads",
          args=(trap(equal(0, MEMBARRIER_CMD_QUERY), why="the commands offered depend on the kernel"),),
          handler=memory.membarrier),
    refuse("pkey_alloc", ENOSPC, MEMORY, "protection keys exist on some CPUs only"),
    refuse("pkey_free", EINVAL, MEMORY, "protection keys exist on some CPUs only"),
    refuse("pkey_mprotect", EINVAL, MEMORY, "protection keys exist on some CPUs only",
           args=(let_through(equal(3, 0xFFFFFFFF), why="key -1: plain mprotect"),)),
    *(refuse(name, ENOSYS, MEMORY, "depends on the host's kernel or CPU; programs do without")
      for name in ("memfd_secret", "map_shadow_stack", "mseal", "process_madvise", "process_mrelease")),
    refuse("userfaultfd", EPERM, MEMORY, "hands page faults to another thread behind the scheduler's back"),

    *emulated(
        NUMA, "the virtual machine has one memory node",
        get_mempolicy=memory.get_mempolicy, set_mempolicy=memory.set_mempolicy, mbind=memory.mbind,
        set_mempolicy_home_node=memory.set_mempolicy_home_node, migrate_pages=memory.migrate_pages,
        move_pages=memory.move_pages,
    ),
)
