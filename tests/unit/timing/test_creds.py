"""Virtual credentials: the kernel's rules, also against the kernel itself."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from detbox.machine.creds import ALL_CAPS, CAP_KILL, FS_CAPS, KEEP, Creds

USER = st.sampled_from((0, 1, 2, 3, KEEP))
CALLS = st.one_of(
    st.tuples(st.sampled_from(("setuid", "setgid")), st.tuples(USER)),
    st.tuples(st.sampled_from(("setreuid", "setregid")), st.tuples(USER, USER)),
    st.tuples(st.sampled_from(("setresuid", "setresgid")), st.tuples(USER, USER, USER)))


def virtual(calls: list[tuple[str, tuple[int, ...]]], start: Creds) -> list[object]:
    seen: list[object] = []
    for name, args in calls:
        try:
            getattr(start, name)(*args)
            result = 0
        except OSError as error:
            result = error.errno or 0
        ids = (start.ruid, start.euid, start.suid, start.rgid, start.egid, start.sgid)
        seen.append((name, result, ids, start.fsuid, start.fsgid, start.effective, start.permitted))
    return seen


def real(calls: list[tuple[str, tuple[int, ...]]]) -> list[object]:
    """The same calls by a real child process, which starts as root."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reader)
            seen = []
            for name, args in calls:
                try:
                    getattr(os, name)(*(-1 if arg == KEEP else arg for arg in args))
                    result = 0
                except OSError as error:
                    result = error.errno or 0
                status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines())
                uids, gids = (tuple(map(int, status[key].split())) for key in ("Uid", "Gid"))
                seen.append((name, result, uids[:3] + gids[:3], uids[3], gids[3],
                             int(status["CapEff"], 16), int(status["CapPrm"], 16)))
            os.write(writer, repr(seen).encode())
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    return list(eval(text))


def _own_caps() -> int:
    text = open("/proc/self/status").read()
    return int(text.split("CapEff:")[1].split()[0], 16)


@pytest.mark.skipif(os.geteuid() != 0 or _own_caps() & 0xC0 != 0xC0, reason="needs CAP_SETUID and CAP_SETGID")
@settings(max_examples=120, deadline=None)
@given(st.lists(CALLS, min_size=1, max_size=6))
def test_same_as_the_kernel(calls: list[tuple[str, tuple[int, ...]]]) -> None:
    start = Creds.of(0, 0)
    start.effective = start.permitted = _own_caps()
    assert virtual(calls, start) == real(calls)


def test_root_and_others() -> None:
    root, user = Creds.of(0, 0), Creds.of(1000, 1000, (27, 4))
    assert root.capable(CAP_KILL) and root.permitted == ALL_CAPS
    assert not user.capable(CAP_KILL) and user.groups == (4, 27) and user.in_group(27)
    copy = root.copy()
    copy.setuid(5)
    assert root.ruid == 0 and copy.permitted == 0


@pytest.mark.parametrize("change", [
    lambda c: c.setuid(0), lambda c: c.setgid(5), lambda c: c.setreuid(5, KEEP), lambda c: c.setgroups((1,)),
    lambda c: c.setresgid(KEEP, KEEP, 5), lambda c: c.capset(1, 1, 1)])
def test_a_user_may_not(change: Callable[[Creds], None]) -> None:
    with pytest.raises(OSError) as caught:
        change(Creds.of(1000, 1000))
    assert caught.value.errno == 1


def test_file_system_user() -> None:
    creds = Creds.of(0, 0)
    assert creds.setfsuid(7) == 0 and creds.fsuid == 7
    assert creds.effective == ALL_CAPS & ~FS_CAPS
    assert creds.setfsuid(0) == 7 and creds.effective == ALL_CAPS
    user = Creds.of(5, 5)
    assert user.setfsuid(6) == 5 and user.setfsuid(KEEP) == 5 and user.fsuid == 5


def test_keep_caps() -> None:
    creds = Creds.of(0, 0)
    creds.keep_caps = True
    creds.setuid(5)
    assert creds.permitted == ALL_CAPS and creds.effective == 0
    creds.capset(1 << CAP_KILL, 1 << CAP_KILL, 0)
    assert creds.capable(CAP_KILL)


def test_capability_sets_of_prctl() -> None:
    creds = Creds.of(0, 0)
    assert creds.bounded(40) == 1
    creds.drop_bound(40)
    assert creds.bounded(40) == 0 and creds.change_ambient(1, 3) == 0
    with pytest.raises(OSError, match="no such capability"):
        creds.bounded(41)
    with pytest.raises(OSError, match="inheritable"):
        creds.change_ambient(2, 3)
    creds.capset(creds.effective, creds.permitted, 1 << 3)
    assert creds.change_ambient(2, 3) == 0 and creds.change_ambient(1, 3) == 1
    creds.on_exec(0o755, 0, 0)
    creds.setuid(5)
    assert creds.ambient == 0
    creds = Creds.of(0, 0)
    creds.set_securebits(0x10)
    assert creds.keep_caps and creds.get_securebits() == 0x10


def test_exec_of_a_set_uid_program() -> None:
    creds = Creds.of(1000, 1000)
    assert creds.on_exec(stat.S_IFREG | 0o4755, 0, 0)
    assert (creds.ruid, creds.euid, creds.suid, creds.fsuid) == (1000, 0, 0, 0)
    assert creds.effective == ALL_CAPS
    creds.setuid(1000)
    assert creds.effective == 0 or creds.ruid == 1000
    assert not Creds.of(1000, 1000).on_exec(stat.S_IFREG | 0o755, 0, 0)
    group = Creds.of(1000, 1000)
    assert group.on_exec(stat.S_IFREG | 0o2755, 0, 42) and group.egid == 42
    assert not Creds.of(1000, 1000).on_exec(stat.S_IFREG | 0o2745, 0, 42)
    bound = Creds.of(1000, 1000)
    bound.no_new_privs = True
    assert not bound.on_exec(stat.S_IFREG | 0o4755, 0, 0) and bound.euid == 1000
