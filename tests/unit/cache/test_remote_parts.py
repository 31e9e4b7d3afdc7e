"""Results of executions inside of jobs that come from elsewhere: only what has the right form is taken."""

# ruff: noqa: E501  (one row of the table, one line)

from __future__ import annotations

import json
import zlib
from typing import Any

import pytest

from detbox.cache.record import Record
from detbox.cache.remote_parts import is_sound, pack, unpack
from detbox.records import names, replace

DIGEST, HASH, KEY = "a" * 64, "b" * 32, "c" * 64
FILE = {
    "path": "/work/out", "do": "file", "was": "-", "same": False, "mode": 0o644, "ino": 64, "owner": [0, 0], "changed": True,
    "source": False, "times": [1, 2, 3, 4], "blob": DIGEST, "size": 3,
}  # fmt: skip
GOOD = Record(
    key=KEY, common=(DIGEST, 9), facts=[f'["/work/in",3,["f644:1",6,"{HASH}"]]'], changes=[FILE], marks={"/work/out": 255},
    numbered=[("/work/in", 12), (0, 13)], output=DIGEST, turns=[[1, 3]], positions=[(3, 9)], status=256, clock=1,
    next_inode=64, last_process=7, cpu_ns=1, children_ns=0, turns_taken=0, jumps=False,
    pipes=[[0, 4, True, HASH], [5, 0, 65536, 2]], moves=[(0, -4), (5, 2)], moved=DIGEST, flags=[(1, 1025)],
)  # fmt: skip
BAD: tuple[dict[str, Any], ...] = (
    *({"facts": [line]} for line in ('["/proc/kcore",1,["f"]]', '["in",1,["f"]]', '["/in",1,[5]]', '["/in"]', "x", "")),
    *({"changes": [{**FILE, **change}]} for change in (
        {"path": "/work/../etc/passwd"}, {"path": "/dev/sda"}, {"path": "/"}, {"do": "device"}, {"mode": 0o10000}, {"blob": "x"},
        {"size": -1}, {"ino": "1"}, {"times": [1, 2]}, {"xattrs": {"security.capability": "00"}}, {"do": "symlink", "text": ""},
        {"do": "link", "to": "etc"}, {"was": "file"},
    )),
    {"common": ("x", 9)}, {"common": (DIGEST, -1)}, {"common": ("", 5)}, {"output": "=Zm91cg=="}, {"moved": "=Zm9"},
    {"changes": [{**FILE, "blob": "=Zm91cg=="}]},
    {"changes": [FILE, FILE]}, {"marks": {"/x": 256}}, {"numbered": [("x", 1)]}, {"numbered": [(-1, 1)]}, {"turns": [[3, 1]]},
    {"output": ""}, {"positions": [(-1, 0)]}, {"status": 0x8B}, {"status": 70000}, {"clock": -1}, {"moves": [(9, 1)]},
    {"moves": [(0, -5)]}, {"moves": [(5, 3)]}, {"moves": [(0, 4)]}, {"moved": ""}, {"flags": [(7, 0)]}, {"jumps": 1},
)  # fmt: skip


def _text(record: Record) -> str:
    return json.dumps([getattr(record, name) for name in names(Record)])


def test_what_is_written_is_sound() -> None:
    assert is_sound(GOOD)
    data = GOOD.to_bytes()
    ((key, packed, record),) = unpack(pack([(KEY, data)]))
    assert (key, packed) == (KEY, data)
    assert _text(record) == _text(GOOD)


@pytest.mark.parametrize("wrong", BAD, ids=str)
def test_nothing_else_is(wrong: dict[str, Any]) -> None:
    assert not is_sound(replace(GOOD, **wrong))


@pytest.mark.parametrize("data", [b"", b"?", zlib.compress(b""), zlib.compress(b"x {}\n[1]\n"), zlib.compress(b"{" * 100)])
def test_bundles_that_are_none(data: bytes) -> None:
    assert list(unpack(data)) == []


def test_a_result_under_another_key() -> None:
    data = GOOD.to_bytes()
    assert list(unpack(pack([("d" * 64, data)]))) == []
