"""The steps that build a container's file system, as values.

Each step can describe itself (``--dry-run``) and execute itself.  Paths that
name the host are opened before anything is mounted, so that a mount cannot
hide a later step's source.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping
from typing import Any

from detbox.errors import HostError, UserError
from detbox.kernel import _native
from detbox.records import field, record
from detbox.synth import sysfs

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 0x20, 0x1000, 0x4000, 0x40000
#: Where the new root is assembled; any directory that exists everywhere will do,
#: since the mount is seen in the container's own namespace only.
STAGE = "/tmp"


_MOST_LINKS = 40  # as many as the kernel follows (MAXSYMLINKS)


def staged(path: str, *, last: bool = True) -> str:
    """Where a guest path is while the container is being assembled.

    Symbolic links of the image are followed as the guest would follow them: to the kernel a link to /etc leads
    to the host's as long as the host's root is the root.  Not ``last``: the last component is not followed.
    """
    done, left, budget = STAGE, [name for name in reversed(path.split("/")) if name], _MOST_LINKS
    while left:
        name = left.pop()
        if name == "..":
            done = os.path.dirname(done) if done != STAGE else STAGE
            continue
        place = f"{done}/{name}"
        try:
            target = os.readlink(place) if left or last else None
        except OSError:
            target = None
        if target is None or name == ".":
            done = place if name != "." else done
            continue
        budget -= 1
        if not budget:
            raise UserError(f"{path} leads through too many symbolic links in the image")
        if target.startswith("/"):
            done = STAGE
        left += [name for name in reversed(target.split("/")) if name]
    return done


@record
class Step:
    """One operation on the container's file system."""

    def describe(self) -> str:
        """One line for people."""
        raise NotImplementedError

    def prepare(self) -> None:
        """Open what the step needs of the host."""

    def execute(self) -> None:
        """Do it; raises HostError or UserError."""
        raise NotImplementedError


@record
class Tmpfs(Step):
    """An empty file system in memory."""

    path: str
    mode: int = 0o755
    size: str | None = None

    def describe(self) -> str:
        return f"tmpfs    {self.path} (mode {self.mode:o})"

    def execute(self) -> None:
        os.makedirs(staged(self.path), exist_ok=True)
        options = f"mode={self.mode:o}" + (f",size={self.size}" if self.size else "")
        mount("tmpfs", self.path, "tmpfs", MS_NOSUID | MS_NODEV, options)


@record
class Bind(Step):
    """A host directory or file made visible in the guest."""

    source: str
    path: str
    read_only: bool
    _fd: int = -1

    def describe(self) -> str:
        return f"bind     {self.path} <- {self.source} ({'read-only' if self.read_only else 'kept'})"

    def prepare(self) -> None:
        try:
            self._fd = os.open(self.source, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise UserError(f"cannot use {self.source}: {error.strerror}", "check its path and permissions") from error

    def execute(self) -> None:
        target = staged(self.path)
        if os.path.isdir(f"/proc/self/fd/{self._fd}"):
            os.makedirs(target, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY, 0o644))
        mount(f"/proc/self/fd/{self._fd}", self.path, None, MS_BIND | MS_REC, None)
        if self.read_only:
            # Flags that the host's mount has locked must be repeated (mount_namespaces(7)).
            flags = os.statvfs(target).f_flag & (MS_NOSUID | MS_NODEV | MS_NOEXEC)
            for extra in (flags, flags | MS_NOSUID | MS_NODEV):
                try:
                    _native.mount(None, os.fsencode(target), None, MS_REMOUNT | MS_BIND | MS_RDONLY | extra, None)
                    break
                except PermissionError:
                    continue
            else:
                raise HostError(f"cannot make {self.path} read-only in the container")
        os.close(self._fd)


@record
class Special(Step):
    """A kernel file system of the container's own (proc, devpts, mqueue)."""

    kind: str
    path: str
    options: str | None = None

    def describe(self) -> str:
        return f"{self.kind:8} {self.path}"

    def execute(self) -> None:
        os.makedirs(staged(self.path), exist_ok=True)
        devices = 0 if self.kind == "devpts" else MS_NODEV
        mount(self.kind, self.path, self.kind, MS_NOSUID | MS_NOEXEC | devices, self.options)


@record
class Directory(Step):
    """An empty directory."""

    path: str
    mode: int = 0o755

    def describe(self) -> str:
        return f"mkdir    {self.path} (mode {self.mode:o})"

    def execute(self) -> None:
        os.makedirs(staged(self.path), exist_ok=True)
        os.chmod(staged(self.path), self.mode)


@record
class File(Step):
    """A file with fixed content."""

    path: str
    content: bytes
    mode: int = 0o644

    def describe(self) -> str:
        return f"file     {self.path} ({len(self.content)} bytes)"

    def execute(self) -> None:
        target = staged(self.path, last=False)
        os.makedirs(os.path.dirname(target), exist_ok=True)
        # A new file: the image's may be a link that leads elsewhere, or belong to
        # a user whose files an ordinary user cannot write.
        with contextlib.suppress(FileNotFoundError):
            os.unlink(target)
        fd = os.open(target, os.O_CREAT | os.O_WRONLY | os.O_EXCL, self.mode)
        try:
            os.write(fd, self.content)
            os.fchmod(fd, self.mode)
        finally:
            os.close(fd)


@record
class Symlink(Step):
    """A symbolic link."""

    path: str
    target: str

    def describe(self) -> str:
        return f"symlink  {self.path} -> {self.target}"

    def execute(self) -> None:
        place = staged(self.path, last=False)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        if os.path.lexists(place) and (os.path.islink(place) or not os.path.isdir(place)):
            os.unlink(place)
        if not os.path.lexists(place):
            os.symlink(self.target, place)


@record
class Remove(Step):
    """A file of the image that describes the host."""

    path: str

    def describe(self) -> str:
        return f"remove   {self.path}"

    def execute(self) -> None:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(staged(self.path, last=False))


@record
class Remake(Step):
    """Files of the image that get entries for the virtual user."""

    makers: Mapping[str, tuple[str, int, Callable[[bytes, bytes, int, int], bytes]]]
    user: bytes
    uid: int
    gid: int

    def describe(self) -> str:
        return f"remake   {' '.join(self.makers)}"

    def execute(self) -> None:
        for path, (source, mode, make) in self.makers.items():
            current = b""
            with contextlib.suppress(FileNotFoundError), open(staged(source), "rb") as file:
                current = file.read()
            content = make(current, self.user, self.uid, self.gid)
            if content != current or path != source:
                File(path, content, mode).execute()


@record
class Tree(Step):
    """A whole tree of small files and links in memory."""

    path: str
    content: Mapping[str, Any]

    def describe(self) -> str:
        return f"files    {self.path} ({len(self.content)} entries)"

    def execute(self) -> None:
        entries = [(path, *self._entry(content)) for path, content in self.content.items()]
        top = os.open(staged(self.path), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _native.make_tree(top, entries, sysfs.FILE_MODE)
        finally:
            os.close(top)

    @staticmethod
    def _entry(content: Any) -> tuple[str, bytes]:
        if isinstance(content, bytes):
            return "f", content
        return ("l", os.fsencode(content.target)) if isinstance(content, sysfs.Symlink) else ("d", b"")


@record
class Unpack(Step):
    """A tarball as the root file system, in memory."""

    source: str
    path: str
    owners: dict[bytes, tuple[int, int]] = field(default_factory=dict)
    _file: Any = None

    def describe(self) -> str:
        return f"unpack   {self.path} <- {self.source}"

    def prepare(self) -> None:
        self._file = open(self.source, "rb")

    def execute(self) -> None:
        # All that unpacking may need: once inside, no module is in reach.
        import bz2  # noqa: F401
        import gzip  # noqa: F401
        import lzma  # noqa: F401
        import tarfile

        owners = self.owners

        class RootFiles(tarfile.TarFile):
            """Everything belongs to the real root, since the host may not be able to give it to others."""

            def chown(self, tarinfo: tarfile.TarInfo, *_: Any, **__: Any) -> None:
                path = os.fsencode(os.path.normpath("/" + tarinfo.name))
                owners.pop(path, None)
                if tarinfo.uid or tarinfo.gid:
                    owners[path] = (tarinfo.uid, tarinfo.gid)

        # Inside of the new root: whatever names and links a hostile archive holds, they cannot lead out.
        outside = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.chroot(staged(self.path))
            os.chdir("/")
            with self._file, RootFiles.open(fileobj=self._file) as tar:
                for member in tar:
                    # Device nodes cannot be made in a user namespace; the container has its own.
                    if not member.isdev() or member.isfifo():
                        member.name = member.name.lstrip("/")
                        tar.extract(member, "/")
        except (tarfile.TarError, OSError) as error:
            raise UserError(f"cannot unpack {self.source}: {error}", "is it a complete root file system?") from error
        finally:
            os.fchdir(outside)
            os.chroot(".")
            os.close(outside)


@record
class Restage(Step):
    """What follows is built on this directory instead of the whole stage."""

    path: str

    def describe(self) -> str:
        return f"root     {self.path}"

    def execute(self) -> None:
        _native.mount(STAGE + self.path, os.fsencode(STAGE), None, MS_BIND | MS_REC, None)


@record
class Detach(Step):
    """A mount of detbox's own, which no path leads to from now on."""

    path: str
    fd: int = -1  # its only descriptor, once that is done

    def describe(self) -> str:
        return f"detach   {self.path}"

    def execute(self) -> None:
        place = os.fsencode(staged(self.path))
        self.fd = detach(place)
        os.rmdir(place)


def detach(place: bytes) -> int:
    """Take what is mounted at ``place`` out of the namespace; the descriptor through which it can be reached."""
    fd = os.open(place, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    _native.umount(place, 2)  # MNT_DETACH
    return fd


def mount(source: str, path: str, kind: str | None, flags: int, options: str | None) -> None:
    """mount(2) at a guest path of the tree that is being assembled.  Raises HostError."""
    try:
        _native.mount(source, os.fsencode(staged(path)), kind, flags, options)
    except OSError as error:
        what = kind or "bind"
        raise HostError(f"cannot mount {what} at {path} in the container: {error.strerror}",
                        "run: detbox doctor") from error  # fmt: skip


def enter(root: str) -> None:
    """Make the assembled tree the root of this process's mount namespace."""
    os.chdir(root)
    _native.pivot_root(b".", b".")
    _native.umount(b".", 2)  # MNT_DETACH: the host's tree is gone from the namespace
    os.chdir("/")
