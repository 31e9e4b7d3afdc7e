"""Whole jobs, and one probe for each source of nondeterminism, each on two hosts that differ in everything."""

# ruff: noqa: E501  (one row of the table, one line)

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))
sys.path.insert(0, str(Path(__file__).parent))

from probes import FILES, PROBES
from under_detbox import twice

from detbox.report.perturb import variants


@dataclass(frozen=True)
class Job:
    """A script of the shell.  ``stable``: a native run prints the same, so the output has to be that."""

    name: str
    script: str
    stable: bool = True
    limit_s: int = 90


JOBS = (
    Job("gcc", "gcc -O2 -g -c big.c && gcc -O2 big.c -o big -lm && ./big && md5sum < big.o | wc -c"),
    Job("parallel make", "make -s -j4 -C project && project/main && make -C project -q && echo fresh"),
    Job("static binary", "gcc -static stamp.c -o stamp && ./stamp | wc -w"),
    Job("python imports", "python3 -c 'import json, sqlite3, asyncio, ssl, email, xml.dom; print(json.dumps([1]))'"),
    Job("python bytecode", "python3 -m compileall -q /usr/lib/python3/dist-packages -d . 2>&1 | wc -l; python3 -VV | wc -l"),
    Job("archives", (
        "tar cf a.tar many && gzip -9 < a.tar > a.gz && xz -T2 -k a.tar && bzip2 -k a.tar && mkdir out && "
        "tar xJf a.tar.xz -C out && diff -r many out/many && zcat a.gz | tar tf - | sort | md5sum"
    )),
    Job("sqlite", (
        "python3 -c 'import sqlite3\n"
        "c = sqlite3.connect(\"data.db\")\n"
        "c.execute(\"create table t (a integer primary key, b text)\")\n"
        "c.executemany(\"insert into t (b) values (?)\", [(str(i * i),) for i in range(1000)])\n"
        "c.commit()\n"
        "print(c.execute(\"select count(*), sum(a), max(b) from t\").fetchone())'"
    )),
    Job("git", (
        "git init -q repo && cd repo && git config user.name N && git config user.email e@x.y && cp -r ../many . && "
        "git add . && git commit -qm first && git mv many/1 moved && git commit -qam second && git log --stat | wc -l "
        "&& git gc -q && git fsck && git log --format='%H %ad'"
    ), stable=False),
    Job("perl", "perl -MPOSIX -MData::Dumper -e 'print strftime(\"%Y\", gmtime(0)), Dumper([1, {a => 2}])'"),
    Job("bash", (
        "f() { local x=$1; (( x > 1 )) && f $((x - 1)); echo -n \"$x \"; }; f 10; a=(3 1 2); printf '%s\\n' "
        "\"${a[@]}\" | sort; while read -r l; do echo \"<$l>\"; done < <(seq 3); declare -A m=([k]=v); echo ${m[k]}"
    )),
    Job("text tools", (
        "seq 5000 > n; awk '{s += $1} END {print s}' n; sed -n '10,12p' n; grep -c 7 n; sort -R n | sort -n | cmp - n; "
        "split -l 1000 n part; cat part* | cmp - n; comm -12 n n | wc -l; paste n n | cut -f2 | uniq | tail -1"
    )),
    Job("find", "find many -type f -newer stamp.c -print | wc -l >&2; find many -size -2k -exec cat {} + | sort -n | md5sum"),
    Job("xargs", "seq 60 | xargs -P 4 -n 3 sh -c 'echo \"$@\"' x | sort -n | md5sum"),
    Job("tcp", (
        "python3 -c 'import http.server, threading, urllib.request as u\n"
        "s = http.server.ThreadingHTTPServer((\"127.0.0.1\", 8080), http.server.SimpleHTTPRequestHandler)\n"
        "threading.Thread(target=s.serve_forever, daemon=True).start()\n"
        "print(len(u.urlopen(\"http://127.0.0.1:8080/stamp.c\").read()))\n"
        "s.shutdown()'"
    ), stable=False),
    Job("openssl", "openssl rand -hex 16; openssl genrsa 1024 2> /dev/null | md5sum; openssl version", stable=False),
    Job("strace", (
        "strace -f -tt -y -o calls make -s -j2 -C project part1.o part2.o && strace -c -f -o counts sh -c 'seq 9 | sort -r | head -1' && "
        "strace -e trace=none -o nothing sh -c 'kill $$'; (sleep 0.2; seq 3) & strace -o later -p $! && wait"
    ), stable=False),
    Job("time goes by", "sleep 3600; date; touch a; sleep 0.01; touch b; test b -nt a && echo newer", stable=False),
    Job("file metadata", (
        "mkdir -m 750 d; echo x > d/f; ln d/f d/g; ln -s f d/s; mkfifo d/p; chmod 4711 d/f; touch -d 2001-02-03 d/g; "
        "setfattr -n user.colour -v red d/f 2> /dev/null; ls -lR --time-style=full-iso d"
    ), stable=False),
)  # fmt: skip

BIG = "#include <math.h>\n#include <stdio.h>\n" + "".join(
    f"static double f{i}(double x) {{ for (int k = 0; k < 9; k++) x = sin(x) + {i}; return x; }}\n" for i in range(150)
)
PROJECT = {f"part{i}.c": f"int part{i}(void) {{ return {i}; }}\n" for i in range(12)}


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    directory = tmp_path_factory.mktemp("inputs")
    for name, text in FILES.items():
        (directory / name).write_text(text)
    (directory / "many").mkdir()
    for i in range(200):
        (directory / "many" / str(i)).write_text(f"{i}\n")
    calls = "".join(f" printf(\"%.3f\\n\", f{i}(1));\n" for i in range(0, 150, 30))
    (directory / "big.c").write_text(f"{BIG}int main(void) {{\n{calls} return 0; }}\n")
    project = directory / "project"
    project.mkdir()
    for name, text in PROJECT.items():
        (project / name).write_text(text)
    total = " + ".join(f"part{i}()" for i in range(12))
    declared = "".join(f"int part{i}(void);\n" for i in range(12))
    (project / "main.c").write_text(
        f'#include <stdio.h>\n{declared}int main(void) {{ printf("%d\\n", {total}); return 0; }}\n'
    )
    (project / "Makefile").write_text("OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))\nmain: $(OBJECTS)\n\tcc -o $@ $^\n")
    yield directory


@pytest.mark.limit(240)
@pytest.mark.parametrize("job", [pytest.param(job, id=job.name) for job in JOBS])
def test_job(job: Job, inputs: Path) -> None:
    run = twice(["bash", "-c", job.script], inputs, limit_s=job.limit_s, without=())
    assert run.status == 0, run.stderr[-3000:]
    if job.stable:
        native = variants(1)[0].run(["bash", "-c", job.script], inputs, timeout=job.limit_s)
        assert (native.status, native.stdout) == (run.status, run.stdout)


DEBUGGED = """set pagination off
break f30
run
backtrace
set var x = 5
watch x
continue
delete
print f60(1)
info registers rip
continue
"""


@pytest.mark.skipif(shutil.which("gdb") is None, reason="gdb is not installed")
def test_debugger(inputs: Path) -> None:
    script = f"gcc -g -O0 big.c -o big -lm && echo '{DEBUGGED}' > commands && gdb -nx -batch -x commands ./big"
    run = twice(["bash", "-c", script], inputs, limit_s=90, without=())
    assert run.status == 0, run.stderr[-3000:]
    for said in (b"Breakpoint 1, f30 (x=1)", b"Old value = 5", b"$1 = 60.", b"exited normally]"):
        assert said in run.stdout, (said, run.stdout[-3000:])


@pytest.mark.limit(180)
@pytest.mark.parametrize("name", PROBES)
def test_probe(name: str, inputs: Path) -> None:
    run = twice(["bash", "-c", PROBES[name]], inputs)
    assert run.stdout, run.stderr[-3000:]
    assert b"detbox:" not in run.stderr, run.stderr[-3000:]


def test_probes_differ_natively(inputs: Path) -> None:
    """The harness sees differences: two native runs on these hosts differ for nearly every probe."""
    one, other = variants(2, without=("user", "time of run"))
    script = "\n".join(f"({text}) > 'out {i}' 2>&1" for i, text in enumerate(PROBES.values()))
    a, b = (host.run(["bash", "-c", script], inputs, timeout=120) for host in (one, other))
    same = [name for i, name in enumerate(PROBES) if a.tree[f"out {i}"].sha256 == b.tree[f"out {i}"].sha256]
    assert len(same) <= 6, same


def test_tools_exist() -> None:
    for tool in ("gcc", "make", "python3", "tar", "gzip", "xz", "bzip2", "git", "perl", "openssl", "ps", "strace"):
        subprocess.run(["sh", "-c", f"command -v {tool}"], check=True, capture_output=True)
