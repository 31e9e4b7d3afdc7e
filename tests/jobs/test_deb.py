"""`detbox deb` as a command: a package of a few lines, built in a real build root."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from detbox.cache.store import Store
from tests.harness.debian import CHANGELOG, command, describe, detbox, environment, make_source, need_image


@pytest.fixture(scope="module")
def image() -> None:
    need_image()


def make_release(place: Path) -> Path:
    """The .dsc of a release with nothing but a Makefile, and of Debian's changes to it."""
    listed = ""
    for name, member, text in (
        ("few-lines_1.0.orig.tar.gz", "few-lines-1.0/Makefile", "all:\n\tdate >date; pwd >place; id -un >user\n"),
        ("few-lines_1.0-1.debian.tar.xz", "debian/changelog", CHANGELOG.replace("1.0", "1.0-1")),
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
    differing = ["date", "place", *([] if os.geteuid() else ["user"])]  # an ordinary user has one user
    assert [name.partition(": ")[2] for name in said["native"]["files"]] == differing
    assert {"date", "build path"} <= set(said["native"]["causes"])


def test_build_verify_and_rebuild(image: None, tmp_path: Path) -> None:
    tree = make_source(tmp_path)
    cache = ["--cache", f"--cache-dir={tmp_path / 'cache'}"]
    built = detbox("build", *cache, tree, "--output", "out", cwd=tmp_path)
    assert built.returncode == 0, built.stderr
    names = sorted(os.listdir(tmp_path / "out"))
    stem = "few-lines_1.0_amd64"
    assert names == ["few-lines_1.0_all.deb", f"{stem}.build", f"{stem}.buildinfo", f"{stem}.changes"]
    log = (tmp_path / "out" / f"{stem}.build").read_text()
    assert log == built.stdout
    assert all(line.startswith("[") for line in log.splitlines())
    shutil.move(tree, tmp_path / "elsewhere")
    again = detbox("build", *cache, "./elsewhere", "--output", "again", cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, built.stdout)
    for name in names:
        assert (tmp_path / "again" / name).read_bytes() == (tmp_path / "out" / name).read_bytes()
    options = [*cache, "--native", "--json", "--output", "proof", "--no-perturb", "load"]
    verified = detbox("verify", *options, "./elsewhere", cwd=tmp_path)
    assert verified.returncode == 0, verified.stdout + verified.stderr
    said = json.loads(verified.stdout)
    assert said["identical"]
    assert said["native"]["differing"] == ["few-lines_1.0_all.deb"]
    proof = json.loads((tmp_path / "proof" / f"{stem}.intoto.json").read_text())
    assert {item["name"]: item["digest"]["sha256"] for item in proof["subject"]} == said["artefacts"]
    assert set(said["artefacts"]) == set(names)
    store = Store(str(tmp_path / "cache"))
    assert [run["result"] for run in store.runs()] == ["hit", "hit", "miss"], "verify's first build as well"
    store.close()


def test_rebuilding_what_detbox_and_what_a_daemon_of_debian_recorded(image: None, tmp_path: Path) -> None:
    make_source(tmp_path).rename(tmp_path / "few-lines-1.0")
    subprocess.run(["tar", "-cJf", "few-lines_1.0.tar.xz", "few-lines-1.0"], cwd=tmp_path, check=True)
    dsc = describe(tmp_path / "few-lines_1.0.tar.xz")
    assert detbox("build", "-q", dsc, cwd=tmp_path).returncode == 0
    record = tmp_path / "few-lines_1.0_amd64.buildinfo"
    again = detbox("rebuild", record, cwd=tmp_path)
    assert (again.returncode, again.stdout) == (0, "identical: few-lines_1.0_all.deb\n"), again.stderr
    # Debian's have another path, more of an environment, a signature, and nothing about the source.
    path, other = "/build/reproducible-path/few-lines-1.0", tmp_path / "few-lines_1.0_amd64-buildd.buildinfo"
    lines = [line for line in record.read_text().splitlines() if not line.startswith("Build-Date")]
    lines = [f"Build-Path: {path}" if line.startswith("Build-Path") else line for line in lines]
    head, more = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA512\n", ' LC_COLLATE="C.UTF-8"'
    text = "\n".join([head, *lines, more, "Build-Origin: Debian"])
    other.write_text(text + "\n\n-----BEGIN PGP SIGNATURE-----\n\nx\n-----END PGP SIGNATURE-----\n")
    done = detbox("rebuild", other, "--output", "out", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "DIFFERENT: few-lines_1.0_all.deb\n"), done.stderr
    subprocess.run(["dpkg-deb", "-x", "out/few-lines_1.0_all.deb", "x"], cwd=tmp_path, check=True)
    place = (tmp_path / "x/usr/share/few-lines/place").read_text()
    assert place == f"builder\n{path}\n4\n{place.splitlines()[3]}\n"


def test_a_build_that_needs_root(image: None, tmp_path: Path) -> None:
    steps = (
        "cp -a debian/changelog debian/few-lines/copied",
        "install -m 4755 -g games /bin/true debian/few-lines/tool",
        "touch debian/few-lines/given; chown www-data:33 debian/few-lines/given; ln -s given debian/few-lines/link",
        "echo $$(id) $$USER $$(stat -c %U debian/built . .. /build /etc) > debian/few-lines/who",
        "! touch /etc/x 2>/dev/null || rm /etc/x",
    )
    tree = make_source(tmp_path, step="\n\t".join(steps))
    control, rules = tree / "debian/control", tree / "debian/rules"
    control.write_text(control.read_text().replace("Requires-Root: no", "Requires-Root: binary-targets"))
    built = "id -un > debian/built; install -d -m 2755 debian/set"
    rules.write_text(
        rules.read_text().replace("--root-owner-group ", "").replace(" binary-arch:", f" binary-arch:\n\t{built}", 1)
    )
    done = detbox("build", tree, "--output", "out", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    package = tmp_path / "out/few-lines_1.0_all.deb"
    listed = subprocess.run(["dpkg-deb", "-c", package], capture_output=True, text=True, check=True).stdout
    owners = {words[5]: words[:2] for words in map(str.split, listed.splitlines())}
    assert owners["./copied"] == ["-rw-r--r--", "root/root"]
    assert owners["./tool"] == ["-rwsr-xr-x", "root/games"]
    assert owners["./given"] == ["-rw-r--r--", "www-data/www-data"]
    assert owners["./link"] == ["lrwxrwxrwx", "root/root"]
    subprocess.run(["dpkg-deb", "-x", package, tmp_path / "x"], check=True)
    assert (tmp_path / "x/who").read_text() == (
        "uid=0(root) gid=0(root) groups=0(root) builder root root root root root\n"
    )


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
    tree = make_source(tmp_path, step="echo here; while sleep 1; do :; done")
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
