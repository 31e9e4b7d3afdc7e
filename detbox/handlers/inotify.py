"""Reading inotify events: the kernel's queue, with rename cookies that count from one in each run."""

from __future__ import annotations

import os
import struct
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, Decision, Wake
from detbox.handlers import paths
from detbox.handlers.waiting import POLLIN, Segments, continue_when, scatter, total, without_blocking
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_IN_DONT_FOLLOW = 0x2000000
_HEADER = struct.Struct("<iIII")  # wd, mask, cookie, len of the name that follows


def read_events(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """Hand over what is queued.

    The cookie that joins the two halves of a rename is a counter of the whole host
    (fs/notify/fsnotify.c, fsnotify_get_cookie()).
    """
    borrowed = t.process.files.borrow(t, fd)
    try:
        with without_blocking(borrowed):
            data = bytearray(os.read(borrowed, min(total(segments), 1 << 20)))
    except BlockingIOError:
        def again(wake: Wake) -> Decision:
            return read_events(m, t, fd, segments)

        return continue_when(m, t, fd, POLLIN, again, "read from inotify")
    finally:
        os.close(borrowed)
    offset = 0
    while offset + _HEADER.size <= len(data):
        wd, mask, cookie, length = _HEADER.unpack_from(data, offset)
        _HEADER.pack_into(data, offset, wd, mask, io_state(m).inotify_cookie(cookie), length)
        offset += _HEADER.size + length
    scatter(t, segments, 0, bytes(data))
    return len(data)


def inotify_add_watch(m: Machine, t: Task, a: Args) -> Decision:
    """``inotify_add_watch(fd, path, mask)``: watch numbers count from one in each instance."""
    paths.demand(m, t, paths.AT_FDCWD, t.cstr(a[1]), paths.READ, follow=not a[2] & _IN_DONT_FOLLOW)
    return CONTINUE


def inotify_rm_watch(m: Machine, t: Task, a: Args) -> Decision:
    """``inotify_rm_watch(fd, wd)``."""
    return CONTINUE
