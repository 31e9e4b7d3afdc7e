"""Contents in files named by their SHA-256."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import re
from collections.abc import Iterator
from typing import Any

from detbox.digests import sha256

_CHUNK = 1 << 20
_SMALL = 1 << 16
_FICLONE = 0x40049409  # include/uapi/linux/fs.h
_DIGEST = re.compile(r"[0-9a-f]{64}")
_REST = re.compile(r"[0-9a-f]{62}")


class Blobs:
    """The blobs of one directory."""

    def __init__(self, dir_fd: int) -> None:
        """``dir_fd``: of the directory, in which there is one named ``tmp``."""
        self._dir = dir_fd
        self._own, self._begun = os.urandom(8).hex(), itertools.count()  # names of unfinished files

    def rename(self) -> None:
        """To be called before a fork: both sides go on, and name their unfinished files differently."""
        self._own = os.urandom(8).hex()

    def put_bytes(self, data: bytes) -> str:
        """Keep ``data``; its SHA-256 in hexadecimal digits.  Raises OSError."""
        digest = _digest_of(data)
        if not self.is_in_use(digest):
            with self._temporary() as (fd, name):
                write_all(fd, data)
                self._keep(name, digest)
        return digest

    def put_file(self, path: str | bytes, dir_fd: int | None = None) -> str:
        """Keep the content of a file; its SHA-256 in hexadecimal digits.  Raises OSError."""
        source = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW, dir_fd=dir_fd)
        try:
            start = os.read(source, _SMALL)
            if len(start) < _SMALL:
                return self.put_bytes(start)
            # Hashed before it is copied: most outputs of a job that ran before are here already.
            os.lseek(source, 0, os.SEEK_SET)
            known = _digest(source)
            if self.is_in_use(known):
                return known
            os.lseek(source, 0, os.SEEK_SET)
            digest = _fast_sha256()
            with self._temporary() as (fd, name):
                cloned = _cloned(fd, source)
                while data := os.read(fd if cloned else source, _CHUNK):
                    digest.update(data)
                    if not cloned:
                        write_all(fd, data)
                found = digest.hexdigest()
                if not self.is_in_use(found):
                    self._keep(name, found)
                return found
        finally:
            os.close(source)

    def open_blob(self, digest: str) -> bytes | None:
        """The content of a blob, verified; None if it is missing or damaged (then it is removed)."""
        if not is_digest(digest):
            return None
        try:
            with open(self._blob(digest), "rb") as file:
                data = file.read()
        except OSError:
            return None
        if _digest_of(data) == digest:
            return data
        self.remove_blob(digest)
        return None

    def write_blob(self, digest: str, fd: int) -> bool:
        """Write the content of a blob to an empty file, as a clone where the file system has such; whether it is whole.

        Raises OSError.
        """
        if not is_digest(digest):
            return False
        with contextlib.suppress(FileNotFoundError), open(self._blob(digest), "rb") as blob:
            if _cloned(fd, blob.fileno()):
                if _digest(fd) == digest:
                    return True
                os.ftruncate(fd, 0)
        data = self.open_blob(digest)
        if data is None:
            return False
        os.lseek(fd, 0, os.SEEK_SET)
        write_all(fd, data)
        return True

    def has(self, digest: str) -> bool:
        """Whether a blob is there (not whether it is whole)."""
        try:
            os.stat(_place(digest), dir_fd=self._dir)
        except OSError:
            return False
        return True

    def _blob(self, digest: str) -> int:
        return os.open(_place(digest), os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._dir)

    def remove_blob(self, digest: str) -> None:
        """Forget a blob."""
        with contextlib.suppress(OSError):
            os.unlink(_place(digest), dir_fd=self._dir)

    def blobs(self) -> Iterator[tuple[str, os.stat_result]]:
        """Every blob with the status of its file."""
        for directory, entry in self._walk():
            if len(directory) == 2 and _REST.fullmatch(entry.name):
                with contextlib.suppress(FileNotFoundError):
                    yield directory + entry.name, entry.stat(follow_symlinks=False)

    def leftovers(self) -> Iterator[tuple[str, os.stat_result]]:
        """Names (to be given to :meth:`remove_leftover`) and status of what ended processes were writing."""
        for directory, entry in self._walk():
            if directory == "tmp":
                with contextlib.suppress(FileNotFoundError):
                    yield entry.name, entry.stat(follow_symlinks=False)

    def remove_leftover(self, name: str) -> None:
        """Remove what an ended process was writing."""
        with contextlib.suppress(OSError):
            os.unlink(f"tmp/{name}", dir_fd=self._dir)

    def _walk(self) -> Iterator[tuple[str, os.DirEntry[str]]]:
        top = os.open(".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=self._dir)
        try:
            for name in os.listdir(top):
                try:
                    at = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=top)
                except OSError:
                    continue
                try:
                    with os.scandir(at) as entries:
                        for entry in entries:
                            yield name, entry
                finally:
                    os.close(at)
        finally:
            os.close(top)

    def is_in_use(self, digest: str) -> bool:
        """Whether a blob is there; its time then tells others that somebody is about to use it."""
        try:
            os.utime(_place(digest), dir_fd=self._dir)
        except FileNotFoundError:
            return False
        except OSError:
            return self.has(digest)
        return True

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[tuple[int, str]]:
        """A new file (descriptor, name) that is gone afterwards unless it was kept."""
        name = f"tmp/{self._own}-{next(self._begun)}"
        fd = os.open(name, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600, dir_fd=self._dir)
        try:
            yield fd, name
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name, dir_fd=self._dir)

    def _keep(self, name: str, digest: str) -> None:
        # No fsync: a blob that a power cut has torn fails its verification, and is then made again.
        try:
            os.rename(name, _place(digest), src_dir_fd=self._dir, dst_dir_fd=self._dir)
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):
                os.mkdir(digest[:2], 0o700, dir_fd=self._dir)
            os.rename(name, _place(digest), src_dir_fd=self._dir, dst_dir_fd=self._dir)

    def _size(self, digest: str) -> int:
        try:
            return os.stat(_place(digest), dir_fd=self._dir).st_size
        except OSError:
            return 0


def is_digest(text: object) -> bool:
    """Whether it is a SHA-256 in hexadecimal digits."""
    return isinstance(text, str) and _DIGEST.fullmatch(text) is not None


def _place(digest: str) -> str:
    return f"{digest[:2]}/{digest[2:]}"


def _cloned(target: int, source: int) -> bool:
    """Whether an empty file now shares the other one's content."""
    try:
        fcntl.ioctl(target, _FICLONE, source)
    except OSError:
        return False
    return True


def _digest_of(data: bytes) -> str:
    if len(data) < _SMALL:
        return sha256(data).hexdigest()
    digest = _fast_sha256()
    digest.update(data)
    return str(digest.hexdigest())


def _fast_sha256() -> Any:
    """That of OpenSSL, which is faster, and takes some milliseconds to load: most hits can do without."""
    import hashlib

    return hashlib.sha256()


def _digest(fd: int) -> str:
    digest = _fast_sha256()
    while data := os.read(fd, _CHUNK):
        digest.update(data)
    return digest.hexdigest()


def write_all(fd: int, data: bytes) -> None:
    """Write ``data`` to a file, whatever the kernel takes at a time.  Raises OSError."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
