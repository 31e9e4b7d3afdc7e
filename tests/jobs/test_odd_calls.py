"""Calls with odd arguments answer under detbox what they answer natively, or there is a reason."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from under_detbox import hosts, run_on, unprivileged

PROGRAM = Path(__file__).parent / "odd_calls.py"
TABLE = PROGRAM.with_name("odd_shapes.py")
PYTHON = "/usr/bin/python3"
#: One in so many calls of each shape; the whole table takes ten minutes.
EVERY = 9
#: Lines that differ, and why they may.
KNOWN = {
    r"(mmap|sendfile|copy_file_range)\(.*proc, ": "synthetic files of /proc are files in memory",
    r"p?(write|writev)[v2]*(64)?\(proc, ": "the same; for writing without the right to",
    r"f(getxattr|chmod)\(proc, ": "the same",
    r"(l?chown|utimes?|getxattr)\(<13 bytes>, |(fchownat|utimensat)\(-0x64, <13 bytes>, ": "the same of /proc/self/fd",
    r"ioctl\(terminal, ": "unknown requests of terminals are refused",
    r"ioctl-(flags|clone)\(": "requests of file systems are refused: they depend on the host's",
    r"fcntl-lease\(": "leases are broken by other processes of the host",
    r"fcntl-hint\(": "hints are accepted for all descriptors",
    r"(name_to_handle_at|kcmp|clock_settime)\(": "refused as a whole, whatever the arguments",
    r"(mlock|readahead)\(": "succeeds as a whole, whatever the arguments",
    r"(clock_\w+|timer_create|timerfd_create)\((0x)?[89],": "clocks that wake a machine are there on any host",
    r"fgetxattr\(-0x64, ": "the current directory is a descriptor for it since Linux 6.13",
    r"memfd_create\('name', 0x4\)": "there are no huge pages",
    r"prctl\(0x41, ": "PR_SET_MDWE is not there",
    r"(preadv2|pwritev2)\(.* 0x(8|80)\)": "what depends on the cache of pages or on the kernel is refused",
    r"copy_file_range\(.*memory, ": "copied between file systems, too: which files share one is the host's affair",
    r"(membarrier|sched_getaffinity|sched_get_priority_max)\(": "the processors and the kernel are virtual",
    r"setsockopt-tcp\(.*0x1f, ": "protocols above TCP depend on the host",
    r"(sem|shm|msg)\w+\(": "an object that nobody has rights on is the container's, not the guest's",
    r"f?chown\((null|zero|master), ": "devices belong to the guest's root",
    r"fchmod\((null|zero|master), ": "devices belong to the guest's root",
    r"(sendfile|splice)\(.*(listener|null)": "data that goes nowhere is found out later",
    r"splice\(": "which of two errors comes first",
    r"(connect|connect-unix|timerfd_[gs]ettime)\(path-only": "which of two errors comes first",
    r"(sched_setattr|sendto-address|getrandom)\(.*edge": "a structure that ends at unmapped memory is not read in part",
    r"(madvise|fallocate|renameat2)\(": "what depends on rights or file systems of the host is not there",
    r"p?select6?\(0x7fffffff": "bits after the last descriptor are looked at",
    r"getdents64\(.*0x(80000000|f+)\)": "the address range of the buffer is not looked at",
}


def lines(text: bytes) -> dict[str, str]:
    found = (re.match(r"(.*\))(?: = |: )(.*)", line) for line in text.decode().splitlines())
    return {match[1]: match[2] for match in found if match}


def copy_program(work: Path) -> None:
    for source in (PROGRAM, TABLE):
        shutil.copy(source, work)


def natively(work: Path) -> bytes:
    """As an ordinary user and the root of a user namespace: the host's root could do harm with such calls."""
    user = unprivileged()
    if os.geteuid() == 0 and user is None:
        pytest.skip("needs an ordinary user")
    copy_program(work)
    script = f"{PYTHON} {PROGRAM.name} {EVERY}; :"
    command = ["setarch", "-R", "unshare", "-Urmpfi", "--mount-proc", "sh", "-c", script]
    become = {} if user is None else {"user": user, "group": user, "extra_groups": []}
    run = subprocess.run(command, cwd=work, stdin=subprocess.DEVNULL, capture_output=True, check=False, **become)
    return run.stdout


@pytest.mark.limit(300)
def test_odd_calls_answer_as_natively(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory() as name:  # others may not enter what pytest makes
        work = Path(name)
        work.chmod(0o777)
        native = lines(natively(work))
    assert len(native) > 1000
    copy_program(tmp_path)
    script = f"{PYTHON} {PROGRAM.name} {EVERY}; :"
    run = run_on(hosts()[0], ["sh", "-c", script], tmp_path, limit_s=200)
    ours = lines(run.stdout)
    assert ours.keys() == native.keys(), run.stderr[-2000:]
    differing = [f"{call} = {native[call]}, not {ours[call]}" for call in native if native[call] != ours[call]]
    unknown = [line for line in differing if not any(re.match(pattern, line) for pattern in KNOWN)]
    assert not unknown, "\n".join(unknown)
