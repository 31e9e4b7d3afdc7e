"""What a system-call handler may decide, as plain values.

A handler receives ``(machine, task, args)`` (``args``: the six raw unsigned
64-bit registers) and returns one of the values below.  It may also raise
``OSError``: the guest then sees that errno.  A handler never waits, never
schedules and never touches the notification descriptor; the supervisor loop
carries the decision out.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from enum import Enum
from typing import TYPE_CHECKING, Any

from detbox.records import field, record

if TYPE_CHECKING:
    from detbox.supervisor.task import Task

# Kernel-internal restart codes (include/linux/errno.h).  A reply of one of
# these makes the kernel restart the call, or fail it with EINTR, according to
# the signal that it is about to deliver.
ERESTARTSYS = 512  # restart if SA_RESTART or no handler ran, else EINTR
ERESTARTNOINTR = 513  # always restart
ERESTARTNOHAND = 514  # restart only if no handler ran


class _Continue(Enum):
    """Singleton type of :data:`CONTINUE`."""

    CONTINUE = "continue"


#: The kernel executes the call now, unchanged.  Only for calls that are sure
#: not to block.
CONTINUE = _Continue.CONTINUE


@record
class ContinueThen:
    """The kernel executes the call now; the supervisor then looks at its end.

    ``look(task, result)`` runs while the thread is stopped at the return to
    user mode.  ``result`` is the signed return value.  It may write guest
    memory, and may return an ``int`` that replaces the result (or ``None``).
    This costs one ptrace stop: for rare calls only.

    ``instead``: the kernel does not execute the call, and this is ``result``.
    """

    look: Callable[[Task, int], int | None]
    instead: int | None = None


@record
class InstallFd:
    """Reply with a descriptor: ``fd`` (the supervisor's own) is put into the
    guest's table and becomes the call's result.  The loop closes ``fd``.

    ``at``: exact number in the guest (dup2), or None for the lowest free one.
    ``info``: what the file table remembers about it (None: looked up lazily).
    ``then``: called with the guest's descriptor number after installation.
    ``reply``: result of the call instead of the descriptor number (pipe2 and
    others that install several descriptors use ``Machine.install_fd``).
    """

    fd: int
    cloexec: bool
    at: int | None = None
    info: Any = None
    then: Callable[[int], None] | None = None


@record
class Wake:
    """Why a parked call is resumed."""

    kind: str  # "event", "fd" or "deadline"
    key: Hashable = None  # the event's key
    value: Any = None  # what the waker passed
    fds: tuple[int, ...] = ()  # supervisor's descriptors that are ready


@record
class Park:
    """The call cannot complete yet: the thread waits without being sent to
    sleep in the kernel.  The first condition to hold resumes it.

    ``resume(wake)`` is called when the scheduler has chosen the thread again;
    its result is the next decision (it may park again).
    ``events``: keys that ``machine.wake(key, …)`` wakes, first come first served.
    ``fds``: ``(descriptor, poll mask)`` of descriptors the *supervisor* owns;
    they are closed by the scheduler when the thread leaves the park, unless
    ``keep_fds`` is set.
    ``deadline``: virtual monotonic time in nanoseconds, or None.
    ``interrupted``: the (positive) errno or restart code of the reply when a
    signal has to be delivered first, or a callable that returns a full signed
    result (a partial write's count, say).
    ``why``: for the deadlock report ("read from pipe 3").
    """

    resume: Callable[[Wake], Decision]
    events: tuple[Hashable, ...] = ()
    fds: tuple[tuple[int, int], ...] = ()
    deadline: int | None = None
    interrupted: int | Callable[[], int] = ERESTARTSYS
    keep_fds: bool = False
    why: str = ""
    extra: dict[str, Any] = field(default_factory=dict)


#: ``int``: the signed result of the call (negative errno for an error).
Decision = int | _Continue | ContinueThen | InstallFd | Park
