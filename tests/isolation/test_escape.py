"""A guest that tries to get out, while the host offers it a process, sockets, memory, files and a port."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from under_detbox import demand_success, detbox, environment, twice

HERE = Path(__file__).parent


def _disk() -> tuple[int, int]:
    """A block device of this machine, or the loop device's number where it shows none."""
    with open("/proc/partitions") as stream:
        for line in stream.readlines()[2:]:
            return int(line.split()[0]), int(line.split()[1])
    return 7, 0


def _address() -> str:
    """An address of this machine other than loopback's, if there is one; no packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return "127.0.0.2"
        return str(probe.getsockname()[0])


@pytest.fixture
def baits(tmp_path: Path) -> Iterator[dict[str, Any]]:
    """What a guest must neither see nor change."""
    mark = f"detbox-bait-{uuid.uuid4().hex}"
    found: dict[str, Any] = {"mark": mark, "secret": f"secret-{mark}", "disk": _disk(), "address": _address()}
    found["boot"] = Path("/proc/sys/kernel/random/boot_id").read_text()
    libc = ctypes.CDLL(None, use_errno=True)
    with ExitStack() as stack:
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", mark])
        stack.callback(process.wait)
        stack.callback(process.kill)
        found["pid"] = process.pid
        server = stack.enter_context(socket.create_server(("", 0)))
        found["port"] = server.getsockname()[1]
        abstract = stack.enter_context(socket.socket(socket.AF_UNIX))
        abstract.bind("\0" + mark)
        abstract.listen()
        hidden = Path("/tmp") / mark  # the guest has a /tmp of its own
        stack.callback(shutil.rmtree, hidden)
        hidden.mkdir()
        (hidden / "file").write_text(found["secret"])
        found["hidden"] = str(hidden / "file")
        named = stack.enter_context(socket.socket(socket.AF_UNIX))
        named.bind(str(hidden / "socket"))
        named.listen()
        found["socket"] = str(hidden / "socket")
        memory = Path("/dev/shm") / mark
        stack.callback(memory.unlink)
        memory.write_text(found["secret"])
        found["key"] = int(uuid.uuid4().hex[:7], 16)
        segment = libc.shmget(found["key"], 4096, 0o1600 | 0o200)
        stack.callback(libc.shmctl, segment, 0, None)
        found["read_only"] = "/input"
        yield found


@pytest.fixture
def work(baits: dict[str, Any], tmp_path: Path) -> Path:
    directory = tmp_path / "work"
    directory.mkdir()
    (directory / "host.json").write_text(json.dumps(baits))
    shutil.copy(HERE / "escape.py", directory)
    (directory / "outside").symlink_to(baits["hidden"])
    return directory


def _listening(work: Path, read_only: Path) -> list[socket.socket]:
    """Sockets of the host's in directories that the guest is given."""
    heard = []
    for kind, path in (
        (socket.SOCK_STREAM, work / "socket"), (socket.SOCK_STREAM, read_only / "socket"),
        (socket.SOCK_DGRAM, work / "datagrams"),
    ):  # fmt: skip
        one = socket.socket(socket.AF_UNIX, kind)
        one.setblocking(False)
        one.bind(str(path))
        path.chmod(0o777)
        if kind == socket.SOCK_STREAM:
            one.listen()
        heard.append(one)
    return heard


@pytest.mark.limit(120)
def test_no_escape(baits: dict[str, Any], work: Path, tmp_path: Path) -> None:
    read_only = tmp_path / "read-only"
    read_only.mkdir()
    (read_only / "file").write_text("unchanged")
    heard = _listening(work, read_only)
    device = os.stat("/dev/full")
    command = detbox(["python3", "escape.py", "host.json"], [f"--ro={read_only}:/input", "--timeout=60"])
    env = os.environ | environment() | {"DETBOX_BAIT": baits["secret"]}
    run = subprocess.run(command, cwd=work, env=env, capture_output=True, text=True, check=False)
    leaks = [line for line in run.stdout.splitlines() if line.startswith("LEAK")]
    assert run.returncode == 0, run.stderr
    assert not leaks, "\n".join(leaks)
    assert run.stdout.endswith("EXIT-SUCCESS\n"), run.stdout
    assert not os.path.exists(f"/sys/fs/cgroup/{baits['mark']}")
    assert sorted(p.name for p in read_only.iterdir()) == ["file", "socket"]
    assert (read_only / "file").read_text() == "unchanged"
    for one in heard:
        with one, pytest.raises(BlockingIOError):
            one.recv(1) if one.type == socket.SOCK_DGRAM else one.accept()
    after = os.stat("/dev/full")
    assert (device.st_mode, device.st_uid, device.st_mtime_ns) == (after.st_mode, after.st_uid, after.st_mtime_ns)


PLACES = ("/etc", "/usr", "/opt", "/var", "/root", "/tmp")
CHANGES = """
mark=$1
rm -rf "/var/tmp/$mark"
for d in /etc /usr /opt /var /root /tmp; do echo x > "$d/$mark" || echo "no $d"; done
ls -d "/var/tmp/$mark" /etc/"$mark"
chmod 600 /etc/passwd; touch /etc/passwd; echo "$mark" >> /etc/hostname
echo EXIT-SUCCESS
"""


@pytest.mark.limit(120)
def test_changes_of_the_system_vanish() -> None:
    mark = f"detbox-bait-{uuid.uuid4().hex}"
    kept = Path("/var/tmp") / mark
    kept.mkdir()
    (kept / "file").write_text("unchanged")
    before = os.stat("/etc/passwd")
    try:
        demand_success(twice(["sh", "-c", CHANGES, "sh", mark]))
        assert (kept / "file").read_text() == "unchanged"
        assert not [d for d in PLACES if os.path.exists(f"{d}/{mark}")]
        after = os.stat("/etc/passwd")
        assert (before.st_mode, before.st_mtime_ns) == (after.st_mode, after.st_mtime_ns)
    finally:
        shutil.rmtree(kept)
