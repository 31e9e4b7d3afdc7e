"""New files of a result that is about to be put in place: written before anything is changed.

If the disk is full, it is so now.  They have no names, where the file system can do that: who is killed meanwhile
leaves nothing behind.
"""

from __future__ import annotations

import contextlib
import errno
import os

from detbox.cache.blobs import write_all

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_NAMELESS = os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC
#: Of open(2) for O_TMPFILE, where the file system, or the kernel for it, has no such files.
_NOT_HERE = frozenset((errno.EOPNOTSUPP, errno.EISDIR, errno.EINVAL, errno.ENOSYS))


class Staging:
    """The files of one result, by the paths where they belong.  ``proc_fd``: of a procfs mount."""

    def __init__(self, proc_fd: int) -> None:
        self._proc_fd = proc_fd
        self._files: dict[bytes, int] = {}
        self._names: dict[bytes, bytes] = {}

    def write(self, path: bytes, data: bytes, mode: int) -> None:
        """Write what is to be at ``path``.  Raises OSError.  The filter of modes is the guest's: there is none here."""
        directory = os.path.dirname(path)
        try:
            fd = os.open(directory, _NAMELESS, mode)
        except OSError as error:
            if error.errno not in _NOT_HERE:
                raise
            name = os.path.join(directory, b".detbox-" + os.urandom(8).hex().encode())
            fd = os.open(name, _NEW, mode)
            self._names[path] = name
        self._files[path] = fd
        write_all(fd, data)

    def place(self, path: bytes) -> bool:
        """Give the file its name; False if none has been written for this path.  Raises OSError."""
        fd = self._files.get(path)
        if fd is None:
            return False
        name = self._names.pop(path, None)
        if name is not None:
            os.rename(name, path)
            return True
        try:
            os.link(b"self/fd/%d" % fd, path, src_dir_fd=self._proc_fd)
        except FileExistsError:
            os.unlink(path)
            os.link(b"self/fd/%d" % fd, path, src_dir_fd=self._proc_fd)
        return True

    def close(self) -> None:
        """What has got no name goes."""
        for fd in self._files.values():
            os.close(fd)
        for name in self._names.values():
            with contextlib.suppress(OSError):
                os.unlink(name)
        self._files.clear()
        self._names.clear()
