"""The start-up tables: /sys, /etc and /dev, and the fixed values."""

from __future__ import annotations

import posixpath
import uuid

from hypothesis import given, settings
from hypothesis import strategies as st

from detbox.machine import constants
from detbox.synth import dev, etc, sysfs
from detbox.synth.view import MachineView
from tests.unit.synth.synth_guest import machine


def test_sys_is_sorted_fixed_and_a_tree() -> None:
    tree = sysfs.tree(machine())
    assert list(tree) == sorted(tree) and tree == sysfs.tree(machine())
    parents = {posixpath.dirname(name) for name in tree}
    assert not [name for name in tree if name in parents]  # nothing is both a file and a directory


def test_links_of_sys_lead_somewhere() -> None:
    tree = sysfs.tree(machine())
    directories = {name for path in tree for name in _parents(path)}
    for name, content in tree.items():
        if isinstance(content, sysfs.Symlink):
            target = posixpath.normpath(posixpath.join(posixpath.dirname(name), content.target))
            assert target in directories, (name, target)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:count]) for count in range(1, len(parts))]


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 300))
def test_sys_shows_the_cpus(cpus: int) -> None:
    tree = sysfs.tree(MachineView({}, cpus=cpus))
    assert tree["devices/system/cpu/online"] == (b"0\n" if cpus == 1 else b"0-%d\n" % (cpus - 1))
    last = tree[f"devices/system/cpu/cpu{cpus - 1}/topology/thread_siblings"]
    assert isinstance(last, bytes) and int(last.replace(b",", b""), 16) == 1 << (cpus - 1)
    whole = tree["devices/system/node/node0/cpumap"]
    assert isinstance(whole, bytes) and int(whole.replace(b",", b""), 16) == (1 << cpus) - 1


def test_passwd_keeps_the_image_and_adds_what_is_missing() -> None:
    image = b"root:x:0:0::/root:/bin/bash\ndaemon:x:1:1::/:/bin/false"
    text = etc.passwd(image, b"user", 1000, 1000, b"/home/user")
    assert text.splitlines() == [
        b"root:x:0:0::/root:/bin/bash",
        b"daemon:x:1:1::/:/bin/false",
        b"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin",
        b"user:x:1000:1000:user:/home/user:/bin/sh",
    ]
    assert etc.passwd(text, b"user", 1000, 1000) == text
    assert etc.group(b"", b"user", 1000) == b"root:x:0:\nnogroup:x:65534:\nuser:x:1000:\n"


@given(st.binary(max_size=200))
def test_any_passwd_is_a_fixed_point_after_one_turn(current: bytes) -> None:
    once = etc.passwd(current, b"user", 1000, 1000)
    assert etc.passwd(once, b"user", 1000, 1000) == once
    once = etc.group(current, b"user", 1000)
    assert etc.group(once, b"user", 1000) == once


def test_dev_has_harmless_entries_only() -> None:
    bound = {entry.rdev for entry in dev.ENTRIES.values() if entry.kind is dev.Kind.BIND}
    assert bound == {(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0)}
    assert all(entry.target for entry in dev.ENTRIES.values() if entry.kind is dev.Kind.LINK)


def test_boot_id_follows_the_seed() -> None:
    assert uuid.UUID(constants.boot_id(b"a")).version == 4
    assert constants.boot_id(b"a") == constants.boot_id(b"a") != constants.boot_id(b"b")
    assert len(constants.MACHINE_ID) == 32
