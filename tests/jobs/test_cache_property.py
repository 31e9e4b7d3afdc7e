"""Cached ≡ uncached for made-up scripts, after one change to their inputs.

DETBOX_CACHE_EXAMPLES=N runs N of them instead of a few.
"""

# ruff: noqa: E501  (a script is one line)

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from cached import Bench

EXAMPLES = int(os.environ.get("DETBOX_CACHE_EXAMPLES", "6"))
NAMES = ("a", "b", "c", "d/x", "d/y", "l")

#: What a script may consist of; {0}, {1} and {2} are names of files.
STEPS = (
    "cat {0} {1}", "cp {0} {1}", "cp -p {0} {1}", "mv {0} {1}", "mv -n {0} {1}", "ln -s {0} {1}", "ln -sf {0} {1}", "ln {0} {1}", "rm {0}",
    "rm -rf d", "mkdir -p d", "mkdir {0}", "rmdir d", "mv d e", "ls -li", "ls -l --time-style=full-iso d", "stat {0}",
    "chmod 600 {0}", "chmod 755 {0}", "touch {0}", "touch -d 2001-01-01 {0}", "find . -newer {0}", "date +%s.%N", "echo $$",
    "sort {0} -o {1}", "sed -i s/o/0/ {0}", "grep -c o {0}", "mktemp ./tmp.XXXX", "readlink -f {0}", "truncate -s 5 {0}", "dd if={0} of={1} bs=2 count=1 conv=notrunc status=none",
    "sh -c 'cat {0}; date +%N; exit 3'", "sh -c 'cp {0} {1}; cat {1} >&2; rm {0}'", "cat {0} > {1}", "cat {0} >> {1}", "cat < {0}", "echo more >> {0}",
    "cat {0} | sort -r", "x=$(cat {0}); echo $x", "(cat {0}; echo end) 2>&1", "sh -c 'echo $(cat {0}) > {1}'", "cat {0} > {1} 2>&1", "env > {1}",
    "sh {2}", "test {0} -nt {1} && echo newer", "tar cf t.tar {0} d; tar tvf t.tar", "cmp {0} {1}", "ls > {1}", "exec 3< {0}; cat <&3", "exec 3>> {1}; echo to3 >&3; sh -c 'echo sub >&3'",
    "cat {0} & wait", "sh -c 'sleep 1; cat {0}' & date; wait", "kill -9 $(sh -c 'echo 999')", "sh -c 'kill -TERM $$'", "id -un", "cat /proc/self/stat | wc -w",
    "head -c 8 /dev/urandom | od -x", "od -N4 -x /dev/urandom", "python3 -c 'import os; print(os.getpid(), os.listdir())'",
)  # fmt: skip
CHANGES = ("content", "remove", "mode", "new", "link", "script", "insert", "drop", "environment", "seed", "epoch", "name", "nothing")

names = st.sampled_from(NAMES)
step = st.builds(lambda text, a, b, c: text.format(a, b, c), st.sampled_from(STEPS), names, names, names)
jobs = st.lists(step, min_size=2, max_size=9)


def inputs(work: Path) -> None:
    (work / "d").mkdir()
    for number, name in enumerate(NAMES[:5]):
        (work / name).write_text(f"one {number}\ntwo\nfoo\n")
    (work / "l").symlink_to("b")


def changed(work: Path, kind: str, name: str) -> None:
    path = work / name
    if kind == "content":
        path.write_text("other\n")
    elif kind == "remove":
        path.unlink()
    elif kind == "mode":
        path.chmod(0o640)
    elif kind == "new":
        (work / "d" / "z").write_text("new\n")
    elif kind == "link":
        (work / "l").unlink()
        (work / "l").symlink_to(name if name != "l" else "c")
    elif kind == "name":
        path.rename(work / "q")


def edited(job: list[str], kind: str, at: int) -> list[str]:
    at %= len(job)
    if kind == "script":
        return [*job[:at], "echo edited", *job[at + 1 :]]
    if kind == "insert":
        return [*job[:at], "date", *job[at:]]
    if kind == "drop":
        return [*job[:at], *job[at + 1 :]]
    return job


@pytest.mark.limit(60 + 20 * EXAMPLES)
@settings(max_examples=EXAMPLES, phases=[Phase.generate])
@given(jobs, st.sampled_from(CHANGES), names, st.integers(0, 8))
def test_any_job(job: list[str], kind: str, name: str, at: int) -> None:
    top = Path(tempfile.mkdtemp(prefix="detbox-cache-"))
    bench = Bench(top, inputs)
    options = {"seed": ["--seed=9"], "epoch": ["--epoch=2020-02-02"], "environment": ["--env=X=1"]}.get(kind, [])

    def script(lines: list[str]) -> list[str]:
        (top / "script").write_text("\n".join(lines) + "\n")
        return ["sh", "script"]

    def run(lines: list[str], cached: bool, change: bool) -> object:
        text = "\n".join(lines)

        def prepare(work: Path) -> None:
            if change:
                changed(work, kind, name)
            (work / "script").write_text(text + "\n")

        work = bench.inputs(prepare)
        more = options if change else []
        if cached:
            return bench.cached(["sh", "script"], work, *more)[0]
        return bench.run(["sh", "script"], work, *more)

    other = edited(job, kind, at)
    plain, plain_other = run(job, False, False), run(other, False, True)
    assert run(job, True, False) == plain
    assert run(other, True, True) == plain_other
    assert run(job, True, False) == plain
    assert run(other, True, True) == plain_other
    shutil.rmtree(top)
