"""The directories that an ordinary user's runs keep from one to the next: whether they are there does not show."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import under_detbox

SCRIPT = r"""
cd /usr/share/doc
mkdir new; echo x > bash/new; chmod 750 bash; rm -r coreutils; touch -d 2001-01-01 bash /etc; mv dash moved; rmdir new
ln -s nowhere /usr/lib/link; echo y >> /etc/passwd; rm -rf /etc/alternatives; mkdir -m 3777 /var/lib/new
stat -c '%n %i %h %a %u %g %s %y %z %w' . .. bash bash/* moved moved/* /etc /etc/passwd /usr /usr/lib /var/lib/new
find /etc /usr/share/doc /opt -xdev -type d -printf '%p %i %n %m %U %G %t %c\n' | sha256sum
ls -laR /etc | sha256sum
cat /proc/mounts; df /usr; ls -la / /var
"""


def in_memory() -> str | None:
    """A directory in memory that can be a layer of an ordinary user's overlay; None if there is none.

    To make and to remove tens of thousands of directories takes a disk that others use up to a minute.
    """
    probe = tempfile.mkdtemp(prefix="detbox-kept-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        os.setxattr(probe, "user.overlay.opaque", b"y")  # not on a tmpfs before Linux 6.6
        return os.path.dirname(probe)
    except OSError:
        return None
    finally:
        os.rmdir(probe)


@pytest.fixture
def home() -> Iterator[tuple[str, Path]]:
    """An ordinary user, and a directory of theirs for caches, in memory if that can be.

    It is none of pytest's, which closes its own to other users whenever it starts.
    """
    user = under_detbox.unprivileged()
    if user is None:
        pytest.skip("no ordinary user who can run detbox")
    cache = Path(tempfile.mkdtemp(prefix="detbox-kept-", dir=in_memory()))
    shutil.chown(cache, user)
    yield user, cache
    for directory, _, _ in os.walk(cache):
        os.chmod(directory, 0o700)
    shutil.rmtree(cache)


def environment(cache: Path) -> dict[str, str]:
    return under_detbox.environment() | {"XDG_CACHE_HOME": str(cache), "PATH": "/usr/bin:/bin"}


def run(user: str | None, cache: Path, script: str = SCRIPT) -> subprocess.CompletedProcess[bytes]:
    command = under_detbox.detbox(["sh", "-c", script], ["-C", "/tmp", "--timeout=100"])
    return subprocess.run(
        command, user=user, cwd="/", env=environment(cache), stdin=subprocess.DEVNULL, capture_output=True, check=False
    )


def tree(cache: Path) -> Path:
    return cache / "detbox" / "directories" / "tree"


def test_whether_they_are_kept_does_not_show(home: tuple[str, Path]) -> None:
    user, cache = home
    roots = run(None, cache / "root")
    assert (roots.returncode, roots.stderr) == (0, b"")
    for kept in (False, True, True):
        theirs = run(user, cache)
        assert (theirs.returncode, theirs.stderr) == (0, b"")
        assert theirs.stdout == roots.stdout
        assert tree(cache).exists() == kept
    assert (tree(cache) / "usr" / "share" / "doc" / "coreutils").is_dir()
    assert not (tree(cache) / "var" / "lib" / "new").exists()


def test_what_somebody_has_removed_of_them_is_missed_and_made_again(home: tuple[str, Path]) -> None:
    user, cache = home
    create = "echo x > /usr/share/doc/bash/new && cat /usr/share/doc/bash/new"
    for _ in range(2):
        assert run(user, cache, create).stdout == b"x\n"
    (tree(cache) / "usr" / "share" / "doc" / "bash").rmdir()
    assert run(user, cache, "cat /usr/share/doc/bash/copyright | head -n 1").returncode == 0
    without = run(user, cache, create)
    assert without.returncode == 125
    assert b"usr/share/doc/bash" in without.stderr
    assert b"run the command again" in without.stderr
    assert run(user, cache, create).stdout == b"x\n"


def test_killed_while_they_are_made(home: tuple[str, Path]) -> None:
    user, cache = home
    run(user, cache, "true")
    for delay in (0.3, 0.8, 1.5):
        command = under_detbox.detbox(["true"], ["-C", "/tmp"])
        process = subprocess.Popen(
            command, user=user, cwd="/", env=environment(cache), stdin=subprocess.DEVNULL, process_group=0
        )
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
    theirs = run(user, cache)
    assert (theirs.returncode, theirs.stdout) == (0, run(None, cache / "root").stdout)


def test_what_has_changed_on_the_host_since_they_were_made(home: tuple[str, Path]) -> None:
    user, cache = home
    host = Path(tempfile.mkdtemp(prefix="detbox-host-", dir="/var/tmp"))
    try:
        host.chmod(0o755)
        (host / "old" / "deep").mkdir(parents=True)
        (host / "mode").mkdir()
        for _ in range(2):
            assert run(user, cache, "true").returncode == 0
        below = tree(cache) / host.relative_to("/")
        assert (below / "old" / "deep").is_dir()
        shutil.rmtree(host / "old")
        (host / "new" / "sub").mkdir(parents=True)
        (host / "mode").chmod(0o1777)
        script = f"cd {host} && find . -printf '%p %i %n %m %u %g %t %c\\n'; mkdir new/sub/x old; rm -r mode; ls -laR"
        theirs, roots = run(user, cache, script), run(None, cache / "root", script)
        assert (theirs.returncode, theirs.stderr, theirs.stdout) == (0, b"", roots.stdout)
        assert not (below / "new").exists(), "it was laid above the tree"
    finally:
        shutil.rmtree(host)
