"""Memory nodes, of which there is one, and memory barriers."""

from __future__ import annotations

import struct
from errno import EFAULT, EINVAL, ENODEV, ESRCH
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_U32 = 0xFFFFFFFF
_MEMPOLICY = "mempolicy"
# The commands of membarrier(2) that Linux 4.16 has; those for rseq are left out, as rseq itself is.
_MEMBARRIER_COMMANDS = 0x7F


def membarrier(m: Machine, t: Task, a: Args) -> Decision:
    """``membarrier(MEMBARRIER_CMD_QUERY)``; the filter lets the other commands through."""
    if a[0] & _U32:
        return CONTINUE
    return -EINVAL if a[1] & _U32 else _MEMBARRIER_COMMANDS


def _known(m: Machine, t: Task, pid: int) -> None:
    """OSError(ESRCH) unless ``pid`` is a thread (0: the caller)."""
    number = pid & _U32
    if number and number not in m.tasks:
        raise OSError(ESRCH, "no such process")


_MPOL_DEFAULT, _MPOL_PREFERRED, _MPOL_BIND, _MPOL_INTERLEAVE, _MPOL_LOCAL, _MPOL_PREFERRED_MANY = range(6)
_MPOL_MODE_FLAGS = 0xE000
_MPOL_F_NODE, _MPOL_F_ADDR, _MPOL_F_MEMS_ALLOWED = 1, 2, 4
_NODES_MAX = 4096


def _nodes(t: Task, address: int, maxnode: int) -> int:
    """A node mask; ``maxnode`` counts one bit too many (mm/mempolicy.c)."""
    bits = maxnode - 1
    if not address or bits <= 0:
        return 0
    if bits > _NODES_MAX * 8:
        raise OSError(EINVAL, "node mask too long")
    return int.from_bytes(t.read(address, -(-bits // 64) * 8), "little") & (1 << bits) - 1


def _check_policy(t: Task, mode: int, address: int, maxnode: int) -> int:
    """Raises OSError(EINVAL) unless the policy is possible with node 0 alone; its mode without flags."""
    plain, nodes = mode & ~_MPOL_MODE_FLAGS & _U32, _nodes(t, address, maxnode)
    if plain > _MPOL_PREFERRED_MANY or nodes & ~1:
        raise OSError(EINVAL, "no such policy or node")
    if plain != _MPOL_PREFERRED and bool(nodes) is (plain in (_MPOL_DEFAULT, _MPOL_LOCAL)):
        raise OSError(EINVAL, "nodes do not fit the policy")
    return plain


def set_mempolicy(m: Machine, t: Task, a: Args) -> Decision:
    """``set_mempolicy(mode, nodemask, maxnode)``."""
    t.data[_MEMPOLICY] = (_check_policy(t, a[0], a[1], a[2]), _nodes(t, a[1], a[2]))
    return 0


def get_mempolicy(m: Machine, t: Task, a: Args) -> Decision:
    """``get_mempolicy(mode *, nodemask, maxnode, address, flags)``."""
    flags = a[4]
    if flags & ~7 or (flags & _MPOL_F_MEMS_ALLOWED and flags & (_MPOL_F_NODE | _MPOL_F_ADDR)):
        return -EINVAL
    if a[3] and not flags & _MPOL_F_ADDR:
        return -EINVAL
    mode, nodes = t.data.get(_MEMPOLICY, (_MPOL_DEFAULT, 0))
    if flags & _MPOL_F_MEMS_ALLOWED:
        mode, nodes = 0, 1
    elif flags & _MPOL_F_NODE:
        mode = 0  # the number of the node
    if a[0]:
        t.write(a[0], struct.pack("<i", mode))
    if a[1]:
        t.write(a[1], nodes.to_bytes(max(-(-(a[2] - 1) // 64) * 8, 8), "little"))
    return 0


def mbind(m: Machine, t: Task, a: Args) -> Decision:
    """``mbind(address, length, mode, nodemask, maxnode, flags)``: checked, without effect."""
    _check_policy(t, a[2], a[3], a[4])
    return -EINVAL if a[0] % 4096 or a[5] & _U32 & ~7 else 0


def set_mempolicy_home_node(m: Machine, t: Task, a: Args) -> Decision:
    """``set_mempolicy_home_node(address, length, node, flags)``."""
    return -EINVAL if a[0] % 4096 or a[2] or a[3] else 0


def migrate_pages(m: Machine, t: Task, a: Args) -> Decision:
    """``migrate_pages(pid, maxnode, from, to)``: there is no other node to migrate to."""
    _known(m, t, a[0])
    if _nodes(t, a[2], a[1]) & ~1 or _nodes(t, a[3], a[1]) & ~1:
        return -EINVAL
    return 0


def move_pages(m: Machine, t: Task, a: Args) -> Decision:
    """``move_pages(pid, count, pages, nodes, status, flags)``: every page is on node 0."""
    count = a[1]
    if a[5] & _U32 & ~6 or count > 1 << 24:
        return -EINVAL
    _known(m, t, a[0])
    status = [0] * count
    if a[3]:
        wanted = struct.unpack(f"<{count}i", t.read(a[3], 4 * count))
        if any(node != 0 for node in wanted):
            return -ENODEV
    if not a[4]:
        return -EFAULT
    t.write(a[4], struct.pack(f"<{count}i", *status))
    return 0
