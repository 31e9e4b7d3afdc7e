"""`detbox deb` as a command: a package of a few lines, built in a real build root."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_CONTROL = """\
Source: few-lines
Maintainer: A B <a@b.example>
Section: misc
Priority: optional
Standards-Version: 4.6.2
Rules-Requires-Root: no
{dependencies}
Package: few-lines
Architecture: all
Description: a package of a few lines
"""
_CHANGELOG = """\
few-lines (1.0) unstable; urgency=low

  * New.

 -- A B <a@b.example>  Sun, 01 Jan 2023 00:00:00 +0000
"""
_RULES = """\
#!/usr/bin/make -f
clean build build-indep build-arch binary-arch:
binary binary-indep:
	mkdir -p debian/few-lines/DEBIAN debian/few-lines/usr/share/few-lines
	date > debian/few-lines/usr/share/few-lines/date
	head -c 8 /dev/urandom > debian/few-lines/usr/share/few-lines/random
	(id -un; pwd; nproc; hostname) > debian/few-lines/usr/share/few-lines/place
	{step}
	dpkg-gencontrol -Pdebian/few-lines
	dpkg-deb --root-owner-group --build debian/few-lines ..
"""


def detbox(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    """The command, to its end."""
    return subprocess.run(command(*words), cwd=cwd, env=environment(), capture_output=True, text=True, check=False)


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "detbox", "deb", *map(str, words)]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.fixture(scope="module")
def image() -> None:
    """The image of build roots, in the user's store; made if there is none yet."""
    from detbox.images.store import Store

    if Store().find("bookworm-buildd") is None:
        build = [sys.executable, "-m", "detbox", "image", "build", "bookworm-buildd"]
        subprocess.run(build, cwd="/", env=environment(), check=True)


def make_source(place: Path, step: str = ":", dependencies: str = "") -> Path:
    """An unpacked source package.  ``step``: one more command of its build."""
    tree = place / "few-lines"
    (tree / "debian/source").mkdir(parents=True)
    (tree / "debian/source/format").write_text("3.0 (native)\n")
    (tree / "debian/control").write_text(_CONTROL.format(dependencies=dependencies))
    (tree / "debian/changelog").write_text(_CHANGELOG)
    (tree / "debian/rules").write_text(_RULES.format(step=step))
    (tree / "debian/rules").chmod(0o755)
    return tree


def make_release(place: Path) -> Path:
    """The .dsc of a release with nothing but a Makefile, and of Debian's changes to it."""
    listed = ""
    for name, member, text in (
        ("few-lines_1.0.orig.tar.gz", "few-lines-1.0/Makefile", "all:\n\tdate >date; pwd >place; id -un >user\n"),
        ("few-lines_1.0-1.debian.tar.xz", "debian/changelog", _CHANGELOG.replace("1.0", "1.0-1")),
    ):
        (place / member).parent.mkdir()
        (place / member).write_text(text)
        subprocess.run(["tar", "-caf", name, member], cwd=place, check=True)
        content = (place / name).read_bytes()
        listed += f"\n {hashlib.sha256(content).hexdigest()} {len(content)} {name}"
    dsc = place / "few-lines_1.0-1.dsc"
    dsc.write_text(f"Source: few-lines\nVersion: 1.0-1\nChecksums-Sha256:{listed}\n")
    return dsc


def test_a_release_that_nobody_has_packaged(image: None, tmp_path: Path) -> None:
    what = f"upstream:{make_release(tmp_path)}"
    verified = detbox("verify", "--native", "--json", "--no-perturb", "load", what, cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    said = json.loads(verified.stdout)
    assert sorted(said["artefacts"]) == ["few-lines_1.0_upstream.build", "few-lines_1.0_upstream.tar"]
    assert [name.partition(": ")[2] for name in said["native"]["files"]] == ["date", "place", "user"]
    assert {"date", "build path"} <= set(said["native"]["causes"])


def test_build_verify_and_rebuild(image: None, tmp_path: Path) -> None:
    tree = make_source(tmp_path)
    built = detbox("build", tree, "--output", "out", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    names = sorted(os.listdir(tmp_path / "out"))
    stem = "few-lines_1.0_amd64"
    assert names == ["few-lines_1.0_all.deb", f"{stem}.build", f"{stem}.buildinfo", f"{stem}.changes"]
    log = (tmp_path / "out" / f"{stem}.build").read_text()
    assert log == built.stdout
    assert all(line.startswith("[") for line in log.splitlines())
    shutil.move(tree, tmp_path / "elsewhere")
    options = ["--native", "--json", "--output", "proof", "--no-perturb", "load"]
    verified = detbox("verify", *options, "./elsewhere", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    said = json.loads(verified.stdout)
    assert said["identical"]
    assert said["native"]["differing"] == ["few-lines_1.0_all.deb"]
    proof = json.loads((tmp_path / "proof" / f"{stem}.intoto.json").read_text())
    assert {item["name"]: item["digest"]["sha256"] for item in proof["subject"]} == said["artefacts"]
    assert set(said["artefacts"]) == set(names)


def test_a_build_that_fails_leaves_its_log_alone(image: None, tmp_path: Path) -> None:
    tree = make_source(tmp_path, step="echo no luck; exit 3")
    failed = detbox("build", "-q", tree, "--output", "out", cwd=tmp_path)
    assert failed.returncode == 1
    assert os.listdir(tmp_path / "out") == ["few-lines_1.0_amd64.build"]
    assert "no luck" in (tmp_path / "out/few-lines_1.0_amd64.build").read_text()


def test_a_build_has_no_network(image: None, tmp_path: Path) -> None:
    step = "perl -MIO::Socket::INET -e 'exit !IO::Socket::INET->new(PeerAddr => q(192.0.2.1:80), Timeout => 5)'"
    failed = detbox("build", "-q", make_source(tmp_path, step=step), "--output", "out", cwd=tmp_path)
    assert failed.returncode == 1


def test_a_dependency_that_does_not_exist(image: None, tmp_path: Path) -> None:
    tree = make_source(tmp_path, dependencies="Build-Depends: no-such-package-at-all\n")
    failed = detbox("build", "-q", tree, "--output", "out", cwd=tmp_path)
    assert failed.returncode == 125
    assert "no-such-package-at-all" in failed.stderr
    assert not (tmp_path / "out").exists()


def test_an_interrupt_leaves_nothing(image: None, tmp_path: Path) -> None:
    tree = make_source(tmp_path, step="echo here; perl -e '$$x++ while 1'")
    process = subprocess.Popen(
        command("build", tree, "--output", "out"), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**environment(), "TMPDIR": str(tmp_path)}, text=True,
    )  # fmt: skip
    assert process.stdout is not None
    for line in process.stdout:
        if "] here" in line:
            break
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode == 130
    assert sorted(os.listdir(tmp_path)) == ["few-lines"]
