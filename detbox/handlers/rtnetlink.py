"""What the guest is told by rtnetlink(7) in place of the host's time, of chance and of others' networks.

Addresses, links, routes and neighbours have times of when they were made or used, in jiffies of the host; the time for
which a neighbour is taken to be reachable is drawn at random; the tables of neighbours are common to all networks of
the host.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from detbox.decision import ContinueThen, Decision
from detbox.handlers.networks import MESSAGE
from detbox.handlers.socket_control import MMSGHDR
from detbox.handlers.socket_core import MSGHDR
from detbox.handlers.waiting import Segments, gather, iovec, scatter, total
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_ATTRIBUTE = struct.Struct("<HH")
_REACHABLE = 30_000  # ms: what the random time is drawn around


def _u32(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}I", *values)


def _u64(*values: int) -> bytes:
    return struct.pack(f"<{len(values)}Q", *values)


#: By the type of a message: how long what comes before its attributes is, and what is shown of attributes (the way to
#: one through those around it) from an offset on.
_SHOWN: dict[int, tuple[int, dict[tuple[int, ...], tuple[int, bytes]]]] = {
    # RTM_NEWLINK: IFLA_AF_SPEC, AF_INET6, IFLA_INET6_CACHEINFO: tstamp, reachable_time.
    16: (16, {(26, 10, 5): (4, _u32(0, _REACHABLE))}),
    # RTM_NEWADDR: IFA_CACHEINFO: cstamp, tstamp.
    20: (8, {(6,): (8, _u32(0, 0))}),
    # RTM_NEWROUTE: RTA_CACHEINFO: clntref, lastuse.
    24: (12, {(12,): (0, _u32(0, 0))}),
    # RTM_NEWNEIGH: NDA_CACHEINFO: confirmed, used, updated, refcnt.
    28: (12, {(3,): (0, _u32(0, 0, 0, 0))}),
    # RTM_NEWNEIGHTBL: NDTA_THRESH1 to 3; NDTA_CONFIG: entries, last_flush, last_rand, hash_rnd, hash_mask,
    # hash_chain_gc, proxy_qlen; NDTA_PARMS, NDTPA_REACHABLE_TIME; NDTA_STATS; NDTA_GC_INTERVAL.
    64: (4, {
        (2,): (0, _u32(128)), (3,): (0, _u32(512)), (4,): (0, _u32(1024)),
        (5,): (4, _u32(0, 0, 0, 0, 7, 0, 0)),
        (6, 3): (0, _u64(_REACHABLE)),
        (7,): (0, bytes(88)),
        (8,): (0, _u64(30_000)),
    }),
}  # fmt: skip


def noted(m: Machine, made: Decision) -> Decision:
    """The thread makes a socket of AF_NETLINK: what it receives is looked at."""

    def note(task: Task, result: int) -> None:
        if isinstance(made, ContinueThen):
            made.look(task, result)
        if result >= 0:
            io_state(m).netlink.add(task.process.files.get(result).ino)

    return ContinueThen(note)


def received(segments: Segments) -> ContinueThen:
    """The kernel receives into the segments now."""

    def look(task: Task, result: int) -> None:
        _look(task, segments, result)

    return ContinueThen(look)


def received_many(header: int, control: Decision) -> ContinueThen:
    """The kernel receives messages into the headers of recvmmsg(2) at ``header`` now.

    ``control``: what is to be done at the call's end for the control data.
    """

    def look(task: Task, result: int) -> None:
        if isinstance(control, ContinueThen):
            control.look(task, result)
        for at in range(header, header + result * MMSGHDR, MMSGHDR):
            _, _, base, count, _, _, _ = MSGHDR.unpack(task.read(at, MSGHDR.size))
            _look(task, iovec(task, base, count), task.u32(at + MSGHDR.size))

    return ContinueThen(look)


def _look(task: Task, segments: Segments, length: int) -> None:
    data = gather(task, segments, 0, min(length, total(segments))) if length > 0 else b""
    told = shown(data)
    if told != data:
        scatter(task, segments, 0, told)


def shown(data: bytes) -> bytes:
    """The messages of a datagram as the guest sees them."""
    changed, at = bytearray(data), 0
    while at + MESSAGE.size <= len(data):
        length, kind, _, _, _ = MESSAGE.unpack_from(data, at)
        if length < MESSAGE.size:
            break
        if kind in _SHOWN:
            header, values = _SHOWN[kind]
            _show(changed, at + MESSAGE.size + header, min(at + length, len(data)), (), values)
        at += length + -length % 4
    return bytes(changed)


def _show(
    data: bytearray, at: int, end: int, around: tuple[int, ...], values: dict[tuple[int, ...], tuple[int, bytes]]
) -> None:
    """Change the attributes between two places that are in those ``around`` them."""
    while at + _ATTRIBUTE.size <= end:
        length, kind = _ATTRIBUTE.unpack_from(data, at)
        if length < _ATTRIBUTE.size:
            return
        way, first, last = (*around, kind & 0x3FFF), at + _ATTRIBUTE.size, min(at + length, end)
        if way in values:
            offset, value = values[way]
            room = max(last - first - offset, 0)
            data[first + offset : first + offset + min(room, len(value))] = value[:room]
        elif any(each[: len(way)] == way for each in values):
            _show(data, first, last, way, values)
        at += length + -length % 4
