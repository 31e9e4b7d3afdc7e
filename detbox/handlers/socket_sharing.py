"""SO_REUSEPORT: which of the sockets that share a name gets a connection or message follows from the sender's port.

The kernel chooses by a hash with a secret of its own, or by a program that gives it the socket's index, in the order in
which they came.  It belongs to them all, and a socket that has one before its name may not share that.  Ours divides
the sender's port, a number of the run's counter, by the number of sockets.  It must not take them for more than
they are, since the hash decides then; and ``close`` is not seen here.  So before something is sent it is looked whether
somebody still has each of them.
"""

from __future__ import annotations

import ctypes
import os
import socket as host
import struct
from errno import ENOENT
from typing import TYPE_CHECKING

from detbox.handlers.waiting import proc_names
from detbox.kernel import _native
from detbox.machine.io import Member, Sharing, io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

ATTACH_CBPF, ATTACH_EBPF, DETACH = 51, 52, 68
_NETNS_COOKIE = 71
_INET = (host.AF_INET, host.AF_INET6)
_FILTER = struct.Struct("<HBBI")  # struct sock_filter: code, jumps if true and if false, constant
#: Loads by an offset from here begin at the packet's network header (SKF_NET_OFF, linux/filter.h).
_NET = -0x100000 & 0xFFFFFFFF
#: Codes of linux/bpf_common.h.
_LOAD_BYTE, _LOAD_HALF, _LOAD_HALF_AT_X, _A_TO_X = 0x30, 0x28, 0x48, 0x07
_AND, _LEFT, _RIGHT, _MODULO, _IF_EQUAL, _JUMP, _RETURN_A = 0x54, 0x64, 0x74, 0x94, 0x15, 0x05, 0x16


def _program(count: int) -> bytes:
    """The source port, behind the header of IPv4 (whose length is in its first byte) or of IPv6, modulo ``count``."""
    return b"".join(_FILTER.pack(*line) for line in (
        (_LOAD_BYTE, 0, 0, _NET),
        (_RIGHT, 0, 0, 4),
        (_IF_EQUAL, 6, 0, 6),  # to the load behind IPv6's header
        (_LOAD_BYTE, 0, 0, _NET),
        (_AND, 0, 0, 15),
        (_LEFT, 0, 0, 2),
        (_A_TO_X, 0, 0, 0),
        (_LOAD_HALF_AT_X, 0, 0, _NET),
        (_JUMP, 0, 0, 1),
        (_LOAD_HALF, 0, 0, _NET + 40),
        (_MODULO, 0, 0, count),
        (_RETURN_A, 0, 0, 0),
    ))  # fmt: skip


def _choose_among(sock: host.socket, count: int) -> None:
    """The kernel chooses among so many sockets with the name of ``sock``, by the sender's port."""
    lines = _program(count)
    kept = ctypes.create_string_buffer(lines, len(lines))
    program = struct.pack("<H6xQ", len(lines) // _FILTER.size, ctypes.addressof(kept))
    sock.setsockopt(host.SOL_SOCKET, ATTACH_CBPF, program)


def chosen_by_guest(m: Machine, inode: int, *, own: bool) -> None:
    """The guest has a program of its own choose for the socket with this host inode number, or not any more."""
    state = io_state(m)
    if own:
        state.choosers.add(inode)
        return
    if inode not in state.choosers:
        raise OSError(ENOENT, "there is no program")
    state.choosers.remove(inode)
    for sharing in state.sharing.values():
        sharing.told = 0
    refresh(m)


def joined(m: Machine, t: Task, fd: int, sock: host.socket) -> None:
    """The socket ``sock``, descriptor ``fd`` of the thread, has just got a name, or begun to listen."""
    if sock.family not in _INET or not sock.getsockopt(host.SOL_SOCKET, host.SO_REUSEPORT):
        return
    inode = os.fstat(sock.fileno()).st_ino
    left(m, inode)
    sharing = io_state(m).sharing.setdefault(_name(sock), Sharing())
    sharing.members.append(Member(inode, t.process.pid, fd))
    refresh(m)


def _name(sock: host.socket) -> tuple[object, ...]:
    """Sockets of which this is the same share what arrives (inet_reuseport_add_sock, net/ipv4/inet_hashtables.c)."""
    only = sock.family == host.AF_INET6 and sock.getsockopt(host.IPPROTO_IPV6, host.IPV6_V6ONLY)
    network = sock.getsockopt(host.SOL_SOCKET, _NETNS_COOKIE, 8)
    device = sock.getsockopt(host.SOL_SOCKET, host.SO_BINDTODEVICE, 16)
    return sock.family, sock.type, only, network, device, sock.getsockname()


def left(m: Machine, inode: int) -> None:
    """The socket with this host inode number shares its name with nobody from now on, or perhaps so."""
    for sharing in io_state(m).sharing.values():
        sharing.members = [member for member in sharing.members if member.inode != inode]


def refresh(m: Machine) -> None:
    """Something is about to be sent: the kernel is told how many sockets there still are."""
    known = io_state(m).sharing
    for name, sharing in list(known.items()):
        sharing.members = [member for member in sharing.members if _has(m, member) or _found(m, member)]
        count = len(sharing.members)
        if not count:
            del known[name]
        elif count != sharing.told and not any(member.inode in io_state(m).choosers for member in sharing.members):
            with host.socket(fileno=_native.borrow_fd(sharing.members[0].pid, sharing.members[0].fd)) as sock:
                _choose_among(sock, count)
            sharing.told = count


def _has(m: Machine, member: Member) -> bool:
    try:
        return os.stat(f"{member.pid}/fd/{member.fd}", dir_fd=m.proc_fd).st_ino == member.inode
    except OSError:
        return False


def _found(m: Machine, member: Member) -> bool:
    """Whether somebody else has it: whoever made it may have closed it behind a ``fork``."""
    for number in sorted(map(int, filter(str.isdigit, proc_names(m, ".")))):
        for fd in sorted(map(int, proc_names(m, f"{number}/fd"))):
            member.pid, member.fd = number, fd
            if _has(m, member):
                return True
    return False
