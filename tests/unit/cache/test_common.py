"""Facts that many results have in common: kept once, and looked at before anything is done on their behalf."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest

from detbox.cache.common import Common
from detbox.cache.store import Store

LINES = [f'["/usr/lib/{name}",1,["f644:1"]]' for name in "abcdefghij"]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(str(tmp_path / "store"))


def test_lines_are_kept_once_and_come_back(store: Store) -> None:
    kept = Common(store).keep(LINES)
    assert kept is not None and kept == Common(store).keep(LINES)
    block = Common(store).block(kept[0])
    assert block is not None and block.lines == LINES
    assert block.asked[0] == (b"/usr/lib/a", 1)
    assert Common(store).keep(LINES[:3]) is None, "a few stay with their result"


def test_a_block_holds_until_a_path_of_it_is_changed(store: Store) -> None:
    kept = Common(store).keep(LINES)
    assert kept is not None
    block = Common(store).block(kept[0])
    assert block is not None and block.to_look_at({}, {}) == LINES
    block.hold({})
    assert block.to_look_at({b"/work/x": None}, {}) == LINES, "none of them could be held"
    assert block.to_look_at({b"/usr/lib/c": None}, {}) is block.lines


@pytest.mark.parametrize("line", ['["/dev/zero",4,[null,null,"0"]]', '["/a/../b",1,["f"]]', "{}", "", '["/a",999,[]]'])
def test_what_has_another_form_is_none(store: Store, line: str) -> None:
    digest = store.put_bytes(zlib.compress("\n".join([*LINES, line]).encode()))
    assert Common(store).block(digest) is None
    assert Common(store).block("0" * 64) is None
