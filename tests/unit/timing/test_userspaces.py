"""User namespaces: maps, and capabilities from namespace to namespace."""

from __future__ import annotations

from errno import EINVAL, ENOSPC, EPERM

import pytest

from detbox.machine.creds import ALL_CAPS, CAP_CHOWN, CAP_KILL, Creds
from detbox.machine.userspaces import DEEPEST, NOBODY, OVERFLOW, TOP, UserSpace


def entered(creds: Creds) -> Creds:
    """The credentials of a child in a namespace of its own."""
    inside = creds.copy()
    inside.enter(creds.new_space())
    return inside


def written(space: UserSpace, name: str, data: bytes, creds: Creds, position: int = 0) -> int:
    try:
        space.write(name, data, position, creds, creds)
    except OSError as error:
        return error.errno or -1
    return 0


def test_numbers_are_translated_through_all_maps() -> None:
    root = Creds.of(0, 0)
    outer = entered(root)
    assert written(outer.space, "uid_map", b"0 1000 100\n500 0 1\n", root) == 0
    assert written(outer.space, "gid_map", b"0 2000 100\n", root) == 0
    assert (outer.space.user(3), outer.space.gid(3), outer.space.user(500)) == (1003, 2003, 0)
    assert outer.space.shown(1003, 5) == (3, OVERFLOW) and outer.space.shown_user(0) == 500
    assert outer.space.root == 1000 and not outer.space.has(1003, 5) and outer.space.has(1003, 2003)
    with pytest.raises(OSError):
        outer.space.user(100)
    assert outer.space.user(NOBODY, keep=True) == NOBODY
    inner = UserSpace(outer.space, 1000, 2000)
    outer.ruid = outer.euid = 1000
    assert written(inner, "uid_map", b"7 10 5", outer) == 0 and inner.user(8) == 1011
    assert inner.text("uid_map", inner).split() == [b"7", b"10", b"5"]
    assert inner.text("uid_map", TOP).split() == [b"7", b"1010", b"5"]
    assert outer.space.text("uid_map", inner).split()[1] == b"4294967295"


@pytest.mark.parametrize(("data", "result"), [
    (b"0 1000 1", 0), (b"5 1000 1\n", 0), (b"\t5  1000 1 \n", 0), (b"0 1000 2", EPERM), (b"0 1001 1", EPERM),
    (b"0 1000 1\n1 1000 1", EINVAL), (b"0 1000 0", EINVAL), (b"0 1000", EINVAL), (b"0 1000 1 1", EINVAL),
    (b"", EINVAL), (b"\n", EINVAL), (b"a 1000 1", EINVAL), (b"4294967295 1000 1", EINVAL),
    (b"1 1000 4294967295", EINVAL), (b"0 1000 1\n\n", EINVAL), (b" " * 4096, EINVAL),
])  # fmt: skip
def test_a_user_maps_itself_alone(data: bytes, result: int) -> None:
    inside = entered(Creds.of(1000, 1000))
    assert written(inside.space, "uid_map", data, inside, 1) == EINVAL
    assert written(inside.space, "uid_map", data, inside) == result
    assert written(inside.space, "uid_map", b"0 1000 1", inside) == (0 if result else EPERM)


def test_groups_are_mapped_without_setgroups() -> None:
    inside = entered(Creds.of(1000, 1000, (4,)))
    space = inside.space
    assert written(space, "gid_map", b"0 1000 1", inside) == EPERM
    assert written(space, "setgroups", b"deny", inside) == 0 and space.text("setgroups", TOP) == b"deny\n"
    assert written(space, "setgroups", b"allow", inside) == EPERM
    assert written(space, "gid_map", b"0 1000 1", inside) == written(space, "uid_map", b"0 1000 1", inside) == 0
    assert not inside.may_set_groups() and not entered(inside).space.setgroups
    trusted = entered(Creds.of(0, 0))
    assert not trusted.may_set_groups()
    assert written(trusted.space, "gid_map", b"0 0 10", Creds.of(0, 0)) == 0 and trusted.may_set_groups()
    assert written(trusted.space, "setgroups", b"deny", trusted) == EPERM


def test_only_the_namespace_above_and_itself_map() -> None:
    user, other = Creds.of(1000, 1000), Creds.of(2000, 2000)
    inside, beside = entered(user), entered(user)
    assert written(inside.space, "uid_map", b"0 1000 1", beside) == EPERM
    assert written(inside.space, "uid_map", b"0 1000 1", other) == EPERM
    assert written(TOP, "uid_map", b"0 0 1", Creds.of(0, 0)) == EPERM
    assert written(inside.space, "uid_map", b"0 1000 1", user) == 0


def test_a_map_of_root_asks_for_a_capability_of_its_maker() -> None:
    maker = Creds.of(0, 0)
    maker.effective &= ~(1 << 31)
    inside = entered(maker)
    assert written(inside.space, "uid_map", b"0 0 1", inside) == EPERM
    assert written(inside.space, "uid_map", b"0 0 1", Creds.of(0, 0)) == 0


def test_capabilities_hold_below() -> None:
    root, user, other = Creds.of(0, 0), Creds.of(1000, 1000), Creds.of(2000, 2000)
    inside = entered(user)
    deeper = entered_after_map(inside)
    assert inside.capable(CAP_KILL) and not inside.capable(CAP_KILL, TOP)
    for above in (root, user, inside):
        assert above.capable(CAP_KILL, inside.space) and above.capable(CAP_KILL, deeper.space)
    assert not other.capable(CAP_KILL, inside.space) and not deeper.capable(CAP_KILL, inside.space)
    assert not inside.capable_over(CAP_CHOWN, 0, 0) and root.capable_over(CAP_CHOWN, 5, 5)


def entered_after_map(creds: Creds, called: int = 1000) -> Creds:
    line = b"%d 1000 1" % called
    assert written(creds.space, "uid_map", line, creds) == 0
    assert written(creds.space, "setgroups", b"deny", creds) == written(creds.space, "gid_map", line, creds) == 0
    return entered(creds)


def test_who_is_nobody_makes_no_namespace() -> None:
    inside = entered(Creds.of(1000, 1000))
    with pytest.raises(OSError) as caught:
        inside.new_space()
    assert caught.value.errno == EPERM
    for _ in range(DEEPEST - 1):
        inside = entered_after_map(inside)
    assert inside.space.level == DEEPEST
    for name in ("users", "groups"):
        setattr(inside.space, name, inside.space.parent and inside.space.parent.users)
    with pytest.raises(OSError) as caught:
        inside.new_space()
    assert caught.value.errno == ENOSPC


def test_programs_are_executed_with_the_rights_of_the_namespace() -> None:
    inside = entered(Creds.of(1000, 1000))
    unmapped = inside.copy()
    assert inside.permitted == ALL_CAPS and inside.checked
    unmapped.on_exec(0o755, 0, 0)
    assert unmapped.permitted == 0
    entered_after_map(inside, 0)
    inside.on_exec(0o4755, 0, 0)  # of a user who has no number there
    assert (inside.euid, inside.effective) == (1000, ALL_CAPS)
    inside.setresuid(1000, 1000, 1000)
    assert inside.effective == ALL_CAPS
