"""What the cache saves: runs that are put in place against the same runs without it, one after the other."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from benchmarks import hello
from benchmarks.rows import Bench, Result, seconds, with_hello
from benchmarks.timing import detbox_command, run

#: Files have an old time, as a user's have: what has just been written is hashed again.
OLD_S = 1_500_000_000
FILES = 10_000


def cache(bench: Bench) -> Iterator[Result]:
    """Hits of whole jobs."""
    store = f"--cache-dir={bench.scratch / 'store'}"
    yield from _hit(bench, store, "`true`", ["true"], _empty(bench), 0.1)
    yield from _hit(bench, store, f"a job with {FILES:,} input files", ["sh", "-c", "cat */* | md5sum > /work/sum"],
                    _many(bench), 0.3)  # fmt: skip
    yield from _hello(bench, store)


def _hit(
    bench: Bench, store: str, what: str, command: list[str], work: Path, limit: float | None, least: float = 0.0
) -> Iterator[Result]:
    plain, hits = [], []
    cached = detbox_command(command, ["--cache", store])
    run(cached, work)
    for _ in range(bench.repetitions):
        plain.append(run(detbox_command(command), work)[0].wall)
        hits.append(run(cached, work)[0])
    low, high = median(plain), median(cost.wall for cost in hits)
    ratio = low / high
    yield Result(
        f"hit of {what}; against the run without the cache", seconds(low), seconds(high), f"{ratio:.3g} times faster",
        f"{least:g} times" if limit is None else seconds(limit), ratio >= least if limit is None else high <= limit,
        f"{seconds(median(cost.cpu for cost in hits))}",
    )  # fmt: skip


def _hello(bench: Bench, store: str) -> Iterator[Result]:
    what = "hit of `./configure && make` of GNU hello"
    return with_hello(bench, what, "50 times", lambda tree: _hello_hit(bench, store, what, tree))


def _hello_hit(bench: Bench, store: str, what: str, tree: Path) -> Iterator[Result]:
    command = ["sh", "-c", "./configure && make"]
    times = []
    for options in ([], ["--cache", store], ["--cache", store]):
        copy = hello.fresh(tree, bench.scratch / "hello")
        times.append(run(detbox_command(command, options), copy)[0].wall)
    plain, _, hit = times
    yield Result(f"{what}; against the run without the cache", seconds(plain), seconds(hit),
                 f"{plain / hit:.3g} times faster", "50 times", plain / hit >= 50)  # fmt: skip


def _empty(bench: Bench) -> Path:
    work = bench.scratch / "nothing"
    work.mkdir(exist_ok=True)
    return work


def _many(bench: Bench) -> Path:
    work = bench.scratch / "many"
    for number in range(FILES):
        path = work / str(number % 100) / str(number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{number}\n" * 50)
        os.utime(path, (OLD_S, OLD_S))
    return work
