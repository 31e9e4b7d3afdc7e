"""Socket options: what shows the host's clock, memory or numbering is answered here, timers are kept off."""

from __future__ import annotations

import os
import socket as host
import struct
from errno import EINVAL, ENOENT, ENOPROTOOPT, EPERM
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision
from detbox.handlers import socket_sharing
from detbox.handlers.socket_control import start_stamping
from detbox.handlers.socket_names import listener_of
from detbox.handlers.waiting import fd_of, signed32
from detbox.machine.files import Kind
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

#: net.core.rmem_max and wmem_max of an unconfigured kernel, in bytes.
_BUFFER_MAX = 212992
#: SOCK_MIN_RCVBUF (include/net/sock.h): no buffer is smaller.
_LEAST_RECEIVED = 2304
_SO_INCOMING_CPU, _SO_COOKIE, _SO_BUSY_POLL, _SO_INCOMING_NAPI_ID, _SO_MEMINFO = 49, 57, 46, 56, 55
_SO_MAX_PACING_RATE = 47
#: SO_RCVMARK and TCP_TX_DELAY, the last options of Linux 6.1: later ones are on some hosts only.
_LAST_OPTION, _LAST_TCP_OPTION = 75, 37
_SO_BUF_LOCK, _SOCK_RCVBUF_LOCK = 72, 2  # include/net/sock.h
_SO_PASSSEC, _SO_PEERSEC, _SO_TXTIME = 34, 31, 61
#: SO_PASSCRED, and SO_TIMESTAMP and SO_TIMESTAMPNS in both layouts, which are the same on this processor.
_CONTROL = {16, 29, 35, 63, 64}
#: SO_TIMESTAMPING in both layouts, and its flags up to Linux 6.1: SOF_TIMESTAMPING_OPT_STATS is not among
#: them, as it tells of times that the host measures.
_TIMESTAMPING = {37, 65}
_STAMP_FLAGS = 0xFFFF & ~(1 << 12)
_REFUSED = {
    _SO_TXTIME: ENOPROTOOPT,
    _SO_BUSY_POLL: EPERM,
}
_TCP_CORK, _TCP_DEFER_ACCEPT, _TCP_INFO, _TCP_QUICKACK, _TCP_FASTOPEN = 3, 9, 11, 12, 23
_TCP_FASTOPEN_CONNECT, _TCP_ULP, _TCP_REPAIR, _TCP_ZEROCOPY_RECEIVE = 30, 31, 19, 35
_TCP_TX_DELAY, _TCP_TIMESTAMP, _TCP_CONGESTION = 37, 24, 13
_TCP_REFUSED = {
    _TCP_FASTOPEN, _TCP_FASTOPEN_CONNECT, _TCP_ULP, _TCP_REPAIR, _TCP_ZEROCOPY_RECEIVE, _TCP_TX_DELAY
}  # fmt: skip
#: What every kernel has (net.ipv4.tcp_available_congestion_control), as TCP_CONGESTION tells it.
_CONGESTION = (b"cubic", b"reno")
_CONGESTION_SIZE = 16
#: Options that the guest sets and reads back without an effect, with their initial values.  TCP_NODELAY is
#: always on, TCP_CORK and TCP_DEFER_ACCEPT would set timers of the host's.
_VIRTUAL = {(host.IPPROTO_TCP, host.TCP_NODELAY): 0, (host.IPPROTO_TCP, _TCP_CORK): 0,
            (host.IPPROTO_TCP, _TCP_DEFER_ACCEPT): 0, (host.IPPROTO_TCP, _TCP_QUICKACK): 1}  # fmt: skip
#: TCP_RTO_MAX, and the number of retransmits is kept in a byte.
_LONGEST_PAUSE_S, _RETRANSMITS_AT_MOST = 120, 255
_LINGER = struct.Struct("<ii")  # struct linger: whether, and for how many seconds
#: struct tcp_info: state, ca_state, retransmits, probes, backoff, options, window scales, delivery rate.
_TCP_INFO_KEPT = 1
_TCP_INFO_SIZE = 232


def setsockopt(m: Machine, t: Task, a: Args) -> Decision:
    """``setsockopt(fd, level, name, value, length)``."""
    f = t.process.files.get(fd_of(a[0]))
    level, name = signed32(a[1]), signed32(a[2])
    if f.kind is not Kind.SOCKET:
        return CONTINUE
    if level == host.SOL_SOCKET:
        if name in _REFUSED or name > _LAST_OPTION:
            return -_REFUSED.get(name, ENOPROTOOPT)
        if name in (_SO_PASSSEC, _SO_MAX_PACING_RATE):
            return 0 if signed32(a[4]) >= 4 else -EINVAL  # there are no labels, and no delays
        if name in _CONTROL:
            io_state(m).control = True
        if name in _TIMESTAMPING and signed32(a[4]) >= 4:
            if t.u32(a[3]) & ~_STAMP_FLAGS:
                return -EINVAL
            io_state(m).control = True
            if io_state(m).stamping is None:
                io_state(m).stamping = start_stamping()
        if name == host.SO_LINGER and signed32(a[4]) >= _LINGER.size:
            return _set_linger(m, t, a)
        if name in (host.SO_SNDBUF, host.SO_RCVBUF) and signed32(a[4]) >= 4:
            return _set_buffer(m, t, fd_of(a[0]), name, t.u32(a[3]))
        if name == socket_sharing.DETACH:
            socket_sharing.chosen_by_guest(m, f.ino, own=False)
            return 0
        if name in (socket_sharing.ATTACH_CBPF, socket_sharing.ATTACH_EBPF):
            socket_sharing.chosen_by_guest(m, f.ino, own=True)
            m.doubt(t, "its own program chooses among sockets of one name, and may ask for the processor")
    elif level == host.IPPROTO_TCP:
        if name in _TCP_REFUSED or name > _LAST_TCP_OPTION:
            return -ENOPROTOOPT
        if name == _TCP_CONGESTION and _is_tcp(t, fd_of(a[0])):
            return _set_congestion(m, t, a)
        if (level, name) in _VIRTUAL and _is_tcp(t, fd_of(a[0])):
            if signed32(a[4]) < 4:
                return -EINVAL
            value = signed32(t.u32(a[3]))
            kept = _as_retransmits(value) if name == _TCP_DEFER_ACCEPT else int(value != 0)
            io_state(m).socket_options[f.ino, level, name] = kept
            return 0
    return CONTINUE


def _as_retransmits(seconds: int) -> int:
    """What the kernel tells of a time, which it keeps as a number of retransmits: 1, 3, 7, 15 … s."""
    total, count, pause = 0, 0, 1
    while total < seconds and count < _RETRANSMITS_AT_MOST:
        total, count, pause = total + pause, count + 1, min(2 * pause, _LONGEST_PAUSE_S)
    return total


def _set_linger(m: Machine, t: Task, a: Args) -> Decision:
    """``close`` would wait in the kernel, with everybody else, until the data is read or the host's time is over.

    It returns at once here, and what is sent arrives all the same.  No time at all is let through: the
    connection is reset then.
    """
    f, (on, seconds) = t.process.files.get(fd_of(a[0])), _LINGER.unpack(t.read(a[3], _LINGER.size))
    kept = io_state(m).linger
    kept.pop(f.ino, None)
    if not on or not seconds:
        return CONTINUE
    kept[f.ino] = seconds
    own = t.process.files.borrow(t, fd_of(a[0]))
    with host.socket(fileno=own) as sock:
        sock.setsockopt(host.SOL_SOCKET, host.SO_LINGER, bytes(_LINGER.size))
    return 0


def _set_congestion(m: Machine, t: Task, a: Args) -> int:
    """Remembered without effect: nothing is ever congested on loopback."""
    if signed32(a[4]) < 1:
        return -EINVAL
    name = t.read(a[3], min(signed32(a[4]), _CONGESTION_SIZE - 1)).split(b"\0", 1)[0]
    if name not in _CONGESTION:
        return -ENOENT
    io_state(m).congestion[t.process.files.get(fd_of(a[0])).ino] = name
    return 0


def _set_buffer(m: Machine, t: Task, fd: int, name: int, value: int) -> int:
    """The host's administrator may allow more or less than an unconfigured kernel does.

    The window that a connection has offered cannot be taken back: what came beyond a smaller buffer would be thrown
    away, and sent again when a timer of the host's says so.  The smaller size is only shown.  Nor may the buffer be
    kept from growing: the window tells how much data there is room for, and small pieces take more memory.
    """
    # The kernel compares as unsigned, so that a negative value asks for the most.
    value = min(value, _BUFFER_MAX)
    key, sizes = (t.process.files.get(fd).ino, host.SOL_SOCKET, name), io_state(m).socket_options
    sizes.pop(key, None)
    own = t.process.files.borrow(t, fd)
    with host.socket(fileno=own) as sock:
        if name == host.SO_RCVBUF and 2 * value < sock.getsockopt(host.SOL_SOCKET, name) and _has_window(sock):
            sizes[key] = max(2 * value, _LEAST_RECEIVED)
        else:
            sock.setsockopt(host.SOL_SOCKET, name, value)
            if name == host.SO_RCVBUF and _is_stream(sock):
                sizes[key] = max(2 * value, _LEAST_RECEIVED)
                locks = sock.getsockopt(host.SOL_SOCKET, _SO_BUF_LOCK)
                sock.setsockopt(host.SOL_SOCKET, _SO_BUF_LOCK, locks & ~_SOCK_RCVBUF_LOCK)
    return 0


def _is_stream(sock: host.socket) -> bool:
    return sock.family in (host.AF_INET, host.AF_INET6) and sock.type == host.SOCK_STREAM


def _has_window(sock: host.socket) -> bool:
    """Whether it is a TCP connection."""
    if not _is_stream(sock):
        return False
    try:
        sock.getpeername()
    except OSError:
        return False
    return True


def _is_tcp(t: Task, fd: int) -> bool:
    with host.socket(fileno=t.process.files.borrow(t, fd)) as sock:
        return _is_stream(sock)


def getsockopt(m: Machine, t: Task, a: Args) -> Decision:
    """``getsockopt(fd, level, name, value, &length)``."""
    f = t.process.files.get(fd_of(a[0]))
    level, name = signed32(a[1]), signed32(a[2])
    if f.kind is not Kind.SOCKET:
        return CONTINUE
    if level == host.SOL_SOCKET:
        if name == host.SO_PEERCRED:
            return _peer_credentials(m, t, a)
        if name == host.SO_LINGER and f.ino in io_state(m).linger:
            return _give(t, a, _LINGER.pack(1, io_state(m).linger[f.ino]))
        if name == host.SO_RCVBUF and (f.ino, level, name) in io_state(m).socket_options:
            return _give(t, a, struct.pack("<i", io_state(m).socket_options[f.ino, level, name]))
        if name == _SO_COOKIE:
            return _give(t, a, struct.pack("<Q", io_state(m).socket_cookie(f.ino)))
        if name == _SO_INCOMING_CPU:
            return _give(t, a, bytes(4))
        if name == _SO_MEMINFO:
            return _give(t, a, bytes(36))
        if name in (_SO_TXTIME, _SO_PASSSEC):
            return _give(t, a, bytes(8 if name == _SO_TXTIME else 4))
        if name in (_SO_INCOMING_NAPI_ID, _SO_PEERSEC) or name > _LAST_OPTION:
            return -ENOPROTOOPT
    elif level == host.IPPROTO_TCP:
        if (level, name) in _VIRTUAL:
            initial = _VIRTUAL[level, name]
            value = io_state(m).socket_options.get((f.ino, level, name), initial)
            return _give(t, a, struct.pack("<i", value)) if _is_tcp(t, fd_of(a[0])) else CONTINUE
        if name == _TCP_INFO:
            return _tcp_info(t, a)
        if name > _LAST_TCP_OPTION:
            return -ENOPROTOOPT
        if name in (_TCP_TIMESTAMP, _TCP_CONGESTION) and _is_tcp(t, fd_of(a[0])):
            chosen = io_state(m).congestion.get(f.ino, _CONGESTION[0]).ljust(_CONGESTION_SIZE, b"\0")
            return _give(t, a, bytes(4) if name == _TCP_TIMESTAMP else chosen)
    return CONTINUE


def _give(t: Task, a: Args, value: bytes) -> int:
    """Store the option's value, cut off at the guest's length, which is written back."""
    room = signed32(t.u32(a[4]))
    if room < 0:
        return -EINVAL
    value = value[:room]
    t.write(a[3], value)
    t.write(a[4], struct.pack("<i", len(value)))
    return 0


def _tcp_info(t: Task, a: Args) -> Decision:
    """The state alone: everything else is measured in the host's time, or follows from its memory."""
    own = t.process.files.borrow(t, fd_of(a[0]))
    sock = host.socket(fileno=own)
    try:
        if not _is_stream(sock):
            return CONTINUE
        native = sock.getsockopt(host.IPPROTO_TCP, _TCP_INFO, _TCP_INFO_SIZE)
    finally:
        sock.close()
    return _give(t, a, native[:_TCP_INFO_KEPT].ljust(_TCP_INFO_SIZE, b"\0"))


def _peer_credentials(m: Machine, t: Task, a: Args) -> Decision:
    """PID as the guest counts, and the virtual user of that process."""
    own = t.process.files.borrow(t, fd_of(a[0]))
    sock = host.socket(fileno=own)
    try:
        if sock.family != host.AF_UNIX:
            return CONTINUE
        pid, uid, gid = struct.unpack("<iII", sock.getsockopt(host.SOL_SOCKET, host.SO_PEERCRED, 12))
        if pid == os.getpid():
            pid = listener_of(m, t, sock)
    finally:
        sock.close()
    if pid:
        # A process that is gone had, as far as can be told, the credentials of the one that asks.
        creds = m.processes.get(pid, t.process).creds
        uid, gid = t.process.creds.space.shown(creds.euid, creds.egid)
    return _give(t, a, struct.pack("<iII", pid, uid, gid))
