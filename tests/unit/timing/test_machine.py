"""Handlers of identity, limits, scheduling parameters, CPUs and memory nodes."""

from __future__ import annotations

import os
import resource
import signal
from types import SimpleNamespace as NS

import pytest

from detbox.handlers import identity, limits, memory, mounts, scheduling
from detbox.machine.creds import ALL_CAPS, Creds
from detbox.machine.limits import BASE, INFINITY, apply_base, text
from detbox.machine.userspaces import TOP, UserSpace

AT, OLD = 0x100, 0x400


@pytest.fixture
def user(m: NS) -> NS:
    task: NS = m.process(9, Creds.of(1000, 1000, (4, 27)))
    return task


def test_ids(m: NS, t: NS, user: NS) -> None:
    for handler in (identity.getuid, identity.geteuid, identity.getgid, identity.getegid):
        assert (m.call(user, handler), m.call(t, handler)) == (1000, 0)
    assert m.call(t, identity.setresuid, 1, 2, 3) == 0
    assert m.call(t, identity.getresuid, AT, AT + 4, AT + 8) == 0 and t.get(AT, "<3I") == (1, 2, 3)
    assert m.call(t, identity.getresgid, AT, AT + 4, AT + 8) == 0 and t.get(AT, "<3I") == (0, 0, 0)
    assert m.call(t, identity.setuid, 0) == -1
    assert m.call(t, identity.setuid, -1) == -22
    assert m.call(t, identity.setfsuid, -1) == 2


def test_groups(m: NS, t: NS, user: NS) -> None:
    assert m.call(user, identity.getgroups, 0, 0) == 2
    assert m.call(user, identity.getgroups, 1, AT) == -22
    assert m.call(user, identity.getgroups, 2, AT) == 2 and user.get(AT, "<2I") == (4, 27)
    assert m.call(user, identity.setgroups, 0, 0) == -1
    assert m.call(t, identity.setgroups, 2, t.put(AT, "<2I", 9, 5)) == 0
    assert t.process.creds.groups == (5, 9)
    assert m.call(t, identity.setgroups, 65537, AT) == -22


def test_capabilities(m: NS, t: NS, user: NS) -> None:
    header = t.put(AT, "<Ii", 0x20080522, 0)
    assert m.call(t, identity.capget, header, OLD) == 0
    assert t.get(OLD, "<6I") == (0xFFFFFFFF, 0xFFFFFFFF, 0, ALL_CAPS >> 32, ALL_CAPS >> 32, 0)
    t.put(OLD, "<6I", 1, 3, 0, 0, 0, 0)
    assert m.call(t, identity.capset, header, OLD) == 0
    assert (t.process.creds.effective, t.process.creds.permitted) == (1, 3)
    t.put(OLD, "<6I", 7, 7, 0, 0, 0, 0)
    assert m.call(t, identity.capset, header, OLD) == -1
    t.put(AT, "<Ii", 0x20080522, 9)
    assert m.call(t, identity.capget, header, OLD) == 0 and t.get(OLD, "<I") == (0,)
    t.put(AT, "<Ii", 1, 0)
    assert m.call(t, identity.capget, header, 0) == 0 and t.get(AT, "<I") == (0x20080522,)
    t.put(AT, "<Ii", 1, 0)
    assert m.call(t, identity.capget, header, OLD) == -22


def test_names(m: NS, t: NS) -> None:
    assert m.call(t, identity.uname, AT) == 0
    fields = [t.read(AT + 65 * index, 65).rstrip(b"\0").decode() for index in range(6)]
    assert fields[0] == "Linux" and fields[1] == "detbox" and fields[4] == "x86_64"
    assert m.call(t, identity.personality, 0xFFFFFFFF) == 0
    assert m.call(t, identity.personality, 0x40000) == 0
    assert m.call(t, identity.personality, 0xFFFFFFFF) == 0x40000


def test_limits(m: NS, t: NS, user: NS) -> None:
    assert m.call(t, limits.getrlimit, 7, AT) == 0 and t.get(AT, "<QQ") == (1024, 1 << 20)
    assert m.call(t, limits.prlimit64, 0, 4, t.put(AT, "<QQ", 5, 10), OLD) == 0
    assert t.get(OLD, "<QQ") == (0, INFINITY)
    child = m.process(3)
    limits.after_fork(m, t.process, child.process)  # type: ignore[arg-type]
    assert m.call(child, limits.getrlimit, 4, AT) == 0 and child.get(AT, "<QQ") == (5, 10)
    assert m.call(user, limits.setrlimit, 4, user.put(AT, "<QQ", 5, 10)) == 0
    assert m.call(user, limits.setrlimit, 4, user.put(AT, "<QQ", 5, 11)) == -1
    assert m.call(user, limits.setrlimit, 4, user.put(AT, "<QQ", 6, 5)) == -22
    assert m.call(user, limits.prlimit64, 2, 4, 0, AT) == -1
    assert m.call(t, limits.prlimit64, 9, 4, 0, AT) == 0
    assert m.call(t, limits.prlimit64, 77, 4, 0, AT) == -3
    assert m.call(t, limits.prlimit64, 1, 4, 0, AT) == 0 and t.get(AT, "<QQ") == BASE[4]
    assert m.call(user, limits.prlimit64, 1, 4, 0, AT) == m.call(t, limits.prlimit64, 1, 4, AT, 0) == -1
    assert m.call(t, limits.getrlimit, 16, AT) == -22
    assert m.call(t, limits.setrlimit, 7, t.put(AT, "<QQ", 5, (1 << 20) + 1)) == -1


def test_enforced_limits_reach_the_kernel(m: NS, t: NS, monkeypatch: pytest.MonkeyPatch) -> None:
    real = {7: (1024, 4096), 1: (resource.RLIM_INFINITY,) * 2}

    def prlimit(pid: int, which: int, new: tuple[int, int] | None = None) -> tuple[int, int]:
        real[which] = new or real[which]
        return real[which]

    monkeypatch.setattr(limits.resource, "prlimit", prlimit)
    assert m.call(t, limits.setrlimit, 7, t.put(AT, "<QQ", 100, 200)) == 0 and real[7] == (100, 4096)
    assert m.call(t, limits.setrlimit, 7, t.put(AT, "<QQ", 5000, 6000)) == 0 and real[7] == (4096, 4096)
    assert m.call(t, limits.setrlimit, 1, t.put(AT, "<QQ", 512, INFINITY)) == 0
    assert real[1] == (512, resource.RLIM_INFINITY)


def test_cpu_limit(m: NS, t: NS) -> None:
    assert m.call(t, limits.setrlimit, 0, t.put(AT, "<QQ", 1, 3)) == 0
    t.cpu.spend(10**9)
    t.cpu.spend(10**9)
    t.cpu.spend(10**9)
    assert [signo for signo, _ in m.sent] == [signal.SIGXCPU, signal.SIGXCPU, signal.SIGKILL]


def test_text_of_limits() -> None:
    lines = text(BASE).splitlines()
    assert lines[0] == "Limit                     Soft Limit           Hard Limit           Units     "
    assert lines[8] == "Max open files            1024                 1048576              files     "
    assert len(lines) == 17


def test_sysinfo(m: NS, t: NS) -> None:
    assert m.call(t, limits.sysinfo, AT) == 0
    fields = t.get(AT, "<q3Q6QH6xQQI4x")
    assert fields[0] == 1001 and fields[1:4] == (0, 0, 0) and fields[4] == 8 << 30 and fields[-1] == 1


def test_cpus(m: NS, t: NS) -> None:
    assert m.call(t, scheduling.getcpu, AT, AT + 4, 0) == 0 and t.get(AT, "<II") == (0, 0)
    assert m.call(t, scheduling.sched_getaffinity, 0, 128, AT) == 8 and t.get(AT, "<Q") == (15,)
    assert m.call(t, scheduling.sched_setaffinity, 0, 8, t.put(AT, "<Q", 0xF4)) == 0
    assert m.call(t, scheduling.sched_getaffinity, 2, 8, AT) == 8 and t.get(AT, "<Q") == (4,)
    assert m.call(t, scheduling.getcpu, AT, 0, 0) == 0 and t.get(AT, "<I") == (2,)
    assert m.call(t, scheduling.sched_setaffinity, 0, 8, t.put(AT, "<Q", 0xF0)) == -22
    assert m.call(t, scheduling.sched_getaffinity, 0, 4, AT) == -22
    assert m.call(t, scheduling.sched_getaffinity, 77, 8, AT) == -3


def test_policies(m: NS, t: NS, user: NS) -> None:
    assert m.call(t, scheduling.sched_setscheduler, 0, 1, t.put(AT, "<i", 50)) == 0
    assert m.call(t, scheduling.sched_getscheduler, 0) == 1
    assert m.call(t, scheduling.sched_getparam, 0, AT) == 0 and t.get(AT, "<i") == (50,)
    assert m.call(t, scheduling.sched_setscheduler, 0, 0, t.put(AT, "<i", 50)) == -22
    assert m.call(user, scheduling.sched_setscheduler, 0, 1, user.put(AT, "<i", 50)) == -1
    assert m.call(user, scheduling.sched_setscheduler, 0, 3, user.put(AT, "<i", 0)) == 0
    bounds = [m.call(t, f, policy) for policy in (0, 1, 2, 5, 9)
              for f in (scheduling.sched_get_priority_min, scheduling.sched_get_priority_max)]
    assert bounds == [0, 0, 1, 99, 1, 99, 0, 0, -22, -22]
    t.put(AT, "<IIQiIQQQ", 48, 0, 0, 7, 0, 0, 0, 0)
    assert m.call(t, scheduling.sched_setattr, 0, AT, 0) == 0
    assert m.call(t, scheduling.sched_getattr, 0, OLD, 56, 0) == 0
    assert t.get(OLD, "<IIQiI") == (56, 0, 0, 7, 0)
    assert m.call(t, scheduling.sched_rr_get_interval, 0, AT) == 0 and t.get(AT, "<qq") == (0, 4_000_000)


def test_nice(m: NS, t: NS, user: NS) -> None:
    assert m.call(user, scheduling.getpriority, 0, 0) == 20
    assert m.call(user, scheduling.setpriority, 0, 0, 30) == 0
    assert m.call(user, scheduling.getpriority, 0, 0) == 1
    assert m.call(user, scheduling.setpriority, 0, 0, 5) == -13
    assert m.call(user, scheduling.setpriority, 0, 2, 5) == -1
    assert m.call(t, scheduling.setpriority, 0, 0, -5) == 0
    assert m.call(t, scheduling.getpriority, 2, 0) == 25
    assert m.call(t, scheduling.setpriority, 2, 1234, 1) == -3
    assert m.call(t, scheduling.getpriority, 3, 0) == -22
    assert m.call(t, scheduling.ioprio_get, 1, 0) == 0
    assert m.call(t, scheduling.ioprio_get, 3, 0) == 2 << 13 | 3, "as nice as -5"
    assert m.call(t, scheduling.ioprio_set, 1, 0, 3 << 13) == 0
    assert m.call(t, scheduling.ioprio_get, 1, 0) == 3 << 13
    assert m.call(user, scheduling.ioprio_set, 1, 0, 1 << 13) == -1


def test_memory_nodes(m: NS, t: NS) -> None:
    node0, node1 = t.put(AT, "<Q", 1), t.put(AT + 8, "<Q", 2)
    assert m.call(t, memory.set_mempolicy, 2, node0, 64) == 0
    assert m.call(t, memory.get_mempolicy, OLD, OLD + 8, 64, 0, 0) == 0
    assert t.get(OLD, "<i4xQ") == (2, 1)
    assert m.call(t, memory.set_mempolicy, 2, node1, 64) == -22
    assert m.call(t, memory.set_mempolicy, 0, node0, 64) == -22
    assert m.call(t, memory.set_mempolicy, 0, 0, 0) == 0
    assert m.call(t, memory.get_mempolicy, 0, OLD, 64, 0, 4) == 0 and t.get(OLD, "<Q") == (1,)
    assert m.call(t, memory.mbind, 0x1000, 4096, 3, node0, 64, 0) == 0
    assert m.call(t, memory.mbind, 0x1001, 4096, 3, node0, 64, 0) == -22
    assert m.call(t, memory.move_pages, 0, 2, AT, 0, OLD, 0) == 0 and t.get(OLD, "<ii") == (0, 0)
    assert m.call(t, memory.migrate_pages, 0, 64, node0, node1) == -22
    assert m.call(t, memory.membarrier, 0, 0) == 0x7F


def test_mounting_needs_a_namespace_of_ones_own(m: NS, t: NS) -> None:
    assert m.call(t, mounts.mount, 0, 0, 0, 0, 0) == -1
    t.process.mounts = UserSpace(TOP)
    m.mounting = NS(before_change=lambda t: None)
    private = 1 << 18
    assert not isinstance(m.call(t, mounts.mount, 0, 0, 0, private, 0), int) and not m.doubts
    assert m.call(t, mounts.mount, 0, 0, 0, 0, 0) == -1 and m.doubts  # a type that could show the host
    t.process.creds.setuid(5)
    assert m.call(t, mounts.mount, 0, 0, 0, private, 0) == -1


def test_no_program_that_collects_cores_is_run() -> None:
    """With any other limit than 1 the kernel runs it, whatever the limit (core(5)), and the parent sees that."""
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
        apply_base()
        os._exit(resource.getrlimit(resource.RLIMIT_CORE)[0])
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == (1 if hard else 0)
