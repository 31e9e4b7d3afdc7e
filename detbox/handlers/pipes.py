"""Creation of pipes and of event descriptors; reading and writing them is in ``readwrite``."""

from __future__ import annotations

from errno import ENODEV
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision
from detbox.handlers import hugepages
from detbox.machine.io import io_state

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
inotify_init = _creates
inotify_init1 = _creates


def memfd_create(m: Machine, t: Task, a: Args) -> Decision:
    """``memfd_create(name, flags)``"""
    return -ENODEV if hugepages.wanted_of_memfd(a[1] & 0xFFFFFFFF) else _creates(m, t, a)


def signalfd(m: Machine, t: Task, a: Args) -> Decision:
    """``signalfd(fd, mask, size)``: an open one that is named gets another set."""
    io_state(m).signal_sets += 1
    return _creates(m, t, a)


signalfd4 = signalfd
