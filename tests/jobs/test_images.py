"""Images as commands: made by mmdebstrap out of local packages, run, exchanged, and never half-made."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from detbox.errors import HostError, UserError
from detbox.images import lock, pool, recipe
from detbox.images.recipe import Recipe
from detbox.images.store import Store
from tests.harness import under_detbox

pytestmark = pytest.mark.skipif(shutil.which("mmdebstrap") is None, reason="mmdebstrap is not installed")

SUBIDS = f"{under_detbox.USER}:100000:65536\n"


def detbox(*words: str, store: Path, user: str | None = None, cwd: Path | None = None) -> list[str]:
    """A command line that runs detbox with this store, as somebody who has subordinate ids."""
    env = {**under_detbox.environment(), "DETBOX_STORE": str(store), "PATH": os.environ["PATH"]}
    python = under_detbox.DEBIAN_PYTHON if under_detbox.unprivileged() else sys.executable
    command = ["env", "-i", *(f"{name}={value}" for name, value in env.items()), python, "-m", "detbox", *words]
    if user is None:
        return command
    script = 'mount --bind "$1" /etc/subuid && mount --bind "$1" /etc/subgid && shift && exec "$@"'
    return ["unshare", "-m", "sh", "-c", script, "sh", str(store.parent / "subids"), "runuser", "-u", user, "--",
            *command]  # fmt: skip


def run(command: Sequence[str], cwd: Path | str = "/") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=170, check=False)


@pytest.fixture
def public() -> Iterator[Path]:
    """A directory that everybody may enter: pytest closes its own to other users whenever it starts."""
    with tempfile.TemporaryDirectory(prefix="detbox-images-") as place:
        os.chmod(place, 0o755)
        yield Path(place)


@pytest.fixture
def others(public: Path) -> Path:
    """A directory of the ordinary user's own; skips where there is none."""
    user = under_detbox.unprivileged()
    if user is None or shutil.which("newuidmap") is None:
        pytest.skip("no ordinary user can be had here")
    place = public / "others"
    place.mkdir()
    (place / "subids").write_text(SUBIDS)
    shutil.chown(place, user)
    return place


def package(folder: Path, name: str, version: str, files: dict[str, bytes], control: str = "") -> None:
    """A binary package made on the spot."""
    top = folder / f"{name}.tree"
    (top / "DEBIAN").mkdir(parents=True)
    (top / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: {version}\nArchitecture: all\nMaintainer: T <t@example>\n{control}"
        "Description: test\n"
    )
    for path, content in files.items():
        (top / path).parent.mkdir(parents=True, exist_ok=True)
        (top / path).write_bytes(content)
    made = folder / f"{name}_{version}_all.deb"
    env = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    subprocess.run(["dpkg-deb", "--root-owner-group", "-b", str(top), str(made)], env=env, check=True,
                   capture_output=True)  # fmt: skip
    shutil.rmtree(top)


def archive(folder: Path) -> str:
    """An archive of the suite "tiny" with all packages in a directory; its line for apt, unsigned."""
    folder.chmod(0o755)
    stanzas = []
    for deb in sorted(folder.glob("*.deb")):
        control = subprocess.run(["dpkg-deb", "-f", str(deb)], capture_output=True, text=True, check=True).stdout
        digest = hashlib.sha256(deb.read_bytes()).hexdigest()
        stanzas.append(f"{control}Filename: {deb.name}\nSize: {deb.stat().st_size}\nSHA256: {digest}\n")
    shutil.rmtree(folder / "dists", ignore_errors=True)
    pool.describe(folder, "tiny", "\n".join(stanzas))
    return f"file://{folder} tiny main"


@pytest.fixture
def packages(public: Path) -> Path:
    folder = public / "archive"
    folder.mkdir()
    package(folder, "first", "1.0", {"usr/bin/first": b"#!/bin/sh\n"}, "Depends: second\n")
    package(folder, "second", "2:2.0~rc1", {"etc/second": b"two\n"})
    return folder


TINY = Recipe("tiny", "tiny", "extract", packages=("first",))


def test_an_image_is_made_of_local_packages(tmp_path: Path, packages: Path) -> None:
    store = Store(tmp_path / "store")
    mirror = "deb [trusted=yes] " + archive(packages)
    said: list[str] = []
    extra = recipe.ExtraFile("etc/extra", b"extra\n", 0o640, 3, 4)
    wanted = Recipe("tiny", "tiny", "extract", packages=("first",), files=(extra,))
    image = store.build(wanted, mirrors=[mirror], notice=said.append)
    paths = {entry.path for entry in image.entries}
    assert {b"usr/bin/first", b"etc/second", b"etc/extra"} <= paths
    assert not any(path.startswith((b"dev/", b"etc/apt/sources.list.d/")) for path in paths)
    assert not paths & {b"etc/apt/sources.list", b"etc/resolv.conf", b"etc/hostname"}
    assert str(packages).encode() not in b"".join(
        path.read_bytes() for path in image.root.rglob("*") if path.is_file() and not path.is_symlink()
    )
    assert any("downloading" in phase for phase in said)
    time.sleep(1.1)
    assert store.build(wanted, "again", mirrors=[mirror]).digest == image.digest


def test_an_ordinary_user_makes_the_same_image(tmp_path: Path, packages: Path, others: Path) -> None:
    file = packages / "tiny.toml"
    file.write_text('suite = "tiny"\nvariant = "extract"\npackages = ["first"]\n')
    words = ["image", "build", str(file), "--mirror", "deb [trusted=yes] " + archive(packages)]
    mine = run(detbox(*words, store=tmp_path / "store"))
    theirs = run(detbox(*words, store=others / "store", user=under_detbox.USER))
    assert mine.returncode == theirs.returncode == 0, mine.stderr + theirs.stderr
    assert mine.stdout == theirs.stdout and mine.stderr == theirs.stderr == ""
    assert list((others / "store/tmp").iterdir()) == []


def test_an_untrusted_archive_is_refused(tmp_path: Path, packages: Path) -> None:
    with pytest.raises(HostError, match="not signed|signed") as caught:
        Store(tmp_path / "store").build(TINY, mirrors=["deb " + archive(packages)])
    assert "signature" in caught.value.remedy


def test_an_unknown_package_is_the_users_mistake(tmp_path: Path, packages: Path) -> None:
    with pytest.raises(UserError, match="nosuch"):
        wanted = Recipe("tiny", "tiny", "extract", packages=("nosuch",))
        Store(tmp_path / "store").build(wanted, mirrors=["deb [trusted=yes] " + archive(packages)])


def test_a_mirror_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    with pytest.raises(HostError, match="127.0.0.1") as caught:
        store.build(TINY, mirrors=["http://127.0.0.1:9/debian"])
    assert "mirror" in caught.value.remedy
    assert store.images() == [] and list((store.path / "tmp").iterdir()) == []


def test_only_locked_packages_are_fetched(tmp_path: Path, public: Path, packages: Path) -> None:
    mirror = "deb [trusted=yes] " + archive(packages)
    digests = {path.name.partition("_")[0]: path for path in packages.glob("*.deb")}
    locked = [
        lock.Locked(name, version, "all", hashlib.sha256(digests[name].read_bytes()).hexdigest(), 0)
        for name, version in (("first", "1.0"), ("second", "2:2.0~rc1"))
    ]
    package(packages, "second", "3.0", {"etc/second": b"three\n"})
    mirror = "deb [trusted=yes] " + archive(packages)
    work = public / "work"
    work.mkdir()
    [line] = pool.fetch(locked, "tiny", [mirror], work, lambda phase: None)
    image = Store(tmp_path / "store").build(TINY, mirrors=[line])
    assert (image.root / "etc/second").read_bytes() == b"two\n"
    for altered in (
        [lock.Locked("first", "1.0", "all", "0" * 64, 0)],
        [lock.Locked("first", "0.9", "all", "0" * 64, 0), lock.Locked("gone", "1", "all", "0" * 64, 0)],
    ):
        shutil.rmtree(work)
        work.mkdir()
        with pytest.raises(UserError, match="another file|no longer has 2 of 2.*first 0.9, gone 1"):
            pool.fetch(altered, "tiny", [mirror], work, lambda phase: None)


def test_a_killed_build_leaves_nothing(tmp_path: Path, packages: Path) -> None:
    store = tmp_path / "store"
    file = tmp_path / "tiny.toml"
    file.write_text('suite = "tiny"\nvariant = "extract"\npackages = ["first"]\n')
    command = detbox("image", "build", str(file), "--mirror", "deb [trusted=yes] " + archive(packages), store=store)
    scratch = tmp_path / "scratch"
    scratch.mkdir(mode=0o755)
    command.insert(2, f"TMPDIR={scratch}")
    process = subprocess.Popen(command, cwd="/", start_new_session=True)
    while process.poll() is None and not list(scratch.glob("*/mmdebstrap.*")):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert Store(store).names() == [] and Store(store).images() == []
    deadline = time.monotonic() + 60
    while _uses(str(scratch).encode()):
        assert time.monotonic() < deadline, "mmdebstrap outlives detbox"
        time.sleep(0.05)
    done = run(detbox("image", "gc", store=store))
    assert done.returncode == 0, done.stderr
    assert list(scratch.iterdir()) == [] and list((store / "tmp").iterdir()) == []


def _uses(word: bytes) -> bool:
    """Whether a process has this in its environment or its command line."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and word in (entry / "environ").read_bytes() + (entry / "cmdline").read_bytes():
                return True
    return False


def small_system(path: Path) -> Path:
    """A tarball with a shell, a few tools of this machine, and files of other owners."""
    programs = [shutil.which(name) or "" for name in ("sh", "ls", "cat", "chown", "chmod", "rm", "mkdir")]
    files = set(programs)
    for program in programs:
        listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
        files.update(word for word in listed.split() if word.startswith("/"))
    with tarfile.open(path, "w") as tar:
        def add(name: str, content: bytes | None, mode: int, uid: int = 0, gid: int = 0) -> None:
            info = tarfile.TarInfo(name)
            info.mode, info.uid, info.gid = mode, uid, gid
            info.type = tarfile.DIRTYPE if content is None else tarfile.REGTYPE
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))

        for name in sorted(files):
            add("bin/" + os.path.basename(name) if name in programs else name[1:], Path(name).read_bytes(), 0o755)
        add("data", None, 0o555)
        add("data/private", b"private\n", 0o600, 33, 44)
        add("data/suid", b"suid\n", 0o6755, 5, 6)
        add("data/open", None, 0o1777, 7, 0)
        add("data/shut", None, 0o000, 8, 9)
        add("data/shut/in", b"in\n", 0o640, 8, 9)
        add("etc/passwd", b"root:x:0:0::/:/bin/sh\n", 0o644)
    return path


SCRIPT = """\
ls -lanR /data; cat /data/private /data/shut/in; echo more >> /data/private; chown 1:2 /data/suid
chmod 700 /data/shut; mkdir /data/new; rm /data/shut/in; ls -lanR /data; cat /data/private
"""


def test_every_user_sees_the_same_owners(tmp_path: Path, public: Path, others: Path) -> None:
    source = small_system(public / "system.tar")
    seen = []
    for store, user in ((tmp_path / "store", None), (others / "store", under_detbox.USER)):
        imported = run(detbox("image", "import", str(source), "small", store=store, user=user))
        assert imported.returncode == 0, imported.stderr
        work = store.parent / "work"
        work.mkdir()
        if user is not None:
            shutil.chown(work, user)
        for image in ("small", str(source)):
            done = run(detbox("run", "--image", image, "--", "sh", "-c", SCRIPT, store=store, user=user), cwd=work)
            assert done.returncode == 0, done.stderr
            seen.append(done.stdout)
    assert "-rw------- 1 33 44" in seen[0] and "drwxrwxrwt 1  7" in seen[0] and "-rwsr-sr-x 1  5  6" in seen[0]
    assert seen[1:] == seen[:1] * 3


def test_two_users_verify_the_same(tmp_path: Path) -> None:
    store = tmp_path / "store"
    Store(store).import_tar(str(small_system(tmp_path / "system.tar")), "small")
    (tmp_path / "work").mkdir()
    words = ["verify", "--json", "--no-perturb=load", "--no-perturb=memory", "--image", "small", "--"]
    done = run(detbox(*words, "sh", "-c", SCRIPT, store=store), cwd=tmp_path / "work")
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_run_keeps_its_image(tmp_path: Path) -> None:
    place = tmp_path / "store"
    store = Store(place)
    store.import_tar(str(small_system(tmp_path / "system.tar")), "small")
    words = detbox("run", "--image", "small", "--", "sh", "-c", "echo; read x; ls /data", store=place)
    process = subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin is not None and process.stdout is not None
    assert process.stdout.readline() == "\n"
    removed = run(detbox("image", "rm", "small", store=place))
    assert removed.returncode == 0 and "something else uses them" in removed.stderr
    assert "in use and kept" in run(detbox("image", "gc", store=place)).stdout
    assert process.communicate("x\n")[0] == "open\nprivate\nshut\nsuid\n"
    assert "removed 1 image" in run(detbox("image", "gc", store=place)).stdout
    assert store.images() == []


def test_the_commands(tmp_path: Path) -> None:
    store = tmp_path / "store"
    source = small_system(tmp_path / "system.tar")

    def image(*words: str, status: int = 0) -> str:
        done = run(detbox("image", *words, store=store), cwd=tmp_path)
        assert done.returncode == status, done.stderr
        return done.stdout + done.stderr

    assert "recipes not built yet: bookworm-buildd" in image("list")
    image("import", str(source), "small")
    for name in ("out.tar", "out.tar.gz"):
        image("export", "small", name)
    image("export", "small", "layout", "--format", "oci")
    for number, name in enumerate(("out.tar", "out.tar.gz", "layout")):
        image("import", name, f"copy{number}")
        assert "identical" in image("diff", "small", f"copy{number}")
    assert "exists already" in image("export", "small", "out.tar", status=125)
    assert "1 images are sound" in image("check")
    assert "digest    sha256:" in image("show", "small")
    assert "no lock file" in image("show", "small", "--lock", status=125)
    with tarfile.open(source, "a") as tar:
        tar.addfile(tarfile.TarInfo("more"))
    image("import", str(source), "other")
    assert "+ /more" in image("diff", "small", "other", status=1)
    assert "no image 'nosuch'" in image("show", "nosuch", status=125)
    image("rm", "small", "copy0", "copy1", "copy2", "other")
    assert Store(store).images() == []


@pytest.mark.limit(600)
def test_debian_is_the_same_when_it_is_made_again(tmp_path: Path) -> None:
    """The smallest Debian from the system's own archive, and once more from its lock file."""
    store, minbase = Store(tmp_path / "store"), f"{recipe.default_suite()}-minbase"
    try:
        image = store.build(minbase)
    except HostError as error:
        pytest.skip(f"no archive is in reach: {error.message.splitlines()[-1]}")
    (tmp_path / "lock").write_text((store.record(image.name) or {})["lock"])
    locked = lock.load(tmp_path / "lock")
    assert len(locked.packages) == len(image.packages) > 50
    assert store.build(minbase, "again", locked=locked).digest == image.digest
    done = run(detbox("run", "--image", minbase, "--", "apt-get", "--version", store=store.path), tmp_path)
    assert done.stdout.startswith("apt "), done.stderr
