"""A host that is short of memory forgets directories that nobody uses at the moment: the guest does not notice."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "harness"))

from under_detbox import detbox, environment, unprivileged

_DROP = Path("/proc/sys/vm/drop_caches")

JOB = """
mkdir -p /var/lib/made/sub /opt/made; chmod 711 /var/lib/made; chown 7:8 /opt/made; touch -d 2001-02-03 /opt/made
look() { stat -c '%n %i %h %a %u %g %y' /var/lib/made /var/lib/made/sub /opt/made /etc/init.d; ls -ai /usr /etc /opt; }
look > first
for step in 1 2 3 4 5 6 7 8; do python3 -c 'sum(range(4_000_000))'; done
look > second; cmp first second
mkdir /var/lib/made/sub/later; look
"""


def _run(work: Path, user: str | None) -> bytes:
    work.mkdir()
    if user is not None:
        shutil.chown(work, user)
    command = detbox(["sh", "-c", JOB])
    done = subprocess.run(
        command, cwd=work, env=os.environ | environment(), stdin=subprocess.DEVNULL, capture_output=True,
        timeout=100, check=False, user=user,
    )  # fmt: skip
    return done.stdout + b"status %d\n" % done.returncode + done.stderr


@pytest.mark.skipif(not os.access(_DROP, os.W_OK), reason="only root can have the kernel forget what it caches")
@pytest.mark.parametrize("user", [None, unprivileged()], ids=["root", "ordinary"])
def test_forgotten_directories_are_the_same(user: str | None) -> None:
    with tempfile.TemporaryDirectory(prefix="detbox-test-") as place:  # pytest's own are root's alone
        os.chmod(place, 0o711)
        quiet = _run(Path(place, "quiet"), user)
        pressed = _pressed(Path(place, "pressed"), user)
    assert b"status 0\n" in quiet, quiet.decode()
    assert pressed.decode() == quiet.decode()


def _pressed(work: Path, user: str | None) -> bytes:
    over = threading.Event()

    def press() -> None:
        while not over.wait(0.05):
            _DROP.write_text("2")

    presser = threading.Thread(target=press)
    presser.start()
    try:
        return _run(work, user)
    finally:
        over.set()
        presser.join()
