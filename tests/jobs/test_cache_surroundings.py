"""What is around a job that is cached: its options, input, readers and limits, and what happens to it from outside."""

from __future__ import annotations

import contextlib
import os
import pty
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

import under_detbox
from cached import REPOSITORY, Bench

from detbox.cache import facts
from detbox.cache.store import Store


def two_files(work: Path) -> None:
    for name in ("a", "b"):
        (work / name).write_text(f"{name}\n")


def detbox(bench: Bench, *words: str) -> list[str]:
    return [sys.executable, "-m", "detbox", "run", "--cache", f"--cache-dir={bench.store}", *words]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(REPOSITORY), **more}


def started(bench: Bench, work: Path, *words: str) -> subprocess.Popen[bytes]:
    """A run with the cache that goes on meanwhile."""
    return subprocess.Popen(
        detbox(bench, "--", *words), cwd=work, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )


def last(bench: Bench) -> tuple[str, str]:
    """What came of the last run, and why."""
    store = Store(bench.store)
    newest = store.runs()[0]
    store.close()
    return str(newest["result"]), str(newest["why"])


#: Options that a result depends on, with the reason that is given; and what it does not depend on (None).
OPTIONS = (
    (["--env=X=1", "--env=Y=2"], "environment: X"),
    (["--env=Y=2", "--env=X=1"], None),
    (["--env=Y=2", "--env=X=3"], "environment: X"),
    (["--cpus=3"], "cpus"),
    (["--seed=3"], "seed"),
    (["--epoch=2020-02-02"], "epoch ns"),
    (["--user=1234"], "user"),
    (["--memory=3G"], "memory bytes"),
)


def test_options_and_the_environment_are_facts(tmp_path: Path) -> None:
    # Where Python keeps compiled files is no matter, even if the modules that a run imports late are not there.
    bench = Bench(tmp_path, two_files, env={"PYTHONPYCACHEPREFIX": str(tmp_path / "compiled")})
    command = ["sh", "-c", "cat a; env; id; nproc; date; hostname; grep MemTotal /proc/meminfo"]
    bench.cached(command, bench.inputs())
    for options, expected in OPTIONS:
        bench.cached(command, bench.inputs())
        plain = bench.run(command, bench.inputs(), *options)
        result, outcome, why = bench.cached(command, bench.inputs(), *options)
        assert result == plain and result.status == 0
        assert (outcome, why) == (("hit", "") if expected is None else ("miss", expected)), options
    # The host's own environment, directory and limits are never seen.
    bench.env = {"SURPRISE": "1", "LC_ALL": "C.UTF-8", "TZ": "Asia/Tokyo"}
    result, outcome, _ = bench.cached(command, bench.inputs())
    assert outcome == "hit" and b"SURPRISE" not in result.output


def test_a_hit_takes_as_much_of_the_input_as_the_run(tmp_path: Path) -> None:
    bench = Bench(tmp_path, two_files)
    source = tmp_path / "source"
    outputs = []
    for text in ("one\ntwo\nthree\n", "one\ntwo\nthree\n", "one\ntwo\nTHREE\n", "ONE\ntwo\nthree\n"):
        source.write_text(text)
        work = bench.inputs()
        with source.open("rb") as file:
            words = detbox(bench, "--", "head", "-n1")
            done = subprocess.run(words, cwd=work, env=environment(), stdin=file, stdout=subprocess.PIPE, check=True)
            outputs.append((*last(bench), done.stdout, file.tell()))
    position = outputs[0][3]
    content = "standard input: content"
    assert outputs == [
        ("miss", "this command has not been run before", b"one\n", position), ("hit", "", b"one\n", position),
        ("miss", content, b"one\n", position), ("miss", content, b"ONE\n", position),
    ]  # fmt: skip


def test_a_terminal_is_not_read_from_the_cache(tmp_path: Path) -> None:
    bench = Bench(tmp_path, two_files)
    for _ in range(2):
        ours, theirs = pty.openpty()
        os.write(ours, b"typed\n")
        done = subprocess.run(
            detbox(bench, "--", "head", "-n1"), cwd=bench.inputs(), env=environment(), stdin=theirs,
            stdout=subprocess.PIPE, check=True,
        )  # fmt: skip
        os.close(ours)
        os.close(theirs)
        assert done.stdout == b"typed\n" and last(bench) == ("not cacheable", "reads a terminal")
    # What does not read it does not depend on it.
    for expected in ("miss", "hit"):
        ours, theirs = pty.openpty()
        subprocess.run(
            detbox(bench, "--", "sh", "-c", "tty; cat a"), cwd=bench.inputs(), env=environment(), stdin=theirs,
            stdout=theirs, check=True,
        )  # fmt: skip
        assert b"not a tty\r\na\r\n" in os.read(ours, 100) and last(bench)[0] == expected
        os.close(ours)
        os.close(theirs)


def test_nobody_reads_the_output(tmp_path: Path) -> None:
    """The run ends as without the cache, and whoever reads all of it later gets all of it."""
    bench = Bench(tmp_path, two_files)
    command = ["--", "sh", "-c", "seq 40000; echo $? >&2"]
    statuses = []
    for words in (detbox(bench, *command), detbox(bench, *command), [sys.executable, "-m", "detbox", "run", *command]):
        process = subprocess.Popen(
            words, cwd=bench.inputs(), env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        statuses.append((process.wait(), process.stderr.read()))
        process.stderr.close()
    assert len(set(statuses)) == 1, statuses
    whole, _ = started(bench, bench.inputs(), *command[1:]).communicate()
    assert len(whole.split()) == 40001


def wait_for(path: Path) -> None:
    limit = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < limit
        time.sleep(0.01)


#: Goes on when the host makes the file go, which no guest could wait for otherwise.
WAITS = "cat a; echo > begun; while ! test -e go; do :; done; cat a; cat b"


def test_an_input_is_changed_from_outside(tmp_path: Path) -> None:
    bench = Bench(tmp_path, two_files)
    work = bench.inputs()
    process = started(bench, work, "sh", "-c", WAITS)
    wait_for(work / "begun")
    (work / "a").write_text("changed meanwhile\n")
    (work / "go").write_text("")
    process.communicate()
    outcome, why = last(bench)
    assert outcome == "not cacheable" and "changed from outside" in why


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_what_is_interrupted_is_not_kept(tmp_path: Path, number: signal.Signals) -> None:
    bench = Bench(tmp_path, two_files)
    work = bench.inputs()
    process = started(bench, work, "sh", "-c", WAITS)
    wait_for(work / "begun")
    process.send_signal(number)
    process.communicate()
    assert process.returncode != 0
    store = Store(bench.store)
    assert store.entries() == [] and store.runs() == []
    store.close()
    plain = bench.run("cat a b; date", bench.inputs())
    assert bench.cached("cat a b; date", bench.inputs())[:2] == (plain, "miss")


MUCH = "for i in 1 2 3; do python3 -c 'import time; x = b\"x\" * (150 << 20); time.sleep(9)' & done; wait"


@pytest.mark.parametrize(("options", "script"), [(["--timeout=1"], "while :; do :; done"), (["--memory=300M"], MUCH)])
def test_what_ends_at_a_limit_is_not_kept(tmp_path: Path, options: list[str], script: str) -> None:
    bench = Bench(tmp_path, two_files)
    for _ in range(2):
        result = bench.run(script, bench.inputs(), "--cache", f"--cache-dir={bench.store}", *options)
        assert result.status > 120
    store = Store(bench.store)
    assert not any(run["result"] == "hit" for run in store.runs())
    store.close()


COMPILES = "for one in a b; do gcc -c $one.c; done; ls -l; cat < a.c; bash -c 'mktemp'"


def test_an_ordinary_user_s_programs_are_cached(tmp_path: Path) -> None:
    user = under_detbox.unprivileged()
    if user is None:
        pytest.skip("no ordinary user can be had here")
    outputs = []
    with tempfile.TemporaryDirectory(prefix="detbox-ordinary-") as place:
        os.chmod(place, 0o755)
        top = Path(place)
        for turn, text in (("first", "int x;"), ("plain", "int y;"), ("second", "int y;")):
            work = top / turn
            work.mkdir()
            (work / "a.c").write_text("int a;")
            (work / "b.c").write_text(text)
            for path in (top, work, *work.iterdir()):
                shutil.chown(path, user)
            options = ["--cache", f"--cache-dir={top / 'store'}"] if turn != "plain" else []
            words = under_detbox.detbox(["sh", "-c", COMPILES], options)
            done = subprocess.run(
                words, cwd=work, env=under_detbox.environment(), user=user, capture_output=True, check=True
            )
            outputs.append((done.stdout, done.stderr, (work / "b.o").read_bytes()))
        store = Store(str(top / "store"))
        inside = [one["result"] for one in store.runs()[0]["executions"]]
        store.close()
    assert outputs[1] == outputs[2] != outputs[0]
    assert "not cacheable" not in inside and inside.count("hit") >= 3, inside


SHUT = "cannot be read by the cache: it is shut to who runs detbox"


def test_a_work_directory_of_an_ordinary_user_in_another_s_directory(tmp_path: Path) -> None:
    """A hit leaves that directory alone, and what the cache cannot read is told, not taken for unchanged."""
    user = under_detbox.unprivileged()
    if user is None or os.geteuid():
        pytest.skip("only root can give a directory to another user")
    with tempfile.TemporaryDirectory(prefix="detbox-ordinary-") as place:
        top, store = Path(place), Path(place, "store")
        work = top / "work"
        shut = work / "shut"
        for path in (top, work, store, shut):
            path.mkdir(exist_ok=True)
        (shut / "file").write_text("nobody else's")
        for name in ("a", "b"):
            (work / name).write_text(f"{name}\n")
        for path in (work, store, *work.glob("[ab]")):
            shutil.chown(path, user, user)
        shut.chmod(0o700)
        (work / "b").chmod(0)
        top.chmod(0o755)
        before = top.stat()

        def run(script: str, *options: str) -> tuple[int, bytes, str, str]:
            words = under_detbox.detbox(["sh", "-c", script], ["--cache", f"--cache-dir={store}", *options])
            done = subprocess.run(
                words, cwd=work, env=under_detbox.environment(), user=user, group=user, capture_output=True, check=False
            )
            with contextlib.closing(Store(str(store))) as opened:
                log = opened.runs()[0]
            return done.returncode, done.stdout + done.stderr, str(log["result"]), str(log["why"])

        denied = b"cat: shut/file: Permission denied\n"
        for options in ([], ["--user=1234"]):
            for result in ("miss", "hit"):
                assert run("cat a shut/file", *options)[:3] == (1, b"a\n" + denied, result)
        for text in ("b\n", "c\n"):
            (work / "b").write_text(text)
            if text == "c\n":  # long ago, so that its times tell whether it changes
                time.sleep(facts.RACY_NS / 1e9)
            assert run("cat b") == (0, text.encode(), "not cacheable", f"/work/b {SHUT}")
        assert (top.stat().st_ctime_ns, top.stat().st_mtime_ns) == (before.st_ctime_ns, before.st_mtime_ns)
