"""User namespaces of the guest's: who is called what in which of them, with the kernel's rules (user_namespaces(7)).

A user or group has one number in the run, by which files and processes belong to it: what it is called in the
container itself.  The programs in a namespace of the guest's own are shown the numbers that it has there, and what
they name is translated.  To the kernel all of the guest's processes are root, the one user that it maps.
"""

from __future__ import annotations

from collections.abc import Iterable
from errno import EINVAL, EPERM
from typing import TYPE_CHECKING

from detbox.records import NamedTuple

if TYPE_CHECKING:
    from detbox.machine.creds import Creds

#: No user: (uid_t) -1.
NOBODY = 0xFFFFFFFF
#: Shown for who has no number in a namespace (/proc/sys/kernel/overflowuid).
OVERFLOW = 65534
#: UID_GID_MAP_MAX_EXTENTS in include/linux/user_namespace.h.
_MOST_EXTENTS = 340
#: So many may be inside of one another.  The kernel's own limit is one more than 32, those that detbox is in included.
DEEPEST = 24
#: What a namespace has for a limit at first (INT_MAX).
MOST = 0x7FFFFFFF
#: The file of procfs by which a namespace's root limits the namespaces below it.
LIMIT = b"/proc/sys/user/max_user_namespaces"
_PAGE = 4096
_U32 = 0xFFFFFFFF
_SPACES = " \t\n\v\f\r"

CAP_SETGID, CAP_SETUID, CAP_SYS_ADMIN, CAP_SYS_RESOURCE, CAP_SETFCAP = 6, 7, 21, 24, 31


class Extent(NamedTuple):
    """``length`` numbers from ``first`` on stand for those from ``lower`` on."""

    first: int
    lower: int
    length: int


Map = tuple[Extent, ...]


def down(numbers: Map, inside: int) -> int:
    """What a number of a namespace stands for, or NOBODY."""
    for first, lower, count in numbers:
        if first <= inside < first + count:
            return lower + inside - first
    return NOBODY


def up(numbers: Map, whose: int) -> int:
    """The number in a namespace that stands for this one, or NOBODY."""
    for first, lower, count in numbers:
        if lower <= whose < lower + count:
            return first + whose - lower
    return NOBODY


_SAME: Map = (Extent(0, 0, NOBODY),)


class UserSpace:
    """One user namespace.

    ``owner``, ``group``: who has made it.  ``setgroups``: whether setgroups(2) is allowed in it.  ``trusted``: whether
    its maker had CAP_SETFCAP, which a map of root asks for.  ``most``: how many may be made below it.
    """

    __slots__ = ("parent", "level", "owner", "group", "setgroups", "trusted", "users", "groups", "projects", "most")

    def __init__(
        self, parent: UserSpace | None, owner: int = 0, group: int = 0, *, setgroups: bool = True, trusted: bool = True
    ) -> None:
        self.parent = parent
        self.level: int = 0 if parent is None else parent.level + 1
        self.owner = owner
        self.group = group
        self.setgroups = setgroups
        self.trusted = trusted
        self.most = MOST
        whole: Map = _SAME if parent is None else ()
        self.users = self.groups = self.projects = whole

    def __repr__(self) -> str:
        values = (self.owner, self.group, self.setgroups, self.trusted, self.users, self.groups, self.projects)
        return f"<user namespace {values} in {self.parent!r}>" if self.parent is not None else "<the container's users>"

    @property
    def above(self) -> list[UserSpace]:
        """The namespaces that it lies in."""
        return [] if self.parent is None else [self.parent, *self.parent.above]

    @property
    def root(self) -> int:
        """The user that is root here, or NOBODY."""
        return down(self.users, 0)

    def user(self, number: int, *, keep: bool = False) -> int:
        """The user that is called so here; OSError(EINVAL).  ``keep``: NOBODY stands for itself."""
        return _known(number if self.parent is None else down(self.users, number), keep and number == NOBODY)

    def gid(self, number: int, *, keep: bool = False) -> int:
        """The group that is called so here; OSError(EINVAL).  ``keep``: NOBODY stands for itself."""
        return _known(number if self.parent is None else down(self.groups, number), keep and number == NOBODY)

    def shown(self, uid: int, gid: int = 0) -> tuple[int, int]:
        """What a user and a group are called here."""
        return (uid, gid) if self.parent is None else (_shown(up(self.users, uid)), _shown(up(self.groups, gid)))

    def shown_user(self, uid: int) -> int:
        """What a user is called here."""
        return uid if self.parent is None else _shown(up(self.users, uid))

    def shown_group(self, gid: int) -> int:
        """What a group is called here."""
        return gid if self.parent is None else _shown(up(self.groups, gid))

    def has(self, uid: int, gid: int) -> bool:
        """Whether both have a number here."""
        return self.parent is None or up(self.users, uid) != NOBODY != up(self.groups, gid)

    # -- /proc/PID/uid_map, gid_map, projid_map and setgroups ----------------------------

    def text(self, name: str, reader: UserSpace) -> bytes:
        """One of these files as a process in ``reader`` sees it."""
        if name == "setgroups":
            return b"allow\n" if self.setgroups else b"deny\n"
        lower = self.parent if reader is self and self.parent is not None else reader
        theirs = lower.numbers(name)
        return b"".join(
            b"%10d %10d %10d\n" % (first, up(theirs, outer) & _U32, count) for first, outer, count in self.numbers(name)
        )

    def numbers(self, name: str) -> Map:
        """The map that one of these files shows."""
        return {"uid_map": self.users, "gid_map": self.groups, "projid_map": self.projects}[name]

    def write(self, name: str, data: bytes, position: int, opener: Creds, writer: Creds) -> None:
        """Who writes ``data`` at ``position`` has opened the file as ``opener``; OSError."""
        if position or len(data) >= (8 if name == "setgroups" else _PAGE):
            raise OSError(EINVAL, "not written at once")
        text = data.partition(b"\0")[0].decode("latin-1")
        if name == "setgroups":
            self._write_setgroups(text)
        elif LIMIT.endswith(name.encode()):
            self.most = _limit(text)
        elif self.parent is None or opener.space not in (self, self.parent):
            raise OSError(EPERM, "not from the namespace itself or the one above")
        else:
            self._write_map(name, text, opener, writer)

    def _write_setgroups(self, text: str) -> None:
        word = text.rstrip(_SPACES)
        if word not in ("allow", "deny"):
            raise OSError(EINVAL, "neither allow nor deny")
        if not self.setgroups if word == "allow" else bool(self.groups):
            raise OSError(EPERM, "that is settled")
        self.setgroups = word == "allow"

    def _write_map(self, name: str, text: str, opener: Creds, writer: Creds) -> None:
        assert self.parent is not None
        if self.numbers(name) or (name != "projid_map" and not opener.capable(CAP_SYS_ADMIN, self)):
            raise OSError(EPERM, "it is written once, by who is root there")
        given = _parsed(text)
        if not self._permitted(name, given, opener, writer):
            raise OSError(EPERM, "numbers of others")
        made = tuple(Extent(first, _range(self.parent.numbers(name), lower, count), count)
                     for first, lower, count in given)  # fmt: skip
        if any(extent.lower == NOBODY for extent in made):
            raise OSError(EPERM, "not in the namespace above")
        setattr(self, {"uid_map": "users", "gid_map": "groups"}.get(name, "projects"), made)

    def _permitted(self, name: str, given: Map, opener: Creds, writer: Creds) -> bool:
        """new_idmap_permitted() in kernel/user_namespace.c."""
        assert self.parent is not None
        if name == "projid_map":
            return True
        if name == "uid_map" and any(extent.lower == 0 for extent in given):
            trusted = self.trusted if opener.space is self else opener.capable(CAP_SETFCAP, self.parent)
            if not trusted:
                return False
        if len(given) == 1 and given[0].length == 1 and self.owner == opener.euid:
            whose = down(self.parent.numbers(name), given[0].lower)
            if name == "uid_map" and whose == opener.euid:
                return True
            if name == "gid_map" and not self.setgroups and whose == opener.egid:
                return True
        cap = CAP_SETUID if name == "uid_map" else CAP_SETGID
        return writer.capable(cap, self.parent) and opener.capable(cap, self.parent)


#: The container's.
TOP = UserSpace(None)


def _known(number: int, keep: bool) -> int:
    if number == NOBODY and not keep:
        raise OSError(EINVAL, "nobody is called so here")
    return number


def _shown(number: int) -> int:
    return OVERFLOW if number == NOBODY else number


def _limit(text: str) -> int:
    word = text.strip(_SPACES)
    if not (word.isascii() and word.isdigit() and int(word) <= MOST):
        raise OSError(EINVAL, "no such limit")
    return int(word)


def _range(numbers: Map, lower: int, count: int) -> int:
    """What the first of these numbers stands for, if one extent has all of them, or NOBODY."""
    for first, below, length in numbers:
        if first <= lower and lower + count <= first + length:
            return below + lower - first
    return NOBODY


def _parsed(text: str) -> Map:
    """The lines of a map; OSError(EINVAL)."""
    lines = text.split("\n")
    if lines[-1] == "" and len(lines) > 1:
        del lines[-1]
    found: list[Extent] = []
    for line in lines:
        words = line.split()
        if len(words) != 3 or not all(word.isascii() and word.isdigit() for word in words):
            raise OSError(EINVAL, "not three numbers")
        extent = Extent(*(int(word) & _U32 for word in words))
        if not _usable(extent) or any(_overlap(extent, other) for other in found) or len(found) == _MOST_EXTENTS:
            raise OSError(EINVAL, "no such range")
        found.append(extent)
    return tuple(found)


def _usable(extent: Extent) -> bool:
    return (
        NOBODY not in (extent.first, extent.lower) and extent.length > 0
        and extent.first + extent.length <= _U32 and extent.lower + extent.length <= _U32
    )  # fmt: skip


def _overlap(one: Extent, other: Extent) -> bool:
    def meet(a: int, b: int) -> bool:
        return a < b + other.length and b < a + one.length

    return meet(one.first, other.first) or meet(one.lower, other.lower)


def shown_all(space: UserSpace, groups: Iterable[int]) -> tuple[int, ...]:
    """What groups are called in a namespace, in the same order."""
    return tuple(groups) if space.parent is None else tuple(space.shown_group(gid) for gid in groups)
