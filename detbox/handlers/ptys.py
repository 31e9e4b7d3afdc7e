"""Pseudo-terminals: what is put into one side has reached the other before the guest goes on.

What is written to one side is queued, and a kernel worker carries it through the line discipline of the other
side (drivers/tty/tty_buffer.c): it is the worker that echoes, edits lines and sends the signals of ^C and ^Z.
n_tty_poll() waits for that worker (drivers/tty/n_tty.c), unless there is something to read already.  So each
write is followed by a poll of the other side, where the bytes go, and of the own side, where the echo comes.
Where there is something to read already, it is waited for as many bytes as are known to come; and where that is not
known, for the worker to have begun (detbox/kernel/ttyworker.py), and a moment.
Any process may have the other side open: it is looked for in all descriptor tables.
"""

from __future__ import annotations

import os
import termios
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fcntl import ioctl
from stat import S_ISCHR
from typing import TYPE_CHECKING

from detbox.handlers.waiting import POLLIN, POLLOUT, ready, without_blocking
from detbox.kernel import _native, ttyworker
from detbox.machine.files import is_tty
from detbox.machine.io import io_state
from detbox.records import record

if TYPE_CHECKING:
    from detbox.supervisor.machine import Machine
    from detbox.supervisor.task import Task

_TIOCGPTN, _TIOCGDEV = 0x80045430, 0x80045432
_TCGETS2, _TCSETS2 = 0x802C542A, 0x402C542B
#: struct termios2 (asm-generic/termbits.h): four words of flags, the discipline, 19 characters, two speeds.
_TERMIOS2_SIZE, _IFLAG, _OFLAG, _LFLAG, _CC = 44, 0, 4, 12, 17
_IUCLC, _ECHOCTL = 0o1000, 0o1000
#: Flags with which input, and output, is more than what was written (n_tty_set_termios(), do_output_char()).
_COOKED_LOCAL = termios.ICANON | termios.ISIG | termios.ECHO
_COOKED_INPUT = (
    termios.ISTRIP | _IUCLC | termios.IGNCR | termios.ICRNL | termios.INLCR | termios.IXON | termios.PARMRK
)
_COOKED_OUTPUT = termios.TABDLY | termios.OCRNL | termios.ONOCR | termios.ONLRET | termios.OLCUC
_TAB, _NEWLINE, _RETURN, _SPACE, _DELETE = 9, 10, 13, 32, 127
_MOST_MIN = 255  # VMIN is one byte
_FIRST_PTS, _LAST_PTS = 136, 143  # Documentation/admin-guide/devices.txt
_NO_CHARACTER = 0  # _POSIX_VDISABLE
#: Less than what n_tty holds for a reader at most (N_TTY_BUF_SIZE).
_BUFFER = 4000
#: What it holds at most for one who reads characters, not lines.
_HELD = 4095
_FEW = 64
#: Seconds of the host.  What is certain to come is waited for so long, what may come so long, and it is over
#: when nothing has changed for so long.
_CERTAIN_LIMIT, _UNSURE_LIMIT, _QUIET = 1.0, 0.1, 0.005

_NOTHING = ("", -1)


def word(fd: int, request: int) -> int:
    """The unsigned 32-bit answer of an ioctl on the supervisor's descriptor; 0 if it has none."""
    answer = bytearray(4)
    try:
        ioctl(fd, request, answer)
    except OSError:
        return 0
    return int.from_bytes(answer, "little")


def device(fd: int) -> int:
    """The slave's device number in the kernel's encoding, also of a master or of /dev/tty; 0 if hung up."""
    return word(fd, _TIOCGDEV)


def is_master(fd: int) -> bool:
    """Whether the supervisor's descriptor is the master side of a pty."""
    return _side(fd)[0] == "master"


def _side(fd: int) -> tuple[str, int]:
    """("master" or "slave", number of the pty), or no side at all."""
    number = bytearray(4)
    try:
        ioctl(fd, _TIOCGPTN, number)
    except OSError:
        # include/linux/kdev_t.h, new_encode_dev().
        encoded = device(fd)
        major, minor = encoded >> 8 & 0xFFF, (encoded & 0xFF) | (encoded >> 12 & 0xFFF00)
        if not _FIRST_PTS <= major <= _LAST_PTS:
            return _NOTHING
        return "slave", (major - _FIRST_PTS << 20) + minor
    return "master", int.from_bytes(number, "little")


def note(m: Machine, t: Task, fd: int, own: int) -> None:
    """Remember that the guest's ``fd`` (borrowed as ``own``) is a side of a terminal."""
    io_state(m).terminals[_side(own)] = (t.process.pid, fd)


def _other_side(m: Machine, own: int) -> int:
    """A borrowed descriptor of the other side, -1 if no process has it open."""
    side, number = _side(own)
    return -1 if number < 0 else _find(m, ("slave" if side == "master" else "master", number))


def _find(m: Machine, wanted: tuple[str, int]) -> int:
    """A borrowed descriptor of this side, -1 if no process has it open."""
    known = io_state(m).terminals.get(wanted)
    if known is not None:
        found = _borrow_side(*known, wanted)
        if found >= 0:
            return found
        del io_state(m).terminals[wanted]
    # All that are met are remembered: who has a thousand terminals would be looked through a thousand times.
    io_state(m).terminals.update((side, place) for side, place in _sides(m))
    known = io_state(m).terminals.get(wanted)
    return -1 if known is None else _borrow_side(*known, wanted)


def slave_number(own: int) -> int:
    """The number of the pty whose slave side a descriptor is, -1 if it is none or was hung up."""
    side, number = _side(own)
    return number if side == "slave" else -1


def has_lost_master(m: Machine, own: int, number: int) -> bool:
    """Whether a slave, once pty ``number``'s, was hung up by the master's closing, and not by vhangup()."""
    if number < 0 or device(own):
        return False
    master = _find(m, ("master", number))
    if master >= 0:
        os.close(master)
    return master < 0


def _borrow_side(pid: int, fd: int, wanted: tuple[str, int]) -> int:
    with suppress(OSError):
        found = _native.borrow_fd(pid, fd)
        if _side(found) == wanted:
            return found
        os.close(found)
    return -1


def _sides(m: Machine) -> Iterator[tuple[tuple[str, int], tuple[int, int]]]:
    """Each side that is open, with a process and its descriptor."""
    for pid, fd in _terminals(m):
        with suppress(OSError):
            own = _native.borrow_fd(pid, fd)
            side = _side(own)
            os.close(own)
            if side[1] >= 0:
                yield side, (pid, fd)


def _terminals(m: Machine) -> Iterator[tuple[int, int]]:
    """(process, descriptor) of every open terminal of the guest."""
    for pid, process in list(m.processes.items()):
        if process.status is not None:
            continue
        with suppress(OSError):
            folder = os.open(f"{pid}/fd", os.O_RDONLY | os.O_DIRECTORY, dir_fd=m.proc_fd)
            try:
                for name in os.listdir(folder):
                    with suppress(OSError):
                        st = os.stat(name, dir_fd=folder)
                        if S_ISCHR(st.st_mode) and is_tty(st.st_rdev):
                            yield pid, int(name)
            finally:
                os.close(folder)


# ---------------------------------------------------------------- putting bytes in


def put(m: Machine, own: int, data: bytes) -> int:
    """Write to a terminal as far as there is room, and wait for the effects; how much was written.

    BlockingIOError if there is no room, OSError as write(2) has it.
    """
    (side, number), done = _side(own), 0
    master, other = side == "master", _other_side(m, own)
    modes = _Modes.of(own) if other >= 0 else None
    size = modes.size(to_master=not master) if modes else None
    try:
        while done < len(data):
            if size is not None:
                written = _put_plainly(m, own, other, data[done:], size, ("slave" if master else "master", number))
            elif master and (other < 0 or ready(other, POLLIN)):
                written = _put_blindly(own, other, data[done:])
            else:
                before = queued(own)
                written = _write(own, data[done:])
                _arrived(other)
                if master and modes and before and ready(other, POLLOUT):  # no poll waits for the echo
                    _wait_queued(own, before + modes.echo(data[done : done + written])[0])
            _arrived(own)
            done += written
    except BlockingIOError:
        if done == 0:
            raise
    finally:
        if other >= 0:
            os.close(other)
    return done


def _put_plainly(
    m: Machine, own: int, other: int, data: bytes, size: Callable[[bytes], int], name: tuple[str, int]
) -> int:
    """Write what the other side, called ``name``, is known to get that many bytes of.

    First as much as its line discipline takes, with a wait for the worker behind each piece, so that it is not the
    worker's haste which says how much there is room for behind that.
    """
    crowded = io_state(m).crowded
    ready(other, POLLIN)
    before = queued(other)
    room = _HELD - before
    if room == _HELD or (room > 0 and crowded.get(name)):
        crowded.pop(name, None)  # the worker had room for the rest
    if room <= 0 or name in crowded:
        if crowded.get(name):
            return _write(own, data)
        written = _write(own, data[:_FEW])
        crowded[name] = True
        _surely_arrive(other)
        return written
    piece = data[:room]
    if size(piece) > room:
        piece = data[: max(room // 2, 1)]
    written = _write(own, piece)
    least = before + size(piece[:written])
    if before and queued(other) < min(least, _HELD):
        ttyworker.wait_for_earlier()
    _arrived(other)
    _wait_queued(other, least)
    return written


def has_read(m: Machine, own: int) -> None:
    """Somebody has read from this side: have arrive what it had no room for when it was written."""
    crowded = io_state(m).crowded
    if crowded and (name := _side(own)) in crowded:
        crowded[name] = False
        _surely_arrive(own)


def _surely_arrive(own: int) -> None:
    """Have arrive on this side what there is room for: nothing tells how much that is."""
    if ready(own, POLLIN):
        arrive(own)
        time.sleep(_QUIET / 10)


def arrive(own: int) -> None:
    """Have arrive on this side what has been written to the other one, whether there is something or not."""
    if ready(own, POLLIN):
        ttyworker.wait_for_earlier()
        _arrived(own)


def _write(own: int, data: bytes) -> int:
    with without_blocking(own):
        return os.write(own, data)


def flush(m: Machine, own: int) -> None:
    """Have what is on its way between the two sides arrive: the terminal's flow has been changed."""
    other = _other_side(m, own)
    _arrived(other)
    _arrived(own)
    if other >= 0:
        os.close(other)


def flush_all(m: Machine) -> None:
    """Have everything arrive in every terminal that is known to be used."""
    for wanted, known in list(io_state(m).terminals.items()):
        own = _borrow_side(*known, wanted)
        if own < 0:
            del io_state(m).terminals[wanted]
            continue
        _arrived(own)
        os.close(own)


def _arrived(fd: int) -> None:
    """Wait for the worker that fills this side, unless something was there before."""
    if fd >= 0 and ready(fd, POLLIN):
        # The worker shows what it has before it wakes those who wait, sends signals or is through with the
        # rest.  Setting the line discipline, even the same one, waits until nobody works with it
        # (drivers/tty/tty_ldisc.c, tty_set_ldisc()).
        discipline = bytearray(4)
        with suppress(OSError):
            ioctl(fd, termios.TIOCGETD, discipline)
            ioctl(fd, termios.TIOCSETD, discipline)


def queued(fd: int) -> int:
    """How much can be read from this side."""
    return word(fd, termios.FIONREAD)


# ---------------------------------------------------------------- when no poll waits


@record
class _Modes:
    """What a terminal does with its input; ``raw`` is its struct termios2."""

    raw: bytearray

    @staticmethod
    def of(fd: int) -> _Modes:
        """Those of a pseudo-terminal, of whichever side."""
        raw = bytearray(_TERMIOS2_SIZE)
        ioctl(fd, _TCGETS2, raw)
        return _Modes(raw)

    @property
    def local(self) -> int:
        """The flags ICANON, ECHO, ISIG and so on."""
        return self._word(_LFLAG)

    def signal_in(self, data: bytes) -> int:
        """Where the first character is that sends a signal, -1 if there is none."""
        if not self.local & termios.ISIG:
            return -1
        characters = {self.raw[_CC + i] for i in (termios.VINTR, termios.VQUIT, termios.VSUSP)}
        return next((i for i, c in enumerate(data) if c in characters and c != _NO_CHARACTER), -1)

    def size(self, *, to_master: bool) -> Callable[[bytes], int] | None:
        """How many bytes arrive when some are written; None if that depends on more than these bytes."""
        if not to_master:
            cooked = self.local & _COOKED_LOCAL or self._word(_IFLAG) & _COOKED_INPUT
            return None if cooked else len
        made = self._word(_OFLAG)
        if not made & termios.OPOST:
            return len
        if made & _COOKED_OUTPUT:
            return None
        return (lambda data: len(data) + data.count(b"\n")) if made & termios.ONLCR else len

    def echo(self, data: bytes) -> tuple[int, bool]:
        """How many bytes its echo has at least, and whether it has no more (drivers/tty/n_tty.c)."""
        local, given, made = self.local, self._word(_IFLAG), self._word(_OFLAG)
        if not local & termios.ECHO:
            return 0, False
        special = set(self.raw[_CC : _CC + 19])
        control = 2 if local & _ECHOCTL else 1
        newline = 2 if made & termios.OPOST and made & termios.ONLCR else 1
        alike = bool(local & termios.ICANON) and not given & (termios.ISTRIP | termios.INLCR | termios.IGNCR | _IUCLC)
        least, exact = 0, alike
        for c in data:
            if c == _NEWLINE or (c == _RETURN and given & termios.ICRNL):
                least += newline if alike else 0
            elif c in special or c == _RETURN:
                exact = False
            elif c == _TAB:  # may be that many spaces
                least, exact = least + 1, exact and made & termios.TABDLY != termios.XTABS
            else:
                least += control if c < _SPACE or c == _DELETE else 1
        return least, exact

    def _word(self, at: int) -> int:
        return int.from_bytes(self.raw[at : at + 4], "little")


def _put_blindly(master: int, slave: int, data: bytes) -> int:
    """Write to a master whose slave has unread input, or is not open (-1).

    No call waits for the worker then, except in raw mode.  But what it does is known: a signal empties the
    slave, and an echo makes more readable on the master.
    """
    modes = _Modes.of(master)
    at = modes.signal_in(data)
    data = data[: at + 1] or data  # the rest is a write of its own
    if slave >= 0 and not modes.local & termios.ICANON and queued(slave) + len(data) < _MOST_MIN:
        with _hungry(master, modes):
            written = _write(master, data)
            _arrived(slave)
        return written
    before = queued(master)
    written = _write(master, data)
    data = data[:written]
    crowded = max(before, queued(slave) if slave >= 0 else 0) + 2 * len(data) > _BUFFER
    if crowded or (slave >= 0 and not ready(slave, POLLOUT)):  # no room, or ^S: the echo is held back
        _wait_quiet(master, slave)
    elif at >= 0 and slave >= 0 and not modes.local & termios.NOFLSH:
        _wait(lambda: not ready(slave, POLLIN))
        _arrived(slave)
    elif (at >= 0) or modes.local & termios.ECHO:
        echo, exact = modes.echo(data)
        _wait_queued(master, before + echo)
        if exact:
            _arrived(slave)
        else:
            _wait_quiet(master, slave)
    else:
        _arrived(slave)
    return written


@contextmanager
def _hungry(master: int, modes: _Modes) -> Iterator[None]:
    """Let a slave in raw mode have less than a reader wants, for a moment: VMIN says what that is."""
    hungry = bytearray(modes.raw)
    hungry[_CC + termios.VTIME], hungry[_CC + termios.VMIN] = 0, _MOST_MIN
    ioctl(master, _TCSETS2, hungry)
    try:
        yield
    finally:
        ioctl(master, _TCSETS2, modes.raw)


def _wait(done: Callable[[], bool]) -> None:
    """Wait for what comes unless a terminal has been set up, or filled, in a way not foreseen here."""
    limit = time.monotonic() + _CERTAIN_LIMIT
    while not done() and time.monotonic() < limit:
        time.sleep(_QUIET / 10)


def _wait_queued(side: int, least: int) -> None:
    _wait(lambda: queued(side) >= min(least, _HELD))


def _wait_quiet(master: int, slave: int) -> None:
    """Wait until what can be read from the master has been the same for a while of the host's time.

    That while begins when the worker has, which a busy host may let wait for long.
    """
    for side in (slave, master):  # the second worker carries the echo
        ttyworker.wait_for_earlier()
        _arrived(side)
    limit = time.monotonic() + _UNSURE_LIMIT
    last, since = queued(master), time.monotonic()
    while (now := time.monotonic()) < limit and now - since < _QUIET:
        time.sleep(_QUIET / 10)
        if queued(master) != last:
            last, since = queued(master), time.monotonic()
