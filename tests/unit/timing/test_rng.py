"""Random streams: a function of seed, lineage and program alone."""

from __future__ import annotations

from types import SimpleNamespace

from hypothesis import given
from hypothesis import strategies as st

from detbox.handlers.random import getrandom
from detbox.machine.rng import RandomStream


@given(st.lists(st.integers(0, 9000), max_size=12))
def test_pieces_make_up_the_stream(sizes: list[int]) -> None:
    whole, pieces = RandomStream(7, "1.2"), RandomStream(7, "1.2")
    assert whole.bytes(sum(sizes)) == b"".join(pieces.bytes(size) for size in sizes)


def test_every_stream_is_its_own() -> None:
    streams = [RandomStream(seed, lineage, execs)
               for seed in (0, 1) for lineage in ("1", "1.1", "1.1.1", "11") for execs in (0, 1)]
    assert len({stream.bytes(16) for stream in streams}) == len(streams)
    assert len({stream.at_random() for stream in streams}) == len(streams)


def test_the_stream_never_changes() -> None:
    """Recorded once: a change of these bytes changes the result of every run."""
    assert RandomStream(0, "1").bytes(8).hex() == "cc8b3b8c1c81fc62"


def test_at_random_leaves_the_stream_alone() -> None:
    first, second = RandomStream(3, "1"), RandomStream(3, "1")
    first.at_random()
    assert first.bytes(32) == second.bytes(32)


def test_below() -> None:
    stream = RandomStream(0, "1")
    assert {stream.below(3) for _ in range(100)} == {0, 1, 2}


def test_getrandom(m: SimpleNamespace, t: SimpleNamespace) -> None:
    assert m.call(t, getrandom, 64, 100, 0) == 100
    assert t.read(64, 100) == RandomStream(0, "1").bytes(100)
    assert m.call(t, getrandom, 64, 0, 1) == 0
    assert m.call(t, getrandom, 0, 8, 0) == -14
    assert m.call(t, getrandom, 64, 8, 6) == -22
    assert m.call(t, getrandom, 64, 8, 8) == -22
