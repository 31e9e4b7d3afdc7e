"""Assembles the container's file system, while the supervisor imports its modules on another processor.

The keeper does it, in a mount namespace made for it, and goes back to the host's view.  The supervisor gets a
descriptor of that namespace, and enters it (guest.py).  What a procfs mount shows depends on who mounts it: the
supervisor does that, which is in the container's PID namespace.
"""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

from detbox.container import ahead, operations, plan, skeleton
from detbox.container.overlay import Overlay
from detbox.cpu import service
from detbox.errors import HostError
from detbox.kernel import _native
from detbox.kernel.numbers import NUMBERS
from detbox.records import record
from detbox.spec import RunSpec

CLONE_NEWNS = 0x20000
_NAMESPACE = "/proc/self/ns/mnt"


@record
class Built:
    """What has been assembled.

    ``namespace``: descriptor of the mount namespace, whose root is still the host's.  ``scratch``: descriptor of what
    all upper layers lie in; -1 without.  ``kept``: the overlays use the directories that are kept from run to run.
    The others: see machine/layers.py, with paths as text.
    """

    namespace: int
    scratch: int
    kept: bool
    mounts: list[int]
    uppers: dict[str, str]
    emptied: list[str]
    owners: dict[str, list[int]]

    def send(self, sock: socket.socket) -> None:
        """To the supervisor; the descriptors are closed here."""
        fds = [fd for fd in (self.namespace, self.scratch) if fd >= 0]
        socket.send_fds(sock, [bytes([len(fds)])], fds)
        service.send(sock, [self.kept, self.mounts, self.uppers, self.emptied, self.owners])
        for fd in fds:
            os.close(fd)

    @classmethod
    def receive(cls, sock: socket.socket) -> Built:
        """From the keeper.  Raises EOFError if it is gone, and has said why."""
        said, fds, _, _ = socket.recv_fds(sock, 1, 2)
        if not said:
            raise EOFError("the keeper is gone")
        return cls(fds[0], fds[1] if len(fds) > 1 else -1, *service.receive(sock))


def build(spec: RunSpec) -> Built:
    """All steps but those of procfs.  Raises HostError, UserError."""
    steps = plan.steps(spec)
    with _namespace() as namespace:
        kept = not spec.image and _use_tree(steps)
        # Sources are opened in the new namespace: the kernel mounts nothing from another one.
        for step in steps:
            step.prepare()
        for step in steps:
            if isinstance(step, Overlay):
                step.makers = len(os.sched_getaffinity(0))
            if step is not plan.PROCFS:
                execute(step)
    overlays = [step for step in steps if isinstance(step, Overlay)]
    images = [step for step in steps if isinstance(step, (Overlay, operations.Unpack))]
    return Built(
        namespace=namespace,
        scratch=next((step.fd for step in steps if isinstance(step, operations.Detach)), -1),
        kept=kept,
        mounts=[step.mount_id for step in overlays],
        uppers={step.path: step.upper for step in overlays},
        emptied=[path for step in overlays for path in step.emptied],
        owners={os.fsdecode(path): [*owner] for step in images for path, owner in step.owners.items()},
    )


def execute(step: operations.Step) -> None:
    """Execute a step.  Raises HostError, UserError."""
    try:
        step.execute()
    except OSError as error:
        what = f"cannot set up the container ({step.describe()}): {error}"
        raise HostError(what, "run: detbox doctor") from error


def enter(namespace: int) -> None:
    """Make a mount namespace this process's, which gets its root directory (setns(2)).  Raises OSError."""
    failed = _native.raw_syscall(NUMBERS["setns"], namespace, CLONE_NEWNS)
    if failed < 0:
        raise OSError(-failed, os.strerror(-failed))


@contextlib.contextmanager
def _namespace() -> Iterator[int]:
    """A mount namespace to build in, and its descriptor; then the process is where and what it was before."""
    before, place = os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC), os.open(".", os.O_PATH | os.O_CLOEXEC)
    mask = os.umask(0o022)
    try:
        _native.unshare(CLONE_NEWNS)
        _native.mount(None, b"/", None, operations.MS_REC | operations.MS_PRIVATE, None)
        yield os.open(_NAMESPACE, os.O_RDONLY | os.O_CLOEXEC)
    finally:
        enter(before)
        os.fchdir(place)
        os.umask(mask)
        os.close(before)
        os.close(place)


def _use_tree(steps: list[operations.Step]) -> bool:
    """Give the overlays of the host's system the directories that are kept from run to run; whether there are any."""
    looking = ahead.begun()
    kept = None if looking is None else looking.kept()
    if looking is None or kept is None:
        return False
    for step in steps:
        if isinstance(step, Overlay):
            top = os.fsencode(step.path[1:] + "/")
            step.middle = f"{skeleton.tree(looking.place)}{step.path}"
            step.hidden = [os.fsdecode(path[len(top) :]) for path in kept.hidden if path.startswith(top)]
            step.above = [
                change._replace(path=change.path[len(top) :]) for change in kept.above if change.path.startswith(top)
            ]
    return True
