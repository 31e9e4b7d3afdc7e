"""The usual tools, run over a written-out /proc and /sys, show the virtual machine."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from detbox.synth.view import ProcessView
from tests.unit.synth.synth_guest import machine, write_proc, write_sys

NAMESPACES = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork"]
ENVIRON = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C", "TZ": "UTC", "COLUMNS": "200"}


def _can_unshare() -> bool:
    return subprocess.run([*NAMESPACES, "true"], capture_output=True, check=False).returncode == 0


pytestmark = pytest.mark.skipif(not _can_unshare(), reason="no user namespaces here")


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tool runs as PID 1 of its namespace, so PID 1 is an ordinary process here: ps looks itself up."""
    base = tmp_path_factory.mktemp("virtual")
    view = machine()
    tool = ProcessView(1, 0, 1, 1, b"tool", state="R")
    view = view._replace(processes={**view.processes, 1: tool})
    (base / "sys").mkdir()
    write_proc(base / "proc", view, own_pid=1)
    write_sys(base / "sys", view)
    return base


def run(trees: Path, *command: str) -> str:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    bind = f"mount --bind '{trees}/sys' /sys && mount --bind '{trees}/proc' /proc && exec \"$@\""
    line = [*NAMESPACES, "sh", "-c", bind, "sh", *command]
    done = subprocess.run(line, capture_output=True, text=True, env=ENVIRON, check=False, timeout=20)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_ps(trees: Path) -> None:
    text = run(trees, "ps", "-eLo", "pid,tid,ppid,stat,time,nlwp,comm,args")
    rows = sorted((line.split(None, 7) for line in text.splitlines()[1:]), key=lambda row: int(row[1]))
    assert [row[:3] for row in rows] == [
        ["1", "1", "0"], ["2", "2", "1"], ["17", "17", "2"], ["17", "18", "2"],
    ]  # fmt: skip
    assert rows[2][5:] == ["2", "sleep", "sleep 3600"] and rows[3][6] == "worker"
    assert "Jan  1 00:00:02 2020" in run(trees, "ps", "-o", "lstart=", "-p", "17")


def test_top(trees: Path) -> None:
    text = run(trees, "top", "-b", "-n1")
    assert re.search(r"Tasks: +3 total, +2 running", text) and re.search(r"8192.0 total, +6144.0 free", text)


def test_free_and_vmstat(trees: Path) -> None:
    assert run(trees, "free", "-m").splitlines()[1].split()[:4] == ["Mem:", "8192", "896", "6144"]
    assert run(trees, "vmstat").splitlines()[2].split()[3] == "6291456"


def test_pgrep_and_pmap(trees: Path) -> None:
    assert run(trees, "pgrep", "-l", "sleep") == "17 sleep\n"
    assert "libc.so.6" in run(trees, "pmap", "-x", "17")


def test_lscpu(trees: Path) -> None:
    text = run(trees, "lscpu")
    assert re.search(r"^CPU\(s\): +4$", text, re.M) and re.search(r"^Core\(s\) per socket: +4$", text, re.M)
    assert re.search(r"^NUMA node0 CPU\(s\): +0-3$", text, re.M) and "L3 cache" in text


def test_getconf_counts_virtual_cpus(trees: Path) -> None:
    assert run(trees, "getconf", "_NPROCESSORS_ONLN") == "4\n"


def test_mount_and_findmnt(trees: Path) -> None:
    assert "overlay on / type overlay (rw,noatime)" in run(trees, "mount")
    assert "/my dir" in run(trees, "findmnt")


def test_lsblk_and_ipcs(trees: Path) -> None:
    assert run(trees, "lsblk") == ""
    assert "0x00001092" in run(trees, "ipcs", "-m")


def test_sysctl(trees: Path) -> None:
    names = ("kernel.osrelease", "kernel.pid_max", "vm.max_map_count", "net.ipv4.ip_local_port_range")
    text = run(trees, "sysctl", "-n", *names)
    assert text.split() == ["6.1.0-detbox", "32768", "65530", "32768", "60999"]
