"""Measures, prints the table, and writes it to ``results.md`` beside this file."""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import caching, host, rebuilding, rows
from benchmarks.rows import Bench, Result
from benchmarks.timing import Failed, cache_dir

#: By the name that ``--only`` takes; in the order of the table.
ROWS = {
    **rows.ROWS, "cache": caching.cache, "recording": rebuilding.recording, "project": rebuilding.project,
    "batch": rebuilding.batch,
}  # fmt: skip
#: Measured only when named: it takes several minutes.
LONG = {"batch", "recording"}
RESULTS = Path(__file__).with_name("results.md")
_INTRODUCTION = """\
# What detbox costs

Written by `make bench`.  Medians of {repetitions} repetitions; each repetition runs the command natively and
under detbox, one after the other.  *Cost* compares real times; *CPU* compares the processor time of all
processes, the supervisor included, and suffers less from other load.

{host}

| what | native | detbox | cost | limit | kept | CPU |
| --- | ---: | ---: | ---: | ---: | :---: | ---: |
"""


def main() -> int:
    """Returns the exit status: 0, or 1 if a row could not be measured."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeat", type=int, default=5, metavar="N",
                        help="repetitions of each row (default 5)")  # fmt: skip
    parser.add_argument("--only", nargs="+", choices=list(ROWS), metavar="ROW",
                        help=f"only these rows ({', '.join(ROWS)}); results.md is left alone; "
                        f"not measured unless named: {', '.join(LONG)}")  # fmt: skip
    parser.add_argument("--write", type=Path, metavar="FILE", help="write the table to this file, too")
    arguments = parser.parse_args()
    started = time.monotonic()
    results: list[Result] = []
    broken = False
    with tempfile.TemporaryDirectory(prefix="detbox-bench-") as scratch:
        bench = Bench(Path(scratch), arguments.repeat, cache_dir())
        bench.prepare()
        for name in arguments.only or [name for name in ROWS if name not in LONG]:
            try:
                for result in ROWS[name](bench):
                    results.append(result)
                    _progress(started, f"{result.what}: {result.detbox} {result.cost}")
            except Failed as failure:
                broken = True
                results.append(Result(f"{name}: failed", "", "", "", "", False))
                _progress(started, f"{name}: {failure}")
    text = _table(results, arguments.repeat)
    sys.stdout.write(text)
    if arguments.write is not None or not arguments.only:
        (arguments.write or RESULTS).write_text(text)
    return int(broken)


def _progress(started: float, text: str) -> None:
    print(f"[{time.monotonic() - started:4.0f} s] {text}", file=sys.stderr, flush=True)


def _table(results: list[Result], repetitions: int) -> str:
    facts = "\n".join(f"- {line}" for line in host.describe())
    lines = [_INTRODUCTION.format(repetitions=repetitions, host=facts)]
    for row in results:
        kept = "" if row.kept is None else "yes" if row.kept else "**no**"
        cells = (row.what, row.native, row.detbox, row.cost, row.limit, kept, row.cpu)
        lines.append(f"| {' | '.join(cells)} |\n")
    return "".join(lines)


if __name__ == "__main__":
    sys.exit(main())
