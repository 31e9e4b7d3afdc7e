"""A small virtual machine for the tests, and a way to write its /proc and /sys out as ordinary files."""

from __future__ import annotations

import os
import stat
import struct
from pathlib import Path

from detbox.synth import proc, sysfs
from detbox.synth.table import Synthetic
from detbox.synth.view import MachineView, Mount, ProcessView, ThreadView, init_process

MAPS = b"""\
555555554000-555555558000 r--p 00000000 fe:00 4711                       /usr/bin/sleep
555555558000-55555555c000 r-xp 00004000 fe:00 4711                       /usr/bin/sleep
55555555e000-55555557f000 rw-p 00000000 00:00 0                          [heap]
7fffe8000000-7fffec000000 ---p 00000000 00:00 0 
7ffff7d00000-7ffff7d28000 r-xp 00000000 00:2f 99 /usr/lib/x86_64-linux-gnu/libc.so.6
7ffff7fbd000-7ffff7fc1000 r--p 00000000 00:00 0                          [vvar]
7ffff7fc1000-7ffff7fc3000 r-xp 00000000 00:00 0                          [vdso]
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0                          [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]
"""  # noqa: W291
STAT = (
    b"17 (x) y) S 2 17 2 0 -1 4194304 101 0 7 0 3 4 0 0 20 0 1 0 130946 3133440 395 18446744073709551615 "
    b"93824992231424 93824992247808 140737488346112 0 0 0 0 0 0 1 0 0 17 1 0 0 0 0 0 93824992255744 "
    b"93824992257000 93824992260096 140737488347000 140737488347010 140737488347010 140737488351215 0\n"
)
SHM = b"""\
       key      shmid perms                  size  cpid  lpid nattch   uid   gid  cuid  cgid      atime      dtime      ctime                   rss                  swap
      4242          0   600                  4096    17    17      1  1000  1000  1000  1000 1795224903          0 1795224900                  4096                     0
"""  # noqa: E501
TCP = b"""\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:8000 0100007F:1F90 01 00000000:00000000 02:000A7214 00000000     0        0 9003 1 ff 20 4 30 10 -1
   1: 0100007F:1F90 00000000:0000 0A 00000000:00000001 00:00000000 00000000     0        0 9001 1 ff 100 0 0 10 0
   2: 0100007F:1F90 0100007F:8001 06 00000000:00000000 03:00001234 00000000     0        0 0 3 ffff888
   3: 0100007F:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 77 1 ffff888 100 0 0 10 0
"""
UNIX = b"""\
Num       RefCount Protocol Flags    Type St Inode Path
ffff88801: 00000003 00000000 00010000 0001 01  9005 /tmp/my socket
ffff88802: 00000003 00000000 00000000 0001 03    77
ffff88803: 00000003 00000000 00000000 0001 03  9004
"""
HEADINGS = dict.fromkeys(b"msg sem tcp6 udp udp6 udplite udplite6 raw raw6".split(), b"x\n")
_LINKS = {"self": "{0}", "thread-self": "{0}/task/{0}", "mounts": "self/mounts", "net": "self/net"}
AUXV = struct.pack("<4Q", 6, 4096, 0, 0)
FILES = HEADINGS | {b"shm": SHM, b"unix": UNIX, b"tcp": TCP}
FILES |= {b"maps": MAPS, b"stat": STAT, b"auxv": b"the kernel's own"}


def reader(path: bytes) -> bytes:
    """The kernel's files of any process; others do not exist."""
    name = path.rpartition(b"/")[2]
    if name not in FILES:
        raise FileNotFoundError(2, "no such file")
    return FILES[name]


def machine() -> MachineView:
    """Three processes: the first one without files, a shell, and a program with two threads."""
    program = ProcessView(
        17, 2, 17, 2, b"sleep", b"/usr/bin/sleep", (b"sleep", b"3600"), utime=150, stime=50, start_ticks=200,
        threads={17: ThreadView(17, b"sleep"), 18: ThreadView(18, b"worker", utime=7, start_ticks=210)},
        auxv=AUXV,
    )  # fmt: skip
    shell = ProcessView(2, 1, 2, 2, b"sh", b"/bin/sh", (b"sh", b"-c", b"ps"), state="R", start_ticks=100)
    mounts = (
        Mount(20, 1, 0, 50, b"/", "overlay", b"overlay"),
        Mount(21, 20, 0, 51, b"/proc", "proc", b"proc", "rw,nosuid,nodev,noexec,relatime"),
        Mount(22, 20, 0, 52, b"/my dir", "tmpfs", b"tmpfs", super_options="rw,size=4k"),
    )
    return MachineView(
        {1: init_process(), 2: shell, 17: program}, uptime_ns=10_000_000_000, mounts=mounts,
        random_bytes=lambda count: bytes(range(count)),
        virtual_inode=lambda major, minor, ino, path: (os.makedev(0, 50), 1000 + ino),
        socket=lambda ino: (ino - 9000, 1000) if ino > 9000 else None,
    )  # fmt: skip


def write_proc(target: Path, view: MachineView, own_pid: int = 2) -> None:
    """Write all synthetic files of /proc below ``target``."""

    def fill(path: bytes) -> None:
        for name in proc.listing(path, [b"cmdline", b"environ"], view):
            entry = path + b"/" + name
            mode = proc.mode(entry, view)
            place = target / os.fsdecode(entry.removeprefix(b"/proc/"))
            if mode is None or name in (b"cwd", b"exe", b"root"):
                continue
            if stat.S_ISDIR(mode):
                place.mkdir()
                fill(entry)
            elif stat.S_ISLNK(mode):
                place.symlink_to(_LINKS.get(os.fsdecode(name), "?").format(own_pid))
            else:
                place.write_bytes(_content(entry, view))

    target.mkdir(exist_ok=True)
    fill(b"/proc")


def _content(path: bytes, view: MachineView) -> bytes:
    answer = proc.render(path, view, reader)
    if isinstance(answer, Synthetic):
        return answer.data
    found = view.find(int(path.split(b"/")[2]))
    assert found is not None
    return b"".join(argument + b"\0" for argument in found[0].argv) if path.endswith(b"cmdline") else b""


def write_sys(target: Path, view: MachineView) -> None:
    """Write the tree of /sys below ``target``."""
    for name, content in sysfs.tree(view).items():
        place = target / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, sysfs.Symlink):
            place.symlink_to(content.target)
        elif isinstance(content, sysfs.Directory):
            place.mkdir(exist_ok=True)
        else:
            place.write_bytes(content)
