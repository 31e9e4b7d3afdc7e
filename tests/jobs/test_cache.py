"""Cached ≡ uncached: each case is a script, a change to its inputs, and whether the change may be a hit."""

# ruff: noqa: E501  (one row of the table, one line)

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from cached import Bench, Change

from detbox.cache.manifest import Manifest
from detbox.cache.recall import Record
from detbox.cache.store import Store
from detbox.errors import InternalError
from detbox.report.scratch import remove_tree


@dataclass(frozen=True)
class Case:
    """``change`` to the inputs after a first run; ``hit``: whether the second run has to be a hit then.

    ``hit`` is None where the job must not be cached at all, for a reason that contains ``why``.
    """

    name: str
    script: str
    change: Change | None = None
    hit: bool | None = False
    why: str = ""
    setup: Change = lambda work: None
    options: tuple[str, ...] = ()
    stdin: bytes = b""
    shut: bool = False  # inputs shut out their owner: an ordinary user's cache cannot look at them


def write(name: str, text: str = "new\n", mode: int = 0o644) -> Change:
    def change(work: Path) -> None:
        path = work / name
        path.parent.mkdir(exist_ok=True, parents=True)
        path.write_text(text)
        path.chmod(mode)

    return change


def all_of(*changes: Change) -> Change:
    def change(work: Path) -> None:
        for one in changes:
            one(work)

    return change


def link(name: str, to: str) -> Change:
    def change(work: Path) -> None:
        (work / name).unlink(missing_ok=True)
        (work / name).symlink_to(to)

    return change


def remove(name: str) -> Change:
    return lambda work: (work / name).unlink()


def chmod(name: str, mode: int) -> Change:
    return lambda work: (work / name).chmod(mode)


def mkdir(name: str) -> Change:
    return lambda work: (work / name).mkdir(parents=True)


def hard_link(name: str, to: str) -> Change:
    return lambda work: os.link(work / to, work / name)


def xattr(name: str, value: bytes) -> Change:
    return lambda work: os.setxattr(work / name, "user.colour", value)


A = write("a", "one\n")
DIRS = all_of(mkdir("d/e"), write("d/e/f", "f\n"), write("d/g", "g\n"))

CASES = (
    Case("nothing changed", "cat a > b; date >> b; echo $$ >> b", None, True, setup=A),
    Case("content", "cat a > b", write("a", "two\n"), False, "a: content", setup=A),
    Case("content of the same size and time", "cat a > b", write("a", "eno\n"), False, "a: content", setup=A),
    Case("unrelated file", "cat a > b", write("z"), True, setup=A),
    Case("ENOENT becomes a file", "test -e c && cat c; cat a", write("c"), False, "c: did not exist", setup=A),
    Case("ENOENT on PATH", "PATH=/work/bin:$PATH; ls", write("bin/ls", "#!/bin/sh\necho mine\n", 0o755), False, "/work: list of entries"),
    Case("ENOTDIR", "cat a/b", all_of(remove("a"), write("a/b")), False, "a: was a file", setup=A),
    Case("ELOOP", "cat l", all_of(remove("l"), write("l")), False, "l: was a link", setup=link("l", "l")),
    Case("ENAMETOOLONG", f"cat {'x' * 300} 2>&1; cat a", write("a", "two\n"), False, "a: content", setup=A),
    Case("listing grew", "ls", write("z"), False, "list of entries", setup=A),
    Case("listing of another directory grew", "ls d", write("z"), True, setup=DIRS),
    Case("own files are no entries of a listing", "echo x > new; ls", None, True, setup=A),
    Case("type of an entry", "ls -F d", all_of(remove("d/g"), link("d/g", "e")), False, setup=DIRS),
    Case("a hop of a link", "cat l1", link("l2", "b"), False, "l2: leads elsewhere",
         setup=all_of(A, write("b", "bee\n"), link("l1", "l2"), link("l2", "a"))),
    # -I: Python 3.13 lists the work directory else.
    *(Case(f"a link in an open directory: {what}", f"python3 -I -c 'import os; d = os.open(\"d\", 0); print({what})'", change, False, why,
           setup=all_of(A, mkdir("d"), link("d/l", "../a")))
      for what, change, why in (
          ('os.read(os.open("l", 0, dir_fd=d), 9)', write("a", "two\n"), "a: content"),
          ('os.stat("l", dir_fd=d).st_size', write("a", "longer\n"), "a: size"),
          ('os.access("l", 0, dir_fd=d)', remove("a"), "a: does not exist"),
      )),
    Case("dots after a link", "cat l/../g", link("l", "other/x"), False, "l: leads elsewhere",
         setup=all_of(DIRS, link("l", "d/e"), mkdir("other/x"), write("other/g", "other\n"))),
    Case("rename over", "echo n > t; mv t a", None, True, setup=A),
    Case("link to an input that goes", "ln a h; ln h g; rm a; mv g b", None, True, setup=A),
    Case("written through another name", "cp -l a h; echo z >> h; cat a", None, True, setup=A),
    Case("numbers of a virtual user's files", "stat -c '%i %u %g' b d d/g", write("a"), True, setup=all_of(write("b"), DIRS), options=("--user=1234:1235",)),
    Case("owner on the host", "echo n >> a; cp a t; mv t b", lambda work: os.geteuid() or [os.chown(work / n, 1, 1) for n in "ab"], True, setup=all_of(A, write("b"))),
    Case("attribute of a directory", "echo n > d/n", lambda work: os.setxattr(work / "d", "user.x", b"1"), True, setup=DIRS),
    Case("rename of a directory", "mv d n; cat n/g", write("d/g", "h\n"), False, "d/g: content", setup=DIRS),
    Case("renamed directory", "mv d n; ls n", None, True, setup=DIRS),
    Case("exchange", "python3 -c 'import ctypes; ctypes.CDLL(None).renameat2(-100, b\"a\", -100, b\"b\", 2)'", None,
         True, setup=all_of(A, write("b", "bee\n"))),
    Case("temporary files", "echo x > t; cat t; rm t; mkdir q; rmdir q", None, True),
    Case("temporary names", "f=$(mktemp ./tmpXXXXXX); echo x > $f; mv $f out; ls", None, True),
    Case("append", "echo x >> a", write("a", "two\n"), False, "a: content", setup=A),
    Case("truncate", "echo x > a", write("a", "longer than before\n"), True, setup=A),
    Case("partial overwrite", "printf X | dd of=a conv=notrunc bs=1 seek=2 2> /dev/null", write("a", "two\n"), False,
         "a: content", setup=A),
    Case("holes", "truncate -s 100000 h; printf x >> h; fallocate -l 5000 g", None, True),
    Case("shared mapping", "python3 -c 'import mmap; f = open(\"a\", \"r+b\"); m = mmap.mmap(f.fileno(), 0); "
         "f.close(); m[0:1] = b\"X\"'", None, True, setup=A),
    Case("mapped file", "python3 -c 'import mmap; f = open(\"a\", \"r+b\"); m = mmap.mmap(f.fileno(), 0); "
         "m[0:1] = b\"X\"'", write("a", "two\n"), False, "a: content", setup=A),
    Case("hard links made", "echo x > b; ln b c; ln b d; ls -l", None, True),
    Case("a file with two names is changed", "echo x >> a", None, None, "several names",
         setup=all_of(A, hard_link("b", "a"))),
    Case("number of names", "stat -c %h a", hard_link("b", "a"), False, "number of names", setup=A),
    Case("mode observed", "stat -c %a a", chmod("a", 0o600), False, "a: mode", setup=A),
    Case("mode made", "chmod 750 a; chmod 4755 b; mkdir -m 700 n", None, True, setup=all_of(A, write("b"))),
    Case("times made", "touch -d 2001-02-03 a; touch -d 1999-01-01 n", None, True, setup=A),
    Case("attributes made", "python3 -c 'import os; os.setxattr(\"a\", \"user.x\", b\"1\"); "
         "os.removexattr(\"a\", \"user.colour\")'", None, True,
         setup=all_of(A, xattr("a", b"red"))),
    Case("attributes observed", "python3 -c 'import os; print(os.getxattr(\"a\", \"user.colour\"))'", xattr("a", b"blue"), False, "attributes",
         setup=all_of(A, xattr("a", b"red"))),
    Case("interpreter of a script", "./s", write("i", "#!/bin/sh\necho other\n", 0o755), False, "i: content",
         setup=all_of(write("s", "#!/work/i\n", 0o755), write("i", "#!/bin/sh\necho one\n", 0o755))),
    Case("failure", "cat missing; exit 7", None, True),
    Case("death by signal", "echo x > o; kill -SEGV $$", None, True),
    Case("killed by itself", "kill -9 $$", None, True),
    Case("both streams", "for i in 1 2 3; do echo $i; echo e$i >&2; done; printf end", None, True),
    Case("closed stdout", "exec >&-; echo x; echo y >&2", None, True),
    Case("pipeline", "seq 2000 | sort -r | head -3; yes | head -2", None, True),
    Case("background", "(sleep 1; echo late > l) & echo now; wait", None, True),
    Case("sockets", "python3 -c 'import socket; a, b = socket.socketpair(); a.send(b\"x\"); print(b.recv(1))'", None, True),
    Case("its own output is input", "cat a a > b; cat b > c; rm b", None, True, setup=A),
    Case("an output is also an input", "cat a >> a2; cp a2 a", write("a", "two\n"), False, "a: content", setup=A),
    Case("/proc and /sys", "cat /proc/self/status /proc/cpuinfo | md5sum; ls /sys /proc/self; readlink /proc/self/exe",
         None, True),
    Case("reopened through /proc", "exec 3< a; cat /proc/self/fd/3", write("a", "two\n"), False, "a: content", setup=A),
    Case("directory in a file's place", "rm -rf x; mkdir x; echo 1 > x/y", None, True, setup=write("x")),
    Case("file in a directory's place", "rm -rf d; echo 1 > d", None, True, setup=DIRS),
    Case("removed tree", "rm -r d", write("d/new"), False, "list of entries", setup=DIRS),
    Case("read-only output", "echo x > r; chmod 444 r", None, True, setup=write("r", "old\n", 0o644)),
    Case("special files", "mkfifo p; ln -s nowhere l; python3 -c 'import socket; socket.socket(1).bind(\"s\")'",
         None, True),
    Case("standard input", "cat > b", None, True, stdin=b"hello\n"),
    Case("unread input", "echo x", None, True, stdin=b"hello\n"),
    Case("removed working directory", "mkdir q; cd q; rmdir ../q; ls; cat ../a", None, None,
         "has been removed", setup=A),
    Case("python", "python3 -c 'import m; print(m.x)'", write("m.py", "x = 22\n"), False, "m.py",
         setup=write("m.py", "x = 1\n")),
    Case("group database", "id -un; ls -l a", None, True, setup=A),
    Case("nameless file", "python3 -c 'import os; f = os.open(\".\", os.O_TMPFILE | os.O_RDWR); os.write(f, b\"x\"); "
         "os.link(f\"/proc/self/fd/{f}\", \"t\")'", None, True),
    Case("compiler", "printf '#include \"h.h\"\\nint main(void){return X;}' > m.c; gcc -I. m.c -o m; ./m", write("h.h", "#define X 4\n"),
         False, "h.h: content", setup=write("h.h", "#define X 3\n")),
)  # fmt: skip

#: Programs that are built before the job, natively.
BUILT = """
cd {work}; mkdir l1 l2; cp /lib64/ld-linux-x86-64.so.2 loader
echo 'const char *f(void) {{ return "two"; }}' | gcc -shared -fPIC -xc -o l2/libf.so -
echo 'const char *f(void) {{ return "one"; }}' | gcc -shared -fPIC -xc -o other.so -
echo 'const char *f(void); int puts(const char *); int main(void) {{ return puts(f()) < 0; }}' > main.c
gcc main.c -o prog -Ll2 -lf '-Wl,-rpath,$ORIGIN/l1:$ORIGIN/l2' -Wl,--dynamic-linker=/work/loader
"""


def build(work: Path) -> None:
    subprocess.run(["sh", "-ec", BUILT.format(work=work)], check=True)


def rename(name: str, to: str) -> Change:
    return lambda work: (work / name).rename(work / to)


PYTHON = "/usr/bin/python3 -c '{}'"
MORE = (
    Case("header found earlier", "printf '#include \"h.h\"\nint main(void){return X;}' > m.c; gcc -Ii1 -Ii2 m.c -o m; ./m",
         write("i1/h.h", "#define X 4\n"), False, "i1/h.h: did not exist", setup=all_of(mkdir("i1"), write("i2/h.h", "#define X 3\n"))),
    Case("absent program and absent link", "nosuch; ./s; readlink l", link("l", "a"), False, "l: did not exist"),
    Case("EACCES", "cat d/f; cat a", all_of(chmod("d", 0o755), chmod("a", 0o644)), False, ": mode",
         setup=all_of(write("d/f"), A, chmod("d", 0), chmod("a", 0)), options=("--user=1234",), shut=True),
    Case("no right to search the last directory", "cat d/e/f; cat d/g", chmod("d/e", 0), False, "d/e: mode", setup=DIRS, options=("--user=1234",), shut=True),
    Case("no right to search the directory behind a link", "cat l/f", chmod("d/e", 0), False, "d/e: mode",
         setup=all_of(DIRS, link("l", "d/e")), options=("--user=1234",), shut=True),
    Case("no right to search a directory on the way back", "cd d/e; cat ../g", chmod("d", 0o666), False, "d: mode", setup=DIRS, options=("--user=1234",)),
    Case("ENOENT becomes ENOTDIR", "cat q/x", all_of(rename("q", "r"), write("q")), False, "q: was a directory", setup=mkdir("q")),
    Case("a listing that is read in part", PYTHON.format("import os; next(os.scandir(\"d\"))"), write("d/z"), False, "list of entries", setup=DIRS),
    Case("rename that must not replace", "mv -n a b; cat b", remove("b"), False, "b: does not exist", setup=all_of(A, write("b"))),
    Case("shared mapping, written by a child", PYTHON.format("import mmap, os; f = open(\"a\", \"r+b\"); m = mmap.mmap(f.fileno(), 0); os.fork() or m.__setitem__(0, 88) or os._exit(0); os.wait()"), None, True, setup=A),
    Case("a name of two is replaced", "rm b; echo new > b; stat -c %h b", None, True, setup=all_of(A, hard_link("b", "a"))),
    Case("owner made", "chown 12:13 a; stat -c %u:%g a", None, True, setup=A),
    Case("all of stat", "stat a d l; stat -L l; stat -f a", None, True, setup=all_of(A, mkdir("d"), link("l", "a"))),
    Case("library found earlier", "./prog", rename("other.so", "l1/libf.so"), False, "/work/l1", setup=build),
    Case("loader", "./prog", write("loader", "none\n", 0o755), False, "loader: content", setup=build),
    Case("library by the environment", "LD_LIBRARY_PATH=/work/l3 ./prog", rename("other.so", "libf.so"), True, setup=build),
    Case("umask and limits", "umask 077; echo x > n; ulimit -n 77; ulimit -n; nice -n 3 nice", None, True),
    Case("a root directory of its own", "mkdir r; chroot r /bin/true", None, None, "root directory of its own"),
    Case("resources used", "bash -c 'time cat a; times'", None, True, setup=A),
    Case("a daemon", "(sleep 5; echo late > l) & echo now", None, True),
    Case("memory file and passed descriptors", PYTHON.format("import os, socket, array; f = os.memfd_create(\"m\"); os.write(f, b\"x\"); a, b = socket.socketpair(); socket.send_fds(a, [b\"y\"], [f]); print(socket.recv_fds(b, 1, 1)[0], os.pread(f, 9, 0))"), None, True),
    Case("calls that are refused", PYTHON.format("import ctypes; c = ctypes.CDLL(None, use_errno=True); print([(c.syscall(n, 1, 0, 0, 0, 0), ctypes.get_errno()) for n in (425, 303, 304, 298, 321, 323)])"), None, True),
    Case("touched, then read", "touch a; cat a", write("a", "two\n"), False, "a: content", setup=A),
    Case("link to nothing", "cat l; test -e l || echo no; echo x > l", write("t"), False, "t: did not exist", setup=link("l", "t")),
)  # fmt: skip


@pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in (*CASES, *MORE)])
def test_case(case: Case, tmp_path: Path) -> None:
    bench = Bench(tmp_path, case.setup, options=case.options, stdin=case.stdin)
    plain = bench.run(case.script, bench.inputs())
    first, outcome, why = bench.cached(case.script, bench.inputs())
    assert first == plain
    expected = "cannot be read by the cache" if case.shut and os.geteuid() else case.why
    if case.hit is None or (outcome == "not cacheable" and expected != case.why):
        assert outcome == "not cacheable" and expected in why, why
        return
    assert outcome == "miss", why
    again, outcome, why = bench.cached(case.script, bench.inputs())
    assert again == plain
    assert outcome == "hit", why
    if case.change is not None:
        plain = bench.run(case.script, bench.inputs(case.change))
        changed, outcome, why = bench.cached(case.script, bench.inputs(case.change))
        assert changed == plain
        assert (outcome == "hit") is case.hit, why
        assert case.hit or expected in why, why
    for path in tmp_path.glob("run*"):
        remove_tree(path)


#: Programs inside of a job, and what comes of each after ``a2`` has changed ("not": not cacheable by itself).
INSIDE = (
    ("cat a1; cat a2", "hit miss"),
    ("cat a1 > out; cat a1 >> out; cat < a1", "hit hit hit"),
    ("date +%N; mktemp ./tmp.XXXX; sh -c 'echo $$ $PPID'", "hit hit hit"),
    ("sh -c 'head -c 8 /dev/urandom | od -x'", "hit"),
    ("head -c 8 /dev/urandom | od -x", "hit hit"),
    ("cp a2 b2; rm b2; cat a1", "miss miss hit"),
    ("cp a1 b1; chmod 700 b1; mv b1 d1; stat d1; ln d1 c1", "hit hit hit hit hit"),
    ("cat /proc/loadavg; ls /proc > /dev/null", "not not"),
    ("cat /proc/self/stat /proc/self/loginuid /proc/uptime; readlink /proc/self/exe", "hit hit"),
    ("sh -c 'kill -TERM $$'; sh -c 'kill -SEGV $$'; cat a1", "hit hit hit"),
    ("sh -c 'sleep 1 & exit 0'; wait", "not"),
    ("python3 -c 'import os; print(os.getpid(), os.stat(\"a1\"))'", "hit"),
    ("sh -c 'cat a1 a2'; sh -c 'cat a1'", "miss miss hit"),
    # The time of Debian's sitecustomize.py is in a compiled file that lies beside a link to it.
    ("/usr/bin/python3 -c 'print(1)'; /usr/bin/python3 -c 'print(2)'", "hit hit"),
    ("cat a1 | cat; x=$(cat a2 | tr a b); echo $x; (cat a1; echo end) | sort | uniq", "hit hit miss miss hit hit hit"),
    ("cat a2 a1 | head -1; cat < a1 | while read x; do echo $x | cat; done", "miss miss hit hit"),
    ("cat a1 nosuch 2>&1 | sort; sh -c 'cat a1; cat nosuch; cat a1; exit 7'; cat a1 | false", "hit hit hit hit"),
    ("printf 'a: b c\\nb c:\\n\\tcat $@1 | wc -c\\n' > mk; cp a1 b1; cp a2 c1; make -j2 -f mk", "hit miss hit miss miss miss miss"),
    ("yes | head -1", "hit not"),
    ("t=$(mktemp ./tmp.XXXX); cp a1 $t; sh -c 'cat $0; rm $0' $t", "hit hit hit"),
    ("sh -c 'cp a1 b1; cat b1; rm b1'; bash -c 'umask 27; cd /tmp; ls -ld .'; sh -c 'ulimit -n 99; cat a1'", "hit hit hit"),
    ("sh -c 'ln a1 h1; ln h1 h2; rm a1; mv h2 a1'", "hit hit not not not"),
    ("truncate -s 9999 b1; truncate -s 9999 a1; du b1 a1; cp b1 c1; stat -c %b c1 b1", "not hit hit not hit"),
    ("sh -c 'kill -0 $PPID'; mkfifo p; cat a1 > p & cat p; rm p", "not hit not not hit"),
)


def two_files(work: Path) -> None:
    for name in ("a1", "a2"):
        (work / name).write_text(f"{name}\n")


@pytest.mark.parametrize(("script", "expected"), INSIDE)
def test_programs_inside(script: str, expected: str, tmp_path: Path) -> None:
    bench = Bench(tmp_path, two_files)
    bench.cached(script + "; cat a2", bench.inputs())
    plain = bench.run(script + "; cat a2", bench.inputs(write("a2", "other\n")))
    result, outcome, why = bench.cached(script + "; cat a2", bench.inputs(write("a2", "other\n")))
    assert (result, outcome) == (plain, "miss"), why
    store = Store(bench.store)
    inside = [one["result"].split()[0] for one in store.runs()[0]["executions"]]
    store.close()
    # After them come the last program and the job's own shell.
    assert inside[:-2] == expected.split()


def test_a_right_result_is_found_right(tmp_path: Path) -> None:
    """The comparing run looks at the ends of calls: devices and copies give as much as otherwise."""
    bench = Bench(tmp_path, two_files)
    script = "head -c 99999 /dev/zero | tr '\\0' x > b; python3 -c 'import shutil; shutil.copyfile(\"b\", \"c\")'; wc -c c"
    plain, _, _ = bench.cached(script, bench.inputs())
    assert plain.status == 0 and plain.output == b"99999 c\n"
    again, _, _ = bench.cached(script, bench.inputs(), "--cache-verify")
    assert again == plain



@pytest.mark.parametrize("part", [False, True])
def test_a_wrong_result_is_found(part: bool, tmp_path: Path) -> None:
    """What `--cache-verify` runs all the same, a program inside or a whole job, is compared with what is stored."""
    bench = Bench(tmp_path, two_files)
    bench.cached("cat a1 | sort; cat a2", bench.inputs(), "--cache-verify")
    store = Store(bench.store)
    for entry in store.entries():
        result = (Record if part else Manifest).from_bytes(entry.manifest)
        if result is not None and (not part or result.turns == [[1, 3]]):
            trace = set(entry.blobs) - set(result.blobs())
            result.output = store.put_bytes(b"??" + (store.open_blob(result.output) or b"")[2:])
            store.publish(entry.key, result.to_bytes(), [*result.blobs(), *trace])
    store.close()
    change = write("a2", "other\n") if part else None
    options = ("--cache", f"--cache-dir={bench.store}", "--cache-verify")
    found = bench.run("cat a1 | sort; cat a2", bench.inputs(change), *options)
    assert found.status == InternalError.status and b"is not what the run gave: output differ" in found.output
    kept = re.findall(rb"/[^ ]*/(?:stored|rerun).json", found.output)[-2:]
    assert [json.loads(Path(os.fsdecode(name)).read_bytes())["status"] for name in kept] == [0, 0]
    assert Path(os.fsdecode(kept[0])).with_name("stored-output").read_bytes()[:2] == b"??"
    # Both runs' traces are kept; here it was the result that was wrong, and not what the run looked at.
    traces = [Path(os.fsdecode(name)).with_suffix(".trace") for name in kept]
    assert all(path.stat().st_size > 1000 for path in traces) and b"detbox trace diff" in found.output
    assert part or traces[0].read_bytes() == traces[1].read_bytes()
    plain = bench.run("cat a1 | sort; cat a2", bench.inputs(change))
    assert bench.run("cat a1 | sort; cat a2", bench.inputs(change), *options) == plain
