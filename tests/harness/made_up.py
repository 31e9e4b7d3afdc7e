"""Made-up jobs for the cache, and changes to their inputs: scripts of lines that are drawn from the tables here."""

# ruff: noqa: E501  (a script is one line)

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from random import Random

#: Names of files in each part: what a line is about.
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
    "cat {0} | while read x; do echo $x; head -1 {1}; done", "while read x; do echo $x | cut -c2-; done < {0}", "cat << E\nx `cat {0}`\nE", "cat << E | sort\nx\na\nE", "bash -c 'cat <<< \"$(head -1 {0})\"'", "bash -c 'cat <(sort {0}) {1}'",
    "xargs -n1 echo < {0}", "cat {0} | xargs -P2 -n1 echo", "ls d | xargs -I% sh -c 'echo %; cat d/%'", "bash -c 'set -o pipefail; cat nosuch | sort {0}; echo $?'",
    "cat {0} & wait", "cat {0} & cat {1}; wait", "sh -c 'sleep 1; cat {0}' & date; wait", "(sleep 0.1; echo late) | cat", "timeout 1 sleep 5; echo $?", "timeout 9 cat {0}", "mkfifo p; cat {0} > p & cat p; wait; rm p",
    "sh -c 'kill -TERM $$'; echo $?", "sh -c 'kill -SEGV $$'; echo $?", "kill -9 $(sh -c 'echo 999')", "trap 'echo got' USR1; sh -c 'kill -USR1 $PPID; date +%N'; date +%N", "sh -c 'trap \"\" PIPE; sh -c \"cat {0}; kill -PIPE \\$\\$; echo still\"'", "sh -c 'ulimit -f 0; cat {0} > {1}'; echo $?",
    "printf 'all: {1}.o\\n{1}.o: {0}\\n\\tcat {0} | sort > {1}.o; date +%%N\\n' | make -f -", "printf 'all: q1 q2 q3\\nq%%:\\n\\t@cat {0} > q$*; date +%%N\\n' | make -j2 -f -",
    "python3 -c 'import os; print(os.getpid(), os.listdir())'", "python3 -c 'import os; d = os.open(\"d\", 0); print([(n, os.stat(n, dir_fd=d).st_size, os.read(os.open(n, 0, dir_fd=d), 9)) for n in os.listdir(d)])'", "python3 -c 'import threading as t; r=[]; a=[t.Thread(target=lambda i=i: r.append((i, len(open(\"{0}\").read())))) for i in range(3)]; [x.start() for x in a]; [x.join() for x in a]; print(r)'",
    "python3 -c 'import subprocess as s; print(s.run([\"cat\", \"{0}\"], capture_output=True)); print(s.run(\"sort\", input=b\"b\\na\\n\", stdout=s.PIPE).stdout)'",
)  # fmt: skip
#: Rights, owners and masks, which count with a virtual user.
RIGHTS = (
    "chmod 500 d; echo n > d/new; ls d; chmod 700 d", "chmod 111 d; ls d; cat d/x; chmod 755 d", "chmod 0 d; cat d/x {0}; cd d && cd ..; chmod 755 d", "chmod u-w {0}; echo more >> {0}; cp {1} {0}; chmod u+w {0}",
    "umask 077; cp {0} n1; mkdir -p n; ls -ld n n1", "install -m 4711 {0} {1}; stat -c %a {1}", "install -D {0} n/m/n; find n", "chown 1:1 {0}; ls -ln {0}", "chgrp 5 d; stat -c '%u %g' d", "test -w {0} && echo w; test -r {1} && echo r; test -x d && echo x",
    "chmod 1777 d; mv {0} d/x; rm -f d/y", "find . -perm -200 | sort", "chmod -R a-w .; rm -f {0}; touch n; chmod -R u+w .", "chmod 711 .; (cd d; cat ../{0}); chmod 755 .", "id; ls -ld . .. d", "chmod g+s d; touch d/n; mkdir -p d/m; ls -l d",
)  # fmt: skip
#: Links, other names, and names that go while files are open.
WAYS = (
    "ln -s d sd; cat sd/x; ls sd/; echo a > sd/n; rm sd", "ln -s d sd; cd sd && {{ pwd; pwd -P; cat x; cd ..; }}", "ln -sfn d l; ls l/; readlink -f l/x", "mv d e; ln -s e d; cat d/x; ls -l e", "cp -r d n; diff -r d n && echo same", "cp -a . /tmp/all; ls -R /tmp/all; rm -rf /tmp/all",
    "cp -l {0} h; echo z >> h; cat {0}; ls -li", "ln {0} h1; ln h1 h2; rm {0}; stat -c %h h2; mv h2 {1}", "exec 3< {0}; mv {1} {0}; cat <&3; cat {0}; exec 3<&-", "exec 3> {0}; rm {0}; echo x >&3; mv {1} {0}; exec 3>&-", "exec 3< {0}; rm {0}; readlink /proc/self/fd/3; cat <&3; exec 3<&-", "exec 3<> {0}; read x <&3; echo over >&3; cat {0}; exec 3>&-",
    "mkdir -p n/m; cd n/m && {{ rmdir ../m; pwd; ls ..; cat ../../{0}; cd ../..; }}", "mkdir -p n; mv {0} {1} n; ls n; mv n/* .", "find . -type l -exec readlink {{}} \\;", "find . | sort | xargs ls -ld --time-style=+%s", "du -a | sort -k2", "tar cf - d | tar xf - -C /tmp; ls -l /tmp/d; rm -rf /tmp/d", "rm -r d; mkdir d; cp {0} d; ls -lid d",
    "touch -r {0} {1}; ls -l --time-style=full-iso {1}", "touch -h l; cp -P l n; ls -l", "ln -s loop loop; cat loop; rm loop", "cp {0} /tmp/t; cat /tmp/t >> {1}; ls -l /tmp; rm /tmp/t", "split -l1 {0} s.; ls; cat s.*", "mv d /tmp/moved; ls /tmp/moved; mv /tmp/moved d; ls -li d", "ln -s ../$(basename $PWD)/d up; cat up/x; rm up", "mkfifo f; ls -l f; stat -c %F f; rm f",
)  # fmt: skip
#: Several programs at once, at the same files.
TOGETHER = (
    "for i in 1 2 3; do echo a$i; sleep 0.01; done >> {1} & for i in 1 2 3; do echo b$i; sleep 0.01; done >> {1}; wait; cat {1}", "sh -c 'cat {0}; sleep 0.1; cat {0}' >> {1} & sh -c 'cat {1}; echo b' >> n; wait; cat n", "(sh -c 'echo 1; cat {0}'; sh -c 'date +%N') > n & sh -c 'cat n'; wait", "for i in 1 2 3; do sh -c \"echo $i; cat {0}\" >> n & done; wait; sort n",
    "exec 3> n; sh -c 'echo one >&3' & sh -c 'cat {0} >&3'; wait; exec 3>&-; cat n", "flock {0} sh -c 'cat {0}; date +%N' & flock {0} cat {1}; wait", "mkfifo p; (cat p; cat p) > n & cat {0} > p; sleep 0.1; cat {0} > p; wait; rm p", "(cat {0}; sleep 1; cat {1}) | while read x; do echo $x; head -1 d/x; done", "tail -f {0} & sleep 0.1; echo more >> {0}; sleep 2; kill $!; wait",
    "sh -c 'echo $$ > pid; exec sleep 9' & sleep 1; kill $(cat pid); wait $!; echo $?", "bash -c 'coproc cat; cat {0} >&${{COPROC[1]}}; read -t 1 x <&${{COPROC[0]}}; echo $x'", "bash -c 'tee >(sort > n) < {0}; sleep 1; cat n'", "xargs -P3 -I% sh -c 'echo %; cat {1}' < {0}", "setsid sh -c 'cat {0}'; setsid -w date +%N", "(trap 'cat {0}' EXIT; cat {1}); nice -n 5 sh -c 'nice; cat {0}'",
)  # fmt: skip
#: Compilers and tools that keep files about files.
BUILDS = (
    "printf '#include \"k.h\"\\nchar *t = __DATE__ __TIME__;\\nint main(void) {{ return K; }}\\n' > t.c; cc -MD t.c -o t; ./t; echo $?; cat t.d", "echo 'int f(void) {{ return 1; }}' > f.c; cc -g -c f.c; ar rc f.a f.o; nm f.a; md5sum f.o", "gcc -E -P k.h", "printf 'o: {0} k.h\\n\\tcat {0} k.h > o\\n' > mk; make -f mk; make -f mk; touch k.h; make -f mk",
    "printf 'a.out: t.c\\n\\tcc t.c\\nt.c: k.h\\n\\t(cat k.h; echo \"int main(void) {{ return K; }}\") > t.c\\n' | make -f -; ./a.out; echo $?", "git init -q g; cd g; cp ../{0} f; git add f; git -c user.name=a -c user.email=b commit -qm m; git log --format=%H%cd; cd ..", "gzip -kf {0}; zcat {0}.gz; ls -l", "tar czf t.tgz d; md5sum t.tgz", "diff {0} {1} > n.patch; patch -s -o n {0} n.patch; cat n",
    "printf '%s\\n' 1d w q | ed -s {0}", "perl -pi -e 's/o/0/' {0}", "perl -e 'opendir D, \"d\"; print join \",\", sort readdir D; print -s \"{0}\"'", "awk '{{ print NR, $0 > \"n\" }}' {0}; cat n", "sqlite3 n.db 'create table t(x); insert into t values(random()); select * from t'; sqlite3 n.db .dump", "printf '#!/bin/sh\\ncat {0}\\n' > x.sh; chmod +x x.sh; ./x.sh; PATH=.:$PATH x.sh",
    "printf '#!/usr/bin/env python3\\nimport m\\nprint(m.value)\\n' > x.py; chmod +x x.py; ./x.py",
)  # fmt: skip
#: Python: modules beside the script, memory maps, attributes, sockets, locks.
PYTHON = (
    "python3 -c 'import m; print(m.value, m.__file__)'", "PYTHONPATH=d python3 -c 'import m, json; print(m.value, json.__file__)'; ls -l __pycache__", "python3 -m py_compile m.py; ls __pycache__", "python3 m.py; python3 -m m", "cp m.py d/n.py; PYTHONPATH=d python3 -c 'import n; print(n.value)'; ls d", "python3 -B -c 'import m, os; print(os.stat(\"m.py\").st_mtime)'",
    "python3 -c 'import mmap; f = open(\"{0}\", \"r+b\"); p = mmap.mmap(f.fileno(), 0); p[0:1] = b\"X\"; p.flush(); print(p[:5])'; cat {0}", "python3 -c 'import mmap; f = open(\"n\", \"w+b\"); f.truncate(9000); p = mmap.mmap(f.fileno(), 9000); p[:4] = open(\"{0}\", \"rb\").read(4).ljust(4); p.close()'; md5sum n; stat n", "python3 -c 'import os; os.setxattr(\"{0}\", \"user.k\", b\"v\"); print(os.listxattr(\"{0}\"), os.listxattr(\"{1}\"))'",
    "cp --preserve=all {0} n; python3 -c 'import os; print(os.listxattr(\"n\"))'", "python3 -c 'import os; print([(e.name, e.inode(), e.is_file()) for e in os.scandir(\"d\")])'", "python3 -c 'import tempfile; f = tempfile.NamedTemporaryFile(dir=\".\", delete=False); f.write(b\"x\"); print(f.name)'", "python3 -c 'import tempfile; f = tempfile.TemporaryFile(dir=\".\"); f.write(b\"x\"); f.seek(0); print(f.read())'",
    "python3 -c 'import os; os.rename(\"{0}\", \"{1}\"); os.link(\"{1}\", \"n\"); print(os.stat(\"n\").st_nlink)'", "python3 -c 'import os; f = os.open(\"{0}\", os.O_RDWR); os.pwrite(f, b\"zz\", 1); os.truncate(\"{1}\", 3); print(os.fstat(f).st_size, os.stat(\"{1}\").st_mtime)'", "python3 -c 'import multiprocessing as p; print(p.Pool(2).map(len, open(\"{0}\").readlines()[:9]))'", "python3 -c 'import random, time, uuid; print(random.random(), time.time(), uuid.uuid4())'",
    "python3 -c 'import socket; a, b = socket.socketpair(); a.send(open(\"{0}\", \"rb\").read(99) + b\".\"); print(b.recv(99))'", "python3 -c 'import socket, threading; s = socket.create_server((\"127.0.0.1\", 0)); t = threading.Thread(target=lambda: s.accept()[0].sendall(open(\"{0}\", \"rb\").read(99) + b\".\")); t.start(); print(socket.create_connection(s.getsockname()).recv(99))'",
    "python3 -c 'import socket, os; s = socket.socket(socket.AF_UNIX); s.bind(\"sock\"); s.listen(); p = os.fork(); c = socket.socket(socket.AF_UNIX); c.connect(\"sock\") if p == 0 else s.accept()[0].send(open(\"{0}\", \"rb\").read(99) + b\".\"); p or print(c.recv(99)); p and os.wait()'; ls -l sock; rm -f sock", "python3 -c 'import fcntl; f = open(\"{0}\", \"a\"); fcntl.flock(f, fcntl.LOCK_EX); f.write(\"locked\")'; cat {0}",
    "python3 -c 'import os; f = os.memfd_create(\"x\", 0); os.write(f, open(\"{0}\", \"rb\").read()); print(os.fstat(f).st_size); os.execvp(\"cat\", [\"cat\", f\"/proc/self/fd/{{f}}\"])'", "python3 -c 'import shutil; shutil.copytree(\"d\", \"n\"); shutil.make_archive(\"z\", \"zip\", \"n\")'; md5sum z.zip",
)  # fmt: skip
#: More data than a pipe holds or a result keeps within it.
BIG = (
    "head -c 200000 /dev/zero | tr '\\0' x > n; wc -c < n", "head -c 150000 /dev/urandom > {1}; md5sum {1}; cp {1} n", "cat {0} {0} | md5sum", "seq 30000 > {1}; sort -rn {1} | head -2; tail -1 {1}", "dd if=/dev/zero of=n bs=1 seek=100000 count=1 status=none; stat -c '%s %b' n; cp --sparse=always n n2; cmp n n2", "truncate -s 300K {0}; tail -c 5 {0} | od -c",
    "seq 20000 | tee {1} | tail -1", "cat {1} | gzip -c > n.gz; zcat n.gz | cmp - {1}", "x=$(seq 20000); echo $x | wc -c", "seq 20000 | (sleep 0.1; cat) > n; cat n {0} | md5sum", "yes | head -c 90000 | (cat; cat {0}) | wc -c",
)  # fmt: skip
FAMILIES = (FILES, PROGRAMS, RIGHTS, WAYS, TOGETHER, BUILDS, PYTHON, BIG)


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


def _socket(top: Path, name: str) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        at = os.open(top, os.O_PATH)
        bound.bind(f"/proc/self/fd/{at}/e")  # a path is too long for an address
        os.close(at)


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
    "big": lambda top, name: (top / name).write_text("".join(f"{n} {'y' * 3000}\n" for n in range(100))),
    "way": lambda top, name: top.chmod(0o711),
    "directory mode": lambda top, name: (top / "d").chmod(0o511),
    "directory closed": lambda top, name: (top / "d").chmod(0o711 if os.geteuid() else 0),
    "directory attribute": lambda top, name: os.setxattr(top / "d", "user.x", b"1"),
    "directory link": lambda top, name: (top / "d").rename(top / "dd") and (top / "d").symlink_to("dd"),
    "link to directory": lambda top, name: _link(top, "d"),
    "deep": lambda top, name: (top / "d" / "s" / "t").mkdir(parents=True),
    "setuid": lambda top, name: (top / name).chmod(0o4755),
    "pipe beside": lambda top, name: os.mkfifo(top / "e"),
    "socket beside": _socket,
    "module before": lambda top, name: (top / "d" / "m.py").write_text("value = 'd'\n"),
    "module instead": lambda top, name: (top / "json.py").write_text("value = 'e'\n"),
    "compiled": lambda top, name: (top / "__pycache__").mkdir(),
    "owner": lambda top, name: os.geteuid() or os.chown(top / name, 1, 1),
}
SCRIPTS = ("script", "argument", "insert", "drop")
#: What may be changed of the whole job.
OPTIONS = {"seed": ["--seed=9"], "epoch": ["--epoch=2020-02-02"], "environment": ["--env=X=1"], "cpus": ["--cpus=3"], "memory": ["--memory=3G"]}
#: Options of all runs of an example.
BASES: tuple[tuple[str, ...], ...] = ((), (), ("--user=1234:1235",))


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
    base: tuple[str, ...] = ()

    def prepare(self, work: Path, mutations: dict[int, Mutation], only: Collection[int] = ()) -> None:
        """Fill a work directory; ``only``: the parts that run, if not all."""
        main = ""
        for number, lines in enumerate(self.parts):
            top = work / f"p{number}"
            (top / "d").mkdir(parents=True)
            for count, name in enumerate(NAMES[:5]):
                (top / name).write_text(f"one {count}\ntwo\nfoo\n")
            (top / "m.py").write_text("value = 'two'\n")
            (top / "k.h").write_text("#define K 3 /* two */\n")
            (top / "l").symlink_to("b")
            mutation = mutations.get(number, Mutation("nothing", "a", 0))
            if mutation.kind in INPUTS:
                INPUTS[mutation.kind](top, mutation.name)
            (top / "script").write_text("\n".join(edited(lines, mutation.kind, mutation.at)) + "\n")
            if not only or number in only:
                main += f"cd p{number}; sh script; cd ..\n"
        (work / "main").write_text(main)


def made_up(random: Random) -> Example:
    """Every third example is one part, whose result as a whole counts; the others are many."""
    count, rounds = random.choice(((1, 5), (6, 6), (8, 6)))
    parts = [
        [random.choice(random.choice(FAMILIES)).format(*random.choices(NAMES, k=3)) for _ in range(size)]
        for size in (random.randint(1, 4 if count > 1 else 8) for _ in range(count))
    ]
    found = []
    for _ in range(rounds):
        # A step more or less moves the time of all parts after it, which are no hits then.
        mutations = {
            number: Mutation(
                random.choice(SCRIPTS if random.random() < 0.3 / count else tuple(INPUTS)),
                random.choice((*NAMES[:5], "m.py", "k.h")), random.randrange(9),
            )
            for number in range(count)
            if count == 1 or random.random() < 0.5
        }  # fmt: skip
        found.append((mutations, random.choice(tuple(OPTIONS)) if random.random() < 0.1 else ""))
    return Example(parts, found, random.choice(BASES))
