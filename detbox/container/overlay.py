"""The overlays of a container: a tree of the host's, under a layer in memory that takes all changes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Sequence

from detbox.container import skeleton, storeimage
from detbox.container.hostroot import FOR_ALL
from detbox.container.operations import MS_NODEV, MS_NOSUID, Step, mount, staged
from detbox.errors import HostError
from detbox.kernel import _native, userns
from detbox.records import field, record

_ALL_LEVELS = 1 << 20


@record
class Overlay(Step):
    """A host directory, read-only, under a layer in memory that takes all changes.

    An ordinary user's namespace does not map the owner of the host's directories, so that nothing could be
    created in them.  What exists in the upper layer is the user's own, so all directories are made there, unless
    a layer between the two has them (see ``skeleton``): its path is ``middle``, ``hidden`` says which of its
    directories are shown empty, and ``above`` what has changed since it was made.
    For root something else is done there: a directory that an ordinary user may not list or search is shown empty
    to both, and ``depth`` levels are looked through for such directories.
    """

    source: str
    path: str
    scratch: str  # guest path of the directory on a tmpfs that holds the upper layer
    depth: int = 2  # 0: what its owner alone may see is shown to the guest
    makers: int = 1  # threads that make directories
    middle: str | None = None
    hidden: Sequence[str] = ()  # relative to ``path``
    above: Sequence[skeleton.Change] = ()  # likewise
    emptied: list[str] = field(default_factory=list)  # guest paths of directories shown empty
    owners: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # as the image's manifest says
    mount_id: int = -1  # known once it is mounted; something may cover the path later
    _fd: int = -1
    _middle_fd: int = -1
    _own: bool = False  # whether all directories can be changed as they are

    @property
    def upper(self) -> str:
        """The upper layer's path below what all scratch directories lie in."""
        return f"{os.path.basename(self.scratch)}/upper"

    def describe(self) -> str:
        return f"overlay  {self.path} <- {self.source} (changes vanish)"

    def prepare(self) -> None:
        self._fd = os.open(self.source, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if self.middle is not None:
            with contextlib.suppress(OSError):
                self._middle_fd = os.open(self.middle, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.owners = storeimage.owners(self.source)
        self._own = storeimage.own(self.source)

    def execute(self) -> None:
        target = staged(self.path)
        os.makedirs(target, exist_ok=True)
        upper, work = f"{staged(self.scratch)}/upper", f"{staged(self.scratch)}/work"
        self._make_upper(upper)
        os.makedirs(work)
        if not self._mount_with_middle(upper, work):
            self._make_directories(upper)
            self._mount_layers([self._fd], upper, work)
        self.mount_id = _native.mount_id(-1, os.fsencode(target))
        os.close(self._fd)

    def _make_upper(self, upper: str) -> None:
        os.makedirs(upper)
        # The upper directory's own attributes are those of the merged root.
        os.chmod(upper, os.fstat(self._fd).st_mode & 0o7777)

    def _mount_layers(self, layers: Sequence[int], upper: str, work: str) -> None:
        """``layers``: descriptors of the lower ones' directories, the upmost first."""
        lower = ":".join(f"/proc/self/fd/{fd}" for fd in layers)
        # What the host's kernel was configured to do by default must not show.  With xino a directory keeps its inode
        # number when the kernel forgets it for want of memory (Documentation/filesystems/overlayfs.rst): without, it
        # was another one afterwards, with none of the times, owners and modes that the run had given it.
        options = f"lowerdir={lower},upperdir={upper},workdir={work},userxattr,index=off,xino=on"
        mount("overlay", self.path, "overlay", MS_NODEV | MS_NOSUID, options)

    def _mount_with_middle(self, upper: str, work: str) -> bool:
        """Whether that was possible: not every file system can be a layer."""
        if self._middle_fd < 0:
            return False
        try:
            skeleton.lay(upper, self._fd, self.above)
            self._mount_layers([self._middle_fd, self._fd], upper, work)
        except (HostError, OSError):
            skeleton.clear(os.fsencode(upper))
            self._make_upper(upper)
            return False
        finally:
            os.close(self._middle_fd)
        self._empty(self.hidden)
        return True

    def _empty(self, paths: Iterable[str]) -> None:
        """Note which directories are shown empty; ``paths``: relative to the overlay's."""
        self.emptied += [f"{self.path}/{path}" for path in paths if path.count("/") < self.depth]

    def _make_directories(self, upper: str) -> None:
        everything = userns.limited() and not self._own
        depth, makers = (_ALL_LEVELS, self.makers) if everything else (self.depth, 1)
        if not depth:
            return
        top = os.open(upper, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        mask = os.umask(0)  # modes are copied
        try:
            refused = FOR_ALL if self.depth else 0
            made = _native.make_directories(self._fd, top, depth, refused, makers, everything)
            self._empty(os.fsdecode(path[1:]) for path in made)
        finally:
            os.umask(mask)
            os.close(top)
