"""Random numbers: getrandom(2)."""

from __future__ import annotations

from errno import EINVAL
from typing import TYPE_CHECKING

from detbox.decision import Decision

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_GRND_NONBLOCK, _GRND_RANDOM, _GRND_INSECURE = 1, 2, 4
#: MAX_RW_COUNT: the most bytes that one call moves.
_MAX_COUNT = 0x7FFFF000
_CHUNK = 1 << 20


def getrandom(m: Machine, t: Task, a: Args) -> Decision:
    """``getrandom(buffer, count, flags)``; the pool is always ready, so that no flag makes a difference."""
    flags = a[2] & 0xFFFFFFFF
    if flags & ~(_GRND_NONBLOCK | _GRND_RANDOM | _GRND_INSECURE):
        return -EINVAL
    if flags & (_GRND_RANDOM | _GRND_INSECURE) == _GRND_RANDOM | _GRND_INSECURE:
        return -EINVAL
    count = min(a[1], _MAX_COUNT)
    done = 0
    while done < count:
        piece = min(count - done, _CHUNK)
        try:
            t.write(a[0] + done, t.rng.bytes(piece))
        except OSError:
            if done == 0:
                raise
            break
        done += piece
    return done
