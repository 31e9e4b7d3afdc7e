"""Terminals: data that the kernel passes on asynchronously, made to arrive before anybody looks.

What is written to one side of a pty is queued, and a kernel worker carries it through the line discipline of
the other side (drivers/tty/tty_buffer.c).  Both n_tty_poll() and a read that finds nothing wait for that
worker, but neither does when something is there already.  So a read goes on until it finds nothing more, or
has enough; and after a write the other side is polled, so that a reader that is parked there becomes ready
before the next thread is chosen.
"""

from __future__ import annotations

import os
import termios
import time
from contextlib import suppress
from errno import EAGAIN
from fcntl import ioctl
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.handlers.locks import RECHECK
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
from detbox.kernel import _native
from detbox.machine.io import io_state

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_TIOCGPTN, _TIOCGPKT = 0x80045430, 0x80045438
_PTS_MAJOR = 136  # and the next seven: Documentation/admin-guide/devices.txt
_TENTH_NS = 100_000_000
#: How long an echo is waited for, in seconds of the host; and how long nothing may change until it is over.
_SETTLE_LIMIT, _SETTLE_QUIET = 0.1, 0.001


def read_terminal(m: Machine, t: Task, fd: int, segments: Segments) -> Decision:
    """A line in canonical mode; otherwise everything there is, up to the buffer's size."""
    own = t.process.files.borrow(t, fd)
    try:
        note(m, t, fd, own)
        if _in_background(m, t, own):
            return CONTINUE
        raw = _raw_mode(own)
        if raw is None and (nonblocking(own) or ready(own, POLLIN)):
            return CONTINUE
        blocks = not nonblocking(own)
    finally:
        os.close(own)
    if raw is None:
        return continue_when(
            m, t, fd, POLLIN, lambda wake: read_terminal(m, t, fd, segments), "read from terminal"
        )
    return _read_raw(m, t, fd, segments, raw, blocks)


def _raw_mode(fd: int) -> tuple[int, int] | None:
    """(VMIN, VTIME) of a terminal that is not in canonical mode, None if it is or has packets."""
    if is_master(fd):
        return None if _flag(fd, _TIOCGPKT) else (1, 0)
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


def _flag(fd: int, request: int) -> int:
    word = bytearray(4)
    try:
        ioctl(fd, request, word)
    except OSError:
        return 0
    return int.from_bytes(word, "little")


def is_master(fd: int) -> bool:
    """Whether the supervisor's descriptor is the master side of a pty."""
    return _side(fd)[0] == "master"


def _side(fd: int) -> tuple[str, int]:
    """("master" or "slave", number of the pty); a slave's number is its device number's rest."""
    number = bytearray(4)
    try:
        ioctl(fd, _TIOCGPTN, number)
    except OSError:
        rdev = os.fstat(fd).st_rdev
        return "slave", (os.major(rdev) - _PTS_MAJOR << 8) + os.minor(rdev)
    return "master", int.from_bytes(number, "little")


def note(m: Machine, t: Task, fd: int, own: int) -> None:
    """Remember that the guest's ``fd`` (borrowed as ``own``) may be waited on: it is a side of a terminal."""
    io_state(m).terminals[_side(own)] = (t.process.pid, fd)


def _other_side(m: Machine, own: int) -> int:
    """A borrowed descriptor of the other side, -1 if none is known."""
    side, number = _side(own)
    wanted = ("slave" if side == "master" else "master", number)
    known = io_state(m).terminals.get(wanted)
    if known is None:
        return -1
    with suppress(OSError):
        other = _native.borrow_fd(*known)
        with suppress(OSError):
            if _side(other) == wanted:
                return other
        os.close(other)
    del io_state(m).terminals[wanted]
    return -1


def _in_background(m: Machine, t: Task, fd: int) -> bool:
    """Whether the reader or writer is no foreground job of its controlling terminal.

    The kernel executes its call then: it sends SIGTTIN or SIGTTOU, or fails it with EIO, and returns at once.
    """
    fields = proc_text(m, f"{t.process.pid}/stat").rpartition(")")[2].split()
    if not fields:
        return False
    group, terminal, foreground = int(fields[2]), int(fields[4]), int(fields[5])
    # The kernel's own encoding of a device number: include/linux/kdev_t.h, new_encode_dev().
    rdev = os.fstat(fd).st_rdev
    major, minor = os.major(rdev), os.minor(rdev)
    encoded = (minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)
    return terminal == encoded and group != foreground


def _read_raw(
    m: Machine, t: Task, fd: int, segments: Segments, mode: tuple[int, int], blocks: bool
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
                step, events=(RECHECK,), fds=((own, POLLIN),), why=f"read from terminal descriptor {fd}"
            )
        before = done
        more = collect(own)
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
            step, fds=((own, POLLIN),), deadline=deadline, interrupted=lambda: done or -ERESTARTSYS,
            why=f"read from terminal descriptor {fd}",
        )  # fmt: skip

    return step(None)


def _has(own: int, amount: int) -> bool:
    return bool(ready(own, POLLIN) & POLLHUP) or _queued(own) >= amount


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
                return _put_and_settle(m, own, data)
            except OSError as error:
                return -(error.errno or EAGAIN)
    finally:
        os.close(own)
    return send_piecewise(
        m, t, fd, segments, lambda own, data: _put_and_settle(m, own, data), "write to terminal"
    )


def _stops_background(fd: int) -> bool:
    try:
        return bool(termios.tcgetattr(fd)[3] & termios.TOSTOP)
    except termios.error:
        return True


def _put_and_settle(m: Machine, own: int, data: bytes) -> int:
    master = is_master(own)
    before = _queued(own) if master else 0
    other = _other_side(m, own)
    try:
        unread = other >= 0 and ready(other, POLLIN) & POLLIN
        with without_blocking(own):
            written = os.write(own, data)
        if other >= 0:
            # With nothing to read there, this waits for the worker.
            ready(other, POLLIN)
        if master:
            ready(own, POLLIN)
            if other < 0 or unread:
                settle(own, before)
    finally:
        if other >= 0:
            os.close(other)
    return written


def _queued(fd: int) -> int:
    return _flag(fd, termios.FIONREAD)


def settle(master: int, before: int) -> None:
    """Wait until the slave's line discipline has had what was written, and its echo has come back.

    While the slave has input that nobody has read, no call waits for this: the amount that can be read from
    the master, ``before`` and now, is watched until it has been the same for a while of the host's time.
    """
    limit = time.monotonic() + _SETTLE_LIMIT
    last, since = before, time.monotonic()
    while (now := time.monotonic()) < limit:
        events = ready(master, POLLIN)
        amount = _queued(master)
        if amount != last:
            last, since = amount, now
        elif now - since > _SETTLE_QUIET or events & POLLHUP:
            return
        time.sleep(_SETTLE_QUIET / 5)
