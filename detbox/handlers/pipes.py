"""Creation of pipes and of event descriptors; reading and writing them is in ``readwrite``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task


def _creates(m: Machine, t: Task, a: Args) -> Decision:
    """The kernel makes the descriptor, whose number is not known here.

    The guest has to be the maker: a pipe can be opened again through /proc/self/fd (``<(command)`` in a
    shell does so), which needs the ownership of its inode.
    """
    t.process.files.forget_all()
    return CONTINUE


pipe = _creates
pipe2 = _creates
eventfd = _creates
eventfd2 = _creates
signalfd = _creates
signalfd4 = _creates
inotify_init = _creates
inotify_init1 = _creates
memfd_create = _creates
