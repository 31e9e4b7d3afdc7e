"""Blocks that a file lacks."""

from __future__ import annotations

import os
import tempfile

from hypothesis import given
from hypothesis import strategies as st

from detbox.kernel.holes import CHUNK, PAGE, missing_blocks

#: Pages of a file: left out, written with zeros, written with something at a place.
PAGES = st.lists(st.one_of(st.just("hole"), st.just("zeros"), st.integers(0, PAGE - 1)), max_size=40)


def file_of(pages: list[str | int], short: int) -> int:
    """The descriptor of such a file, whose last page lacks ``short`` bytes."""
    fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)
    for number, page in enumerate(pages):
        if page == "zeros":
            os.pwrite(fd, bytes(PAGE), number * PAGE)
        elif isinstance(page, int):
            os.pwrite(fd, b"x", number * PAGE + page)
    os.ftruncate(fd, max(len(pages) * PAGE - short, 0))
    return fd


@given(PAGES, st.integers(0, PAGE - 1))
def test_pages_of_zeros_are_missing_if_any_page_was_left_out(pages: list[str | int], short: int) -> None:
    fd = file_of(pages, short)
    try:
        expected = 0
        if "hole" in pages:
            gone = [page for page in pages if isinstance(page, str)]
            if isinstance(pages[-1], int) and pages[-1] >= PAGE - short:
                gone.append(pages[-1])  # what was in it has been cut off: it is written, but with zeros
            last_is_written = pages[-1] != "hole" and (not isinstance(pages[-1], int) or pages[-1] >= PAGE - short)
            expected = (len(gone) - last_is_written) * PAGE // 512
        assert missing_blocks(fd) == expected
    finally:
        os.close(fd)


def test_large_extents_are_read_in_chunks() -> None:
    fd = os.open(tempfile.gettempdir(), os.O_TMPFILE | os.O_RDWR)
    try:
        os.pwrite(fd, b"x" * (CHUNK + PAGE) + bytes(CHUNK) + b"x", 5 * PAGE)
        assert missing_blocks(fd) == (5 * PAGE + CHUNK) // 512
    finally:
        os.close(fd)
