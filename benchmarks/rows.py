"""The rows of the table: what is measured, how, and the limit that it has to keep."""

from __future__ import annotations

import compileall
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks import hello
from benchmarks.timing import REPOSITORY, Cost, Pair, detbox_command, run, side_by_side, statistics
from detbox import bundle

PROGRAMS = Path(__file__).with_name("programs")
#: Rounds of compute.c: about a second on a processor of 2020.
ROUNDS = 400_000_000
MIB = 1024
NOBODY = 65534
#: (what, argument of calls.c, how often natively, how often under detbox, limit in µs more than native)
CALLS = (
    ("`stat`", "stat", 400_000, 20_000, 15.0),
    ("`stat` of an absent file", "absent", 400_000, 20_000, 15.0),
    ("`open`, `read`, `close` of a small file", "open", 100_000, 10_000, 55.0),
    ("`read` of 1 byte from a file", "file-read", 400_000, 20_000, 15.0),
    ("`write` of 1 byte to a file", "file-write", 400_000, 20_000, 15.0),
    ("`write` and `read` of 1 byte on a pipe", "pipe", 400_000, 10_000, 50.0),
    ("`getpid` (allowed by the filter)", "getpid", 400_000, 400_000, None),
    ("`clock_gettime`", "clock", 400_000, 20_000, 25.0),
    ("`fork`, `execve` of `/bin/true`, `wait4`", "process", 200, 100, None),
)


@dataclass(frozen=True)
class Result:
    """One row as text; ``kept``: whether the limit holds (None: there is no limit)."""

    what: str
    native: str
    detbox: str
    cost: str
    limit: str
    kept: bool | None
    cpu: str = ""


@dataclass(frozen=True)
class Bench:
    """What all rows share: a scratch directory with the compiled programs, and how often to repeat."""

    scratch: Path
    repetitions: int
    cache: Path

    def prepare(self) -> None:
        """Compile the programs and write the input files, and detbox's modules as an installation does."""
        compileall.compile_dir(str(REPOSITORY / "detbox"), quiet=1)
        bundle.make()
        for name in ("compute", "calls"):
            source = str(PROGRAMS / f"{name}.c")
            run(["gcc", "-O2", "-pthread", "-o", str(self.scratch / name), source], self.scratch)
        (self.scratch / "data").write_text("a small file\n")
        (self.scratch / "generated.c").write_text(generated_source())

    def here(self) -> Path:
        """The scratch directory, as it is."""
        return self.scratch

    def pair(self, native: list[str], boxed: list[str] | None = None) -> Pair:
        """Two commands in the scratch directory, alternately."""
        return side_by_side(native, boxed or native, self.repetitions, self.here)


Row = Callable[[Bench], Iterator[Result]]


def seconds(value: float) -> str:
    """A duration with a unit that suits it; ``value`` in seconds."""
    return f"{value:.2f} s" if value >= 1 else f"{value * 1e3:.0f} ms"


def ratio_row(what: str, pair: Pair, limit: float, idle: tuple[float, float] = (0, 0)) -> Result:
    """A row whose limit is a quotient of real times; ``idle``: what a run that does nothing takes."""
    native, boxed = (whole - start for whole, start in zip(pair.medians(), idle, strict=True))
    ratio = boxed / native
    return Result(
        what, seconds(native), seconds(boxed), f"{ratio:.3g} times", f"{limit:g} times", ratio <= limit,
        f"{pair.cpu_ratio():.3g} times",
    )  # fmt: skip


def start_row(what: str, native: float, boxed: float) -> Result:
    """A row whose limit is what a start may take more; both times in seconds."""
    more = boxed - native
    return Result(what, seconds(native), seconds(boxed), f"{seconds(more)} more", "150 ms more", more <= 0.150)


def start(bench: Bench) -> Iterator[Result]:
    """The price of a run that does nothing."""
    yield start_row("start: `detbox run -- true`", *_starts(bench, ["true"], detbox_command(["true"]), bench.scratch))


def _starts(bench: Bench, native: list[str], boxed: list[str], directory: Path) -> tuple[float, float]:
    """The median real times of two commands in seconds, without `--stats`; the first turns are not measured."""
    for _ in range(2):
        run(boxed, directory)  # an ordinary user's directories are kept from the third run on
    costs = [(run(native, directory)[0].wall, run(boxed, directory)[0].wall) for _ in range(bench.repetitions)]
    one, other = (median(column) for column in zip(*costs, strict=True))
    return one, other


def ordinary_start(bench: Bench) -> Iterator[Result]:
    """The same for an ordinary user who has run detbox before; only root can become one."""
    if os.geteuid():
        return
    with tempfile.TemporaryDirectory(prefix="detbox-bench-user-") as home:
        os.chown(home, NOBODY, NOBODY)
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]
        become += ["env", f"XDG_CACHE_HOME={home}/cache"]
        there = Path("/")
        readable = '"$0" -c "import detbox.kernel._native" || :'
        if run([*become, "sh", "-c", readable, sys.executable], there)[1]:
            return  # such a user may not read the interpreter or the package
        Path(home, "work").mkdir()
        boxed = [*become, *detbox_command(["true"], ["-C", f"{home}/work"])]
        medians = _starts(bench, [*become, "true"], boxed, there)
    yield start_row("start: `detbox run -- true`, as an ordinary user", *medians)


def compute(bench: Bench) -> Iterator[Result]:
    """Computation without calls, less the price of the start."""
    idle = bench.pair(["./compute", "1", "0"]).medians()
    for threads, limit, what in (
        ("0", 1.02, "computation, one thread"),
        ("2", 1.05, "computation, 2 threads; natively one after the other"),
    ):
        pair = bench.pair(["./compute", str(ROUNDS), "0"], ["./compute", str(ROUNDS), threads])
        yield ratio_row(what + " (start subtracted)", pair, limit, idle)


def calls(bench: Bench) -> Iterator[Result]:
    """Microseconds per call: the difference between many calls and none, divided by their number."""
    for what, name, native_count, boxed_count, limit in CALLS:
        native: list[float] = []
        boxed: list[float] = []
        for turn in range(bench.repetitions + 1):
            one = _per_call([f"./calls {name}".split()], native_count, bench)
            other = _per_call([detbox_command(f"./calls {name}".split())], boxed_count, bench)
            if turn:
                native.append(one)
                boxed.append(other)
        low, high = median(native), median(boxed)
        yield Result(
            what, f"{low:.2f} µs", f"{high:.1f} µs", f"{high - low:.1f} µs more",
            f"{limit:g} µs more" if limit else "", high - low <= limit if limit else None,
        )  # fmt: skip


def _per_call(commands: list[list[str]], count: int, bench: Bench) -> float:
    def cost(times: int) -> Cost:
        return run([*commands[0], str(times)], bench.scratch)[0]

    return (cost(count).wall - cost(0).wall) / count * 1e6


def with_hello(bench: Bench, what: str, limit: str, rows: Callable[[Path], Iterator[Result]]) -> Iterator[Result]:
    """The rows of GNU hello's source tree; a row that says why there are none, if the source cannot be had."""
    try:
        tree = hello.source(bench.cache)
    except hello.Unavailable as reason:
        yield Result(f"{what}: not measured ({reason})", "", "", "", limit, None)
    else:
        yield from rows(tree)


def configure(bench: Bench) -> Iterator[Result]:
    """GNU hello's configure script: thousands of short processes."""
    what, copy = "`./configure` of GNU hello", bench.scratch / "hello"

    def rows(tree: Path) -> Iterator[Result]:
        pair = side_by_side(["./configure"], ["./configure"], bench.repetitions, lambda: hello.fresh(tree, copy))
        yield ratio_row(what, pair, 2.2)

    return with_hello(bench, what, "2.2 times", rows)


def recording(bench: Bench) -> Iterator[Result]:
    """What `detbox trace` adds to a run of GNU hello's configure script, and how large its file is."""
    what = "`detbox trace` of `./configure` against `detbox run`"
    return with_hello(bench, what, "1.3 times", lambda tree: _traced(bench, what, tree))


def _traced(bench: Bench, what: str, tree: Path) -> Iterator[Result]:
    copy, trace = bench.scratch / "hello", bench.scratch / "trace"
    plain_run = detbox_command(["./configure"])
    recorded_run = [*plain_run[:3], "trace", "-o", str(trace), "--", "./configure"]
    plain: list[float] = []
    recorded: list[float] = []
    # A turn takes half a minute: three tell enough.
    for turn in range(min(bench.repetitions, 3) + 1):
        for command, times in ((plain_run, plain), (recorded_run, recorded)):
            cost = run(command, hello.fresh(tree, copy))[0].wall
            if turn:
                times.append(cost)
    low, high = median(plain), median(recorded)
    yield Result(what, seconds(low), seconds(high), f"{high / low:.3g} times", "1.3 times", high / low <= 1.3)
    query = "SELECT count(*) FROM calls"
    counted = subprocess.run(
        [*plain_run[:3], "trace", "query", "--csv", str(trace), query], capture_output=True, text=True, check=True
    ).stdout
    size = trace.stat().st_size / int(counted.split()[1])
    yield Result("size of that trace for each call", "", f"{size:.1f} bytes", "", "40 bytes", size <= 40)


def compiler(bench: Bench) -> Iterator[Result]:
    """One run of the compiler."""
    command = ["gcc", "-O2", "-c", "generated.c", "-o", "generated.o"]
    yield ratio_row("`gcc -O2` of one file of 2,000 lines", bench.pair(command), 1.3)


def interpreter(bench: Bench) -> Iterator[Result]:
    """Starting an interpreter with many modules; the start of detbox itself has its own row."""
    idle = bench.pair(["true"]).medians()
    pair = bench.pair(["/usr/bin/python3", "-c", "import json, sqlite3, asyncio"])
    what = "`python3 -c 'import json, sqlite3, asyncio'`"
    yield ratio_row(what + " (start subtracted)", pair, 2.0, idle)


def memory(bench: Bench) -> Iterator[Result]:
    """The supervisor's largest resident set.  Measured once: it does not scatter."""
    loop = "i=0; while [ $i -lt 2000 ]; do /bin/true; i=$((i+1)); done"
    peak = statistics(["sh", "-c", loop], bench.scratch)["supervisor_rss_kib"] / MIB
    yield Result("supervisor's memory, 2,000 processes in turn", "", f"{peak:.1f} MiB", "", "150 MiB",
                 peak <= 150)  # fmt: skip
    few = statistics(["./calls", "file-read", "10000"], bench.scratch)["supervisor_rss_kib"] / MIB
    many = statistics(["./calls", "file-read", "1000000"], bench.scratch)["supervisor_rss_kib"] / MIB
    yield Result("supervisor's memory, 1,000,000 calls against 10,000", "", f"{many:.1f} MiB",
                 f"{many - few:+.1f} MiB", "no growth (1 MiB)", many - few <= 1)  # fmt: skip


#: By the name that ``--only`` takes.
ROWS: dict[str, Row] = {
    "start": start, "ordinary-start": ordinary_start, "compute": compute, "calls": calls, "gcc": compiler,
    "python": interpreter, "configure": configure, "recording": recording, "memory": memory,
}  # fmt: skip


def generated_source(functions: int = 100) -> str:
    """A C file of 2,000 lines: ``functions`` functions of 20 lines each, no two alike."""
    text = []
    for number in range(functions):
        a, b, c = number * 7 % 31 + 3, number * 13 % 17 + 2, number * 5 % 23 + 1
        text.append(
            f"""\
/* Function number {number}. */
struct item{number} {{ int key, value; struct item{number} *next; double weight[{a}]; }};
int f{number}(struct item{number} *list, const char *text, int n)
{{
	int total = {a}, seen = 0;
	for (struct item{number} *i = list; i; i = i->next) {{
		if (i->key % {b} == {c % b}) total += i->value * {c};
		else total ^= i->value << {b % 7};
		for (int k = 0; k < {a}; k++) i->weight[k] = i->weight[k] * {a}.5 + total / (k + 1.0);
	}}
	while (*text) {{
		switch (*text++ & 7) {{
		case 0: total += n; break;
		case {c % 6 + 1}: total *= {b}; break;
		case 7: seen++; break;
		default: total -= seen;
		}}
	}}
	return total > {a * 100} ? total - n : total + seen;
}}
"""
        )
    return "".join(text)
