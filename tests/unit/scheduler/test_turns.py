"""The length of a thread's turns: around the quantum, and never in step with a loop."""

from __future__ import annotations

import pytest

from detbox.scheduler.core import QUANTUM, turn_length


def test_turns_are_about_a_quantum_long() -> None:
    lengths = [turn_length(turns) for turns in range(1000)]
    assert all(QUANTUM * 3 // 4 <= length < QUANTUM * 5 // 4 for length in lengths)
    assert abs(sum(lengths) / len(lengths) - QUANTUM) < 2


@pytest.mark.parametrize("period", range(2, 65))
def test_every_place_of_a_short_loop_is_reached_soon(period: int) -> None:
    """Whoever starts anew in each turn (it waits for another thread, say) is not stopped at one place only."""
    places = {turn_length(turns) % period for turns in range(200)}
    assert len(places) == period
