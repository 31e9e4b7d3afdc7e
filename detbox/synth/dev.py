"""The entries of /dev: a tmpfs with a few harmless nodes, which are bound from the host."""

from __future__ import annotations

from enum import Enum

from detbox.records import NamedTuple


class Kind(Enum):
    """How an entry is made."""

    BIND = "an empty file with the host's node mounted over it"
    LINK = "a symbolic link"
    DIRECTORY = "a directory"
    DEVPTS = "a new instance of devpts (newinstance,ptmxmode=0666,mode=0620,max=1024)"
    TMPFS = "an empty tmpfs"
    MQUEUE = "the mqueue file system of the guest's IPC namespace"


class Entry(NamedTuple):
    """One entry.  ``target`` of a link; ``rdev`` (major, minor) and ``mode`` as stat shows them."""

    kind: Kind
    why: str
    target: str = ""
    rdev: tuple[int, int] = (0, 0)
    mode: int = 0o020666


#: By name below /dev, in the order of creation.  There is no console, core, disk, kmsg, tun or fuse.
ENTRIES: dict[str, Entry] = {
    "full": Entry(Kind.BIND, "always full, a constant", rdev=(1, 7)),
    "null": Entry(Kind.BIND, "always empty, a constant", rdev=(1, 3)),
    "random": Entry(Kind.BIND, "recognised by its device number and served from the seed", rdev=(1, 8)),
    "tty": Entry(Kind.BIND, "the controlling terminal, if the guest has one", rdev=(5, 0)),
    "urandom": Entry(Kind.BIND, "recognised by its device number and served from the seed", rdev=(1, 9)),
    "zero": Entry(Kind.BIND, "zeros, a constant", rdev=(1, 5)),
    "mqueue": Entry(Kind.MQUEUE, "POSIX message queues of the container", mode=0o041777),
    "pts": Entry(Kind.DEVPTS, "terminals that the guest makes, numbered from 0", mode=0o040755),
    "shm": Entry(Kind.TMPFS, "POSIX shared memory of the container", mode=0o041777),
    "fd": Entry(Kind.LINK, "the shell's name for descriptors", "/proc/self/fd", mode=0o120777),
    "ptmx": Entry(Kind.LINK, "the instance above", "pts/ptmx", mode=0o120777),
    "stderr": Entry(Kind.LINK, "descriptor 2", "/proc/self/fd/2", mode=0o120777),
    "stdin": Entry(Kind.LINK, "descriptor 0", "/proc/self/fd/0", mode=0o120777),
    "stdout": Entry(Kind.LINK, "descriptor 1", "/proc/self/fd/1", mode=0o120777),
}
