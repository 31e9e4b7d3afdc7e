"""Whom processes that execute generated code let go first."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

from detbox.supervisor import generated
from detbox.supervisor.generated import ALLOWED, EACH, ONE_IN, lets_go_first

if TYPE_CHECKING:
    import pytest

    from detbox.supervisor.machine import Machine


def threads(monkeypatch: pytest.MonkeyPatch, *, generates: bool) -> list[Any]:
    """Three threads of a process."""
    monkeypatch.setattr(generated, "code_without_file", lambda m, task: [None] if generates else [])
    process = SimpleNamespace(mm=SimpleNamespace(data={}))
    return [SimpleNamespace(process=process, data={}) for _ in range(3)]


def test_a_new_thread_lets_others_go_first_when_all_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    m = cast("Machine", None)
    old, new, other = threads(monkeypatch, generates=True)
    many = 2 * ALLOWED
    firsts = [lets_go_first(m, old) for _ in range(many)]
    assert all(firsts[:ALLOWED])
    assert sum(firsts) == ALLOWED + many // ONE_IN + EACH, "one in so many, and what each thread has of its own"
    for thread in new, other:
        firsts = [lets_go_first(m, thread) for _ in range(3 * EACH)]
        assert all(firsts[:EACH]), "what it begins with may be a loop that waits for one of them"
        assert sum(firsts[EACH:]) <= EACH // 4


def test_nobody_goes_first_where_there_is_no_generated_code(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not any(lets_go_first(cast("Machine", None), threads(monkeypatch, generates=False)[0]) for _ in range(99))
