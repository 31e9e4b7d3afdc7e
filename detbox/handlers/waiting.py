"""What all handlers of blocking descriptors share: probe without waiting, park, move data piecewise.

A probe is a poll with timeout zero on a *borrowed* descriptor: the supervisor's own number for the guest's
open file description.  Nothing is borrowed for longer than a probe or a park, because a pipe has no end and a
socket no hang-up while somebody else holds them open.
"""

from __future__ import annotations

import os
import re
import select
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from errno import EAGAIN, EINVAL, EPIPE
from fcntl import F_GETFL, F_SETFL, fcntl
from typing import TYPE_CHECKING

from detbox.decision import CONTINUE, ERESTARTSYS, Decision, Park, Wake
from detbox.kernel import _native

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

POLLIN, POLLOUT, POLLPRI = select.POLLIN, select.POLLOUT, select.POLLPRI
POLLERR, POLLHUP = select.POLLERR, select.POLLHUP
#: read(2) and write(2) transfer at most this many bytes (MAX_RW_COUNT, include/linux/fs.h).
MAX_RW_COUNT = 0x7FFFF000
UIO_MAXIOV = 1024
#: How much of the guest's memory is held at once while data is moved for it.
CHUNK = 1 << 16
_IN_MESSAGES = re.compile(r"^scm_fds:\s*[1-9]", re.MULTILINE)

Resume = Callable[[Wake], Decision]
Segments = list[tuple[int, int]]
_poller = select.poll()


def fd_of(register: int) -> int:
    """The descriptor in a register: the kernel looks at 32 bits; negative ones end in EBADF by themselves."""
    value = register & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def signed32(register: int) -> int:
    """The C ``int`` in a register."""
    value = register & 0xFFFFFFFF
    return value - (1 << 32) if value >> 31 else value


def ready(fd: int, mask: int) -> int:
    """The events of ``mask`` (and error, hang-up) that the supervisor's descriptor ``fd`` has now."""
    _poller.register(fd, mask)
    try:
        found = _poller.poll(0)
    finally:
        _poller.unregister(fd)
    return found[0][1] if found else 0


def proc_text(m: Machine, name: str) -> str:
    """A file of the guest's procfs, by its name below /proc; "" if it does not exist."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=m.proc_fd)
        with open(fd, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def proc_names(m: Machine, name: str) -> list[str]:
    """The entries of a directory of the guest's procfs, by its name below /proc; none if it does not exist."""
    try:
        fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=m.proc_fd)
    except OSError:
        return []
    try:
        return os.listdir(fd)
    except OSError:
        return []  # gone meanwhile
    finally:
        os.close(fd)


def carries_descriptors(fdinfo: str) -> bool:
    """Whether messages that wait in the socket with that text in procfs, or for one that it has yet to accept, have
    descriptors in them (unix_show_fdinfo() in net/unix/af_unix.c)."""
    return _IN_MESSAGES.search(fdinfo) is not None


def own_fdinfo(m: Machine, fd: int) -> str:
    """What procfs tells of one of the supervisor's own descriptors."""
    return proc_text(m, f"{os.getpid()}/fdinfo/{fd}")


def nonblocking(fd: int) -> bool:
    """Whether O_NONBLOCK is set on the description behind the supervisor's ``fd``."""
    return bool(fcntl(fd, F_GETFL) & os.O_NONBLOCK)


@contextmanager
def without_blocking(fd: int) -> Iterator[None]:
    """O_NONBLOCK for a moment.

    The flag belongs to the description that the guest uses as well.  Nobody can see it: every thread that
    could block on the description is held, and calls that run in the kernel meanwhile do not block anyway.
    """
    flags = fcntl(fd, F_GETFL)
    if flags & os.O_NONBLOCK:
        yield
        return
    fcntl(fd, F_SETFL, flags | os.O_NONBLOCK)
    try:
        yield
    finally:
        fcntl(fd, F_SETFL, flags)


def continue_when(
    m: Machine, t: Task, fd: int, mask: int, again: Resume, why: str, *, deadline: int | None = None,
    interrupted: int | Callable[[], int] = ERESTARTSYS,
) -> Decision:
    """CONTINUE if the description is nonblocking or has an event of ``mask``, otherwise park until it has.

    ``again`` starts the call over: another thread may have taken the data before this one is chosen.
    """
    borrowed = t.process.files.borrow_blocking(t, fd, mask)
    if borrowed < 0:
        return CONTINUE
    return Park(
        again, fds=((borrowed, mask),), deadline=deadline, interrupted=interrupted,
        why=f"{why} descriptor {fd}",
    )


def iovec(t: Task, address: int, count: int) -> Segments:
    """The guest's ``struct iovec[count]`` as (address, length); OSError(EINVAL, EFAULT)."""
    count = signed32(count) if count >> 31 else count
    if not 0 <= count <= UIO_MAXIOV:
        raise OSError(EINVAL, "too many segments")
    return t.segments(address, count)


def total(segments: Segments) -> int:
    """Bytes in all segments, cut off where the kernel cuts off."""
    return _native.total(segments, MAX_RW_COUNT)


def gather(t: Task, segments: Segments, skip: int, limit: int) -> bytes:
    """At most ``limit`` bytes of the segments' memory after the first ``skip``; OSError(EFAULT)."""
    return t.gather(segments, skip, limit)


def scatter(t: Task, segments: Segments, skip: int, data: bytes) -> None:
    """Write ``data`` into the segments' memory after the first ``skip`` bytes; OSError(EFAULT)."""
    t.scatter(segments, skip, data)


def send_piecewise(
    m: Machine, t: Task, fd: int, segments: Segments, put: Callable[[int, bytes], int], why: str, *,
    deadline: int | None = None, silent: bool = False,
) -> Decision:
    """A write that may block: moved by the supervisor in pieces, parked whenever there is no room.

    ``put(descriptor, data)`` writes some of the data or raises BlockingIOError.  If nobody reads any more the
    kernel executes the guest's own call, so that EPIPE and SIGPIPE come as they always do; after a part has
    been written the count is the result, and SIGPIPE is sent as well (unless ``silent``).
    """
    wanted = total(segments)
    done = 0

    def finish(error: OSError) -> Decision:
        if error.errno != EPIPE:
            return done or -(error.errno or EINVAL)
        if done == 0:
            return CONTINUE
        if not silent:
            m.signal(t, signal.SIGPIPE, code=0)
        return done

    def step(wake: Wake | None) -> Decision:
        nonlocal done
        if wake is not None and wake.kind == "deadline":
            return done or -EAGAIN
        borrowed = t.process.files.borrow(t, fd)
        try:
            while done < wanted:
                done += put(borrowed, gather(t, segments, done, min(CHUNK, wanted - done)))
        except BlockingIOError:
            return Park(
                step, fds=((borrowed, POLLOUT),), deadline=deadline, why=f"{why} descriptor {fd}",
                interrupted=lambda: done or -ERESTARTSYS,
            )
        except OSError as error:
            os.close(borrowed)
            return finish(error)
        os.close(borrowed)
        return done

    return step(None)


def put_nonblocking(fd: int, data: bytes) -> int:
    """``put`` of :func:`send_piecewise` for pipes, terminals and the like."""
    with without_blocking(fd):
        return os.write(fd, data)
