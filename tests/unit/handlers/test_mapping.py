"""mmap and msync of files: which of many mappings an address range meets."""

import random
from types import SimpleNamespace

from detbox.decision import CONTINUE
from detbox.handlers import mapping


def test_msync_touches_what_the_range_meets() -> None:
    rng = random.Random(1)
    task = SimpleNamespace(process=SimpleNamespace(data={}))
    pages: dict[int, int] = {}
    for inode in range(300):
        first, count = rng.randrange(200), rng.randrange(1, 9)
        former = {page for page, owner in pages.items() if owner in {pages.get(first + i) for i in range(count)}}
        for page in former:  # a mapping of which a part is replaced is forgotten as a whole
            del pages[page]
        pages.update((first + i, inode) for i in range(count))
        mapping._remember(task, first << 12, count << 12, inode)  # type: ignore[arg-type]

        touched: list[int] = []
        machine = SimpleNamespace(inodes=SimpleNamespace(touch=touched.append))
        first, count = rng.randrange(200), rng.randrange(1, 20)
        assert mapping.msync(machine, task, (first << 12, count << 12, 4)) is CONTINUE  # type: ignore[arg-type]
        wanted = {pages[page] for page in range(first, first + count) if page in pages}
        assert len(touched) == len(wanted) and set(touched) == wanted
