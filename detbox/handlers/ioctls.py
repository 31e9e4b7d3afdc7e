"""``ioctl``: requests of known meaning only; what would show the host's devices is refused."""

from __future__ import annotations

import os
import struct
from errno import EINVAL, EIO, ENOENT, ENOTTY, EOPNOTSUPP, EPERM
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ContinueThen, Decision
from detbox.handlers import namespaces, networks, ptys
from detbox.handlers.descriptors import expect_signals
from detbox.handlers.waiting import POLLIN, fd_of, ready
from detbox.machine.files import Kind
from detbox.machine.io import KERNEL_SIGNALS

if TYPE_CHECKING:
    from detbox.machine.files import OpenFile
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_TIOCSTI, _TIOCCONS, _FIONREAD, _TIOCGPTPEER, _FIOASYNC = 0x5412, 0x541D, 0x541B, 0x5441, 0x5452
_FIOQSIZE, _FIGETBSZ, _TIOCSPTLCK = 0x5460, 2, 0x40045431
_BLOCK_SIZE = 4096

#: Terminals, and what works on every descriptor (FIONBIO, …): 0x54xx in asm-generic/ioctls.h.
_TERMINAL = range(0x5401, 0x5461)
_TERMINAL_SIZED = frozenset({
    0x802C542A, 0x402C542B, 0x402C542C, 0x402C542D,  # TCGETS2, TCSETS2, TCSETSW2, TCSETSF2
    0x80045430, 0x40045431, 0x80045432, 0x80045438, 0x80045439, 0x80045440, 0x40045436,
})  # fmt: skip
#: TCSETS and its relatives, TCXONC: output that ^S has held back may go on.
_RESTARTING = frozenset({0x5402, 0x5403, 0x5404, 0x540A, 0x402C542B, 0x402C542C, 0x402C542D})
#: Socket addresses, interfaces, routes: 0x89xx in include/uapi/linux/sockios.h.  There is lo alone.
_SOCKET = range(0x8901, 0x8A00)

_REFUSED = {
    _TIOCSTI: EIO,  # what a kernel without CONFIG_LEGACY_TIOCSTI says
    _TIOCCONS: EPERM,
    0x541C: EINVAL,  # TIOCLINUX
    # SIOCGSTAMP, SIOCGSTAMPNS, and both with a wider time: no stamp yet
    0x8906: ENOENT, 0x8907: ENOENT, 0x80108906: ENOENT, 0x80108907: ENOENT,
    0x8946: EOPNOTSUPP,  # SIOCETHTOOL
    0x80086601: ENOTTY, 0x40086602: ENOTTY,  # FS_IOC_GETFLAGS, FS_IOC_SETFLAGS
    0x80087601: ENOTTY, 0x40087602: ENOTTY,  # FS_IOC_GETVERSION, FS_IOC_SETVERSION
    0x801C581F: ENOTTY, 0x401C5820: ENOTTY,  # FS_IOC_FSGETXATTR, FS_IOC_FSSETXATTR
    0x81009431: ENOTTY, 0x41009432: ENOTTY,  # FS_IOC_GETFSLABEL, FS_IOC_SETFSLABEL
    0xC020660B: EOPNOTSUPP,  # FS_IOC_FIEMAP
    0x40049409: EOPNOTSUPP, 0x4020940D: EOPNOTSUPP,  # FICLONE, FICLONERANGE
    0xC0189436: EOPNOTSUPP,  # FIDEDUPERANGE
    1: EPERM,  # FIBMAP
}  # fmt: skip
#: Whole groups that programs try on anything: sound, virtual consoles, block devices, btrfs, name spaces,
#: tapes, disks, framebuffers, encryption, wireless, PPP, epoll parameters, F2FS.
_FOREIGN_GROUPS = frozenset({
    0x50, 0x56, 0x4B, 0x12, 0x94, 0xB7, 0x6D, 0x53, 0x46, 0x66, 0x8B, 0x74, 0x8A, 0x58, 0x22, 0x03, 0x02,
    0xAE, 0x64, 0x45, 0xFF, 0xF5,
})  # fmt: skip
_RANDOM = {0x80045200: struct.pack("<i", 256)}  # RNDGETENTCNT: the pool is full


def ioctl(m: Machine, t: Task, a: Args) -> Decision:
    """``ioctl(fd, request, argument)``."""
    f = t.process.files.get(fd_of(a[0]))
    request = a[1] & 0xFFFFFFFF
    if request in _REFUSED:
        return -_REFUSED[request]
    if f.kind is Kind.RANDOM:
        return _random(t, request, a[2])
    if request == _FIONREAD:
        return _amount(m, t, fd_of(a[0]), f)
    if request in _TERMINAL or request in _TERMINAL_SIZED:
        return _terminal(m, t, request, a, f)
    if request in _SOCKET:
        return networks.refused_request(t, request) or CONTINUE if f.kind is Kind.SOCKET else -ENOTTY
    if request == _FIGETBSZ:
        t.write(a[2], struct.pack("<i", _BLOCK_SIZE))
        return 0
    if request in namespaces.REQUESTS:
        return namespaces.request(m, t, a)
    if request >> 8 & 0xFF not in _FOREIGN_GROUPS:
        m.doubt(t, f"unknown ioctl {request:#x} on a {f.kind.value}")
    return -ENOTTY


def _random(t: Task, request: int, address: int) -> int:
    if request in _RANDOM:
        t.write(address, _RANDOM[request])
        return 0
    return -EPERM if request >> 8 & 0xFF == 0x52 else -ENOTTY


def _terminal(m: Machine, t: Task, request: int, a: Args, f: OpenFile) -> Decision:
    if request == _TIOCSPTLCK:
        m.data[KERNEL_SIGNALS] = True  # a terminal sends them from now on
    elif request == _TIOCGPTPEER:
        t.process.files.forget_all()
    elif request == _FIOASYNC and a[2] and t.u32(a[2]):
        expect_signals(m, t, fd_of(a[0]))
    elif request == _FIOQSIZE and f.kind is not Kind.REG:
        return -ENOTTY
    elif request == _FIOQSIZE:
        # The kernel's own number counts what the file system needs for the file.
        return _occupied(t, fd_of(a[0]), a[2])
    elif request in _RESTARTING and f.kind is Kind.TTY:
        return ContinueThen(lambda task, result: _flush(m, task, fd_of(a[0])))
    return CONTINUE


def _occupied(t: Task, fd: int, address: int) -> int:
    own = t.process.files.borrow(t, fd)
    try:
        size = os.fstat(own).st_size
    finally:
        os.close(own)
    t.write(address, struct.pack("<q", -(-size // _BLOCK_SIZE) * _BLOCK_SIZE))
    return 0


def _flush(m: Machine, t: Task, fd: int) -> None:
    own = t.process.files.borrow(t, fd)
    try:
        ptys.flush(m, own)
    finally:
        os.close(own)


def _amount(m: Machine, t: Task, fd: int, f: OpenFile) -> Decision:
    """FIONREAD: stdin has its next piece, and a terminal what was written to it, before it is asked."""
    if f.kind in (Kind.STDIN, Kind.TTY):
        own = t.process.files.borrow(t, fd)
        try:
            if f.kind is Kind.TTY:
                ptys.arrive(own)
            elif not ready(own, POLLIN):
                m.console.fill_stdin()
        finally:
            os.close(own)
    return CONTINUE

