"""A cache that is shared, killed, full or read-only: results stay right, and at worst nothing is kept."""

from __future__ import annotations

import hashlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from detbox.cache import gc
from detbox.cache.store import Store

REPOSITORY = Path(__file__).resolve().parents[2]

#: Publishes for ever; each result's manifest is the list of its blobs' contents.
WRITER = """
import sys, random
from detbox.cache.store import Store
from detbox.cache import gc
store, chance = Store(sys.argv[1]), random.Random(int(sys.argv[2]))
print("begun", flush=True)
while True:
    numbers = [chance.randrange(60) for _ in range(3)]
    blobs = [store.put_bytes(b"%d " % number * 2000) for number in numbers]
    store.publish(f"key {chance.randrange(20)}", repr(numbers).encode(), blobs)
    if chance.random() < 0.02:
        gc.collect(store, max_bytes=200_000)
"""


def environment() -> dict[str, str]:
    packages = [path for path in sys.path if path.endswith("site-packages")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *packages])}


def writer(directory: Path, seed: int) -> subprocess.Popen[str]:
    argv = [sys.executable, "-c", WRITER, str(directory), str(seed)]
    process = subprocess.Popen(argv, env=environment(), stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    return process


def whole(store: Store) -> int:
    """Every result that can be read is right; their number."""
    count = 0
    for entry in store.entries():
        for number, digest in zip(eval(entry.manifest), entry.blobs, strict=True):
            data = b"%d " % number * 2000
            assert hashlib.sha256(data).hexdigest() == digest
            assert store.open_blob(digest) in (None, data)
        count += 1
    return count


def test_killed_while_storing(tmp_path: Path) -> None:
    """Two writers at a time, one of which is killed at any moment; the store is whole after each."""
    chance = random.Random(11)
    steady = writer(tmp_path / "cache", 0)
    for seed in range(1, 13):
        victim = writer(tmp_path / "cache", seed)
        time.sleep(chance.uniform(0, 0.15))
        victim.send_signal(signal.SIGKILL)
        victim.communicate()
        store = Store(str(tmp_path / "cache"))
        assert whole(store) > 0 and store.trouble == ""
        store.close()
    assert steady.poll() is None
    steady.kill()
    steady.communicate()
    store = Store(str(tmp_path / "cache"))
    assert store.problems() == []
    gc.collect(store, max_bytes=0)
    assert store.entries() == []


def detbox(work: Path, cache: Path, script: str) -> list[str]:
    """A command line with the cache."""
    return [sys.executable, "-m", "detbox", "run", "-C", str(work), "--cache", f"--cache-dir={cache}", "--",
            "sh", "-c", script]  # fmt: skip


def test_several_runs_share_one_cache(tmp_path: Path) -> None:
    """Four at a time, three times: all give the same, and the last ones are hits."""
    script = "for i in 1 2 3; do date +$i%N > f$i; done; cat in > out; echo $$; date +%s%N"
    outputs = set()
    for turn in range(3):
        running = []
        for number in range(4):
            work = tmp_path / f"{turn}-{number}"
            work.mkdir()
            (work / "in").write_text("input\n")
            command = detbox(work, tmp_path / "cache", script)
            running.append(subprocess.Popen(command, env=environment(), stdout=subprocess.PIPE))
        for number, process in enumerate(running):
            output = process.communicate()[0]
            assert process.returncode == 0
            work = tmp_path / f"{turn}-{number}"
            outputs.add((output, *((path.name, path.read_bytes()) for path in sorted(work.iterdir()))))
    assert len(outputs) == 1
    store = Store(str(tmp_path / "cache"))
    counts = store.counts()
    assert counts["runs: hit"] >= 8 and counts["runs: hit"] + counts["runs: miss"] == 12
    assert gc.check(store)["problems"] == []


def in_namespace(setup: str, command: list[str], cwd: Path) -> subprocess.CompletedProcess[bytes]:
    """The command after mounts that only it sees."""
    own = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
    argv = [*own, "sh", "-ec", f'{setup}; exec "$@"', "sh", *command]
    return subprocess.run(argv, env=environment(), cwd=cwd, capture_output=True, check=False)


@pytest.mark.parametrize("size", [16, 64, 300, 900])
def test_a_full_disk_keeps_nothing_and_breaks_nothing(tmp_path: Path, size: int) -> None:
    """``size``: of the cache's disk in KiB: full for the index, for a blob, or for the second result."""
    cache, work = tmp_path / "cache", tmp_path / "work"
    cache.mkdir()
    work.mkdir()
    script = "seq 70000 > out; echo done; exit 3"  # 400 KiB
    twice = f"cd {work}; for i in 1 2; do s=0; $0 \"$@\" || s=$?; md5sum < out; rm out; test $s = 3; done"
    done = in_namespace(
        f"mount -t tmpfs -o size={size}k none {cache}", ["sh", "-ec", twice, *detbox(work, cache, script)], tmp_path
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.split()
    assert lines[:3] == lines[3:] and lines[0] == b"done"
    assert b"Traceback" not in done.stderr


def test_a_read_only_cache_is_read(tmp_path: Path) -> None:
    cache, work = tmp_path / "cache", tmp_path / "work"
    work.mkdir()
    command = detbox(work, cache, "date; echo x > out")
    first = subprocess.run(command, env=environment(), capture_output=True, check=True)
    (work / "out").unlink()
    mounts = f"mount --bind {cache} {cache}; mount -o remount,ro,bind {cache}"
    again = in_namespace(mounts, [*command[:4], "--stats", *command[4:]], tmp_path)
    assert again.stdout == first.stdout and (work / "out").read_text() == "x\n"
    assert b"hit" in again.stderr and b"Traceback" not in again.stderr
    other = in_namespace(mounts, detbox(work, cache, "echo other"), tmp_path)
    assert (other.returncode, other.stdout, other.stderr) == (0, b"other\n", b"")


def test_a_cache_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = subprocess.run(
        detbox(tmp_path, tmp_path / "file", "true"), env=environment(), capture_output=True, check=False
    )
    assert done.returncode == 125
    assert b"cannot be used" in done.stderr and b"--cache-dir" in done.stderr
