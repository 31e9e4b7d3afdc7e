"""When a thread that is counted for others is looked at."""

from __future__ import annotations

from detbox.supervisor.looks import CLOSEST, LIMIT, LONGER, LONGEST, PIECE, SOON, SPINS, looks_of
from detbox.supervisor.stretch import GAVE_WAY
from detbox.supervisor.task import Process, Task


def thread() -> Task:
    return Task(1, Process(1, None, "1"), "1")


def test_looks_become_rare_and_close_while_a_thread_makes_no_call() -> None:
    task = thread()
    limits, periods = [], []
    for times in range(8):
        looks = looks_of(task, 0)
        periods.append(looks.left)
        limits.append(looks.looked())
        task.data[GAVE_WAY] = times + 1
    assert periods[:3] == [PIECE, LONGER * PIECE, LONGER**2 * PIECE] and periods[-1] == LONGEST
    assert limits[0] == LIMIT and limits == sorted(limits) and limits[-1] == CLOSEST


def test_turns_are_a_part_of_what_lies_between_two_looks() -> None:
    task = thread()
    looks_of(task, 0).looked()
    task.data[GAVE_WAY] = 1
    looks_of(task, 0).left -= PIECE
    assert looks_of(task, 0).left == (LONGER - 1) * PIECE


def test_a_call_makes_the_next_look_come_sooner() -> None:
    task = thread()
    for _ in range(3):
        looks_of(task, 0).looked()
        task.data[GAVE_WAY] = 1
    before = looks_of(task, 0)
    period, limit = before.period, before.limit
    del task.data[GAVE_WAY]
    looks = looks_of(task, 0)
    assert (looks.left, looks.limit) == (period // 2, limit // 2)
    for _ in range(20):
        looks = looks_of(task, 0)
    assert (looks.left, looks.limit) == (PIECE, LIMIT)


def test_where_many_spins_were_found_the_first_look_comes_soon() -> None:
    task = thread()
    looks_of(task, SPINS - 1).looked()
    assert looks_of(task, SPINS).left == SOON
