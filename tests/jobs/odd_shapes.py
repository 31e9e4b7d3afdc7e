"""The table of system calls with a usual set of arguments, and the odd values that replace them one at a time.

A call with arguments of types fd, buf and len is made with every kind of descriptor, with bad addresses, and
with extreme lengths.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import signal
import socket
import struct

BAD = 0x1230  # an address where nothing is
KERNEL = 0xFFFF800000000000
MINUS = 2**64 - 1
ARENA = mmap.mmap(-1, (1 << 16) + mmap.PAGESIZE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
BASE = ctypes.addressof(ctypes.c_char.from_buffer(ARENA))
#: The last page cannot be read: a structure that begins just before it is cut off.
EDGE = BASE + (1 << 16) - 2
if ctypes.CDLL(None).mprotect(ctypes.c_void_p(BASE + (1 << 16)), ctypes.c_size_t(mmap.PAGESIZE), 0):
    raise OSError("mprotect")

Argument = int | bytes | str


def put(data: bytes, at: int) -> int:
    """Store ``data`` in the arena; its address."""
    ARENA[at:at + len(data)] = data
    return BASE + at


SECOND = struct.pack("<qq", 0, 1_000_000)
IOV = struct.pack("<QQQQ", BASE + 0x8000, 5, BASE + 0x9000, 3)
INET = struct.pack("<H", socket.AF_INET) + struct.pack(">H", 0) + socket.inet_aton("127.0.0.1") + bytes(8)
UNIX = struct.pack("<H", socket.AF_UNIX) + b"name\0"
SIGSET = struct.pack("<Q", 1 << (signal.SIGUSR1 - 1))
POLL = struct.pack("<ihhihh", 0, 1, 0, 1, 4, 0)
MSG = struct.pack("<QIIQQQQiI", 0, 0, 0, BASE + 0x7000, 2, 0, 0, 0, 0)
ITIMER = struct.pack("<qqqq", 0, 0, 5, 0)
OPEN_HOW = struct.pack("<QQQ", os.O_RDONLY, 0, 0)
CLONE_ARGS = bytes(88)
EVENT = struct.pack("<IQ", select.EPOLLIN, 7)
FLOCK = struct.pack("<hhqqi4x", fcntl.F_WRLCK, 0, 0, 10, 0)
SIGEVENT = struct.pack("<Qii48x", 5, signal.SIGUSR1, 0)

LONG = b"n" * 256
DEEP = b"d/" * 2100
#: Odd values by type; "fd" are names of ``MAKERS`` in ``odd_calls``, "path" those of what its ``prepare`` makes.
ODD: dict[str, tuple[Argument, ...]] = {
    "fd": ("file", "reader", "writer", "dir", "path-only", "pipe-out", "pipe-in", "pipe-broken", "stream", "datagram",
           "listener", "udp", "epoll", "event", "timer", "signal", "inotify", "memory", "null", "zero", "terminal",
           "master", "append", "proc", -1, 999, 2**31, -100),
    "path": (b"file", b"", b"missing", b"file/x", b"dir", b"dir/", b"file/", b"dangling", b"loop", b"link", b"fifo",
             b"closed", b"closed/x", b"missing/x", LONG, DEEP, b".", b"dir/.", b"full", 0, BAD, b"/proc/self/fd"),
    "buf": (b"\0" * 64, 0, BAD, KERNEL, EDGE),
    "len": (8, 0, 1, 3, 4096, 2**31, 2**32 + 8, MINUS, 2**63),
    "off": (0, 1, 2**31, 2**62, 2**63, MINUS),
    "flags": (0, 1, 2, 3, 4, 8, 16, 32, 64, 128, 256, 0x400, 0x800, 0x1000, 0x80000, 0x100000, 2**30, 2**31, 2**32,
              MINUS),
    "int": (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 31, 32, 63, 64, 65, 100, 1000, 2**31 - 1, 2**31, 2**32, MINUS),
    "pid": (0, 2**22 + 1, 2**31 - 1, MINUS, 2**64 - 2**22, 2**31),
    "mode": (0o644, 0, 0o7777, 0o100644, 0o40755, 0o20644, 0o10644, 0o140644, 0o170000, 2**31),
    "sig": (0, 1, 9, 10, 17, 19, 32, 64, 65, 2**31, MINUS),
    "size": (8, 0, 4, 7, 16, 2**31, MINUS),
}  # fmt: skip


def s(kind: str, usual: Argument) -> tuple[str, Argument]:
    return kind, usual


FD, RFD, WFD, DFD = s("fd", "file"), s("fd", "reader"), s("fd", "writer"), s("fd", "dir")
STREAM, UDP, EPOLL = s("fd", "stream"), s("fd", "udp"), s("fd", "epoll")
PATH, NEW, LINK, DIR = s("path", b"file"), s("path", b"new"), s("path", b"link"), s("path", b"dir")
BUF, LEN, OFF, FLAGS, MODE = s("buf", b"\0" * 64), s("len", 8), s("off", 0), s("flags", 0), s("mode", 0o644)
NULL, PID, SIG, SIZE, INT = s("buf", 0), s("pid", 0), s("sig", 0), s("size", 8), s("int", 0)
AT = s("fd", -100)


def data(value: bytes) -> tuple[str, Argument]:
    return "buf", value


def fix(value: Argument) -> tuple[str, Argument]:
    """An argument that is never replaced."""
    return "", value


#: Number, usual arguments.  What could end or stop the whole table, or sleep for ever, has fixed arguments.
SHAPES: dict[str, tuple[int, tuple[tuple[str, Argument], ...]]] = {
    "read": (0, (RFD, BUF, LEN)),
    "write": (1, (WFD, BUF, s("len", 3))),
    "open": (2, (PATH, FLAGS, MODE)),
    "close": (3, (s("fd", "dir"),)),
    "stat": (4, (PATH, s("buf", bytes(144)))),
    "fstat": (5, (FD, s("buf", bytes(144)))),
    "lstat": (6, (LINK, s("buf", bytes(144)))),
    "poll": (7, (data(POLL), s("int", 2), fix(0))),
    "lseek": (8, (FD, OFF, s("int", 0))),
    "mmap": (9, (fix(0), s("len", 4096), s("int", 1), s("flags", 2), FD, OFF)),
    "mprotect": (10, (fix(BASE), LEN, s("int", 3))),
    "munmap": (11, (s("buf", 0), LEN)),
    "rt_sigaction": (13, (s("sig", 10), NULL, BUF, SIZE)),
    "rt_sigprocmask": (14, (s("int", 0), data(SIGSET), BUF, SIZE)),
    "ioctl": (16, (s("fd", "terminal"), s("int", 0x5401), BUF)),
    "ioctl-read": (16, (s("fd", "pipe-out"), fix(0x541B), BUF)),
    "ioctl-size": (16, (s("fd", "terminal"), fix(0x5413), BUF)),
    "ioctl-nonblock": (16, (FD, fix(0x5421), BUF)),
    "ioctl-cloexec": (16, (FD, fix(0x5451), BUF)),
    "ioctl-flags": (16, (FD, fix(0x80086601), BUF)),
    "ioctl-clone": (16, (WFD, fix(0x40049409), fix(3))),
    "ioctl-packet": (16, (s("fd", "master"), fix(0x5420), data(b"\1\0\0\0"))),
    "ioctl-pgrp": (16, (s("fd", "terminal"), fix(0x540F), BUF)),
    "pread64": (17, (RFD, BUF, LEN, OFF)),
    "pwrite64": (18, (WFD, BUF, s("len", 3), OFF)),
    "readv": (19, (RFD, data(IOV), s("int", 2))),
    "writev": (20, (WFD, data(IOV), s("int", 2))),
    "access": (21, (PATH, s("int", 4))),
    "pipe": (22, (BUF,)),
    "select": (23, (s("int", 3), data(bytes(128)), NULL, NULL, data(bytes(16)))),
    "mremap": (25, (fix(BASE), s("len", 4096), s("len", 4096), s("flags", 1), fix(0))),
    "msync": (26, (s("buf", BASE), LEN, s("flags", 4))),
    "mincore": (27, (fix(BASE), s("len", 4096), BUF)),
    "madvise": (28, (fix(BASE), s("len", 4096), s("int", 0))),
    "shmget": (29, (s("int", 0), s("len", 4096), s("flags", 0o1600))),
    "shmat": (30, (INT, fix(0), FLAGS)),
    "shmctl": (31, (INT, s("int", 2), BUF)),
    "dup": (32, (FD,)),
    "dup2": (33, (FD, s("int", 50))),
    "nanosleep": (35, (data(SECOND), NULL)),
    "getitimer": (36, (INT, BUF)),
    "setitimer": (38, (INT, data(bytes(32)), BUF)),
    "sendfile": (40, (WFD, RFD, NULL, s("len", 4))),
    "socket": (41, (s("int", 1), s("int", 1), INT)),
    "connect": (42, (UDP, data(INET), s("len", 16))),
    "connect-unix": (42, (s("fd", "datagram"), data(UNIX), s("len", 7))),
    "accept": (43, (s("fd", "listener"), NULL, NULL)),
    "sendto": (44, (STREAM, BUF, LEN, FLAGS, NULL, s("len", 0))),
    "sendto-address": (44, (UDP, BUF, s("len", 8), fix(0), data(INET), s("len", 16))),
    "recvfrom": (45, (STREAM, BUF, s("len", 8), s("flags", 0x40), NULL, NULL)),
    "sendmsg": (46, (STREAM, data(MSG), FLAGS)),
    "recvmsg": (47, (STREAM, data(MSG), s("flags", 0x40))),
    "shutdown": (48, (STREAM, INT)),
    "bind": (49, (UDP, data(INET), s("len", 16))),
    "bind-unix": (49, (s("fd", "datagram"), data(UNIX), s("len", 7))),
    "listen": (50, (STREAM, INT)),
    "getsockname": (51, (STREAM, BUF, data(b"\x40\0\0\0"))),
    "getpeername": (52, (STREAM, BUF, data(b"\x40\0\0\0"))),
    "socketpair": (53, (s("int", 1), s("int", 1), INT, BUF)),
    "setsockopt": (54, (STREAM, fix(1), INT, data(b"\1\0\0\0"), s("len", 4))),
    "setsockopt-ip": (54, (UDP, fix(0), INT, data(b"\1\0\0\0"), s("len", 4))),
    "setsockopt-tcp": (54, (s("fd", "listener"), fix(6), INT, data(b"\1\0\0\0"), s("len", 4))),
    "setsockopt-level": (54, (STREAM, INT, fix(1), data(b"\1\0\0\0"), s("len", 4))),
    "getsockopt": (55, (STREAM, fix(1), INT, BUF, data(b"\4\0\0\0"))),
    "getsockopt-ip": (55, (UDP, fix(0), INT, BUF, data(b"\4\0\0\0"))),
    "getsockopt-tcp": (55, (s("fd", "listener"), fix(6), INT, BUF, data(b"\4\0\0\0"))),
    "wait4": (61, (PID, NULL, s("flags", 1), NULL)),
    "kill": (62, (PID, fix(0))),
    "kill-self": (62, (fix("pid"), SIG)),
    "uname": (63, (s("buf", bytes(400)),)),
    "semget": (64, (INT, s("int", 2), s("flags", 0o1600))),
    "semop": (65, (INT, data(bytes(6)), s("int", 1))),
    "semctl": (66, (INT, INT, s("int", 12), fix(0))),
    "shmdt": (67, (s("buf", BASE),)),
    "msgget": (68, (INT, s("flags", 0o1600))),
    "msgsnd": (69, (INT, data(b"\1" + bytes(20)), LEN, s("flags", 0o4000))),
    "msgrcv": (70, (INT, BUF, LEN, fix(0), s("flags", 0o4000))),
    "msgctl": (71, (INT, s("int", 2), BUF)),
    "fcntl": (72, (FD, s("int", 3), fix(0))),
    "fcntl-dup": (72, (FD, fix(0), INT)),
    "fcntl-setfl": (72, (FD, fix(4), FLAGS)),
    "fcntl-lock": (72, (FD, s("int", 6), data(FLOCK))),
    "fcntl-getlk": (72, (FD, fix(5), data(FLOCK))),
    "fcntl-notify": (72, (DFD, fix(1026), FLAGS)),
    "fcntl-pipe": (72, (s("fd", "pipe-in"), fix(1031), s("len", 8192))),
    "fcntl-lease": (72, (RFD, fix(1024), INT)),
    "fcntl-owner": (72, (STREAM, fix(8), PID)),
    "fcntl-signal": (72, (STREAM, fix(10), SIG)),
    "fcntl-seals": (72, (s("fd", "memory"), fix(1033), FLAGS)),
    "fcntl-hint": (72, (FD, fix(1036), data(bytes(8)))),
    "flock": (73, (FD, s("flags", 4 | 1))),
    "fsync": (74, (FD,)),
    "fdatasync": (75, (FD,)),
    "truncate": (76, (PATH, OFF)),
    "ftruncate": (77, (FD, OFF)),
    "getdents64": (217, (DFD, s("buf", bytes(512)), s("len", 512))),
    "chdir": (80, (DIR,)),
    "fchdir": (81, (DFD,)),
    "rename": (82, (PATH, NEW)),
    "rename-over": (82, (PATH, DIR)),
    "rename-dir": (82, (DIR, PATH)),
    "mkdir": (83, (NEW, MODE)),
    "rmdir": (84, (DIR,)),
    "creat": (85, (NEW, MODE)),
    "link": (86, (PATH, NEW)),
    "unlink": (87, (PATH,)),
    "symlink": (88, (PATH, NEW)),
    "readlink": (89, (LINK, BUF, LEN)),
    "chmod": (90, (PATH, MODE)),
    "fchmod": (91, (FD, MODE)),
    "chown": (92, (PATH, fix(0), fix(0))),
    "fchown": (93, (FD, fix(0), fix(0))),
    "lchown": (94, (LINK, fix(MINUS), fix(MINUS))),
    "umask": (95, (MODE,)),
    "gettimeofday": (96, (BUF, NULL)),
    "getrlimit": (97, (INT, BUF)),
    "getrusage": (98, (s("int", 0), s("buf", bytes(144)))),
    "sysinfo": (99, (s("buf", bytes(112)),)),
    "times": (100, (NULL,)),
    "syslog": (103, (s("int", 2), BUF, LEN)),
    "setpgid": (109, (PID, PID)),
    "getpgid": (121, (PID,)),
    "getsid": (124, (PID,)),
    "capget": (125, (data(struct.pack("<Ii", 0x20080522, 0)), s("buf", bytes(24)))),
    "rt_sigpending": (127, (BUF, SIZE)),
    "rt_sigtimedwait": (128, (data(SIGSET), NULL, data(SECOND), SIZE)),
    "rt_sigqueueinfo": (129, (PID, SIG, BUF)),
    "sigaltstack": (131, (NULL, BUF)),
    "utime": (132, (PATH, NULL)),
    "mknod": (133, (NEW, MODE, fix(0))),
    "personality": (135, (s("flags", 0xFFFFFFFF),)),
    "statfs": (137, (PATH, s("buf", bytes(120)))),
    "fstatfs": (138, (FD, s("buf", bytes(120)))),
    "getpriority": (140, (INT, PID)),
    "setpriority": (141, (INT, PID, fix(0))),
    "sched_setparam": (142, (PID, data(bytes(4)))),
    "sched_getparam": (143, (PID, BUF)),
    "sched_setscheduler": (144, (PID, s("int", 0), data(bytes(4)))),
    "sched_getscheduler": (145, (PID,)),
    "sched_get_priority_max": (146, (INT,)),
    "sched_rr_get_interval": (148, (PID, BUF)),
    "mlock": (149, (s("buf", BASE), LEN)),
    "prctl": (157, (INT, fix(0), fix(0), fix(0), fix(0))),
    "arch_prctl": (158, (INT, BUF)),
    "chroot": (161, (PATH,)),
    "gettid": (186, ()),
    "readahead": (187, (RFD, OFF, LEN)),
    "setxattr": (188, (PATH, data(b"user.one\0"), BUF, LEN, INT)),
    "getxattr": (191, (PATH, data(b"user.two\0"), BUF, LEN)),
    "fgetxattr": (193, (FD, data(b"user.two\0"), BUF, LEN)),
    "listxattr": (194, (PATH, BUF, LEN)),
    "removexattr": (197, (PATH, data(b"user.two\0"))),
    "tkill": (200, (s("pid", MINUS), SIG)),
    "time": (201, (NULL,)),
    "futex": (202, (s("buf", bytes(8)), s("int", 1), INT, data(SECOND), NULL, INT)),
    "sched_setaffinity": (203, (PID, SIZE, data(b"\1" + bytes(31)))),
    "sched_getaffinity": (204, (PID, s("size", 128), s("buf", bytes(128)))),
    "epoll_create": (213, (INT,)),
    "timer_create": (222, (INT, data(SIGEVENT), BUF)),
    "timer_settime": (223, (INT, FLAGS, data(bytes(32)), NULL)),
    "timer_delete": (226, (INT,)),
    "fadvise64": (221, (FD, OFF, LEN, INT)),
    "clock_settime": (227, (INT, data(SECOND))),
    "clock_gettime": (228, (INT, BUF)),
    "clock_getres": (229, (INT, BUF)),
    "clock_nanosleep": (230, (INT, FLAGS, data(SECOND), NULL)),
    "epoll_wait": (232, (EPOLL, s("buf", bytes(240)), s("int", 4), fix(0))),
    "epoll_ctl": (233, (EPOLL, s("int", 1), s("fd", "event"), data(EVENT))),
    "tgkill": (234, (PID, PID, SIG)),
    "utimes": (235, (PATH, NULL)),
    "mq_open": (240, (data(b"queue\0"), s("flags", 0o102), MODE, NULL)),
    "mq_unlink": (241, (data(b"queue\0"),)),
    "waitid": (247, (INT, PID, s("buf", bytes(128)), s("flags", 1 | 4), NULL)),
    "ioprio_set": (251, (INT, PID, INT)),
    "ioprio_get": (252, (INT, PID)),
    "inotify_add_watch": (254, (s("fd", "inotify"), PATH, s("flags", 2))),
    "inotify_rm_watch": (255, (s("fd", "inotify"), INT)),
    "openat": (257, (AT, PATH, FLAGS, MODE)),
    "openat-create": (257, (DFD, NEW, s("flags", 0o100), MODE)),
    "mkdirat": (258, (AT, NEW, MODE)),
    "mknodat": (259, (AT, NEW, MODE, fix(0))),
    "fchownat": (260, (AT, PATH, fix(0), fix(0), FLAGS)),
    "newfstatat": (262, (AT, PATH, s("buf", bytes(144)), FLAGS)),
    "unlinkat": (263, (AT, PATH, FLAGS)),
    "unlinkat-dir": (263, (AT, DIR, fix(0x200))),
    "renameat": (264, (AT, PATH, AT, NEW)),
    "linkat": (265, (AT, PATH, AT, NEW, FLAGS)),
    "symlinkat": (266, (PATH, AT, NEW)),
    "readlinkat": (267, (AT, LINK, BUF, LEN)),
    "fchmodat": (268, (AT, PATH, MODE)),
    "faccessat": (269, (AT, PATH, s("int", 4))),
    "pselect6": (270, (s("int", 3), data(bytes(128)), NULL, NULL, data(bytes(16)), NULL)),
    "ppoll": (271, (data(POLL), s("int", 2), data(bytes(16)), NULL, SIZE)),
    "get_robust_list": (274, (PID, BUF, BUF)),
    "splice": (275, (s("fd", "pipe-out"), NULL, WFD, NULL, s("len", 4), s("flags", 2))),
    "tee": (276, (s("fd", "pipe-out"), s("fd", "pipe-in"), s("len", 4), s("flags", 2))),
    "vmsplice": (278, (s("fd", "pipe-in"), data(IOV), s("int", 2), s("flags", 2))),
    "utimensat": (280, (AT, PATH, NULL, FLAGS)),
    "epoll_pwait": (281, (EPOLL, s("buf", bytes(240)), s("int", 4), fix(0), NULL, SIZE)),
    "signalfd4": (289, (s("fd", -1), data(SIGSET), SIZE, FLAGS)),
    "timerfd_create": (283, (s("int", 1), FLAGS)),
    "timerfd_settime": (286, (s("fd", "timer"), FLAGS, data(ITIMER), NULL)),
    "timerfd_gettime": (287, (s("fd", "timer"), BUF)),
    "fallocate": (285, (FD, FLAGS, OFF, LEN)),
    "eventfd2": (290, (INT, FLAGS)),
    "epoll_create1": (291, (FLAGS,)),
    "dup3": (292, (FD, s("int", 50), FLAGS)),
    "pipe2": (293, (BUF, FLAGS)),
    "inotify_init1": (294, (FLAGS,)),
    "preadv": (295, (RFD, data(IOV), s("int", 2), OFF, fix(0))),
    "pwritev": (296, (WFD, data(IOV), s("int", 2), OFF, fix(0))),
    "recvmmsg": (299, (STREAM, data(MSG + bytes(8)), s("int", 1), s("flags", 0x40), NULL)),
    "sendmmsg": (307, (STREAM, data(MSG + bytes(8)), s("int", 1), FLAGS)),
    "prlimit64": (302, (PID, INT, fix(0), BUF)),
    "name_to_handle_at": (303, (AT, PATH, BUF, BUF, FLAGS)),
    "getcpu": (309, (BUF, BUF, NULL)),
    "process_vm_readv": (310, (s("pid", "pid"), data(IOV), s("int", 1), data(IOV), s("int", 1), FLAGS)),
    "kcmp": (312, (PID, PID, INT, fix(0), fix(1))),
    "sched_setattr": (314, (PID, data(struct.pack("<I", 48) + bytes(44)), FLAGS)),
    "sched_getattr": (315, (PID, s("buf", bytes(56)), s("size", 48), FLAGS)),
    "renameat2": (316, (AT, PATH, AT, NEW, FLAGS)),
    "getrandom": (318, (BUF, LEN, FLAGS)),
    "memfd_create": (319, (data(b"name\0"), FLAGS)),
    "membarrier": (324, (INT, FLAGS, fix(0))),
    "copy_file_range": (326, (RFD, NULL, WFD, NULL, s("len", 4), FLAGS)),
    "preadv2": (327, (RFD, data(IOV), s("int", 2), OFF, fix(0), FLAGS)),
    "pwritev2": (328, (WFD, data(IOV), s("int", 2), OFF, fix(0), FLAGS)),
    "statx": (332, (AT, PATH, FLAGS, s("int", 0x7FF), s("buf", bytes(256)))),
    "pidfd_send_signal": (424, (FD, SIG, NULL, FLAGS)),
    "pidfd_open": (434, (PID, FLAGS)),
    "close_range": (436, (fix(900), s("int", 1000), FLAGS)),
    "openat2": (437, (AT, PATH, data(OPEN_HOW), s("size", 24))),
    "faccessat2": (439, (AT, PATH, s("int", 4), FLAGS)),
    "epoll_pwait2": (441, (EPOLL, s("buf", bytes(240)), s("int", 4), data(bytes(16)), NULL, SIZE)),
}  # fmt: skip

#: Results that are numbers of the system's choice: only whether the call succeeds is told.
NUMBERS = frozenset(
    "mmap mremap shmget shmat semget msgget getpgid getsid times time timer_create prctl gettid getpriority "
    "statfs personality tgkill ioprio_get".split()
)
