"""Who and where: users, groups, capabilities, the machine's name, the execution domain."""

from __future__ import annotations

import contextlib
import os
import re
import struct
from collections.abc import Callable
from errno import EINVAL, EPERM, ESRCH
from typing import TYPE_CHECKING, TypeVar

from detbox.decision import Decision
from detbox.machine import constants
from detbox.machine.creds import ALL_CAPS, NGROUPS_MAX, Creds
from detbox.machine.userspaces import CAP_SYS_ADMIN, NOBODY, UserSpace, shown_all

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Process, Task

_T = TypeVar("_T")
_U32 = 0xFFFFFFFF
#: Shows a release that old programs understand: 2.6.60 and more, by the minor number (kernel/sys.c: override_release).
_UNAME26 = 0x0020000

# ---------------------------------------------------------------------------------------- users, groups

#: In a process's data: its last ``setuid``, what came of it, and the threads that have made the call.
_SETUID = "setuid"


def getuid(m: Machine, t: Task, a: Args) -> Decision:
    """``getuid()``."""
    creds = t.process.creds
    return creds.space.shown_user(creds.ruid)


def geteuid(m: Machine, t: Task, a: Args) -> Decision:
    """``geteuid()``."""
    creds = t.process.creds
    return creds.space.shown_user(creds.euid)


def getgid(m: Machine, t: Task, a: Args) -> Decision:
    """``getgid()``."""
    creds = t.process.creds
    return creds.space.shown_group(creds.rgid)


def getegid(m: Machine, t: Task, a: Args) -> Decision:
    """``getegid()``."""
    creds = t.process.creds
    return creds.space.shown_group(creds.egid)


def _change_users(t: Task, a: Args, count: int, rule: Callable[..., None]) -> Decision:
    space = t.process.creds.space
    _commit(t, rule, *(space.user(register & _U32, keep=count > 1) for register in a[:count]))
    return 0


def _change_groups(t: Task, a: Args, count: int, rule: Callable[..., None]) -> Decision:
    space = t.process.creds.space
    _commit(t, rule, *(space.gid(register & _U32, keep=count > 1) for register in a[:count]))
    return 0


def _commit(t: Task, rule: Callable[..., _T], *numbers: int) -> _T:
    """Change users or groups; of who has others in effect no core file is written any more (commit_creds())."""
    creds = t.process.creds
    before = creds.euid, creds.egid, creds.fsuid, creds.fsgid
    result = rule(creds, *numbers)
    if before != (creds.euid, creds.egid, creds.fsuid, creds.fsgid):
        t.process.mm.dumpable = False
    return result


def setuid(m: Machine, t: Task, a: Args) -> Decision:
    """``setuid(uid)``.

    Credentials are a thread's, and a library that makes them a process's makes the call in each thread.  Here they are
    the process's: made once more by another thread it would be judged by the rights that it has just given.
    """
    creds, data = t.process.creds, t.process.data
    made = (a[0] & _U32, creds.ruid, creds.euid, creds.suid)
    last, threads = data.get(_SETUID, (None, set()))
    if last == made and t.tid not in threads:
        threads.add(t.tid)
        return 0
    result = _change_users(t, a, 1, Creds.setuid)
    data[_SETUID] = (a[0] & _U32, creds.ruid, creds.euid, creds.suid), {t.tid}
    return result


def setgid(m: Machine, t: Task, a: Args) -> Decision:
    """``setgid(gid)``."""
    return _change_groups(t, a, 1, Creds.setgid)


def setreuid(m: Machine, t: Task, a: Args) -> Decision:
    """``setreuid(ruid, euid)``."""
    return _change_users(t, a, 2, Creds.setreuid)


def setregid(m: Machine, t: Task, a: Args) -> Decision:
    """``setregid(rgid, egid)``."""
    return _change_groups(t, a, 2, Creds.setregid)


def setresuid(m: Machine, t: Task, a: Args) -> Decision:
    """``setresuid(ruid, euid, suid)``."""
    return _change_users(t, a, 3, Creds.setresuid)


def setresgid(m: Machine, t: Task, a: Args) -> Decision:
    """``setresgid(rgid, egid, sgid)``."""
    return _change_groups(t, a, 3, Creds.setresgid)


def _show(t: Task, a: Args, *numbers: int) -> Decision:
    for address, number in zip(a, numbers, strict=False):
        t.write(address, struct.pack("<I", number))
    return 0


def getresuid(m: Machine, t: Task, a: Args) -> Decision:
    """``getresuid(ruid *, euid *, suid *)``."""
    creds = t.process.creds
    return _show(t, a, *map(creds.space.shown_user, (creds.ruid, creds.euid, creds.suid)))


def getresgid(m: Machine, t: Task, a: Args) -> Decision:
    """``getresgid(rgid *, egid *, sgid *)``."""
    creds = t.process.creds
    return _show(t, a, *map(creds.space.shown_group, (creds.rgid, creds.egid, creds.sgid)))


def setfsuid(m: Machine, t: Task, a: Args) -> Decision:
    """``setfsuid(uid)``: the former one, also when it is not permitted."""
    creds = t.process.creds
    return creds.space.shown_user(_commit(t, Creds.setfsuid, _or_nobody(creds.space.user, a[0] & _U32)))


def setfsgid(m: Machine, t: Task, a: Args) -> Decision:
    """``setfsgid(gid)``: the former one, also when it is not permitted."""
    creds = t.process.creds
    return creds.space.shown_group(_commit(t, Creds.setfsgid, _or_nobody(creds.space.gid, a[0] & _U32)))


def _or_nobody(called: Callable[[int], int], number: int) -> int:
    try:
        return called(number)
    except OSError:
        return NOBODY


def getgroups(m: Machine, t: Task, a: Args) -> Decision:
    """``getgroups(size, gid_t *)``."""
    groups = shown_all(t.process.creds.space, t.process.creds.groups)
    size = a[0] & _U32
    if size >> 31 or (size and size < len(groups)):
        return -EINVAL
    if size and groups:
        t.write(a[1], struct.pack(f"<{len(groups)}I", *groups))
    return len(groups)


def setgroups(m: Machine, t: Task, a: Args) -> Decision:
    """``setgroups(size, gid_t *)``."""
    creds = t.process.creds
    count = a[0] & _U32
    # The permission comes before everything else (kernel/groups.c).
    if not creds.may_set_groups():
        return -EPERM
    if count > NGROUPS_MAX:
        return -EINVAL
    groups = struct.unpack(f"<{count}I", t.read(a[1], 4 * count)) if count else ()
    creds.setgroups(tuple(map(creds.space.gid, groups)))
    return 0


# ---------------------------------------------------------------------------------------- capabilities

#: Versions of the header with the number of 32-bit words that each set has (linux/capability.h).
_CAP_WORDS = {0x19980330: 1, 0x20071026: 2, 0x20080522: 2}
_CAP_VERSION = 0x20080522


def _cap_header(t: Task, address: int) -> tuple[int, int]:
    """(words per set, pid); OSError(EINVAL), after writing the known version, for another version."""
    version, pid = struct.unpack("<Ii", t.read(address, 8))
    words = _CAP_WORDS.get(version)
    if words is None:
        t.write(address, struct.pack("<I", _CAP_VERSION))
        raise OSError(EINVAL, "capability version")
    return words, pid


def capget(m: Machine, t: Task, a: Args) -> Decision:
    """``capget(header, data)``; without data only the version is asked for."""
    try:
        words, pid = _cap_header(t, a[0])
    except OSError as error:
        if error.errno == EINVAL and not a[1]:
            return 0
        raise
    if pid < 0:
        return -EINVAL
    creds: Creds = t.process.creds
    if pid and pid not in t.process.tasks:
        other = m.tasks.get(pid)
        if other is None:
            return -ESRCH
        creds = other.process.creds
    if a[1]:
        sets = (creds.effective, creds.permitted, creds.inheritable)
        data = [mask >> 32 * word & _U32 for word in range(words) for mask in sets]
        t.write(a[1], struct.pack(f"<{len(data)}I", *data))
    return 0


def capset(m: Machine, t: Task, a: Args) -> Decision:
    """``capset(header, data)``."""
    words, pid = _cap_header(t, a[0])
    if pid and pid not in t.process.tasks:
        return -EPERM
    data = struct.unpack(f"<{3 * words}I", t.read(a[1], 12 * words)) + (0, 0, 0)
    effective, permitted, inheritable = (
        (data[which] | data[which + 3] << 32 if words > 1 else data[which]) & ALL_CAPS for which in range(3)
    )
    t.process.creds.capset(effective, permitted, inheritable)
    return 0


# -------------------------------------------------------------------------------------- the machine's name

_UTS_FIELD = 65  # __NEW_UTS_LEN + 1
_UTS = "uts"  # in a process's data: its own namespace with these names


class _Names:
    """The names of a UTS namespace, which who is root in the user namespace ``owner`` may set."""

    __slots__ = ("host", "domain", "owner")

    def __init__(self, host: bytes, domain: bytes, owner: UserSpace) -> None:
        self.host = host
        self.domain = domain
        self.owner = owner


def uname(m: Machine, t: Task, a: Args) -> Decision:
    """``uname(struct utsname *)``."""
    hostname, domainname = uts_names(m, t.process)
    kernel = constants.KERNEL_RELEASE
    if int(t.data.get("personality", 0)) & _UNAME26:
        _, minor, rest = re.split(r"^\d+\.(\d+)[\d.]*", kernel)
        kernel = f"2.6.{int(minor) + 60}{rest}"
    system = (constants.OSTYPE, kernel, constants.KERNEL_VERSION, constants.MACHINE)
    name, release, version, machine = (field.encode() for field in system)
    fields = (name, hostname, release, version, machine, domainname)
    t.write(a[0], b"".join(field[:_UTS_FIELD - 1].ljust(_UTS_FIELD, b"\0") for field in fields))
    return 0


def uts_names(m: Machine, process: Process) -> tuple[bytes, bytes]:
    """(host name, domain name) in the process's UTS namespace."""
    own: _Names | None = process.data.get(_UTS)
    return (own.host, own.domain) if own else (m.spec.hostname.encode(), constants.DOMAINNAME.encode())


def new_uts(m: Machine, process: Process) -> None:
    """The process has made a UTS namespace of its own: names in it can be set."""
    process.data[_UTS] = _Names(*uts_names(m, process), process.creds.space)


def join_uts(m: Machine, process: Process) -> None:
    """The process is now in the UTS namespace of another one."""
    process.data.pop(_UTS, None)
    wanted = os.stat(f"{process.pid}/ns/uts", dir_fd=m.proc_fd).st_ino
    for other in m.processes.values():
        names = other.data.get(_UTS)
        with contextlib.suppress(OSError):
            if names is not None and os.stat(f"{other.pid}/ns/uts", dir_fd=m.proc_fd).st_ino == wanted:
                process.data[_UTS] = names
                return


def after_fork(m: Machine, parent: Process, child: Process) -> None:
    """A child is in its parent's UTS namespace, or in a new one (CLONE_NEWUTS)."""
    if _UTS in parent.data:
        child.data[_UTS] = parent.data[_UTS]


def sethostname(m: Machine, t: Task, a: Args) -> Decision:
    """``sethostname(name, length)``: in a UTS namespace of the guest's own."""
    return _set_name(t, "host", a)


def setdomainname(m: Machine, t: Task, a: Args) -> Decision:
    """``setdomainname(name, length)``: idem."""
    return _set_name(t, "domain", a)


def _set_name(t: Task, which: str, a: Args) -> Decision:
    own: _Names | None = t.process.data.get(_UTS)
    if own is None or not t.process.creds.capable(CAP_SYS_ADMIN, own.owner):
        return -EPERM
    if a[1] & _U32 >= _UTS_FIELD:
        return -EINVAL
    setattr(own, which, t.read(a[0], a[1] & _U32).partition(b"\0")[0])
    return 0


def personality(m: Machine, t: Task, a: Args) -> Decision:
    """``personality(persona)``: shown as set, without effect but for UNAME26: the layout is fixed in any case."""
    former = int(t.data.get("personality", 0))
    if a[0] & _U32 != _U32:
        t.data["personality"] = a[0] & _U32
    return former
