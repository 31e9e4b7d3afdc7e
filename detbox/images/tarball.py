"""Tarballs: unpacked without trusting them, and written so that the same image gives the same bytes."""

from __future__ import annotations

import contextlib
import gzip
import os
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from detbox.errors import HostError, UserError
from detbox.images.manifest import TOP, Entry
from detbox.images.tree import Builder

_XATTR = "SCHILY.xattr."
_ZSTD = b"\x28\xb5\x2f\xfd"
Notice = Callable[[int], None]


class Sink(Protocol):
    """What a stream is written to."""

    def write(self, data: bytes, /) -> int:
        """As of any file."""


def unpack_file(source: str, top: str, notice: Notice = lambda done: None) -> list[Entry]:
    """Unpacks a tarball (plain, gzip, bzip2, xz or zstd) into the empty directory ``top``, flat.

    Raises UserError for what is not one, or has what an image cannot have.
    """
    builder = Builder(top)
    try:
        with open(source, "rb") as file, reading(file, source) as tar:
            unpack(tar, builder, source, notice=lambda: notice(file.tell()))
    except FileNotFoundError:
        raise UserError(f"there is no file {source}") from None
    if len(builder.entries) == 1:
        raise UserError(f"{source} is empty", "give the tarball of a root file system")
    return builder.finish()


@contextlib.contextmanager
def reading(file: IO[bytes], source: str) -> Iterator[tarfile.TarFile]:
    """A tar stream, compressed or not, open for reading from its start to its end.  Raises UserError."""
    start = file.read(4)
    file.seek(0)
    decompressor: subprocess.Popen[bytes] | None = None
    stream: Any = file
    if start == _ZSTD:
        if shutil.which("zstd") is None:
            raise HostError("the program zstd is missing", "install it: apt-get install zstd")
        decompressor = subprocess.Popen(["zstd", "-dcq"], stdin=file, stdout=subprocess.PIPE)
        stream = decompressor.stdout
    try:
        with tarfile.open(fileobj=stream, mode="r|*", errorlevel=2) as tar:
            yield tar
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{source} is not a complete tarball: {error}") from error
    finally:
        if decompressor is not None:
            stream.close()
            decompressor.wait()


def unpack(
    tar: tarfile.TarFile,
    builder: Builder,
    source: str,
    *,
    divert: Callable[[bytes, bool, IO[bytes] | None], bool] = lambda path, directory, content: False,
    notice: Callable[[], None] = lambda: None,
) -> None:
    """Everything of a tar stream, except devices and what ``divert`` takes (path, whether it is a directory,
    content of a file)."""
    for count, member in enumerate(tar):
        path = relative(member.name, source)
        content = tar.extractfile(member) if member.isreg() else None
        if not (path.startswith(b"dev/") or divert(path, member.isdir(), content)):
            _add(tar, member, path, builder, source)
        if count % 64 == 0:
            notice()


def relative(name: str, source: str) -> bytes:
    """The path of an archive's member below the root.  Raises UserError for one that leads elsewhere."""
    raw = name.encode("utf-8", "surrogateescape")
    if raw.startswith(b"/"):
        raise UserError(f"{source} has the absolute path {name!r}", "archive the root file system with relative paths")
    parts = [part for part in raw.split(b"/") if part not in (b"", b".")]
    if b".." in parts or b"\0" in raw:
        raise UserError(f"{source} has the path {name!r}, which leads out of the image")
    return b"/".join(parts) or TOP


def _add(tar: tarfile.TarFile, member: tarfile.TarInfo, path: bytes, builder: Builder, source: str) -> None:
    entry = Entry(path, "d", member.mode & 0o7777, member.uid, member.gid, int(member.mtime), xattrs=_xattrs(member))
    if member.isdir():
        builder.directory(entry)
    elif path == TOP:
        raise UserError(f"{source}: the root is not a directory")
    elif member.isreg():
        content = tar.extractfile(member)
        assert content is not None
        builder.file(entry, content)
    elif member.issym():
        target = member.linkname.encode("utf-8", "surrogateescape")
        builder.symlink(Entry(path, "l", 0o777, member.uid, member.gid, int(member.mtime), detail=target))
    elif member.islnk():
        builder.hard_link(path, relative(member.linkname, source))
    elif member.isfifo():
        builder.fifo(Entry(path, "p", member.mode & 0o7777, member.uid, member.gid, int(member.mtime)))
    else:
        what = "a device node" if member.isdev() else f"of the unknown type {member.type!r}"
        raise UserError(f"{source}: {member.name} is {what}", "an image has none outside of /dev; leave it out")


def _xattrs(member: tarfile.TarInfo) -> tuple[tuple[bytes, bytes], ...]:
    found = []
    for key, value in member.pax_headers.items():
        if key.startswith(_XATTR):
            name = key.removeprefix(_XATTR).encode("utf-8", "surrogateescape")
            found.append((name, value.encode("utf-8", "surrogateescape")))
    return tuple(sorted(found))


def write(entries: Iterable[Entry], root: str, out: Sink, notice: Notice = lambda done: None) -> None:
    """The image as an uncompressed tar stream: sorted, with true owners."""
    top, done = os.fsencode(root), 0
    stream: Any = out  # write() is all that a tar stream needs
    with tarfile.open(
        fileobj=stream, mode="w|", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for entry in entries:
            info = member_of(entry)
            if entry.kind != "f":
                tar.addfile(info)
                continue
            with open(os.path.join(top, entry.path), "rb") as file:
                tar.addfile(info, file)
            done += entry.size
            notice(done)


def write_file(entries: Iterable[Entry], root: str, target: Path, notice: Notice = lambda done: None) -> None:
    """The same as a file, compressed if its name ends in .gz.  It appears when it is complete."""
    fd, temporary = tempfile.mkstemp(prefix=".detbox-export-", dir=target.parent)
    try:
        with open(fd, "wb") as file:
            if target.suffix in (".gz", ".tgz"):
                with gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=6, mtime=0) as packed:
                    write(entries, root, packed, notice)
            else:
                write(entries, root, file, notice)
            os.fchmod(file.fileno(), 0o644)
        os.rename(temporary, target)
    except BaseException:
        os.unlink(temporary)
        raise


def member_of(entry: Entry) -> tarfile.TarInfo:
    """The tar header of an entry."""
    name = entry.path.decode("utf-8", "surrogateescape")
    info = tarfile.TarInfo("." if entry.path == TOP else f"./{name}")
    info.mode, info.uid, info.gid, info.mtime = entry.mode, entry.uid, entry.gid, entry.mtime
    info.type = {
        "d": tarfile.DIRTYPE, "f": tarfile.REGTYPE, "l": tarfile.SYMTYPE, "h": tarfile.LNKTYPE, "p": tarfile.FIFOTYPE,
    }[entry.kind]  # fmt: skip
    info.size = entry.size if entry.kind == "f" else 0
    if entry.kind in "lh":
        target = entry.detail.decode("utf-8", "surrogateescape")
        info.linkname = f"./{target}" if entry.kind == "h" else target
    info.pax_headers = {
        _XATTR + key.decode("utf-8", "surrogateescape"): value.decode("utf-8", "surrogateescape")
        for key, value in entry.xattrs
    }
    return info
