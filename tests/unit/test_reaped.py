"""Which zombie children are found to be reaped, and how many are looked at for that."""

from __future__ import annotations

import errno
from types import SimpleNamespace
from typing import Any

import pytest

from detbox.kernel.numbers import NUMBERS
from detbox.supervisor import lifecycle
from detbox.supervisor.task import Process


class Host:
    """A process with children 10 to 19, all zombies that the kernel knows, but for the last."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.looks = 0
        self.parent = Process(2, None, "1")
        self.children = {pid: Process(pid, self.parent, f"1.{pid}") for pid in range(10, 20)}
        self.known = set(self.children)
        for pid, child in self.children.items():
            self.parent.children.append(child)
            if pid < 19:
                self.ends(pid)
        self.sup: Any = SimpleNamespace(m=SimpleNamespace(processes=dict(self.children)))
        monkeypatch.setattr(lifecycle, "_native", SimpleNamespace(raw_syscall=self._kill))

    def _kill(self, number: int, pid: int, signo: int) -> int:
        assert (number, signo) == (NUMBERS["kill"], 0)
        self.looks += 1
        return 0 if pid in self.known else -errno.ESRCH

    def ends(self, pid: int) -> None:
        self.children[pid].status = 0
        self.children[pid].cpu.ns = 5
        self.parent.ended.append(self.children[pid])

    def is_gone(self, pid: int) -> None:
        self.known.remove(pid)

    def forget(self) -> tuple[set[int], int]:
        """Who was forgotten, and after how many looks."""
        before, self.looks = set(self.sup.m.processes), 0
        lifecycle.forget_reaped(self.sup, self.parent)
        assert {child.pid for child in self.parent.children} == set(self.sup.m.processes)
        return before - set(self.sup.m.processes), self.looks


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def test_who_has_ended_is_looked_at_once(host: Host) -> None:
    host.is_gone(12)
    assert host.forget() == ({12}, 9)
    assert host.parent.cpu.children_ns == 5
    assert host.forget() == (set(), 0)
    host.ends(19)
    host.is_gone(19)
    assert host.forget() == ({19}, 1)


def test_a_wait_takes_the_child_that_it_should(host: Host) -> None:
    host.forget()
    host.parent.waits.append(host.children[10])
    host.is_gone(10)
    assert host.forget() == ({10}, 1)


def test_a_wait_takes_another_child(host: Host) -> None:
    host.forget()
    host.parent.waits.append(host.children[10])
    host.is_gone(17)
    assert host.forget() == ({17}, 9 + 1)
    assert host.forget() == (set(), 0)


def test_two_waits_that_should_take_the_same_child(host: Host) -> None:
    host.forget()
    host.parent.waits += [host.children[10], host.children[10]]
    host.is_gone(10)
    host.is_gone(11)
    assert host.forget()[0] == {10, 11}
