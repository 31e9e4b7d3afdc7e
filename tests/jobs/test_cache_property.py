"""Cached ≡ uncached for made-up scripts, after changes to their inputs.

DETBOX_CACHE_EXAMPLES=N runs N of them, from number DETBOX_CACHE_FIRST on; with `-s` each prints what was changed.
"""

# ruff: noqa: E501  (a script is one line)

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from cached import Bench, Result

FIRST = int(os.environ.get("DETBOX_CACHE_FIRST", "1"))
EXAMPLES = int(os.environ.get("DETBOX_CACHE_EXAMPLES", "4"))
NAMES = ("a", "b", "c", "d/x", "d/y", "l")

#: What a script may consist of; {0}, {1} and {2} are names of files.
FILES = (
    "cat {0} {1}", "cp {0} {1}", "cp -p {0} {1}", "mv {0} {1}", "mv -n {0} {1}", "ln -s {0} {1}", "ln -sf {0} {1}", "ln {0} {1}", "rm {0}",
    "rm -rf d", "mkdir -p d", "mkdir {0}", "rmdir d", "mv d e", "ls -li", "ls -l --time-style=full-iso d", "stat {0}",
    "chmod 600 {0}", "chmod 755 {0}", "touch {0}", "touch -d 2001-01-01 {0}", "find . -newer {0}", "date +%s.%N", "echo $$",
    "sort {0} -o {1}", "sed -i s/o/0/ {0}", "grep -c o {0}", "mktemp ./tmp.XXXX", "readlink -f {0}", "truncate -s 5 {0}", "dd if={0} of={1} bs=2 count=1 conv=notrunc status=none",
    "sh {2}", "test {0} -nt {1} && echo newer", "tar cf t.tar {0} d; tar tvf t.tar", "cmp {0} {1}", "ls > {1}", "id -un", "env > {1}",
    "cat {0} > {1}", "cat {0} >> {1}", "cat {0} > {1} 2>&1", "echo more >> {0}", "cat /proc/self/stat | wc -w", "head -c 8 /dev/urandom | od -x", "od -N4 -x /dev/urandom",
)  # fmt: skip
#: The same for programs inside of programs, pipes, signals and threads.
PROGRAMS = (
    "sh -c 'cat {0}; date +%N; exit 3'", "sh -c 'cp {0} {1}; cat {1} >&2; rm {0}'", "sh -c 'echo $(cat {0}) > {1}'", "sh -c 'ls nosuch; echo out; ls {0} nosuch >&2; exit 4'",
    "cat < {0}", "exec 3< {0}; cat <&3", "exec 3< {0}; head -c3 <&3; cat <&3", "exec 3>> {1}; echo to3 >&3; sh -c 'echo sub >&3'", "sed s/o/0/ < {0} > {1}", "tee {1} < {0}",
    "cat {0} | sort -r", "x=$(cat {0}); echo $x", "x=$(sh -c 'cat {0}; date +%N; exit 5'); echo $? $x", "(cat {0}; echo end) 2>&1", "(cat {0}; date +%N; cat {1}) | sort", "x=`echo {0} | sed s/a/b/ | tr b c`; echo $x",
    "grep o {0} | head -1", "yes | head -2", "yes {0} | head -30000 | wc -c", "sort {0} | uniq -c | tee {1}", "cat nosuch | cat {0}; echo $?", "cat {0} | false; echo $?", "cat {0} 2>&1 nosuch | cat -n", "cat {0} | (read x; cat > {1})",
    "cat {0} | while read x; do echo $x; cat {1}; done", "while read x; do echo $x | cut -c2-; done < {0}", "cat << E\nx `cat {0}`\nE", "cat << E | sort\nx\na\nE", "bash -c 'cat <<< \"$(head -1 {0})\"'", "bash -c 'cat <(sort {0}) {1}'",
    "xargs -n1 echo < {0}", "cat {0} | xargs -P2 -n1 echo", "ls d | xargs -I% sh -c 'echo %; cat d/%'", "bash -c 'set -o pipefail; cat nosuch | sort {0}; echo $?'",
    "cat {0} & wait", "cat {0} & cat {1}; wait", "sh -c 'sleep 1; cat {0}' & date; wait", "(sleep 0.1; echo late) | cat", "timeout 1 sleep 5; echo $?", "timeout 9 cat {0}", "mkfifo p; cat {0} > p & cat p; wait; rm p",
    "sh -c 'kill -TERM $$'; echo $?", "sh -c 'kill -SEGV $$'; echo $?", "kill -9 $(sh -c 'echo 999')", "trap 'echo got' USR1; sh -c 'kill -USR1 $PPID; date +%N'; date +%N", "sh -c 'trap \"\" PIPE; sh -c \"cat {0}; kill -PIPE \\$\\$; echo still\"'", "sh -c 'ulimit -f 0; cat {0} > {1}'; echo $?",
    "printf 'all: {1}.o\\n{1}.o: {0}\\n\\tcat {0} | sort > {1}.o; date +%%N\\n' | make -f -", "printf 'all: q1 q2 q3\\nq%%:\\n\\t@cat {0} > q$*; date +%%N\\n' | make -j2 -f -",
    "python3 -c 'import os; print(os.getpid(), os.listdir())'", "python3 -c 'import threading as t; r=[]; a=[t.Thread(target=lambda i=i: r.append((i, len(open(\"{0}\").read())))) for i in range(3)]; [x.start() for x in a]; [x.join() for x in a]; print(r)'",
    "python3 -c 'import subprocess as s; print(s.run([\"cat\", \"{0}\"], capture_output=True)); print(s.run(\"sort\", input=b\"b\\na\\n\", stdout=s.PIPE).stdout)'",
)  # fmt: skip
CHANGES = (
    "content", "same size", "remove", "mode", "new", "link", "names", "name", "attribute", "script", "argument", "insert", "drop", "environment", "seed",
    "epoch", "nothing",
)  # fmt: skip
OPTIONS = {"seed": ["--seed=9"], "epoch": ["--epoch=2020-02-02"], "environment": ["--env=X=1"]}


def inputs(work: Path) -> None:
    (work / "d").mkdir()
    for number, name in enumerate(NAMES[:5]):
        (work / name).write_text(f"one {number}\ntwo\nfoo\n")
    (work / "l").symlink_to("b")


def changed(work: Path, kind: str, name: str) -> None:
    path = work / name
    if kind == "content":
        path.write_text("other\n")
    elif kind == "same size":
        path.write_text(path.read_text().replace("two", "owt"))
    elif kind == "remove":
        path.unlink()
    elif kind == "mode":
        path.chmod(0o640)
    elif kind == "new":
        (work / "d" / "z").write_text("new\n")
    elif kind == "link":
        (work / "l").unlink()
        (work / "l").symlink_to(name if name != "l" else "c")
    elif kind == "names":
        (work / "second").hardlink_to(path)
    elif kind == "name":
        path.rename(work / "q")
    elif kind == "attribute":
        os.setxattr(path, "user.x", b"1", follow_symlinks=True)


def edited(job: list[str], kind: str, at: int) -> list[str]:
    at %= len(job)
    if kind == "script":
        return [*job[:at], "echo edited", *job[at + 1 :]]
    if kind == "argument":
        return [*job[:at], job[at] + " c", *job[at + 1 :]]
    if kind == "insert":
        return [*job[:at], "date", *job[at:]]
    if kind == "drop":
        return [*job[:at], *job[at + 1 :]]
    return job


def made_up(random: Random) -> tuple[list[str], list[tuple[str, str, int]]]:
    """A job's lines, and changes to it: (kind, name of a file, number of a line)."""
    lines = [
        random.choice(random.choice((FILES, PROGRAMS))).format(*random.choices(NAMES, k=3))
        for _ in range(random.randint(2, 9))
    ]
    changes = [
        (random.choice(CHANGES), random.choice(NAMES[:5]), random.randrange(9)) for _ in range(random.randint(1, 4))
    ]
    return lines, changes


@pytest.mark.limit(60 + 60 * EXAMPLES)
def test_any_job() -> None:
    for number in range(FIRST, FIRST + EXAMPLES):
        check(number)


def check(number: int) -> None:
    job, mutations = made_up(Random(number))
    top = Path(tempfile.mkdtemp(prefix=f"detbox-cache-{number}-"))
    bench = Bench(top, inputs)

    def run(cached: bool, kind: str = "nothing", name: str = "", at: int = 0) -> Result:
        text = "\n".join(edited(job, kind, at)) + "\n"

        def prepare(work: Path) -> None:
            changed(work, kind, name)
            (work / "script").write_text(text)

        work = bench.inputs(prepare)
        command, options = ["sh", "script"], OPTIONS.get(kind, [])
        return bench.cached(command, work, *options)[0] if cached else bench.run(command, work, *options)

    plain = run(False)
    assert run(True) == plain, f"example {number}"
    for mutation in mutations:
        assert run(True, *mutation) == run(False, *mutation), f"example {number}, {mutation}"
    assert run(True) == plain, f"example {number}, the second time"
    print(f"{number}: {len(job)} steps; " + ", ".join(kind for kind, _, _ in mutations), flush=True)
    shutil.rmtree(top)
