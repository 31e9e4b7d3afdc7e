"""Cached ≡ uncached for made-up scripts, after changes to their inputs.

An example is a job of one or several made-up parts, each in a directory of its own.  In each round one thing is changed
in each part; then the job runs with and without the cache, and all that a user can see is compared.
DETBOX_CACHE_EXAMPLES=N runs N of them, from number DETBOX_CACHE_FIRST on; with `-s` each prints what was changed and
what came of the programs inside.  DETBOX_CACHE_PARTS="1 4" leaves the other parts out, to find the one at fault.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from itertools import zip_longest
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from cached import Bench, Result
from made_up import OPTIONS, Mutation, made_up

from detbox.cache.store import Store

FIRST = int(os.environ.get("DETBOX_CACHE_FIRST", "1"))
EXAMPLES = int(os.environ.get("DETBOX_CACHE_EXAMPLES", "3"))
PARTS = [int(word) for word in os.environ.get("DETBOX_CACHE_PARTS", "").split()]


@pytest.mark.limit(60 + 100 * EXAMPLES)
def test_any_job() -> None:
    total = 0
    for number in range(FIRST, FIRST + EXAMPLES):
        total += check(number)
        print(f"{total} changes", flush=True)


def _difference(cached: Result, plain: Result) -> str:
    """Where the cached run differs from the plain one."""
    if cached.status != plain.status or cached.output != plain.output:
        lines = zip_longest(cached.output.split(b"\n"), plain.output.split(b"\n"))
        where = next(((number, *pair) for number, pair in enumerate(lines, 1) if pair[0] != pair[1]), None)
        return f"status {cached.status}, {plain.status}; output: {where}"
    names = sorted(name for name in {*cached.tree, *plain.tree} if cached.tree.get(name) != plain.tree.get(name))
    return "".join(f"\n{name}\n  {cached.tree.get(name)}\n  {plain.tree.get(name)}" for name in names[:5])


def check(number: int) -> int:
    """The number of changes after which the same came out."""
    random = Random(number)
    example = made_up(random)
    top = Path(tempfile.mkdtemp(prefix=f"detbox-cache-{number}-"))
    seen: Counter[str] = Counter()

    def run(cached: bool, mutations: dict[int, Mutation], *options: str) -> Result:
        work = bench.inputs(lambda work: example.prepare(work, mutations, PARTS))
        if cached:
            options = ("--cache", f"--cache-dir={bench.store}", *options)
        result = bench.run(["sh", "main"], work, *example.base, *options)
        shutil.rmtree(work)
        return result

    def both(what: str, mutations: dict[int, Mutation], plain: Result, *options: str) -> None:
        result = run(True, mutations, *options)
        store = Store(bench.store)
        for log in store.runs()[:1]:  # none of a deadlock
            seen.update([str(log["result"]), *("inside: " + one["result"] for one in log["executions"])])
        store.close()
        assert result == plain, f"example {number}, {what}, kept in {top}: {_difference(result, plain)}"

    bench = Bench(top, lambda work: None)
    unchanged = run(False, {})
    both("first", {}, unchanged)
    for count, (mutations, option) in enumerate(example.rounds):
        options = OPTIONS.get(option, [])
        what = f"round {count}: {option} " + ", ".join(f"{n} {one.kind} {one.name}" for n, one in mutations.items())
        plain = run(False, mutations, *options)
        both(what, mutations, plain, *options)
        if random.random() < 0.2:
            both(f"{what}, compared", mutations, plain, "--cache-verify", *options)
    both("the second time", {}, unchanged)
    kinds = Counter(one.kind for mutations, _ in example.rounds for one in mutations.values())
    results = ", ".join(f"{what} {count}" for what, count in sorted(seen.items()))
    print(f"{number}: {len(example.parts)} parts; {', '.join(sorted(kinds))}; {results}", flush=True)
    shutil.rmtree(top)
    return kinds.total() + sum(1 for _, option in example.rounds if option)
