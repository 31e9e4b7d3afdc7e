"""Random numbers: getrandom(2), and what reading /dev/urandom gives."""

from __future__ import annotations

from collections.abc import Iterable
from errno import EFAULT, EINVAL
from typing import TYPE_CHECKING

from detbox.decision import Decision
from detbox.machine.futex_keys import TASK_SIZE

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Args, Task

_GRND_NONBLOCK, _GRND_RANDOM, _GRND_INSECURE = 1, 2, 4
#: MAX_RW_COUNT: the most bytes that one call moves.
_MAX_COUNT = 0x7FFFF000
_CHUNK = 1 << 20
_PAGE = 4096


def getrandom(m: Machine, t: Task, a: Args) -> Decision:
    """``getrandom(buffer, count, flags)``; the pool is always ready, so that no flag makes a difference."""
    flags = a[2] & 0xFFFFFFFF
    if flags & ~(_GRND_NONBLOCK | _GRND_RANDOM | _GRND_INSECURE):
        return -EINVAL
    if flags & (_GRND_RANDOM | _GRND_INSECURE) == _GRND_RANDOM | _GRND_INSECURE:
        return -EINVAL
    return fill(t, [(a[0], a[1])])


def fill(t: Task, segments: Iterable[tuple[int, int]]) -> int:
    """Random bytes into (address, length) after (address, length): how many until memory faulted, or -EFAULT."""
    done = 0
    for address, length in segments:
        length = min(length, _MAX_COUNT - done)
        if address + length > TASK_SIZE:  # access_ok() (lib/iov_iter.c, import_single_range()): nothing is written
            return done or -EFAULT
        for at in range(address, address + length, _CHUNK):
            data = t.rng.bytes(min(address + length - at, _CHUNK))
            written = _write(t, at, data)
            done += written
            if written < len(data):
                return done or -EFAULT
    return done


def _write(t: Task, address: int, data: bytes) -> int:
    """How much of it could be written."""
    try:
        t.write(address, data)
        return len(data)
    except OSError:
        pass
    done = 0
    while done < len(data):
        end = min(len(data), done + _PAGE - (address + done) % _PAGE)
        try:
            t.write(address + done, data[done:end])
        except OSError:
            break
        done = end
    return done
