"""What the guest is told by rtnetlink."""

from __future__ import annotations

import struct

from detbox.handlers import rtnetlink


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("<HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _message(kind: int, body: bytes) -> bytes:
    return struct.pack("<IHHII", 16 + len(body), kind, 2, 1, 2) + body + bytes(-len(body) % 4)


def _address(stamp: int) -> bytes:
    times = struct.pack("<IIII", 0xFFFFFFFF, 0xFFFFFFFF, stamp, stamp)
    return _message(20, bytes(8) + _attribute(3, b"lo\0") + _attribute(6, times))


def _link(stamp: int, reachable: int, mtu: int = 65536) -> bytes:
    cache = _attribute(5, struct.pack("<IIII", 0xFFFF, stamp, reachable, 1000))
    families = _attribute(2, b"ipv4") + _attribute(10, _attribute(1, bytes(4)) + cache)
    return _message(16, bytes(16) + _attribute(4, struct.pack("<I", mtu)) + _attribute(0x8000 | 26, families))


def test_times_and_chance_do_not_show_in_any_message_of_a_datagram() -> None:
    assert rtnetlink.shown(_address(5) + _link(7, 24900)) == _address(0) + _link(0, 30000)


def test_all_else_is_left() -> None:
    told = rtnetlink.shown(_link(7, 24900, mtu=1500) + _message(3, bytes(4)))
    assert told == _link(0, 30000, mtu=1500) + _message(3, bytes(4))


def test_what_is_cut_off_or_damaged_keeps_its_length() -> None:
    whole = _address(5) + _link(7, 24900)
    for length in range(len(whole)):
        told = rtnetlink.shown(whole[:length])
        assert len(told) == length
        assert told == (_address(0) + _link(0, 30000))[:length]
    damaged = _message(20, bytes(8) + struct.pack("<HH", 0, 6) + bytes(20))
    assert rtnetlink.shown(damaged) == damaged
