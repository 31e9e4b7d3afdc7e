"""In which order a run's standard output and error took turns."""

from __future__ import annotations

from detbox.digests import sha256

#: Turns that are reported one by one; the digest covers all.
_KEPT = 1000


class Interleaving:
    """Observes output; ``summary`` tells turns as ``[stream, bytes]`` and a digest of all of them."""

    def __init__(self) -> None:
        self._turns: list[list[int]] = []
        self._stream, self._bytes = 0, 0
        self._digest = sha256()

    def on_output(self, stream: int, data: bytes) -> None:
        """A piece of output was handed on."""
        if stream != self._stream:
            self._end_turn()
            self._stream, self._bytes = stream, 0
        self._bytes += len(data)

    def _end_turn(self) -> None:
        if self._bytes:
            self._digest.update(b"%d %d\n" % (self._stream, self._bytes))
            if len(self._turns) < _KEPT:
                self._turns.append([self._stream, self._bytes])

    def summary(self) -> dict[str, object]:
        """The turns until now; no further output may follow."""
        self._end_turn()
        self._bytes = 0
        return {"turns": self._turns, "sha256": self._digest.hexdigest()}
