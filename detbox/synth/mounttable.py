"""Turns the kernel's mount table of a guest's own mount namespace into the one that the guest sees.

The container consists of more mounts than the guest is shown (an overlay for each top-level directory, a
mount for each input and each device), and a new namespace starts with copies of them.  A mount is left out
where it only continues what is shown: its parent shows a place of the container, and it stands where the
container has it too.  What the guest has mounted, moved or bound elsewhere is shown, with virtual numbers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence

from detbox.records import NamedTuple
from detbox.synth.view import Mount

_OCTAL = re.compile(rb"\\([0-7]{3})")
_FIRST_ID = 20
#: What file systems of the guest's own tell about themselves and does not depend on the host.
_SUPER_OPTIONS = ("size=", "nr_inodes=", "mode=", "ptmxmode=", "lowerdir=", "upperdir=", "workdir=", "userxattr")


class RealMount(NamedTuple):
    """One line of the kernel's mountinfo; ``device`` as st_dev has it, ``optional`` the propagation fields."""

    mount_id: int
    parent_id: int
    device: int
    root: bytes
    point: bytes
    options: tuple[str, ...]
    optional: tuple[bytes, ...]
    fstype: str
    source: bytes
    super_options: tuple[str, ...]


def parse(text: bytes) -> list[RealMount]:
    """The lines of a mountinfo, in their order (format: proc(5))."""
    found = []
    for line in text.splitlines():
        words = line.split(b" ")
        dash = words.index(b"-", 6)
        major, minor = words[2].split(b":")
        found.append(
            RealMount(
                int(words[0]), int(words[1]), os.makedev(int(major), int(minor)), _plain(words[3]), _plain(words[4]),
                tuple(words[5].decode().split(",")), tuple(words[6:dash]), words[dash + 1].decode(),
                _plain(words[dash + 2]), tuple(os.fsdecode(words[dash + 3]).split(",")),
            )
        )  # fmt: skip
    return found


def _plain(text: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes((int(match[1], 8) & 255,)), text)


def below(path: bytes, top: bytes) -> bytes | None:
    """What follows ``top`` in ``path`` (with its slash, empty if they are equal), None if it is elsewhere."""
    if top == b"/":
        return path if path != b"/" else b""
    rest = path[len(top):]
    return rest if path.startswith(top) and rest[:1] in (b"", b"/") else None


class Shape:
    """The container's mounts: as they are, and as the guest is shown them in ``table``."""

    def __init__(self, real: Sequence[RealMount], table: Sequence[Mount]) -> None:
        self.table = {mount.point: mount for mount in table}
        self._by_device: dict[int, list[RealMount]] = {}
        for mount in real:
            self._by_device.setdefault(mount.device, []).append(mount)

    def origins(self, mount: RealMount) -> Iterator[tuple[RealMount, bytes]]:
        """The container's mounts that show what ``mount`` shows, and the path of that in the container."""
        for known in self._by_device.get(mount.device, ()):
            rest = below(mount.root, known.root)
            if rest is not None:
                yield known, (known.point.rstrip(b"/") + rest) or b"/"

    def origin(self, mount: RealMount) -> tuple[RealMount, bytes] | None:
        """The closest one of :meth:`origins`; None for a file system of the guest's own."""
        return max(self.origins(mount), key=lambda found: len(found[0].root), default=None)

    def continues(self, mount: RealMount, parent: RealMount) -> bool:
        """Whether the guest sees no border between ``parent`` and ``mount``."""
        rest = below(mount.point, parent.point)
        if not rest:
            return False
        places = {place for known, place in self.origins(mount) if known.root == mount.root} - set(self.table)
        return any(place.rstrip(b"/") + rest in places for _, place in self.origins(parent))

    def entry(self, place: bytes) -> Mount:
        """The shown mount of the container that a path belongs to."""
        return max((mount for mount in self.table.values() if below(place, mount.point) is not None),
                   key=lambda mount: len(mount.point))  # fmt: skip


class Tree:
    """The mounts of one namespace, from its real mountinfo."""

    def __init__(self, shape: Shape, real: Sequence[RealMount]) -> None:
        self.shape = shape
        self.by_id = {mount.mount_id: mount for mount in real}
        self.hidden = frozenset(
            mount.mount_id for mount in real
            if mount.parent_id in self.by_id and shape.continues(mount, self.by_id[mount.parent_id])
        )  # fmt: skip

    def children(self, mount: RealMount) -> list[RealMount]:
        """The mounts directly on this one."""
        return [other for other in self.by_id.values() if other.parent_id == mount.mount_id and other is not mount]

    def continuation(self, mount: RealMount) -> list[RealMount]:
        """The hidden mounts that belong to a shown one."""
        found: list[RealMount] = []
        for child in self.children(mount):
            if child.mount_id in self.hidden:
                found += [child, *self.continuation(child)]
        return found

    def shown(self, devices: Mapping[int, int], asked: Mapping[int, Sequence[str]]) -> list[Mount]:
        """What the guest sees.

        ``devices``: virtual numbers of file systems of its own.  ``asked``: flags that it has given to mounts of
        the container's, by their real numbers; others come from the host.
        """
        visible = [mount for mount in self.by_id.values() if mount.mount_id not in self.hidden]
        numbers = {mount.mount_id: _FIRST_ID + index for index, mount in enumerate(visible)}
        peers: dict[bytes, int] = {}
        return [self._shown(mount, numbers, peers, devices, asked.get(mount.mount_id, ())) for mount in visible]

    def _shown(
        self, mount: RealMount, numbers: Mapping[int, int], peers: dict[bytes, int], devices: Mapping[int, int],
        asked: Sequence[str],
    ) -> Mount:  # fmt: skip
        above = self.by_id.get(mount.parent_id)
        while above is not None and above.mount_id in self.hidden:
            above = self.by_id.get(above.parent_id)
        parent = numbers.get(above.mount_id, 1) if above is not None else 1
        words = []
        for word in mount.optional:
            kind, colon, group = word.partition(b":")
            number = str(peers.setdefault(group, len(peers) + 1)).encode() if colon else b""
            words.append(os.fsdecode(kind + colon + number))
        optional = " ".join(words)
        origin = self.shape.origin(mount)
        if origin is None:
            device = devices.get(mount.device, 0)
            kept = [word for word in mount.super_options if word in ("rw", "ro") or word.startswith(_SUPER_OPTIONS)]
            return Mount(numbers[mount.mount_id], parent, os.major(device), os.minor(device), mount.point, mount.fstype,
                         mount.source, ",".join(mount.options), ",".join(kept), mount.root, optional)  # fmt: skip
        place = origin[1]
        entry = self.shape.entry(place)
        options = ",".join((mount.options[0], *asked, "noatime"))
        root = below(place, entry.point) or b"/"
        return Mount(numbers[mount.mount_id], parent, entry.major, entry.minor, mount.point, entry.fstype,
                     entry.source, options, entry.super_options, root, optional)  # fmt: skip
