"""Which of the host's top-level directories a container without an image shows."""

from __future__ import annotations

import os

#: Those that the container makes itself.  Homes are not part of the machine's software: what a run needs of them is
#: declared.
OWN = frozenset(("proc", "sys", "dev", "tmp", "run", "home", "root", "mnt", "media", "lost+found", "boot", "srv"))
SCRATCH = ".detbox"  # the container's, for upper layers
FOR_ALL = 0o005  # a directory that everybody may list and search: what only root could see is nobody's


def names() -> list[str]:
    """What is in the host's root and not the container's own, sorted."""
    return [name for name in sorted(os.listdir("/")) if name not in OWN and name != SCRATCH]


def shown(name: str) -> bool:
    """Whether it is a directory, and one that is shown."""
    path = "/" + name
    return not os.path.islink(path) and os.path.isdir(path) and os.stat(path).st_mode & FOR_ALL == FOR_ALL
