"""What the cache saves when some inputs have changed: a C project, side by side with ccache, and a batch of jobs."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

from benchmarks import hello
from benchmarks.rows import Bench, Result, seconds, with_hello
from benchmarks.timing import Cost, detbox_command, run

PROGRAM = Path(__file__).with_name("programs") / "kmers.py"
#: Files have an old time, as a user's have: what has just been written is hashed again.
OLD_S = 1_500_000_000
FILES = 200
JOBS = 200
#: Letters of one sample: about a seventh of a second of work.
LETTERS = 45_000
CHANGED_PERCENT = (0, 5, 50, 100)
PYTHON = "/usr/bin/python3 -c 'import json, sqlite3, asyncio, email.message, xml.dom.minidom'"
MAKEFILE = """\
CC = gcc
OBJECTS = main.o {objects}
program: $(OBJECTS)
	$(CC) -o $@ $(OBJECTS)
objects: $(OBJECTS)
%.o: %.c common.h
	$(CC) -O1 -c -o $@ $<
clean:
	rm -f $(OBJECTS) program
"""
SOURCE = """\
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "common.h"
int f{number}(int x)
{{
	char text[64];
	snprintf(text, sizeof text, "%d", x * {number} + COMMON);
	return atoi(text) + (int)strlen(text);
}}
"""


def project(bench: Bench) -> Iterator[Result]:
    """A clean rebuild of a C project: as it was, and after an edit; then the same with ccache."""
    work = _project(bench.scratch / "project")
    options = ["--cache", f"--cache-dir={bench.scratch / 'project-store'}"]
    what = f"clean rebuild of {FILES} C files"
    command = ["sh", "-c", "make clean && make"]
    plain = run(detbox_command(command), work)[0]
    run(detbox_command(command, options), work)
    hits = [run(detbox_command(command, options), work)[0] for _ in range(bench.repetitions)]
    yield _faster(f"{what}, nothing changed", plain, hits, 20)
    edited = []
    for number in range(bench.repetitions):
        _edit(work / f"f{number}.c")
        edited.append(run(detbox_command(command, options), work)[0])
    yield _faster(f"{what}, one of them edited", plain, edited, 10)
    for percent in CHANGED_PERCENT[1:]:
        for number in range(FILES * percent // 100):
            _edit(work / (f"f{number}.c" if number < FILES - 1 else "main.c"))
        took = run(detbox_command(command, options), work)[0]
        yield _faster(f"{what}, {percent} % of them edited", plain, [took], None)
    yield from _ccache(bench, work, options)


def _ccache(bench: Bench, work: Path, options: list[str]) -> Iterator[Result]:
    """Compiling alone, which is all that ccache knows; its column is that of native runs."""
    what = f"clean rebuild of {FILES} C files without linking; against ccache"
    if shutil.which("ccache") is None:
        yield Result(f"{what}: not measured (no ccache)", "", "", "", "2 times", None)
        return
    store = bench.scratch / "ccache"
    native = ["env", f"CCACHE_DIR={store}", "sh", "-c", "make clean && make objects CC='ccache gcc'"]
    boxed = detbox_command(["sh", "-c", "make clean && make objects"], options)
    for command in (native, boxed):
        run(command, work)
    for changed, note in ((False, "nothing changed"), (True, "one of them edited")):
        theirs, ours = [], []
        for number in range(bench.repetitions):
            if changed:
                _edit(work / f"f{number}.c")
            theirs.append(run(native, work)[0].wall)
            ours.append(run(boxed, work)[0].wall)
        low, high = median(theirs), median(ours)
        yield Result(f"{what}, {note}", seconds(low), seconds(high), f"{high / low:.3g} times", "2 times",
                     high / low <= 2)  # fmt: skip


def batch(bench: Bench) -> Iterator[Result]:
    """Many small jobs that a script starts, of whose inputs some have changed."""
    chance = random.Random(1)
    work, command = _samples(bench.scratch / "samples", JOBS, chance)
    options = ["--cache", f"--cache-dir={bench.scratch / 'batch-store'}"]
    what = f"batch of {JOBS} small jobs"
    plain = run(detbox_command(command), work)[0]
    run(detbox_command(command, options), work)
    for percent in CHANGED_PERCENT:
        for number in chance.sample(range(JOBS), JOBS * percent // 100):
            _sample(work / "in" / str(number), chance)
        took = run(detbox_command(command, options), work)[0]
        yield _faster(f"{what}, {percent} % of the inputs changed", plain, [took], 10 if percent == 5 else None)


def _samples(work: Path, count: int, chance: random.Random) -> tuple[Path, list[str]]:
    """Directory and command of a batch."""
    (work / "in").mkdir(parents=True)
    shutil.copy(PROGRAM, work)
    for number in range(count):
        _sample(work / "in" / str(number), chance)
    script = "rm -rf out; mkdir out; for one in in/*; do /usr/bin/python3 kmers.py $one out/${one#in/}; done"
    return work, ["sh", "-c", script]


def recording(bench: Bench) -> Iterator[Result]:
    """What it costs to note everything down: runs with an empty cache against runs without, alternately."""
    work, command = _samples(bench.scratch / "recorded-samples", JOBS // 8, random.Random(2))
    yield _recorded(bench, f"batch of {JOBS // 8} small jobs", command, lambda: work)
    work = _project(bench.scratch / "recorded-project")
    yield _recorded(bench, f"build of {FILES} C files", ["sh", "-c", "make clean && make"], lambda: work)
    python = ["sh", "-c", "; ".join([PYTHON] * 10)]
    yield _recorded(bench, "10 times Python, which imports much", python, lambda: bench.scratch)

    def of_hello(tree: Path) -> Iterator[Result]:
        copy = bench.scratch / "recorded-hello"
        for what in ("./configure", "./configure && make"):
            yield _recorded(bench, f"`{what}` of GNU hello", ["sh", "-c", what], lambda: hello.fresh(tree, copy))

    yield from with_hello(bench, "GNU hello with an empty cache", "1.25 times", of_hello)


def _recorded(bench: Bench, what: str, command: list[str], directory: Callable[[], Path]) -> Result:
    store = bench.scratch / "empty-store"
    plain, first = [], []
    for turn in range(bench.repetitions + 1):
        shutil.rmtree(store, ignore_errors=True)
        one = run(detbox_command(command), directory())[0]
        other = run(detbox_command(command, ["--cache", f"--cache-dir={store}"]), directory())[0]
        if turn:
            plain.append(one)
            first.append(other)
    low, high = median(cost.wall for cost in plain), median(cost.wall for cost in first)
    cpu = median(cost.cpu for cost in first) / median(cost.cpu for cost in plain)
    return Result(
        f"{what} with an empty cache; against the run without", seconds(low), seconds(high),
        f"{high / low:.3g} times", "1.25 times", high / low <= 1.25, f"{cpu:.3g} times",
    )  # fmt: skip


def _faster(what: str, plain: Cost, cached: list[Cost], least: float | None) -> Result:
    wall, cpu = median(cost.wall for cost in cached), median(cost.cpu for cost in cached)
    ratio = plain.wall / wall
    return Result(
        f"{what}; with the cache against without", seconds(plain.wall), seconds(wall), f"{ratio:.3g} times faster",
        f"{least:g} times" if least else "", ratio >= least if least else None, f"{plain.cpu / cpu:.3g} times less",
    )  # fmt: skip


def _project(top: Path) -> Path:
    top.mkdir()
    numbers = range(FILES - 1)
    for number in numbers:
        (top / f"f{number}.c").write_text(SOURCE.format(number=number))
    (top / "common.h").write_text("#define COMMON 7\n")
    declared = "".join(f"int f{number}(int);\n" for number in numbers)
    called = "".join(f" + f{number}({number})" for number in numbers)
    (top / "main.c").write_text(f"{declared}int main(void)\n{{\n\treturn (0{called}) == 0;\n}}\n")
    (top / "Makefile").write_text(MAKEFILE.format(objects=" ".join(f"f{number}.o" for number in numbers)))
    for path in top.iterdir():
        os.utime(path, (OLD_S, OLD_S))
    return top


def _edit(path: Path) -> None:
    with path.open("a") as file:
        file.write(f"int edit{os.urandom(4).hex()};\n")


def _sample(path: Path, chance: random.Random) -> None:
    text = "".join(chance.choices("ACGT", k=LETTERS))
    path.write_text("".join(f">read{at}\n{text[at : at + 150]}\n" for at in range(0, LETTERS, 150)))
