"""Terminals: ``read`` and ``write``, whose data the kernel passes on asynchronously.

Writes wait until their bytes have arrived (detbox/handlers/ptys.py).  A read that finds nothing waits for the
kernel's worker, but one that finds something does not: so a read goes on until it finds nothing more, or has
enough.
"""

from __future__ import annotations

import os
import termios
from errno import EAGAIN, EIO
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.handlers.locks import RECHECK
from detbox.handlers.ptys import device, has_lost_master, has_read, is_master, note, put, queued, slave_number, word
from detbox.handlers.waiting import (
    POLLHUP,
    POLLIN,
    Segments,
    continue_when,
    gather,
    nonblocking,
    proc_text,
    ready,
    scatter,
    send_piecewise,
    total,
    without_blocking,
)  # fmt: skip

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_TIOCGPKT = 0x80045438
_TENTH_NS = 100_000_000


def read_terminal(m: Machine, t: Task, fd: int, segments: Segments, waited: int = -1) -> Decision:
    """A line in canonical mode; otherwise everything there is, up to the buffer's size.

    ``waited``: the number of the pty for whose slave side the call has waited.  Who waits when the master closes
    gets EIO, who reads later the end of the file (drivers/tty/pty.c, pty_close()).
    """
    own = t.process.files.borrow(t, fd)
    try:
        if has_lost_master(m, own, waited):
            return -EIO
        note(m, t, fd, own)
        if _in_background(m, t, own):
            return CONTINUE
        raw = _raw_mode(own)
        if raw is None and (nonblocking(own) or ready(own, POLLIN)):
            return CONTINUE
        blocks, pty = not nonblocking(own), slave_number(own)
    finally:
        os.close(own)
    if raw is None:
        return continue_when(
            m, t, fd, POLLIN, lambda wake: read_terminal(m, t, fd, segments, pty), "read from terminal",
            interrupted=lambda: _interrupted(m, t, fd, pty),
        )  # fmt: skip
    return _read_raw(m, t, fd, segments, raw, blocks, pty)


def _interrupted(m: Machine, t: Task, fd: int, pty: int) -> int:
    """The answer to a read that has waited when a signal comes, the SIGHUP of the master's closing maybe."""
    try:
        own = t.process.files.borrow(t, fd)
    except OSError:
        return -ERESTARTSYS
    try:
        return -EIO if has_lost_master(m, own, pty) else -ERESTARTSYS
    finally:
        os.close(own)


def _raw_mode(fd: int) -> tuple[int, int] | None:
    """(VMIN, VTIME) of a terminal that is not in canonical mode, None if it is or has packets."""
    if is_master(fd):
        return None if word(fd, _TIOCGPKT) else (1, 0)
    try:
        attributes = termios.tcgetattr(fd)
    except termios.error:
        return None
    if attributes[3] & termios.ICANON:
        return None
    control = attributes[6]
    minimum, tenths = control[termios.VMIN], control[termios.VTIME]
    return (
        minimum if isinstance(minimum, int) else minimum[0], tenths if isinstance(tenths, int) else tenths[0]
    )  # fmt: skip


def _in_background(m: Machine, t: Task, fd: int) -> bool:
    """Whether the reader or writer is no foreground job of its controlling terminal.

    The kernel executes its call then: it sends SIGTTIN or SIGTTOU, or fails it with EIO, and returns at once.
    """
    fields = proc_text(m, f"{t.process.pid}/stat").rpartition(")")[2].split()
    if not fields:
        return False
    group, terminal, foreground = int(fields[2]), int(fields[4]), int(fields[5])
    return terminal == device(fd) and group != foreground


def _read_raw(
    m: Machine, t: Task, fd: int, segments: Segments, mode: tuple[int, int], blocks: bool, pty: int
) -> Decision:
    """Non-canonical input: VMIN and VTIME as termios(3) has them, in virtual time."""
    minimum, tenths = mode
    wanted = total(segments)
    done = 0

    def collect(own: int) -> int:
        """Read on until there is nothing more: only then the kernel has waited for its worker."""
        nonlocal done
        with without_blocking(own):
            while done < wanted:
                try:
                    data = os.read(own, min(wanted - done, 65536))
                except BlockingIOError:
                    return 1
                except OSError as error:
                    return -(error.errno or EAGAIN)
                if not data:
                    return 0
                scatter(t, segments, done, data)
                done += len(data)
        return 0

    def step(wake: Wake | None) -> Decision:
        own = t.process.files.borrow(t, fd)
        if blocks and minimum > 1 and not tenths and done == 0 and not _has(own, min(minimum, wanted)):
            # Nothing is taken before all is there: the terminal is not readable with less than VMIN, so that
            # nobody would say when the rest comes.  A buffer smaller than VMIN needs the second look.
            return Park(
                step, events=(RECHECK,), fds=((own, POLLIN),), interrupted=lambda: _interrupted(m, t, fd, pty),
                why=f"read from terminal descriptor {fd}",
            )  # fmt: skip
        before = done
        more = collect(own)
        has_read(m, own)
        if wake is not None and not done and has_lost_master(m, own, pty):
            more = -EIO
        timed_out = wake is not None and wake.kind == "deadline"
        enough = done >= max(minimum, 1) or more <= 0 or timed_out or (minimum == 0 and (done or not tenths))
        if enough or not blocks:
            os.close(own)
            if done or more == 0 or (blocks and more > 0):
                return done
            return more if more < 0 else -EAGAIN
        deadline = None
        if tenths and (minimum == 0 or done):
            deadline = m.clock.now + tenths * _TENTH_NS if done > before or wake is None else None
        return Park(
            step, fds=((own, POLLIN),), deadline=deadline, interrupted=lambda: done or _interrupted(m, t, fd, pty),
            why=f"read from terminal descriptor {fd}",
        )  # fmt: skip

    return step(None)


def _has(own: int, amount: int) -> bool:
    return bool(ready(own, POLLIN) & POLLHUP) or queued(own) >= amount


# ---------------------------------------------------------------- writing


def write_terminal(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """Output is moved by the supervisor unless the kernel has to stop the writer's job."""
    own = t.process.files.borrow(t, fd)
    try:
        if not is_master(own) and _stops_background(own) and _in_background(m, t, own):
            return CONTINUE
        note(m, t, fd, own)
        if nonblocking(own):
            data = gather(t, segments, 0, min(total(segments), 65536))
            try:
                return put(m, own, data)
            except OSError as error:
                return -(error.errno or EAGAIN)
    finally:
        os.close(own)
    return send_piecewise(
        m, t, fd, segments, lambda own, data: put(m, own, data), "write to terminal"
    )


def _stops_background(fd: int) -> bool:
    try:
        return bool(termios.tcgetattr(fd)[3] & termios.TOSTOP)
    except termios.error:
        return True
