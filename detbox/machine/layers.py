"""What the supervisor knows about the overlays that the guest's file system is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from detbox.records import field, record


@record(frozen=True)
class Layers:
    """The overlays of one container.

    ``mounts``: their mount ids.  ``host``: they show the host's own system, so that what an ordinary user may
    not see there is nobody's.  ``limited``: an ordinary user made the container, so that the kernel refuses
    to change files of others.  ``uppers``: where each overlay of the host's system keeps
    what has changed, by the overlay's path; relative to the descriptor ``scratch``, since no path leads there.
    ``emptied``: paths of the directories that are shown empty.
    ``owners``: (uid, gid) of the image's files that are not root's, by path.
    ``refused``: called when the kernel has refused something; raises DetboxError if the container's layers are why.
    """

    mounts: frozenset[int] = frozenset()
    host: bool = False
    limited: bool = False
    scratch: int = -1
    uppers: Mapping[bytes, bytes] = field(default_factory=dict)
    emptied: frozenset[bytes] = frozenset()
    owners: Mapping[bytes, tuple[int, int]] = field(default_factory=dict)
    refused: Callable[[], None] | None = None
