"""Virtual credentials: users, groups and capabilities of a process, with the kernel's rules.

The host gives the guest's processes one real user, whoever they believe to be; what they may do to
files is decided by these values instead.  Credentials are one set per process, not per thread: the C
library applies every change to all threads anyway (by a signal to each of them, so that each change
arrives once per thread; all rules here give the same result the second time).

Users and groups have the numbers that the container has for them, in whatever user namespace the process is.
"""

from __future__ import annotations

import stat
from errno import EINVAL, ENOSPC, EPERM

from detbox.machine.userspaces import (
    CAP_SETFCAP,
    CAP_SETGID,
    CAP_SETUID,
    DEEPEST,
    TOP,
    UserSpace,
)
from detbox.records import copied, record

#: (uid_t) -1: "leave it as it is".
KEEP = 0xFFFFFFFF
NGROUPS_MAX = 65536

# include/uapi/linux/capability.h
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID = 0, 1, 2, 3, 4
CAP_KILL, CAP_SETPCAP, CAP_LINUX_IMMUTABLE = 5, 8, 9
CAP_NET_BIND_SERVICE, CAP_NET_ADMIN, CAP_IPC_LOCK, CAP_IPC_OWNER = 10, 12, 14, 15
CAP_SYS_CHROOT, CAP_SYS_PTRACE, CAP_SYS_NICE = 18, 19, 23
CAP_MKNOD, CAP_MAC_OVERRIDE = 27, 32
CAP_LAST = 40  # CAP_CHECKPOINT_RESTORE, since Linux 5.9
ALL_CAPS = (1 << CAP_LAST + 1) - 1

# include/uapi/linux/prctl.h, include/uapi/linux/securebits.h
AMBIENT_IS_SET, AMBIENT_RAISE, AMBIENT_LOWER, AMBIENT_CLEAR_ALL = 1, 2, 3, 4
SECBIT_KEEP_CAPS, SECBIT_NO_AMBIENT_RAISE, SECUREBITS = 0x10, 0x40, 0xFF

# CAP_FS_SET: what follows the file-system user instead of the effective one (security/commoncap.c).
FS_CAPS = sum(1 << cap for cap in (
    CAP_CHOWN, CAP_MKNOD, CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_FOWNER, CAP_FSETID,
    CAP_LINUX_IMMUTABLE, CAP_MAC_OVERRIDE))


#: Key of Task.data: the thread is in the strict mode of seccomp(2).
STRICT = "strict"


@record
class Creds:
    """The credentials of one process; numbers as the container has them.

    The capability sets are bit masks.  ``keep_caps`` and ``no_new_privs`` are what prctl(2) sets.
    ``filters``: how many seccomp filters of its own the guest has installed; they are inherited, too.
    ``space``: the user namespace, in which the capabilities are held.
    """

    ruid: int = 0
    euid: int = 0
    suid: int = 0
    fsuid: int = 0
    rgid: int = 0
    egid: int = 0
    sgid: int = 0
    fsgid: int = 0
    groups: tuple[int, ...] = ()
    permitted: int = 0
    effective: int = 0
    inheritable: int = 0
    ambient: int = 0
    bounding: int = ALL_CAPS
    keep_caps: bool = False
    no_new_privs: bool = False
    filters: int = 0
    securebits: int = 0
    space: UserSpace = TOP

    @classmethod
    def of(cls, uid: int, gid: int, groups: tuple[int, ...] = ()) -> Creds:
        """Credentials of a fresh login: root has all capabilities, others none."""
        caps = 0 if uid else ALL_CAPS
        return cls(uid, uid, uid, uid, gid, gid, gid, gid, tuple(sorted(groups)), caps, caps)

    def copy(self) -> Creds:
        """The credentials of a forked child."""
        return copied(self)

    def capable(self, cap: int, space: UserSpace | None = None) -> bool:
        """Whether the capability is effective in a user namespace (cap_capable() in security/commoncap.c).

        Without one in the process's own; TOP is where what concerns the whole machine is asked for.
        """
        own = self.space
        if space is None or space is own:
            return bool(self.effective >> cap & 1)
        at = space
        while at.parent is not None and at.level > own.level:
            if at.parent is own:
                return at.owner == self.euid or bool(self.effective >> cap & 1)
            at = at.parent
        return False

    def may_debug(self, its: Creds) -> bool:
        """Whether it may debug another process (``__ptrace_may_access()`` and ``cap_ptrace_access_check()``)."""
        same = {self.ruid} == {its.ruid, its.euid, its.suid} and {self.rgid} == {its.rgid, its.egid, its.sgid}
        same = same and self.space is its.space and not its.permitted & ~self.permitted
        return same or self.capable(CAP_SYS_PTRACE, its.space)

    def capable_over(self, cap: int, uid: int, gid: int) -> bool:
        """Whether it is effective for a file of this user and group, which have to have numbers in the namespace."""
        return bool(self.effective >> cap & 1) and self.space.has(uid, gid)

    @property
    def checked(self) -> bool:
        """Whether its rights to a file have to be looked at: all but the container's root with all of its rights."""
        return self.effective & FS_CAPS != FS_CAPS or self.space is not TOP

    def overrides(self, uid: int, gid: int, mode: int, mask: int, *, directory: bool) -> bool:
        """Whether a capability gives the rights of ``mask`` to a file that its mode ``mode`` does not give
        (generic_permission() in fs/namei.c)."""
        if mask == 4 or directory and not mask & 2:
            if self.capable_over(CAP_DAC_READ_SEARCH, uid, gid):
                return True
        executable = directory or not mask & 1 or bool(mode & 0o111)
        return executable and self.capable_over(CAP_DAC_OVERRIDE, uid, gid)

    def really(self) -> Creds:
        """With the real user's rights, as access(2) asks for them (access_override_creds() in fs/open.c)."""
        found = self.copy()
        found.fsuid, found.fsgid = self.ruid, self.rgid
        found.effective = self.permitted if self.ruid == self.space.root else 0
        return found

    def owns(self, uid: int, gid: int) -> bool:
        """Whether it may do what a file's owner may (inode_owner_or_capable() in fs/inode.c)."""
        return self.fsuid == uid or self.capable_over(CAP_FOWNER, uid, gid)

    # ------------------------------------------------------------------ namespaces

    def new_space(self) -> UserSpace:
        """A user namespace of its making (create_user_ns() in kernel/user_namespace.c); OSError(EPERM, ENOSPC)."""
        if self.space.level >= DEEPEST:
            raise OSError(ENOSPC, "too many namespaces in one another")
        if not self.space.has(self.euid, self.egid):
            raise OSError(EPERM, "nobody in the namespace above")
        return UserSpace(
            self.space, self.euid, self.egid, setgroups=self.space.setgroups, trusted=self.capable(CAP_SETFCAP)
        )

    def enter(self, space: UserSpace) -> None:
        """Be in another user namespace, with all capabilities in it (set_cred_user_ns())."""
        self.space = space
        self.permitted = self.effective = self.bounding = ALL_CAPS
        self.inheritable = self.ambient = self.securebits = 0
        self.keep_caps = False

    def in_group(self, gid: int) -> bool:
        """Whether files of the group are the process's group's files."""
        return gid == self.fsgid or gid in self.groups

    # ------------------------------------------------------------------ users

    def setuid(self, uid: int) -> None:
        """setuid(2)."""
        _valid(uid)
        if self.capable(CAP_SETUID):
            self._users(uid, uid, uid)
        elif uid in (self.ruid, self.suid):
            self._users(self.ruid, uid, self.suid)
        else:
            raise OSError(EPERM, "setuid")

    def setreuid(self, ruid: int, euid: int) -> None:
        """setreuid(2)."""
        if not self.capable(CAP_SETUID):
            _permit(ruid, self.ruid, self.euid)
            _permit(euid, self.ruid, self.euid, self.suid)
        new_ruid, new_euid = _choose(ruid, self.ruid), _choose(euid, self.euid)
        follows = ruid != KEEP or (euid != KEEP and euid != self.ruid)
        self._users(new_ruid, new_euid, new_euid if follows else self.suid)

    def setresuid(self, ruid: int, euid: int, suid: int) -> None:
        """setresuid(2)."""
        if not self.capable(CAP_SETUID):
            for wanted in (ruid, euid, suid):
                _permit(wanted, self.ruid, self.euid, self.suid)
        self._users(_choose(ruid, self.ruid), _choose(euid, self.euid), _choose(suid, self.suid))

    def setfsuid(self, uid: int) -> int:
        """setfsuid(2): the former value, whether or not it was changed."""
        former = self.fsuid
        if uid in (self.ruid, self.euid, self.suid, former) or (uid != KEEP and self.capable(CAP_SETUID)):
            self.fsuid = uid
            root = self.space.root
            if former == root != uid:
                self.effective &= ~FS_CAPS
            elif former != root == uid:
                self.effective |= self.permitted & FS_CAPS
        return former

    def _users(self, ruid: int, euid: int, suid: int) -> None:
        """Set the user ids; capabilities follow (cap_emulate_setxuid in security/commoncap.c)."""
        root = self.space.root
        had_root = root in (self.ruid, self.euid, self.suid)
        old_euid = self.euid
        self.ruid, self.euid, self.suid, self.fsuid = ruid, euid, suid, euid
        if had_root and root not in (ruid, euid, suid):
            if not self.keep_caps:
                self.permitted = self.effective = 0
            self.ambient = 0
        if old_euid == root != euid:
            self.effective = 0
        elif old_euid != root == euid:
            self.effective = self.permitted

    # ----------------------------------------------------------------- groups

    def setgid(self, gid: int) -> None:
        """setgid(2)."""
        _valid(gid)
        if self.capable(CAP_SETGID):
            self._groups(gid, gid, gid)
        elif gid in (self.rgid, self.sgid):
            self._groups(self.rgid, gid, self.sgid)
        else:
            raise OSError(EPERM, "setgid")

    def setregid(self, rgid: int, egid: int) -> None:
        """setregid(2)."""
        if not self.capable(CAP_SETGID):
            _permit(rgid, self.rgid, self.egid)
            _permit(egid, self.rgid, self.egid, self.sgid)
        new_rgid, new_egid = _choose(rgid, self.rgid), _choose(egid, self.egid)
        follows = rgid != KEEP or (egid != KEEP and egid != self.rgid)
        self._groups(new_rgid, new_egid, new_egid if follows else self.sgid)

    def setresgid(self, rgid: int, egid: int, sgid: int) -> None:
        """setresgid(2)."""
        if not self.capable(CAP_SETGID):
            for wanted in (rgid, egid, sgid):
                _permit(wanted, self.rgid, self.egid, self.sgid)
        self._groups(_choose(rgid, self.rgid), _choose(egid, self.egid), _choose(sgid, self.sgid))

    def setfsgid(self, gid: int) -> int:
        """setfsgid(2): the former value, whether or not it was changed."""
        former = self.fsgid
        if gid in (self.rgid, self.egid, self.sgid, former) or (gid != KEEP and self.capable(CAP_SETGID)):
            self.fsgid = gid
        return former

    def _groups(self, rgid: int, egid: int, sgid: int) -> None:
        self.rgid, self.egid, self.sgid, self.fsgid = rgid, egid, sgid, egid

    def may_set_groups(self) -> bool:
        """Whether setgroups(2) is permitted (kernel/groups.c)."""
        return self.capable(CAP_SETGID) and self.space.setgroups and bool(self.space.groups)

    def setgroups(self, groups: tuple[int, ...]) -> None:
        """setgroups(2); the kernel keeps the list sorted."""
        if not self.may_set_groups():
            raise OSError(EPERM, "setgroups")
        if len(groups) > NGROUPS_MAX or KEEP in groups:
            raise OSError(EINVAL, "setgroups")
        self.groups = tuple(sorted(groups))

    # ----------------------------------------------------------- capabilities

    def capset(self, effective: int, permitted: int, inheritable: int) -> None:
        """capset(2) (cap_capset in security/commoncap.c)."""
        limit = self.inheritable | self.permitted
        if self.capable(CAP_SETPCAP):
            limit = ALL_CAPS
        if (inheritable & ~limit or inheritable & ~(self.inheritable | self.bounding)
                or permitted & ~self.permitted or effective & ~permitted):
            raise OSError(EPERM, "capset")
        self.effective, self.permitted, self.inheritable = effective, permitted, inheritable
        self.ambient &= permitted & inheritable

    def bounded(self, cap: int) -> int:
        """PR_CAPBSET_READ: whether the bounding set has it; OSError(EINVAL) beyond the last capability."""
        return self.bounding >> _known(cap) & 1

    def drop_bound(self, cap: int) -> None:
        """PR_CAPBSET_DROP."""
        if not self.capable(CAP_SETPCAP):
            raise OSError(EPERM, "needs CAP_SETPCAP")
        self.bounding &= ~(1 << _known(cap))

    def change_ambient(self, operation: int, cap: int) -> int:
        """PR_CAP_AMBIENT with its operation; the result of the call."""
        if operation == AMBIENT_CLEAR_ALL and cap == 0:
            self.ambient = 0
            return 0
        bit = 1 << _known(cap)
        if operation == AMBIENT_IS_SET:
            return int(bool(self.ambient & bit))
        if operation == AMBIENT_LOWER:
            self.ambient &= ~bit
        elif operation == AMBIENT_RAISE:
            if not self.permitted & self.inheritable & bit or self.securebits & SECBIT_NO_AMBIENT_RAISE:
                raise OSError(EPERM, "neither permitted nor inheritable")
            self.ambient |= bit
        else:
            raise OSError(EINVAL, "no such operation")
        return 0

    def get_securebits(self) -> int:
        """PR_GET_SECUREBITS."""
        return self.securebits | (SECBIT_KEEP_CAPS if self.keep_caps else 0)

    def set_securebits(self, bits: int) -> None:
        """PR_SET_SECUREBITS: all are kept, two have an effect (keep capabilities, raise no ambient ones)."""
        if not self.capable(CAP_SETPCAP) or bits & ~SECUREBITS:
            raise OSError(EPERM, "securebits")
        self.keep_caps = bool(bits & SECBIT_KEEP_CAPS)
        self.securebits = bits & ~SECBIT_KEEP_CAPS

    # ------------------------------------------------------------------- exec

    def on_exec(self, mode: int, uid: int, gid: int) -> bool:
        """Become what the executed program makes of the process: mode and owners of its file.

        Returns whether privileges were gained: then AT_SECURE is 1.  Capabilities of files are not known.
        """
        former = (self.euid, self.egid)
        if not self.no_new_privs and self.space.has(uid, gid):
            if mode & stat.S_ISUID:
                self.euid = uid
            # Without S_IXGRP, S_ISGID marks mandatory locking and not a set-group-id program.
            if mode & stat.S_ISGID and mode & stat.S_IXGRP:
                self.egid = gid
        self.suid = self.fsuid = self.euid
        self.sgid = self.fsgid = self.egid
        if (self.euid, self.egid) != former:
            self.ambient = 0
        root = self.space.root
        if root in (self.ruid, self.euid):
            self.permitted = self.inheritable | self.bounding
            self.effective = self.permitted if self.euid == root else 0
        else:
            self.permitted = self.effective = self.ambient
        self.keep_caps = False
        return self.ruid != self.euid or self.rgid != self.egid


def _valid(number: int) -> None:
    if number == KEEP:
        raise OSError(EINVAL, "user or group -1")


def _known(cap: int) -> int:
    if cap > CAP_LAST:
        raise OSError(EINVAL, "no such capability")
    return cap


def _permit(wanted: int, *own: int) -> None:
    if wanted != KEEP and wanted not in own:
        raise OSError(EPERM, "not one of the process's own")


def _choose(wanted: int, current: int) -> int:
    return current if wanted == KEEP else wanted
