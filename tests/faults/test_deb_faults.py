"""Builds of Debian packages that meet a full disk, an interrupt, each other, or a hostile source."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from detbox.images.recipe import default_suite
from tests.harness.debian import command, describe, environment, make_archive, make_source, need_image, served
from tests.unit.deb.test_source import make_source as make_dsc

STEM = "few-lines_1.0_amd64"


@pytest.fixture(scope="module")
def image() -> None:
    need_image()


def build(source: Path, output: Path, place: Path) -> subprocess.Popen[str]:
    """A build that has begun, with ``place`` for what is temporary."""
    env = {**environment(), "TMPDIR": str(place)}
    words = command("build", "-q", source, "--output", output)
    pipe = subprocess.PIPE
    return subprocess.Popen(words, stdout=pipe, stderr=pipe, text=True, env=env, cwd=output.parent)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk here")
@pytest.mark.parametrize("full", ["out", "tmp"])
def test_a_full_disk(image: None, tmp_path: Path, full: str) -> None:
    tree = make_source(tmp_path)
    for name in ("out", "tmp"):
        (tmp_path / name).mkdir()
    small = 'mount -t tmpfs -o size=4k none "$1" && shift && "$@"; status=$?; ls -A out tmp; exit $status'
    words = ["unshare", "-m", "sh", "-c", small, "sh", full, *command("build", "-q", tree, "--output", "out")]
    env = {**environment(), "TMPDIR": str(tmp_path / "tmp")}
    done = subprocess.run(words, capture_output=True, text=True, env=env, cwd=tmp_path, check=False)
    assert done.returncode == 125
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.split() == ["out:", "tmp:"]


#: dpkg's record of packages that need not be there.
_INSTALLED = "".join(
    f"Package: {name}\nStatus: install ok installed\nArchitecture: all\nVersion: 9\nMaintainer: x\nDescription: x\n\n"
    for name in ("build-essential", "fakeroot")
)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk here")
def test_a_full_disk_below_the_store(tmp_path: Path) -> None:
    tree, image = make_source(tmp_path), tmp_path / "image"
    (image / "var/lib/dpkg").mkdir(parents=True)
    (image / "var/lib/dpkg/status").write_text(_INSTALLED)
    (image / "large").write_bytes(bytes(3 << 20))
    subprocess.run(["tar", "-cf", tmp_path / "image.tar", "-C", image, "."], check=True)
    (tmp_path / "store").mkdir()
    steps = (
        'mount -t tmpfs -o size=5m none store && "$1" -m detbox image import --store store image.tar '
        f'{default_suite()}-buildd && "$@"; status=$?; "$1" -m detbox image check --store store; ls -A store/tmp;'
        " exit $status"
    )
    words = ["unshare", "-m", "sh", "-c", steps, "sh", *command("build", "-q", tree, "--store", "store", "-o", "out")]
    done = subprocess.run(words, capture_output=True, text=True, env=environment(), cwd=tmp_path, check=False)
    assert done.returncode == 125, done.stderr
    assert "No space left on device" in done.stderr and "Traceback" not in done.stderr
    assert re.search(r"^1 images are sound.*\n\Z", done.stdout, re.MULTILINE), done.stdout
    assert not (tmp_path / "out").exists()


_FETCH = """
import sys
from pathlib import Path
from detbox.deb import apt
from detbox.errors import HostError
text = f"Types: deb deb-src\\nURIs: {sys.argv[1]}\\nSuites: bookworm\\nComponents: main\\nTrusted: yes\\n"
apt.system_sources = lambda suite: text
try:
    private = apt.Apt("bookworm", Path("small/apt").absolute())
    private.prepare()
    print(private.fetch_source("few", None, Path("fetched")).name)
except (HostError, OSError) as error:
    print(error)
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a small disk here")
def test_a_full_disk_below_the_private_apt(tmp_path: Path) -> None:
    for name in ("archive", "small", "fetched"):
        (tmp_path / name).mkdir()
    make_archive(tmp_path / "archive", make_dsc(tmp_path / "archive", name="few"))
    sizes = ("4k", "64k", "64m")
    steps = (
        "mount -t tmpfs none small || exit; for size in " + " ".join(sizes) + "; do"
        ' mount -o remount,size=$size small && "$@" || exit; ls small/apt | grep ^tmp; done; ls fetched'
    )
    with served(tmp_path / "archive") as address:
        words = ["unshare", "-m", "sh", "-c", steps, "sh", sys.executable, "-c", _FETCH, address]
        done = subprocess.run(words, capture_output=True, text=True, check=False, env=environment(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count("No space left on device") == len(sizes) - 1
    assert done.stdout.splitlines()[-3:] == ["few_1.0.dsc", "few_1.0.dsc", "few_1.0.tar.xz"]
    assert "tmp" not in done.stdout


@pytest.mark.limit(600)  # the last delay is as long as a build takes on this host now
def test_an_interrupt_at_any_phase_leaves_nothing(image: None, tmp_path: Path) -> None:
    tree = make_source(tmp_path)
    place, out = tmp_path / "tmp", tmp_path / "out"
    place.mkdir()
    delay, interrupted = 0.01, 0
    while True:
        process = build(tree, out, place)
        while not os.listdir(place) and process.poll() is None:
            time.sleep(0.01)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(delay)
        process.send_signal(signal.SIGINT if interrupted % 2 else signal.SIGTERM)
        _, said = process.communicate(timeout=200)
        assert list(place.iterdir()) == []
        if process.returncode == 0:
            break
        assert process.returncode == 130, said
        assert re.search(r"^detbox: (interrupted|ended by SIG(INT|TERM))\Z", said.rstrip("\n"), re.MULTILINE), said
        # All results, if the signal came between the last of them and the end.
        assert not out.exists() or len(os.listdir(out)) in (0, 4)
        interrupted += 1
        delay *= 2
    assert interrupted >= 3
    assert len(os.listdir(out)) == 4


def test_two_builds_of_the_same_package_at_once(image: None, tmp_path: Path) -> None:
    tree, out = make_source(tmp_path), tmp_path / "out"
    (tmp_path / "tmp").mkdir()
    both = [build(tree, out, tmp_path / "tmp") for _ in range(2)]
    said = [process.communicate(timeout=150)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert said[0] == said[1]
    names = ["few-lines_1.0_all.deb", *(f"{STEM}.{kind}" for kind in ("build", "buildinfo", "changes"))]
    assert sorted(os.listdir(out)) == names
    for name in names:
        assert f"{hashlib.sha256((out / name).read_bytes()).hexdigest()}  {name}" in said[0]


def test_a_hostile_source_reaches_nothing(image: None, tmp_path: Path) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (tmp_path / "tmp").mkdir()
    tree = make_source(made)
    tarball, outside = tmp_path / "few-lines_1.0.tar.xz", tmp_path / "outside"
    with tarfile.open(tarball, "w:xz") as archive:
        archive.add(tree, "few-lines-1.0")
        for name, kind, mode, target in (
            (f"../../../../..{outside}", tarfile.REGTYPE, 0o644, ""), (f"{outside}-2", tarfile.REGTYPE, 0o644, ""),
            ("few-lines-1.0/setuid", tarfile.REGTYPE, 0o6755, ""), ("few-lines-1.0/disk", tarfile.BLKTYPE, 0o666, ""),
            ("few-lines-1.0/link", tarfile.SYMTYPE, 0o777, str(tmp_path)),
            (f"few-lines-1.0/link/{outside.name}", tarfile.REGTYPE, 0o644, ""),
        ):  # fmt: skip
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kind, mode, target
            member.devmajor = 8 if kind == tarfile.BLKTYPE else 0
            archive.addfile(member, io.BytesIO())
    dsc = describe(tarball)
    process = build(dsc, tmp_path / "out", tmp_path / "tmp")
    _, said = process.communicate(timeout=150)
    assert process.returncode == 1, said
    assert sorted(os.listdir(tmp_path)) == sorted([dsc.name, tarball.name, "made", "out", "tmp"])
    assert os.listdir(tmp_path / "out") == [f"{STEM}.build"] and os.listdir(tmp_path / "tmp") == []
    assert "tar" in (tmp_path / "out" / f"{STEM}.build").read_text()
