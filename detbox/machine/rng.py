"""Random numbers for the guest: one stream per process and program, derived from the run's seed.

A stream depends on the seed, on the name of the program that the process executes (``machine.program``) and on
the process's place in the tree of that program's forks, so that unrelated processes cannot change each other's
numbers, in whatever order they run.
"""

from __future__ import annotations

import builtins

from detbox.digests import sha256, shake_256

#: Sizes of a stream's first blocks, in bytes; later ones have the last size.  Most processes take
#: eight bytes and no more (malloc's tcache key), a few read megabytes.
BLOCK_SIZES = (64, 512, 4096, 65536)
#: Bytes that AT_RANDOM points to (fs/binfmt_elf.c).
AT_RANDOM_SIZE = 16


class RandomStream:
    """A stream of bytes that is a function of (seed, lineage, execs) alone.

    SHAKE-256 in counter mode: cheap for long reads, and the guest cannot tell it from true randomness.
    """

    __slots__ = ("_key", "_block", "_buffer", "_used")

    def __init__(self, seed: int | bytes | str, lineage: str, execs: int = 0) -> None:
        """``lineage``: the process's position in the fork tree; ``execs``: its successful execs."""
        self._key = sha256(f"detbox stream\0{seed!r}\0{lineage}\0{execs}".encode()).digest()
        self._block = 0
        self._buffer = b""
        self._used = 0

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes."""
        end = self._used + count
        if end <= len(self._buffer):
            start, self._used = self._used, end
            return self._buffer[start:end]
        parts = [self._buffer[self._used:]]
        missing = count - len(parts[0])
        while missing > 0:
            self._buffer = self._next_block()
            self._used = min(missing, len(self._buffer))
            parts.append(self._buffer[:self._used])
            missing -= self._used
        return b"".join(parts)

    def below(self, bound: int) -> int:
        """A number from 0 to ``bound`` - 1 (``bound`` at most 2**32; the bias is below 2**-32)."""
        return int.from_bytes(self.bytes(8), "little") % bound

    def at_random(self) -> builtins.bytes:
        """The 16 bytes of AT_RANDOM; they do not advance the stream."""
        return sha256(b"AT_RANDOM\0" + self._key).digest()[:AT_RANDOM_SIZE]

    def _next_block(self) -> builtins.bytes:
        size = BLOCK_SIZES[min(self._block, len(BLOCK_SIZES) - 1)]
        counter = self._block.to_bytes(8, "little")
        self._block += 1
        return shake_256(self._key + counter).digest(size)
