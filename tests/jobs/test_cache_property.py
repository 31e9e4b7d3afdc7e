"""Cached ≡ uncached for made-up scripts, after changes to their inputs.

An example is a job of one or several made-up parts, each in a directory of its own.  In each round one thing is changed
in each part; then the job runs with and without the cache, and all that a user can see is compared.
DETBOX_CACHE_EXAMPLES=N runs N of them, from number DETBOX_CACHE_FIRST on; with `-s` each prints what was changed and
what came of the programs inside.  DETBOX_CACHE_PARTS="1 4" leaves the other parts out, to find the one at fault.
"""

# ruff: noqa: E501  (a script is one line)

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from cached import Bench, Result

from detbox.cache.store import Store

FIRST = int(os.environ.get("DETBOX_CACHE_FIRST", "1"))
EXAMPLES = int(os.environ.get("DETBOX_CACHE_EXAMPLES", "3"))
PARTS = [int(word) for word in os.environ.get("DETBOX_CACHE_PARTS", "").split()]
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
    "python3 -c 'import os; print(os.getpid(), os.listdir())'", "python3 -c 'import os; d = os.open(\"d\", 0); print([(n, os.stat(n, dir_fd=d).st_size, os.read(os.open(n, 0, dir_fd=d), 9)) for n in os.listdir(d)])'", "python3 -c 'import threading as t; r=[]; a=[t.Thread(target=lambda i=i: r.append((i, len(open(\"{0}\").read())))) for i in range(3)]; [x.start() for x in a]; [x.join() for x in a]; print(r)'",
    "python3 -c 'import subprocess as s; print(s.run([\"cat\", \"{0}\"], capture_output=True)); print(s.run(\"sort\", input=b\"b\\na\\n\", stdout=s.PIPE).stdout)'",
)  # fmt: skip


def _rewritten(change: Callable[[str], str]) -> Callable[[Path, str], None]:
    return lambda top, name: (top / name).write_text(change((top / name).read_text())) and None


def _link(top: Path, to: str) -> None:
    (top / "l").unlink()
    (top / "l").symlink_to(to)


def _swap(top: Path, name: str) -> None:
    other = "a" if name != "a" else "b"
    (top / name).rename(top / "swap")
    (top / other).rename(top / name)
    (top / "swap").rename(top / other)


def _directory(top: Path, name: str) -> None:
    (top / name).unlink()
    (top / name).mkdir()


#: What may be changed of one part's inputs: (directory, name of a file there).
INPUTS: dict[str, Callable[[Path, str], object]] = {
    "content": lambda top, name: (top / name).write_text("other\n"),
    "same size": _rewritten(lambda text: text.replace("two", "owt")),
    "longer": _rewritten(lambda text: text + "four\n"),
    "empty": lambda top, name: (top / name).write_text(""),
    "much": lambda top, name: (top / name).write_text(("so " + "x" * 240 + "much\n") * 300),
    "remove": lambda top, name: (top / name).unlink(),
    "mode": lambda top, name: (top / name).chmod(0o640),
    "executable": lambda top, name: (top / name).chmod(0o755),
    "unreadable": lambda top, name: (top / name).chmod(0),
    "new": lambda top, name: (top / "d" / "z").write_text("new\n"),
    "new beside": lambda top, name: (top / "e").write_text("new\n"),
    "new directory": lambda top, name: (top / "e").mkdir(),
    "directory gone": lambda top, name: shutil.rmtree(top / "d"),
    "directory instead": _directory,
    "link": lambda top, name: _link(top, name),
    "link to nothing": lambda top, name: _link(top, "nothing"),
    "names": lambda top, name: (top / "second").hardlink_to(top / name),
    "name": lambda top, name: (top / name).rename(top / "q"),
    "swap": _swap,
    "attribute": lambda top, name: os.setxattr(top / name, "user.x", b"1"),
    "times": lambda top, name: None,  # all of them are set after each change
}
SCRIPTS = ("script", "argument", "insert", "drop")
#: What may be changed of the whole job.
OPTIONS = {"seed": ["--seed=9"], "epoch": ["--epoch=2020-02-02"], "environment": ["--env=X=1"], "cpus": ["--cpus=3"]}


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


@dataclass(frozen=True)
class Mutation:
    """``kind`` of a change to one part, the file and the line that it is about."""

    kind: str
    name: str
    at: int


@dataclass
class Example:
    """``parts``: the lines of each; ``rounds``: for each the mutations by part, and an option of the run."""

    parts: list[list[str]]
    rounds: list[tuple[dict[int, Mutation], str]]

    def prepare(self, work: Path, mutations: dict[int, Mutation]) -> None:
        main = ""
        for number, lines in enumerate(self.parts):
            top = work / f"p{number}"
            (top / "d").mkdir(parents=True)
            for count, name in enumerate(NAMES[:5]):
                (top / name).write_text(f"one {count}\ntwo\nfoo\n")
            (top / "l").symlink_to("b")
            mutation = mutations.get(number, Mutation("nothing", "a", 0))
            if mutation.kind in INPUTS:
                INPUTS[mutation.kind](top, mutation.name)
            (top / "script").write_text("\n".join(edited(lines, mutation.kind, mutation.at)) + "\n")
            if not PARTS or number in PARTS:
                main += f"cd p{number}; sh script; cd ..\n"
        (work / "main").write_text(main)


def made_up(random: Random) -> Example:
    """Every third example is one part, whose result as a whole counts; the others are many."""
    count, rounds = random.choice(((1, 5), (6, 6), (8, 6)))
    parts = [
        [random.choice(random.choice((FILES, PROGRAMS))).format(*random.choices(NAMES, k=3)) for _ in range(size)]
        for size in (random.randint(1, 4 if count > 1 else 8) for _ in range(count))
    ]
    found = []
    for _ in range(rounds):
        # A step more or less moves the time of all parts after it, which are no hits then.
        mutations = {
            number: Mutation(
                random.choice(SCRIPTS if random.random() < 0.3 / count else tuple(INPUTS)),
                random.choice(NAMES[:5]), random.randrange(9),
            )
            for number in range(count)
            if count == 1 or random.random() < 0.5
        }  # fmt: skip
        found.append((mutations, random.choice(tuple(OPTIONS)) if random.random() < 0.1 else ""))
    return Example(parts, found)


@pytest.mark.limit(60 + 100 * EXAMPLES)
def test_any_job() -> None:
    total = 0
    for number in range(FIRST, FIRST + EXAMPLES):
        total += check(number)
        print(f"{total} changes", flush=True)


def check(number: int) -> int:
    """The number of changes after which the same came out."""
    random = Random(number)
    example = made_up(random)
    top = Path(tempfile.mkdtemp(prefix=f"detbox-cache-{number}-"))
    seen: Counter[str] = Counter()

    def run(cached: bool, mutations: dict[int, Mutation], *options: str) -> Result:
        work = bench.inputs(lambda work: example.prepare(work, mutations))
        if cached:
            options = ("--cache", f"--cache-dir={bench.store}", *options)
        result = bench.run(["sh", "main"], work, *options)
        shutil.rmtree(work)
        return result

    def both(what: str, mutations: dict[int, Mutation], plain: Result, *options: str) -> None:
        result = run(True, mutations, *options)
        store = Store(bench.store)
        log = store.runs()[0]
        store.close()
        seen.update([str(log["result"]), *("inside: " + one["result"] for one in log["executions"])])
        assert result == plain, f"example {number}, {what}, kept in {top}"

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
