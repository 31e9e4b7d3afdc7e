"""How much of a core file is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from detbox.supervisor.dumping import Output

PAGE = 4096
FAR = 1 << 62


@pytest.mark.parametrize(("most", "end", "size"), [
    (FAR, FAR, 5 * PAGE),
    (2 * PAGE + 101, FAR, 5 * PAGE),  # holes do not count
    (2 * PAGE + 100, FAR, 4 * PAGE),
    (2 * PAGE + 99, FAR, 3 * PAGE),
    (99, FAR, 0),
    (FAR, 50, 50),
    (FAR, 2 * PAGE + 1, 2 * PAGE + 1),
    (FAR, 3 * PAGE - 1, 3 * PAGE - 1),
])  # fmt: skip
def test_it_ends_where_a_limit_is(tmp_path: Path, most: int, end: int, size: int) -> None:
    with open(tmp_path / "core", "wb", buffering=0) as file:
        out = Output(file.fileno(), most, end)
        if out.put(b"h" * 100):
            out.skip_to(2 * PAGE)
            if out.pages(b"p" * 2 * PAGE):
                out.skip_to(5 * PAGE)
                out.finish()
    assert (tmp_path / "core").stat().st_size == size
