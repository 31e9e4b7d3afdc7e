"""What can be observed of one path, and whether it still holds.

A path in a fact is *canonical*: no symbolic link and no ``..`` in it.  Each link that was followed and each
directory that was passed is a fact of its own, so that a chain of links that has changed anywhere is noticed.
Times are no facts of a whole job, because every input shows the same constant one.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Mapping
from errno import errorcode
from typing import TYPE_CHECKING, Any

import xxhash

from detbox.machine.pycache import recorded, recorded_mtime
from detbox.records import record

if TYPE_CHECKING:
    from detbox.machine.inodes import VInode

#: Aspects of a path, as bits: existence, type, mode, number of names and text of a link; size; content;
#: names and types of a directory's entries; the user's attributes; the time that a compiled Python file records.
KIND, SIZE, CONTENT, LIST, XATTR, PYTIME = 1, 2, 4, 8, 16, 32
#: Of executions inside of a run, whose inputs may have been made by others: the guest's inode number, owner and time
#: of birth; the times of access and change.
IDENTITY, TIMES = 64, 128
ABSENT = "-"
#: A file that has changed so shortly before it was hashed may change again unseen: file systems' clocks tick.
RACY_NS = 2_000_000_000
_CHUNK = 1 << 20
_OVERLAY = "user.overlay."

#: What tells that a file has not been changed: size, times of change in ns, and the inode's number.
Signature = tuple[int, int, int, int]
#: The KIND of a path, and what lstat says of it; None for what is not there.
Status = tuple[str, "os.stat_result | None"]


@record
class Fact:
    """The observed aspects of one path; None for what was not observed."""

    kind: str | None = None
    size: int | None = None
    content: str | None = None
    listing: str | None = None
    xattrs: str | None = None
    pytime: int | None = None
    identity: list[int | None] | None = None
    times: list[int] | None = None
    numbered: str | None = None  # the entries of a directory, with the guest's inode numbers
    place: tuple[int, int] | None = None  # real (device, inode)
    inode: tuple[int, int] | None = None  # of a file with several names: real (device, inode)
    signature: Signature | None = None  # of a file whose content is still to be hashed
    fmt: int = 0  # S_IFREG, …
    # A fact that several executions share, each of which has looked at some aspects of it:
    shared: bool = False
    entry: VInode | None = None  # what the guest saw of the inode
    entry_times: bytes = b""
    lines: dict[int, str] | None = None  # of results, by aspects
    system: bool = False  # such a fact, with lines, of what is no directory of the user's

    def row(self) -> list[Any]:
        """For a manifest, without trailing Nones."""
        values = [self.kind, self.size, self.content, self.listing, self.xattrs, self.pytime]
        while values and values[-1] is None:
            values.pop()
        return values

    def full_row(self, aspects: int) -> list[Any]:
        """For the manifest of an execution inside of a run: some aspects, with what only the guest can see."""
        listing, numbered = (self.listing, self.numbered) if aspects & LIST else (None, None)
        values = [
            self.kind if aspects & KIND else None, self.size if aspects & SIZE else None,
            self.content if aspects & CONTENT else None, listing, self.xattrs if aspects & XATTR else None,
            self.pytime if aspects & PYTIME else None, self.identity if aspects & IDENTITY else None,
            self.times if aspects & TIMES else None, numbered,
        ]  # fmt: skip
        while values and values[-1] is None:
            values.pop()
        return values

    @classmethod
    def from_row(cls, row: Iterable[Any]) -> Fact:
        """The inverse of :meth:`row`."""
        return cls(*row)


def kind_of(path: bytes) -> Status:
    """The KIND of a path and its status, without following a link."""
    try:
        st = os.lstat(path)
    except OSError as error:
        name = errorcode.get(error.errno or 0, "")
        return (ABSENT if name in ("ENOENT", "ENOTDIR") else name), None
    return kind_text(st, path), st


def kind_text(st: os.stat_result, path: bytes) -> str:
    """Type and mode, and whatever else belongs to the KIND of this type."""
    mode = st.st_mode
    if stat.S_ISREG(mode):
        return f"f{mode & 0o7777:o}:{st.st_nlink}"
    if stat.S_ISDIR(mode):
        return f"d{mode & 0o7777:o}"
    if stat.S_ISLNK(mode):
        return f"l{st.st_nlink}:" + os.fsdecode(os.readlink(path))
    return f"{stat.filemode(mode)[0]}{mode & 0o7777:o}:{st.st_nlink}:{st.st_rdev}"


def signature_of(st: os.stat_result) -> Signature:
    """The signature of a file."""
    return st.st_size, st.st_mtime_ns, st.st_ctime_ns, st.st_ino


def content_of(path: bytes) -> str | None:
    """XXH3-128 of a file's content in hexadecimal digits; None if it cannot be read."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    try:
        st = os.fstat(fd)
        if not stat.S_ISREG(st.st_mode):
            return None  # a device may have no end
        data = os.read(fd, min(st.st_size + 1, _CHUNK))
        if len(data) <= st.st_size < _CHUNK:
            return digest_of(data)
        digest = xxhash.xxh3_128()
        while data:
            digest.update(data)
            data = os.read(fd, _CHUNK)
        return digest.hexdigest()
    except OSError:
        return None
    finally:
        os.close(fd)


def digest_of(content: bytes) -> str:
    """XXH3-128 in hexadecimal digits."""
    return xxhash.xxh3_128_hexdigest(content)


def listing_of(entries: Iterable[tuple[bytes, str]]) -> str:
    """A digest of a directory's entries, each with the first letter of its KIND."""
    digest = xxhash.xxh3_128()
    for name, letter in sorted(entries):
        digest.update(b"%s\0%s\0" % (name, letter.encode()))
    return digest.hexdigest()


def numbered_listing(numbers: Mapping[bytes, int | None]) -> str:
    """A digest of a directory's entries with the guest's inode numbers."""
    return xxhash.xxh3_128(repr(sorted(numbers.items())).encode()).hexdigest()


def entries_of(path: bytes) -> list[tuple[bytes, str]]:
    """The entries of a directory, each with the first letter of its KIND.  Raises OSError."""
    with os.scandir(path) as found:
        return [(entry.name, _letter(entry)) for entry in found]


def _letter(entry: os.DirEntry[bytes]) -> str:
    if entry.is_symlink():
        return "l"
    if entry.is_dir():
        return "d"
    if entry.is_file():
        return "f"
    return stat.filemode(entry.stat(follow_symlinks=False).st_mode)[0]


def xattrs_of(path: bytes) -> dict[str, bytes]:
    """The user's extended attributes of a path, without following a link."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError:
        return {}
    kept = sorted(name for name in names if name.startswith("user.") and not name.startswith(_OVERLAY))
    return {name: os.getxattr(path, name, follow_symlinks=False) for name in kept}


def xattrs_digest(path: bytes) -> str:
    """A digest of the user's extended attributes of a path."""
    return xxhash.xxh3_128(repr(xattrs_of(path)).encode()).hexdigest()


def python_time(path: bytes, st: os.stat_result | None) -> int:
    """What the compiled file of the Python source ``path`` (with this status) records; -1 for nothing.

    A source that is reached by a link has its compiled file beside the link: it counts if its size is the source's.
    """
    if st is not None and stat.S_ISLNK(st.st_mode):
        found = recorded(path, None)
        return -1 if found is None else found[0] << 32 | found[1]
    mtime = recorded_mtime(path, None, st.st_size if st is not None else 0)
    return -1 if mtime is None else mtime


def below(path: bytes, tops: Iterable[bytes]) -> bool:
    """Whether a path is one of ``tops`` or below it."""
    for top in tops:
        if path.startswith(top) and (len(path) == len(top) or path[len(top)] == 47):
            return True
    return False


def ownership(st: os.stat_result, uid: int, gid: int) -> str:
    """Whose a file is: part of its KIND where the kernel's permissions depend on it."""
    return ("" if st.st_uid == uid else "u") + ("" if st.st_gid == gid else "g")
