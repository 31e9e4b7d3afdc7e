"""The guest's standard streams: pipes whose other ends the supervisor holds.

Whatever detbox's own streams are (terminal, pipe, file, socket), the guest
always sees three pipes, so that it cannot behave differently.  Output is handed
on at once and in the order of the guest's writes.  Input is fed in chunks whose
borders do not depend on how the host's pipe delivers it: full chunks up to the
end, or whole lines if detbox reads from a terminal.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
from collections.abc import Callable

from detbox.machine.files import Kind

CHUNK = 65536  # the default capacity of a pipe

#: Called with (stream number, data) for every piece of output.
Observer = Callable[[int, bytes], None]


class Console:
    """Owns the host side of the three streams.

    ``host``: descriptors of the real stdin (or -1 for none), stdout and stderr.
    """

    def __init__(self, host: tuple[int, int, int], head: bytes = b"") -> None:
        """``head``: input that comes before what the host's stdin still gives."""
        self.host = host
        self._head = head
        self._stdin_read, self._stdin_write = os.pipe2(os.O_CLOEXEC)
        self._out = [os.pipe2(os.O_CLOEXEC) for _ in range(2)]
        for read_end, _ in self._out:
            os.set_blocking(read_end, False)
        #: By (st_dev, st_ino) of the guest's ends.
        self.kinds = {
            _identity(self._stdin_read): Kind.STDIN,
            _identity(self._out[0][1]): Kind.STDOUT,
            _identity(self._out[1][1]): Kind.STDERR,
        }
        self._line_wise = host[0] >= 0 and os.isatty(host[0])
        self.consumed = 0  # bytes of real input handed to the guest
        self.written = [0, 0]
        self.ended = False  # the end of the input has been met
        self.observer: Observer | None = None
        self.input_observer: Callable[[bytes], None] | None = None
        if host[0] < 0:
            self._close_input()

    def flags(self, stream: int) -> int:
        """The status flags of the guest's descriptor 0, 1 or 2, as the first process got it."""
        return fcntl.fcntl(self.guest_fds()[stream], fcntl.F_GETFL)

    def set_flags(self, stream: int, flags: int) -> None:
        """Change them."""
        fcntl.fcntl(self.guest_fds()[stream], fcntl.F_SETFL, flags)

    def guest_fds(self) -> tuple[int, int, int]:
        """Descriptors that become the first process's 0, 1 and 2."""
        return self._stdin_read, self._out[0][1], self._out[1][1]

    def write(self, which: int, data: bytes) -> None:
        """Hand output of stream 1 or 2 to the host; drained pipe content goes first."""
        self.drain()
        self._deliver(which, data)

    def _deliver(self, which: int, data: bytes) -> None:
        if self.observer is not None:
            self.observer(which, data)
        self.written[which - 1] += len(data)
        fd, view = self.host[which], memoryview(data)
        # A reader that has gone away must not change what the guest does, so its
        # output is dropped from then on (EPIPE); a slow reader is waited for.
        while view:
            try:
                view = view[os.write(fd, view):]
            except BlockingIOError:
                select.select([], [fd], [])
            except OSError:
                return

    def drain(self) -> None:
        """Hand on what reached the pipes without a write call (splice, sendfile)."""
        for index, (read_end, _) in enumerate(self._out):
            with contextlib.suppress(BlockingIOError):
                while data := os.read(read_end, CHUNK):
                    self._deliver(index + 1, data)
                    if len(data) < CHUNK:
                        break

    def fill_stdin(self) -> None:
        """Make the guest's stdin readable: the next chunk of input, or its end."""
        if self._stdin_write < 0 or self._pending():
            return
        parts, size = [], 0
        while size < CHUNK:
            data, self._head = self._head[: CHUNK - size], self._head[CHUNK - size :]
            data = data or os.read(self.host[0], CHUNK - size)
            if not data:
                self.ended = True
                break
            parts.append(data)
            size += len(data)
            if self._line_wise:
                break
        if parts:
            self.consumed += size
            if self.input_observer is not None:
                self.input_observer(b"".join(parts))
            os.write(self._stdin_write, b"".join(parts))
        else:
            self._close_input()

    @property
    def input_closed(self) -> bool:
        """Whether the guest has been given all of the input."""
        return self._stdin_write < 0

    def _pending(self) -> bool:
        return bool(select.select([self._stdin_read], [], [], 0)[0])

    def _close_input(self) -> None:
        os.close(self._stdin_write)
        self._stdin_write = -1

    def prepare(self) -> None:
        """Fix the pipes' capacity, which follows from the host's limits otherwise."""
        for fd in (self._stdin_read, self._out[0][1], self._out[1][1]):
            with contextlib.suppress(OSError):
                fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, CHUNK)


def _identity(fd: int) -> tuple[int, int]:
    st = os.fstat(fd)
    return st.st_dev, st.st_ino
