"""The loopback device of a network namespace: no timers of the host's between a send and its arrival.

On ``lo`` a segment is delivered while its sender is still in the kernel, and so is the acknowledgement, if
nothing is set up to wait.  What would wait is switched off: delayed
acknowledgements (a metric of the route), slow start (the same), automatic buffer sizes, corking.  Nothing is lost
here, so that nothing is to be sent again; but the same timer sends what fits into a window that is smaller than a
segment, which would otherwise wait until the receiver reads.  It is as long as the kernel allows.

So nothing may need that timer.  A receiver that has read something tells of its window when that has become twice as
large (__tcp_cleanup_rbuf() in net/ipv4/tcp.c): segments are smaller than half of any usual window, or a sender with a
whole one ready would wait for news of a window that has grown by less.  And small pieces take several times the
memory of their data: what the receiver had no memory for would be thrown away, so its buffer may grow.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from collections.abc import Iterator

#: Settings of the network name space (Documentation/networking/ip-sysctl.rst), below /proc/sys/net.
SYSCTLS: dict[str, str] = {
    "ipv4/tcp_moderate_rcvbuf": "0",  # the window would grow with the measured round-trip time
    "ipv4/tcp_rmem": "4096 131072 6291456",  # the kernel's own maximum, for tcp_clamp_window()
    "ipv4/tcp_wmem": "4096 262144 262144",
    "ipv4/tcp_autocorking": "0",
    # What has several segments would wait for an acknowledgement, if the last has been sent within a millisecond
    # (tcp_tso_should_defer() in net/ipv4/tcp_output.c): not if it is so small a part of the window that may be sent.
    "ipv4/tcp_tso_win_divisor": "255",
    "ipv4/tcp_congestion_control": "reno",  # others look at the clock, and bbr sends when a timer says so
    "ipv4/tcp_slow_start_after_idle": "0",
    "ipv4/tcp_no_metrics_save": "1",
    "ipv4/tcp_timestamps": "0",
    "ipv4/tcp_syncookies": "0",
    "ipv4/tcp_tw_reuse": "0",
    "ipv4/tcp_max_tw_buckets": "0",  # a closed connection would keep its port for a minute of the host's time
    "ipv4/ip_local_port_range": "61000 65535",  # automatic ports are the supervisor's: 32768 to 60999
    "ipv4/ip_unprivileged_port_start": "1024",
    "core/somaxconn": "4096",
    "unix/max_dgram_qlen": "512",
}

_SIOCGIFFLAGS, _IFF_UP = 0x8913, 1
_RTM_NEWROUTE, _RTM_DELROUTE, _RTM_GETROUTE = 24, 25, 26
_NLMSG_DONE, _NLM_DUMP = 3, 0x301
_NLM_REQUEST_ACK, _NLM_REPLACE_CREATE = 0x5, 0x500
_RTA_DST, _RTA_OIF, _RTA_PREFSRC, _RTA_METRICS = 1, 4, 7, 8
_RTAX_LOCK, _RTAX_ADVMSS, _RTAX_INITCWND, _RTAX_RTO_MIN, _RTAX_INITRWND, _RTAX_QUICKACK = 1, 8, 11, 13, 14, 15
_TABLE_LOCAL, _PROTO_KERNEL, _SCOPE_HOST, _TYPE_LOCAL = 255, 2, 254, 2
#: Segments in flight before the first acknowledgement: more than any buffer holds.
_WINDOW = 10000
#: Bytes in a segment: an eighth of the largest window.
_SEGMENT = 8192
#: The least time of the retransmission timer in ms: the kernel takes no longer one (TCP_RTO_MAX).
_RETRY = 120_000


def prepare() -> list[str]:
    """Set the network name space of the caller up; returns what could not be set.

    Needs CAP_NET_ADMIN over the name space, and ``lo`` up.
    """
    proc_fd = os.open("/proc", os.O_PATH | os.O_CLOEXEC)
    try:
        return [*change_settings(proc_fd), *replace_routes()]
    finally:
        os.close(proc_fd)


def change_settings(proc_fd: int) -> list[str]:
    """What :func:`prepare` does before ``lo`` is up; /proc/sys/net shows the caller's name space."""
    failed = []
    for name, value in SYSCTLS.items():
        try:
            fd = os.open(f"sys/net/{name}", os.O_WRONLY | os.O_CLOEXEC, dir_fd=proc_fd)
        except OSError:
            failed.append(name)
            continue
        try:
            os.write(fd, value.encode())
        except OSError:
            failed.append(name)
        finally:
            os.close(fd)
    return failed


def is_up() -> bool:
    """Whether ``lo`` is, in the caller's name space."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        answer = fcntl.ioctl(sock, _SIOCGIFFLAGS, struct.pack("16sh14x", b"lo", 0))
    return bool(struct.unpack("16xh14x", answer)[0] & _IFF_UP)


def replace_routes() -> list[str]:
    """What :func:`prepare` does when ``lo`` is up; the kernel makes its own routes whenever it comes up."""
    failed = []
    index = socket.if_nametoindex("lo")
    routes = {(family, socket.inet_pton(family, address), bits): _ITSELF for family, address, bits in _ROUTES}
    for (family, address, bits), source in (routes | _local_routes()).items():
        error = _replace_route(family, address, bits, index, source)
        if error:
            failed.append(f"route {socket.inet_ntop(family, address)}/{bits}: {os.strerror(error)}")
    return failed


_ROUTES = (
    (socket.AF_INET, "127.0.0.0", 8),
    (socket.AF_INET, "127.0.0.1", 32),
    (socket.AF_INET6, "::1", 128),
)


_ITSELF = socket.inet_aton("127.0.0.1")


def _local_routes() -> dict[tuple[int, bytes, int], bytes]:
    """The routes to addresses of this machine, (family, address, bits), and from which address they lead."""
    found: dict[tuple[int, bytes, int], bytes] = {}
    for family in (socket.AF_INET, socket.AF_INET6):
        for message in _ask(_RTM_GETROUTE, _NLM_DUMP, struct.pack("<8BI", family, *bytes(8))):
            bits, table, kind = message[17], message[20], message[23]
            if (table, kind) == (_TABLE_LOCAL, _TYPE_LOCAL):
                parts = dict(attributes(message[28:]))
                found[family, parts[_RTA_DST], bits] = parts.get(_RTA_PREFSRC, b"")
    return found


def attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The attributes of a message of rtnetlink(7): (type, value)."""
    while len(data) >= 4:
        length, kind = struct.unpack_from("<HH", data)
        if length < 4:
            return
        yield kind & 0x3FFF, data[4:length]
        data = data[length + -length % 4 :]


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _replace_route(family: int, address: bytes, bits: int, index: int, source: bytes) -> int:
    """Replace a route of the local table by one with metrics; the errno, 0 for success."""
    metrics = b"".join(
        _attribute(kind, struct.pack("<I", value))
        for kind, value in (
            (_RTAX_QUICKACK, 1), (_RTAX_ADVMSS, _SEGMENT), (_RTAX_INITCWND, _WINDOW), (_RTAX_INITRWND, _WINDOW),
            (_RTAX_RTO_MIN, _RETRY), (_RTAX_LOCK, 1 << _RTAX_RTO_MIN),
        )  # fmt: skip
    )
    scope = _SCOPE_HOST if family == socket.AF_INET else 0
    body = struct.pack("<8BI", family, bits, 0, 0, _TABLE_LOCAL, _PROTO_KERNEL, scope, _TYPE_LOCAL, 0)
    body += _attribute(_RTA_DST, address) + _attribute(_RTA_OIF, struct.pack("<I", index))
    if family == socket.AF_INET:
        body += _attribute(_RTA_PREFSRC, source)
    else:
        # The kernel's own IPv6 route has metric 0, which no request can name (net/ipv6/route.c takes 0 for
        # the default): it has to go, because the smallest metric wins.
        _request(_RTM_DELROUTE, _NLM_REQUEST_ACK, body)
    body += _attribute(_RTA_METRICS, metrics)
    return _request(_RTM_NEWROUTE, _NLM_REQUEST_ACK | _NLM_REPLACE_CREATE, body)


def _request(kind: int, flags: int, body: bytes) -> int:
    (answer,) = _ask(kind, flags, body)
    return -int(struct.unpack_from("<i", answer, 16)[0])


def _ask(kind: int, flags: int, body: bytes) -> Iterator[bytes]:
    """What the kernel answers: one message, or many up to one that says that they are all."""
    message = struct.pack("<IHHII", 16 + len(body), kind, flags, 1, 0) + body
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as link:
        link.sendto(message, (0, 0))
        while True:
            data = link.recv(1 << 18)
            while data:
                length, answer = struct.unpack_from("<IH", data)
                if answer == _NLMSG_DONE:
                    return
                yield data[:length]
                data = data[length + -length % 4 :]
            if flags != _NLM_DUMP:
                return
